# SPDX-License-Identifier: GPL-2.0-only
"""What ELF files need: shared libraries of programs, dependencies and devices of kernel modules."""

from __future__ import annotations

import gzip
import lzma
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from .errors import GuestError

# elftools is imported where it is used: it takes 0.15 s, and a guest that is in the cache starts without it.


@dataclass(frozen=True)
class Linkage:
    """How a program or library is linked dynamically."""

    interpreter: str | None
    """The dynamic linker's path (PT_INTERP); ``None`` for libraries and static programs."""
    needed: tuple[str, ...]
    """Library names (DT_NEEDED)."""


def linkage(path: Path) -> Linkage:
    """Reads the dynamic linkage of the ELF file `path`; ``GuestError`` if it is none."""
    from elftools.common.exceptions import ELFError  # noqa: PLC0415
    from elftools.elf.dynamic import DynamicSection  # noqa: PLC0415
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415
    from elftools.elf.segments import InterpSegment  # noqa: PLC0415

    try:
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            interpreter = next((s.get_interp_name() for s in elf.iter_segments() if isinstance(s, InterpSegment)), None)
            needed = [
                str(getattr(tag, "needed"))  # noqa: B009  a property made at run time, by the tag's kind
                for section in elf.iter_sections()
                if isinstance(section, DynamicSection)
                for tag in section.iter_tags("DT_NEEDED")
            ]
    except ELFError as error:
        raise GuestError(f"{path} is not an ELF file ({error}): pull the guest again") from error
    return Linkage(interpreter, tuple(needed))


@dataclass(frozen=True)
class ModuleInfo:
    """What a kernel module says of itself in its .modinfo section (include/linux/module.h)."""

    depends: tuple[str, ...] = ()
    aliases: tuple[str, ...] = field(default=())


def module_bytes(path: Path) -> bytes:
    """The plain ELF file of a kernel module that may be compressed (.ko, .ko.xz, .ko.gz)."""
    data = path.read_bytes()
    try:
        match path.suffix:
            case ".xz":
                return lzma.decompress(data)
            case ".gz":
                return gzip.decompress(data)
            case ".ko":
                return data
    except (lzma.LZMAError, OSError, EOFError) as error:
        raise GuestError(f"kernel module {path} is damaged ({error}): pull the guest again") from error
    raise GuestError(f"kernel module {path.name} has a compression that is not known here: use .ko, .ko.xz or .ko.gz")


def module_info(data: bytes) -> ModuleInfo:
    """Reads the .modinfo section of a module's ELF file."""
    from elftools.common.exceptions import ELFError  # noqa: PLC0415
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415

    try:
        section = ELFFile(BytesIO(data)).get_section_by_name(".modinfo")
    except ELFError as error:
        raise GuestError(f"not a kernel module ({error}): pull the guest again") from error
    depends: list[str] = []
    aliases: list[str] = []
    for item in section.data().split(b"\0") if section else ():
        key, _, value = item.decode(errors="replace").partition("=")
        if key == "depends":
            depends += [name for name in value.split(",") if name]
        elif key == "alias":
            aliases.append(value)
    return ModuleInfo(tuple(depends), tuple(aliases))
