# SPDX-License-Identifier: GPL-2.0-only
"""The GNU assembler for a guest architecture: the machine's own, or Debian's package unpacked in the cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from .apt import Apt
from .cache import Progress, cache_dir, locked, remove_leftovers, staged
from .closure import GLIBC, Closure
from .errors import GuestError, cache_errors, tail
from .machines import Machine, machine

_PROGRAMS = ("as", "ld", "objcopy")
_TIMEOUT = 60.0


@dataclass(frozen=True)
class Toolchain:
    """The GNU binary utilities for one architecture."""

    arch: str
    assembler: Path
    linker: Path
    objcopy: Path
    env: Mapping[str, str] = field(default_factory=dict, hash=False)
    """What the programs need in their environment, besides what is there."""

    def assemble(self, source: str | Path, *, base: int, options: Sequence[str] = ()) -> bytes:
        """Assembles `source` (text, or a file) and links it so that it starts at address `base`: a flat memory image.

        Symbols resolve as in a static program; ``_start`` need not exist. The image ends with the last byte that is in
        a file (.bss is not). `options` go to the assembler. ``GuestError`` has the assembler's complaint.
        """
        if base < 0 or base >= 1 << 64:
            raise GuestError(f"base address {base:#x} does not fit 64 bits")
        with tempfile.TemporaryDirectory(prefix="anykvm-as-") as name:
            folder = Path(name)
            if isinstance(source, Path):
                file = source.absolute()
            else:
                file = folder / "source.S"
                file.write_text(source if source.endswith("\n") else source + "\n")
            self._run(self.assembler, [*options, "-I", str(file.parent), "-o", "code.o", str(file)], folder)
            # -N: text is writable and not aligned to pages, so that the image has no headers and no gaps.
            link = [
                "-N",
                "-static",
                "--build-id=none",
                "-e",
                str(base),
                f"-Ttext={base:#x}",
                "-o",
                "code.elf",
                "code.o",
            ]
            self._run(self.linker, link, folder)
            return _flat((folder / "code.elf").read_bytes(), base)

    def _run(self, program: Path, arguments: list[str], folder: Path) -> None:
        try:
            done = subprocess.run(
                [str(program), *arguments],
                cwd=folder,
                env={**os.environ, "LC_ALL": "C", **self.env},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=_TIMEOUT,
                check=False,
            )
        except OSError as error:
            raise GuestError(
                f"{program} cannot be started ({error.strerror}): install binutils for {self.arch}"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise GuestError(
                f"{program} did not end within {_TIMEOUT:.0f} s: look at the source it was given"
            ) from error
        if done.returncode:
            raise GuestError(
                f"{program.name} refused the source: {tail(done.stderr) or f'exit status {done.returncode}'}"
            )


def _flat(data: bytes, base: int) -> bytes:
    """The loadable segments of an ELF file as they lie in memory from `base` on."""
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415  see elf.py

    image = bytearray()
    for segment in ELFFile(BytesIO(data)).iter_segments("PT_LOAD"):
        if not segment["p_filesz"]:
            continue
        offset = segment["p_vaddr"] - base
        if offset < 0:
            raise GuestError(
                f"the source puts code at {segment['p_vaddr']:#x}, below its base {base:#x}: use no .org there"
            )
        end = offset + segment["p_filesz"]
        if end > 1 << 28:
            raise GuestError(f"the source spans {end} bytes from its base: keep its sections together")
        image.extend(bytes(max(0, end - len(image))))
        image[offset:end] = segment.data()
    return bytes(image)


def assembler(arch: str, *, own: bool = True, progress: Progress | None = None) -> Toolchain:
    """The assembler for `arch`: from PATH if it is there and `own` allows it, else from the cache, else from Debian.

    ANYKVM_FETCH_TOOLS=1 in the environment is the same as ``own=False``.
    """
    kind = machine(arch)
    if own and os.environ.get("ANYKVM_FETCH_TOOLS", "") in ("", "0"):
        paths = [Path(path) for name in _PROGRAMS if (path := shutil.which(f"{kind.triplet}-{name}"))]
        if len(paths) == len(_PROGRAMS):
            return Toolchain(arch, paths[0], paths[1], paths[2])
    folder = cache_dir() / "tools" / kind.binutils
    if not folder.is_dir():
        with locked(cache_dir(), progress):
            if not folder.is_dir():
                _fetch(kind, folder, progress)
    fetched = [folder / "bin" / f"{kind.triplet}-{name}" for name in _PROGRAMS]
    return Toolchain(arch, fetched[0], fetched[1], fetched[2], {"LD_LIBRARY_PATH": str(folder / "lib")})


def _fetch(kind: Machine, folder: Path, progress: Progress | None) -> None:
    """Unpacks the tools and their libraries, except the C library: that is the machine's own, of the same release."""
    with cache_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent)
    host = _host()
    apt = Apt(cache_dir(), host.debian)
    apt.update(progress)
    package = apt.one(kind.binutils)
    (archive,) = apt.download([package], progress)
    with staged(folder) as temporary:
        tree = temporary / "tree"
        apt.unpack(archive, tree)
        programs = [f"usr/bin/{kind.triplet}-{name}" for name in _PROGRAMS]
        with cache_errors(folder.parent):
            closure = Closure(apt, tree, host.triplet, [package], skip=GLIBC)
            for path, file in closure.resolve(programs, progress).items():
                target = temporary / ("bin" if path in programs else "lib") / Path(path).name
                target.parent.mkdir(exist_ok=True)
                shutil.copy2(file, target)
            shutil.rmtree(tree)
    apt.discard()


def _host() -> Machine:
    """This machine, as its kernel calls it."""
    name = os.uname().machine
    for arch in ("arm64", "amd64"):
        if machine(arch).triplet.startswith(name + "-"):
            return machine(arch)
    raise GuestError(f"no assembler is fetched for a host of type {name}: install the package with it")
