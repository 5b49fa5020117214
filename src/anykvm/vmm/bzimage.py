# SPDX-License-Identifier: GPL-2.0-only
"""Kernel files of x86-64: a bzImage, recognised, checked, given a place, and told about the machine.

Source: ``Documentation/arch/x86/boot.rst`` (the setup header, "64-bit Boot Protocol"), ``zero-page.rst`` and
``arch/x86/include/uapi/asm/bootparam.h`` (struct boot_params).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import x86_map
from .errors import VmmError
from .image import Content, describe, find_file, read_head
from .memory import GIB, MIN_MEMORY, PAGE_SIZE, check_room, format_size, round_up

_HEAD_SIZE: Final = 4096
_HEADER_START: Final = 0x1F1
_HEADER_MOST: Final = 0x290  # where struct boot_params has something else
_BOOT_FLAG: Final = 0xAA55
_MAGIC: Final = b"HdrS"
_OLDEST: Final = 0x020C  # Linux 3.8: the first to say whether it has a 64-bit entry
_LOADED_HIGH: Final = 1 << 0
_KERNEL_64: Final = 1 << 0
_ENTRY_64: Final = 0x200
_MOST_MEMORY: Final = GIB  # for a kernel to unpack and run itself in: far more than any needs

_BOOT_PARAMS_SIZE: Final = 4096
_LOADER_UNDEFINED: Final = 0xFF
_NORMAL_VIDEO: Final = 0xFFFF
_SETUP_RNG_SEED: Final = 9
_E820_TABLE: Final = 0x2D0
_E820_MOST: Final = 128
_WANTED: Final = "boot x86 needs a 64-bit bzImage (arch/x86/boot/bzImage, Debian's vmlinuz) or a vmlinux"


@dataclass(frozen=True)
class KernelImage:
    """A bzImage, checked. Addresses are guest-physical, sizes in bytes."""

    content: Content
    """The part of it that goes into memory."""
    setup_header: bytes
    """To be handed back in the boot parameters, from offset 0x1f1 on."""
    preferred: int
    alignment: int
    """Of its address; 0 if it runs only where it prefers to."""
    memory_size: int
    """What it needs from there, to unpack itself."""
    initrd_max: int
    """The highest address that the initrd's last byte may have."""
    command_line_size: int
    """The longest command line, without the final zero byte."""


@dataclass(frozen=True)
class Layout:
    """Where kernel and initrd are, as guest-physical addresses."""

    kernel: int
    initrd: int
    initrd_size: int
    needed: int
    """The least RAM size with which the guest can start."""

    @property
    def entry(self) -> int:
        """The kernel's 64-bit entry point."""
        return self.kernel + _ENTRY_64


def load_kernel(path: Path) -> KernelImage:
    """The bzImage at `path`; ``VmmError`` says in one line what is wrong with it."""
    head = read_head(path, "kernel", _HEAD_SIZE)
    if len(head) < _HEADER_MOST or head[0x202:0x206] != _MAGIC:
        raise VmmError(f"kernel {path} is {describe(head)}: {_WANTED}")
    version = _u16(head, 0x206)
    if version < _OLDEST:
        raise VmmError(
            f"kernel {path} has boot protocol {version >> 8}.{version & 0xFF:02}, which is too old: "
            f"use Linux 3.8 or newer (2.12)"
        )
    if not head[0x211] & _LOADED_HIGH:
        raise VmmError(f"kernel {path} is a zImage, for low memory: {_WANTED}")
    if not _u16(head, 0x236) & _KERNEL_64:
        raise VmmError(f"kernel {path} is a 32-bit kernel: {_WANTED}")
    start = (head[_HEADER_START] or 4) * 512 + 512
    size = _u32(head, 0x1F4) * 16
    found = find_file(path, "kernel").size
    if found < start + size:
        raise VmmError(f"kernel {path} is truncated ({found} of {start + size} bytes): get the file again")
    image = KernelImage(
        content=Content(path, "kernel", size, offset=start),
        setup_header=head[_HEADER_START : min(0x202 + head[0x201], _HEADER_MOST)],
        preferred=_u64(head, 0x258),
        alignment=_u32(head, 0x230) if head[0x234] else 0,
        memory_size=_u32(head, 0x260),
        initrd_max=_u32(head, 0x22C),
        command_line_size=_u32(head, 0x238),
    )
    power_of_two = image.alignment & (image.alignment - 1) == 0
    wrong = (
        _u16(head, 0x1FE) != _BOOT_FLAG,
        len(image.setup_header) < 0x264 - _HEADER_START,
        size <= _ENTRY_64,
        not size <= image.memory_size <= _MOST_MEMORY,
        image.preferred < x86_map.HIGH_RAM or image.preferred >= x86_map.RAM_HOLE.base,
        not power_of_two or image.preferred % PAGE_SIZE,
        0 < image.alignment < PAGE_SIZE or image.alignment > GIB,
    )
    if any(wrong):
        raise VmmError(f"kernel {path} has a damaged header: get the file again")
    return image


