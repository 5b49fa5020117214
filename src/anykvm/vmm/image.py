# SPDX-License-Identifier: GPL-2.0-only
"""Kernel files of arm64: recognised, checked, unpacked, and given a place in the guest's memory.

Sources: ``Documentation/arch/arm64/booting.rst`` (the header of Image, where Image, initrd and device tree may be),
``drivers/firmware/efi/libstub/zboot-header.S`` (the EFI zboot wrapper), the PE/COFF specification (section table).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import VmmError
from .memory import MIB, MIN_MEMORY, PAGE_SIZE, RAM_BASE, check_room, format_size

_HEADER_SIZE: Final = 64
_HEAD_SIZE: Final = 4096  # enough for the PE header of an EFI kernel, too
_MAGIC: Final = b"ARM\x64"
_OLD_TEXT_OFFSET: Final = 0x8_0000  # what an Image from before 3.17 means when it gives no image_size
_MAX_UNPACKED: Final = 512 * MIB
_DTB_SPACE: Final = 2 * MIB  # "must not exceed 2 megabytes in size"
_IMAGE_ALIGN: Final = 2 * MIB

# What else a kernel file may be: (offset, bytes, what it is). The first that fits names it.
_FOREIGN: Final = (
    (0x38, _MAGIC, "an arm64 Image"),
    (0x30, b"RISCV\0", "a riscv Image"),
    (0x202, b"HdrS", "an x86 bzImage"),
    (0x24, b"\x18\x28\x6f\x01", "an arm (32-bit) zImage"),
    (0x38, b"LINX", "a loongarch image"),
    (0, b"\x27\x05\x19\x56", "a U-Boot uImage"),
    (0, b"\xd0\x0d\xfe\xed", "a device tree or FIT image"),
    (0, b"070701", "a cpio archive (an initramfs?)"),
    (0, b"!<arch>", "a Debian package or ar archive"),
)
_ELF_MACHINES: Final = {
    3: "x86",
    8: "mips",
    20: "ppc",
    21: "ppc64",
    22: "s390",
    40: "arm",
    62: "x86-64",
    183: "arm64",
    243: "riscv",
}
_PACKED: Final = (
    (b"\x1f\x8b", "gzip"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x02\x21\x4c\x18", "lz4"),
    (b"BZh", "bzip2"),
)
_WANTED: Final = "boot arm64 needs an arm64 Image (arch/arm64/boot/Image, or Debian's vmlinuz)"


@dataclass(frozen=True)
class Content:
    """What is to go into memory: a part of a file, read when it is loaded, or bytes that were unpacked before."""

    path: Path
    what: str
    """What it is to a person: ``kernel``, ``initrd``."""
    size: int
    unpacked: bytes | None = None
    offset: int = 0
    """Where in the file it starts."""

    def load(self, view: memoryview) -> None:
        """Fill `view`, `size` bytes of guest memory; ``VmmError`` if the file has become shorter or unreadable."""
        if self.unpacked is not None:
            view[:] = self.unpacked
            return
        try:
            with self.path.open("rb", buffering=0) as stream:
                stream.seek(self.offset)
                done = 0
                while done < self.size and (count := stream.readinto(view[done:])):
                    done += count
        except OSError as error:
            raise VmmError(f"{self.what} {self.path} cannot be read ({error.strerror}): check --{self.what}") from None
        if done < self.size:
            raise VmmError(f"{self.what} {self.path} became shorter while it was read: try again")


@dataclass(frozen=True)
class KernelImage:
    """An arm64 Image, checked."""

    content: Content
    text_offset: int
    """Bytes from a 2 MiB aligned base to where the Image starts."""
    memory_size: int
    """Bytes it needs from there, with what it clears itself (BSS)."""


@dataclass(frozen=True)
class Layout:
    """Where kernel, device tree and initrd are, as guest-physical addresses; sizes in bytes."""

    kernel: int
    device_tree: int
    initrd: int
    initrd_size: int
    needed: int
    """The least RAM size with which the guest can start."""


def find_file(path: Path, what: str) -> Content:
    """A file to load, whole; ``VmmError`` says in one line why it cannot be had."""
    read_head(path, what)
    return Content(path, what, path.stat().st_size)


def read_head(path: Path, what: str, size: int = 0) -> bytes:
    """The first `size` bytes of a file, or all of it if `size` is negative; ``VmmError`` as :func:`find_file`."""
    try:
        if path.is_dir():
            raise VmmError(f"{what} {path} is a directory: give a file with --{what}")
        if path.exists() and not path.is_file():
            raise VmmError(f"{what} {path} is not a regular file: check --{what}")
        with path.open("rb") as stream:
            return stream.read(size)
    except FileNotFoundError:
        raise VmmError(f"{what} {path} is not there: check --{what}") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise VmmError(f"{what} {path} cannot be read ({reason}): check --{what}") from None
    except MemoryError:
        raise VmmError(f"{what} {path} is larger than this host's memory: check --{what}") from None


def load_kernel(path: Path) -> KernelImage:
    """The kernel at `path`: a raw Image, one packed with gzip, or an EFI zboot image around one (gzip or xz)."""
    head = read_head(path, "kernel", _HEAD_SIZE)
    packed = _is_packed(head)
    if packed:
        data = _unpack(path, read_head(path, "kernel", -1))
        head, size = data[:_HEAD_SIZE], len(data)
        content = Content(path, "kernel", size, data)
    else:
        content = find_file(path, "kernel")
        size = content.size
    if len(head) < _HEADER_SIZE or head[56:60] != _MAGIC:
        raise VmmError(f"kernel {path} is {describe(head)}: {_WANTED}")
    text_offset, image_size, flags = struct.unpack_from("<QQQ", head, 8)
    if image_size == 0:
        text_offset, image_size = _OLD_TEXT_OFFSET, size
    if flags & 1:
        raise VmmError(f"kernel {path} is big-endian, which is not supported: build it without CONFIG_CPU_BIG_ENDIAN")
    if text_offset >= _IMAGE_ALIGN or text_offset % PAGE_SIZE or image_size > 1 << 32:
        raise VmmError(f"kernel {path} has a damaged header: get the file again")
    if size < _pe_size(head):
        raise VmmError(f"kernel {path} is truncated ({size} of {_pe_size(head)} bytes): get the file again")
    return KernelImage(content, text_offset, max(image_size, size))


def _is_packed(head: bytes) -> bool:
    return (head[:2] == b"MZ" and head[4:8] == b"zimg") or any(head.startswith(magic) for magic, _ in _PACKED)


def _unpack(path: Path, data: bytes) -> bytes:
    if data[4:8] == b"zimg" and data[:2] == b"MZ":
        if len(data) < _HEADER_SIZE:
            raise VmmError(f"kernel {path} is truncated ({len(data)} bytes): get the file again")
        offset, size = struct.unpack_from("<II", data, 8)
        kind = data[24:56].split(b"\0")[0].decode("ascii", "replace")
        if offset < _HEADER_SIZE or offset + size > len(data):
            raise VmmError(f"kernel {path} is truncated ({len(data)} of {offset + size} bytes): get the file again")
        return _decompress(path, kind, data[offset : offset + size])
    for magic, kind in _PACKED:
        if data.startswith(magic):
            return _decompress(path, kind, data)
    return data


def _decompress(path: Path, kind: str, data: bytes) -> bytes:
    unpack = {"gzip": _gunzip, "xz": _unxz, "xzkern": _unxz, "lzma": _unxz}.get(kind)
    if unpack is None:
        raise VmmError(
            f"kernel {path} is packed with {kind!r}, which is not supported: unpack it, or pack it with gzip"
        )
    try:
        return unpack(data)
    except EOFError:
        raise VmmError(f"kernel {path} is truncated (its {kind} data ends too early): get the file again") from None
    except OverflowError:
        raise VmmError(f"kernel {path} unpacks to more than {format_size(_MAX_UNPACKED)}: it is no kernel") from None
    except ValueError as error:
        raise VmmError(f"kernel {path} has damaged {kind} data ({error}): get the file again") from None


def _gunzip(data: bytes) -> bytes:
    try:
        return _bounded(zlib.decompressobj(wbits=31), data)
    except zlib.error as error:
        raise ValueError(error) from None


def _unxz(data: bytes) -> bytes:
    import lzma  # noqa: PLC0415  (few kernels need it)

    try:
        return _bounded(lzma.LZMADecompressor(), data)
    except lzma.LZMAError as error:
        raise ValueError(error) from None


def _bounded(decompressor: object, data: bytes) -> bytes:
    """Unpack one stream: ``EOFError`` if it does not end, ``OverflowError`` if it is too long.

    What follows it is not looked at.
    """
    decompress: Callable[[bytes, int], bytes] = decompressor.decompress  # type: ignore[attr-defined]
    unpacked = decompress(data, _MAX_UNPACKED)
    if not decompressor.eof:  # type: ignore[attr-defined]
        raise OverflowError if len(unpacked) >= _MAX_UNPACKED else EOFError
    return unpacked


def describe(data: bytes) -> str:
    """What a file that is not a kernel for this machine is instead, by its first bytes, for a message."""
    if not data:
        return "an empty file"
    if data.startswith(b"\x7fELF") and len(data) >= 20:
        machine = int.from_bytes(data[18:20], "big" if data[5] == 2 else "little")
        return f"an ELF file for {_ELF_MACHINES.get(machine, f'machine {machine}')}"
    for offset, magic, name in _FOREIGN:
        if data[offset : offset + len(magic)] == magic:
            return name
    if len(data) < _HEADER_SIZE:
        return f"a file of {len(data)} bytes, too short for any kernel"
    return "in no known kernel format"


def _pe_size(data: bytes) -> int:
    """How long an Image must be to hold all the sections its PE header tells of; 0 without one (CONFIG_EFI=n)."""
    try:
        pe = int.from_bytes(data[60:64], "little")
        if data[:2] != b"MZ" or data[pe : pe + 4] != b"PE\0\0":
            return 0
        sections, optional_size = struct.unpack_from("<2xH12xH", data, pe + 4)
        table = pe + 24 + optional_size
        sizes = (struct.unpack_from("<II", data, table + 40 * index + 16) for index in range(sections))
        return max((size + offset for size, offset in sizes), default=0)
    except struct.error:
        return len(data) + 1  # the section table itself is cut off


def place(kernel: KernelImage, initrd_size: int, ram_size: int) -> Layout:
    """Give kernel, device tree and initrd their places, in this order; ``VmmError`` if `ram_size` (bytes) is too small.

    All are near each other, as the initrd has to be within 32 GiB of the Image, and the device tree in a 2 MiB block of
    its own.
    """
    start = RAM_BASE + kernel.text_offset
    device_tree = _align(start + kernel.memory_size)
    initrd = device_tree + _DTB_SPACE
    end = initrd + initrd_size
    # The guest unpacks the initrd while the packed one is still there.
    needed = end - RAM_BASE + initrd_size + MIN_MEMORY
    check_room(ram_size, needed)
    return Layout(start, device_tree, initrd, initrd_size, needed)


def _align(address: int) -> int:
    return -(-address // _IMAGE_ALIGN) * _IMAGE_ALIGN
