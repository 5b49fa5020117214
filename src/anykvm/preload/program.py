# SPDX-License-Identifier: GPL-2.0-only
"""Which programs a preloaded library does not reach, told before they start instead of after they fail."""

from __future__ import annotations

import os
import platform
import shutil
import stat
from pathlib import Path
from typing import Final

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

_MACHINES: Final = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64", "riscv64": "EM_RISCV", "s390x": "EM_S390"}
_DEPTH: Final = 4
"""How many interpreters the kernel follows from script to script (BINPRM_MAX_RECURSION)."""


class Unsuitable(Exception):
    """The program would not see /dev/kvm, or does not run here; one line that says why."""


def examine(program: Path, depth: int = 0) -> None:
    """Raise :class:`Unsuitable` for a program that the preload library does not get into."""
    mode = program.stat()
    if mode.st_mode & stat.S_ISUID and mode.st_uid != os.geteuid():
        raise Unsuitable(f"{program}: it is set-user-ID, and such programs take no preloaded library: run it as root")
    if mode.st_mode & stat.S_ISGID and mode.st_gid != os.getegid():
        raise Unsuitable(f"{program}: it is set-group-ID, and such programs take no preloaded library")
    try:
        with program.open("rb") as file:
            start = file.read(256)
            if start.startswith(b"#!") and depth < _DEPTH:
                _examine_script(program, start, depth)
            elif start.startswith(b"\x7fELF"):
                file.seek(0)
                _examine_elf(program, ELFFile(file))
    except PermissionError:
        return  # Executable but not readable: the kernel will run it, and we cannot look.
    except ELFError as error:
        raise Unsuitable(f"{program}: a damaged ELF file ({error})") from None


def _examine_script(program: Path, start: bytes, depth: int) -> None:
    words = start[2:].split(b"\n")[0].split(None, 1)
    if not words:
        return
    interpreter = Path(os.fsdecode(words[0]))
    if not interpreter.exists():
        raise Unsuitable(f"{program}: its interpreter {interpreter} is not there")
    if interpreter.name == "env" and len(words) > 1:
        name = next(
            (word for word in os.fsdecode(words[1]).split() if not word.startswith("-") and "=" not in word), ""
        )
        found = shutil.which(name)
        if found is None:
            raise Unsuitable(f"{program}: its interpreter {name} is not there")
        interpreter = Path(found)
    examine(interpreter, depth + 1)


def _examine_elf(program: Path, elf: ELFFile) -> None:
    machine = elf.header["e_machine"]
    here = platform.machine()
    if machine != _MACHINES.get(here, machine) or elf.elfclass != 64:
        name = str(machine).removeprefix("EM_").lower()
        raise Unsuitable(
            f"{program}: a {elf.elfclass}-bit {name} program, and exec takes those of this machine ({here})"
        )
    loader = next((s.get_interp_name() for s in elf.iter_segments() if isinstance(s, InterpSegment)), None)
    go = elf.get_section_by_name(".go.buildinfo") is not None
    if go:
        raise Unsuitable(f"{program}: a Go program, which makes system calls without libc: exec cannot serve those")
    if loader is None:
        raise Unsuitable(f"{program}: statically linked, so no library can be preloaded: link it dynamically")
    if "ld-musl" in loader:
        raise Unsuitable(f"{program}: linked with musl, and exec's library needs glibc: build it for glibc")