def _u16(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 2], "little")


def _u32(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 4], "little")


def _u64(data: bytes, offset: int) -> int:
    return int.from_bytes(data[offset : offset + 8], "little")


def place(kernel: KernelImage, initrd_size: int, ram_size: int) -> Layout:
    """Put the kernel where it likes to be, or lower if that is too high, and the initrd as high as it may be.

    ``VmmError`` if `ram_size` (bytes) is too small, or the initrd does not fit below the kernel's limit for it.
    """
    low = min(ram_size, x86_map.RAM_HOLE.base)
    lowest = round_up(x86_map.HIGH_RAM, kernel.alignment) if kernel.alignment else kernel.preferred
    # The guest unpacks the initrd while the packed one is still there.
    beside = round_up(initrd_size, PAGE_SIZE) + initrd_size + MIN_MEMORY
    needed = lowest + kernel.memory_size + beside
    check_room(ram_size, needed)
    preferred = round_up(kernel.preferred, kernel.alignment) if kernel.alignment else kernel.preferred
    start = preferred if preferred + kernel.memory_size + beside <= low else lowest
    top = min(low, kernel.initrd_max + 1)
    return Layout(start, initrd_below(top, initrd_size, start + kernel.memory_size), initrd_size, needed)


def initrd_below(top: int, size: int, lowest: int) -> int:
    """Where an initrd of `size` bytes is that ends below `top`, 0 for none; ``VmmError`` if that is below `lowest`."""
    if not size:
        return 0
    start = (top - size) // PAGE_SIZE * PAGE_SIZE
    if start < lowest:
        raise VmmError(f"an initrd of {format_size(size)} is too large for this kernel: make it smaller")
    return start


def boot_params(
    kernel: KernelImage,
    layout: Layout,
    *,
    command_line: int,
    rsdp: int,
    setup_data: int,
    e820: Sequence[tuple[int, int, int]],
) -> bytes:
    """The zero page: what the kernel is told. All addresses are guest-physical.

    `setup_data` is the address of the first of a list (see :func:`rng_seed`), or 0.
    """
    page = bytearray(_BOOT_PARAMS_SIZE)
    page[_HEADER_START : _HEADER_START + len(kernel.setup_header)] = kernel.setup_header
    struct.pack_into("<Q", page, 0x70, rsdp)
    struct.pack_into("<H", page, 0x1FA, _NORMAL_VIDEO)
    page[0x210] = _LOADER_UNDEFINED
    struct.pack_into("<I", page, 0x214, layout.kernel)
    struct.pack_into("<II", page, 0x218, layout.initrd, layout.initrd_size)
    struct.pack_into("<I", page, 0x228, command_line)
    struct.pack_into("<Q", page, 0x250, setup_data)
    if len(e820) > _E820_MOST:
        raise ValueError(f"{len(e820)} ranges of memory are more than the {_E820_MOST} of the zero page")
    page[0x1E8] = len(e820)
    for index, entry in enumerate(e820):
        struct.pack_into("<QQI", page, _E820_TABLE + 20 * index, *entry)
    return bytes(page)


def rng_seed(seed: bytes) -> bytes:
    """The last entry of a list of setup data: random numbers for the kernel to start with (Linux 6.1 and newer)."""
    return struct.pack("<QII", 0, _SETUP_RNG_SEED, len(seed)) + seed


def check_command_line(most: int, line: bytes) -> None:
    """Refuse a command line that a kernel which takes `most` bytes of it would cut."""
    if len(line) > most:
        raise VmmError(f"the kernel command line is {len(line)} bytes, and this kernel takes {most}: shorten --append")
