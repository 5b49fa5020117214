# SPDX-License-Identifier: GPL-2.0-only
"""Kernel files of x86 that are ELF: ``vmlinux``, or any kernel with a PVH entry.

Sources: the ELF-64 object file format (program headers, notes); Xen's ``docs/misc/pvh.pandoc`` and
``xen/include/public/elfnote.h`` (XEN_ELFNOTE_PHYS32_ENTRY); ``arch/x86/kernel/vmlinux.lds.S`` (the ELF entry of a
64-bit vmlinux is the physical address of its 64-bit entry point).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from . import x86_map
from .bzimage import initrd_below
from .errors import VmmError
from .image import Content, describe, find_file, read_head
from .memory import MIN_MEMORY, PAGE_SIZE, check_room, round_up

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

MAGIC: Final = b"\x7fELF"
_MACHINES: Final = ("EM_386", "EM_X86_64")
_PHYS32_ENTRY: Final = 18  # XEN_ELFNOTE_PHYS32_ENTRY
_MOST_NOTES: Final = 1 << 20  # bytes of notes that are looked at
_COMMAND_LINE_SIZE: Final = 2047  # COMMAND_LINE_SIZE of arch/x86/include/asm/setup.h, without the final zero byte
_WANTED: Final = "boot x86 needs an x86 vmlinux or a 64-bit bzImage"


@dataclass(frozen=True)
class Segment:
    """A part of the kernel: where it goes (guest-physical), what is loaded, how many bytes it has there."""

    gpa: int
    content: Content
    memory_size: int
    """At least what is loaded; the rest is zero."""

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.gpa + self.memory_size


@dataclass(frozen=True)
class ElfKernel:
    """An ELF kernel, checked. Addresses are guest-physical."""

    path: Path
    segments: tuple[Segment, ...]
    """In the order of their addresses; they do not overlap."""
    entry_64: int | None
    """Where a 64-bit kernel is entered in 64-bit mode."""
    entry_pvh: int | None
    """Where it is entered in 32-bit protected mode, if it has a note that says so."""
    command_line_size: int = _COMMAND_LINE_SIZE

    @property
    def end(self) -> int:
        """The first address after all of it."""
        return self.segments[-1].end


@dataclass(frozen=True)
class Layout:
    """Where the initrd is, as a guest-physical address; its size in bytes."""

    initrd: int
    initrd_size: int
    needed: int
    """The least RAM size with which the guest can start."""


def is_elf(path: Path) -> bool:
    """Whether the kernel at `path` is an ELF file; ``VmmError`` if it cannot be read."""
    return read_head(path, "kernel", len(MAGIC)) == MAGIC


def load_kernel(path: Path) -> ElfKernel:
    """The ELF kernel at `path`; ``VmmError`` says in one line what is wrong with it."""
    from elftools.common.exceptions import ELFError  # noqa: PLC0415  (slow to load, and most kernels are bzImages)
    from elftools.construct import ConstructError  # noqa: PLC0415
    from elftools.elf.elffile import ELFFile  # noqa: PLC0415

    size = find_file(path, "kernel").size
    try:
        with path.open("rb") as stream:
            head = stream.read(64)
            stream.seek(0)
            elf = ELFFile(stream)
            if elf.header["e_machine"] not in _MACHINES or not elf.little_endian:
                raise VmmError(f"kernel {path} is {describe(head)}: {_WANTED}")
            if elf.header["e_type"] != "ET_EXEC":
                raise VmmError(
                    f"kernel {path} is an ELF file, but no executable with addresses of its own: give a vmlinux"
                )
            return _examine(path, elf, stream, size)
    except (ELFError, ConstructError, ValueError, OverflowError, KeyError) as error:
        raise VmmError(f"kernel {path} is a damaged ELF file ({_one_line(error)}): get the file again") from None
    except OSError as error:
        raise VmmError(f"kernel {path} cannot be read ({error.strerror}): check --kernel") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _examine(path: Path, elf: ELFFile, stream: BinaryIO, size: int) -> ElfKernel:
    segments: list[Segment] = []
    entry_pvh: int | None = None
    for index in range(elf.num_segments()):
        header = elf.get_segment(index).header
        offset, length = header["p_offset"], header["p_filesz"]
        if header["p_type"] not in ("PT_LOAD", "PT_NOTE"):
            continue
        if offset + length > size:
            raise VmmError(f"kernel {path} is truncated ({size} of {offset + length} bytes): get the file again")
        if header["p_type"] == "PT_NOTE":
            stream.seek(offset)
            entry_pvh = _pvh_entry(stream.read(min(length, _MOST_NOTES)), entry_pvh)
        elif header["p_memsz"]:
            if length > header["p_memsz"]:
                raise VmmError(f"kernel {path} has a segment with more bytes than room for them: get the file again")
            content = Content(path, "kernel", length, offset=offset)
            segments.append(Segment(header["p_paddr"], content, header["p_memsz"]))
    return _check(path, segments, elf.header["e_entry"] if elf.elfclass == 64 else None, entry_pvh)


def _pvh_entry(notes: bytes, found: int | None) -> int | None:
    """The address in the PVH note, 4 or 8 bytes of it; what was found before if there is none here."""
    for name, kind, data in _notes(notes):
        if name == b"Xen\0" and kind == _PHYS32_ENTRY and len(data) in (4, 8):
            found = int.from_bytes(data, "little")
    return found


def _notes(data: bytes) -> Iterator[tuple[bytes, int, bytes]]:
    """The notes as (name, type, bytes). Kernels align them to 4 bytes, whatever their class."""
    at = 0
    while at + 12 <= len(data):
        name_size, size, kind = (int.from_bytes(data[at + n : at + n + 4], "little") for n in (0, 4, 8))
        name = at + 12
        start = name + round_up(name_size, 4)
        yield data[name : name + name_size], kind, data[start : start + size]
        at = start + round_up(size, 4)


def _check(path: Path, segments: list[Segment], entry_64: int | None, entry_pvh: int | None) -> ElfKernel:
    if not segments:
        raise VmmError(f"kernel {path} has nothing to load: give a vmlinux")
    segments.sort(key=lambda segment: segment.gpa)
    for segment in segments:
        if segment.gpa < x86_map.HIGH_RAM or segment.end > x86_map.RAM_HOLE.base:
            raise VmmError(
                f"kernel {path} has a segment at {segment.gpa:#x} to {segment.end:#x}, which is outside of "
                f"{x86_map.HIGH_RAM:#x} to {x86_map.RAM_HOLE.base:#x}, where kernels may be: link it elsewhere"
            )
    for before, after in pairwise(segments):
        if before.end > after.gpa:
            raise VmmError(f"kernel {path} has segments that overlap at {after.gpa:#x}: get the file again")
    if entry_64 is None and entry_pvh is None:
        raise VmmError(f"kernel {path} is a 32-bit kernel without a PVH entry: build it with CONFIG_PVH=y")
    for entry in (entry_64, entry_pvh):
        if entry is not None and not any(segment.gpa <= entry < segment.end for segment in segments):
            raise VmmError(f"kernel {path} has its entry at {entry:#x}, where it has no code: get the file again")
    return ElfKernel(path, tuple(segments), entry_64, entry_pvh)


def place(kernel: ElfKernel, initrd_size: int, ram_size: int) -> Layout:
    """The kernel is where it is linked to be; the initrd goes as high as it may.

    ``VmmError`` if `ram_size` (bytes) is too small for both.
    """
    # The guest unpacks the initrd while the packed one is still there.
    needed = kernel.end + round_up(initrd_size, PAGE_SIZE) + initrd_size + MIN_MEMORY
    check_room(ram_size, needed)
    top = min(ram_size, x86_map.RAM_HOLE.base)
    return Layout(initrd_below(top, initrd_size, kernel.end), initrd_size, needed)
