# SPDX-License-Identifier: GPL-2.0-only
"""A kernel of x86, whatever its file is: placed, loaded, told of the machine, entered.

Source: ``Documentation/arch/x86/boot.rst`` ("64-bit Boot Protocol", which a vmlinux is entered by as well).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from anykvm.api import Vcpu

from . import bzimage, pvh, vmlinux, x86_entry, x86_map
from .errors import VmmError
from .image import Content
from .memory import MIB
from .ram import Ram

_RNG_SEED_SIZE: Final = 32


def open_kernel(path: Path, entry: str) -> Kernel:
    """The kernel at `path`, to be entered as `entry` of ``config.ENTRIES`` says; ``VmmError`` if it cannot be."""
    if not vmlinux.is_elf(path):
        if entry == "pvh":
            raise VmmError(f"kernel {path} is no ELF file, so it has no PVH entry: use --entry linux, or a vmlinux")
        return BzImage(bzimage.load_kernel(path))
    kernel = vmlinux.load_kernel(path)
    if entry == "pvh" and kernel.entry_pvh is None:
        raise VmmError(f"kernel {path} has no PVH entry: use --entry linux, or build it with CONFIG_PVH=y")
    if entry == "linux" and kernel.entry_64 is None:
        raise VmmError(f"kernel {path} is a 32-bit kernel: use --entry pvh")
    return Vmlinux(kernel, use_pvh=kernel.entry_pvh is not None and entry != "linux")


class Kernel:
    """What both have in common; sizes in bytes, addresses guest-physical."""

    command_line_size: int
    """The longest command line it takes, without the final zero byte."""
    use_pvh = False

    def place(self, initrd_size: int, ram_size: int) -> None:
        """Find a place for it and the initrd; ``VmmError`` if there is none."""
        raise NotImplementedError

    def load(
        self, ram: Ram, initrd: Content | None, *, command_line: bytes, rsdp: int, e820: Sequence[tuple[int, int, int]]
    ) -> None:
        """Fill memory with it, the initrd, and what it is told. `rsdp` is 0 if there is no ACPI."""
        raise NotImplementedError

    def enter(self, vcpu: Vcpu) -> None:
        """Set the boot vCPU's registers."""
        raise NotImplementedError


class BzImage(Kernel):
    """Entered in 64-bit mode."""

    def __init__(self, kernel: bzimage.KernelImage) -> None:
        self._kernel = kernel
        self.command_line_size = kernel.command_line_size

    def place(self, initrd_size: int, ram_size: int) -> None:
        """Kernel low, initrd high."""
        self._layout = bzimage.place(self._kernel, initrd_size, ram_size)

    def load(
        self, ram: Ram, initrd: Content | None, *, command_line: bytes, rsdp: int, e820: Sequence[tuple[int, int, int]]
    ) -> None:
        """The setup header goes back as it was."""
        layout = self._layout
        _load_linux(ram, self._kernel, layout, command_line=command_line, rsdp=rsdp, e820=e820)
        _load_content(ram, layout.kernel, self._kernel.content)
        if initrd is not None:
            _load_content(ram, layout.initrd, initrd)

    def enter(self, vcpu: Vcpu) -> None:
        """At its 64-bit entry point."""
        x86_entry.enter_linux(vcpu, self._layout.entry, x86_map.BOOT_PARAMS)


class Vmlinux(Kernel):
    """Entered in 64-bit mode with Linux's boot parameters, or by PVH."""

    def __init__(self, kernel: vmlinux.ElfKernel, *, use_pvh: bool) -> None:
        self._kernel = kernel
        self.use_pvh = use_pvh
        self.command_line_size = kernel.command_line_size

    def place(self, initrd_size: int, ram_size: int) -> None:
        """The initrd high; the kernel stays where it was linked to be."""
        self._layout = vmlinux.place(self._kernel, initrd_size, ram_size)

    def load(
        self, ram: Ram, initrd: Content | None, *, command_line: bytes, rsdp: int, e820: Sequence[tuple[int, int, int]]
    ) -> None:
        """Segment by segment; what is not in the file is zero, as all of new memory is."""
        layout, kernel = self._layout, self._kernel
        if self.use_pvh:
            modules = None if initrd is None else (layout.initrd, layout.initrd_size)
            info = pvh.start_info(
                x86_map.BOOT_PARAMS, command_line=x86_map.COMMAND_LINE, rsdp=rsdp, initrd=modules, e820=e820
            )
            ram.write(x86_map.BOOT_PARAMS, info)
            ram.write(x86_map.GDT, x86_entry.descriptors(pvh=True))
            ram.write(x86_map.COMMAND_LINE, command_line + b"\0")
        else:
            start = kernel.segments[0]
            image = bzimage.KernelImage(
                *(start.content, _setup_header(), start.gpa, 0, kernel.end - start.gpa),
                initrd_max=x86_map.RAM_HOLE.base - 1,
                command_line_size=kernel.command_line_size,
            )
            placed = bzimage.Layout(start.gpa, layout.initrd, layout.initrd_size, layout.needed)
            _load_linux(ram, image, placed, command_line=command_line, rsdp=rsdp, e820=e820)
        for segment in kernel.segments:
            _load_content(ram, segment.gpa, segment.content)
        if initrd is not None:
            _load_content(ram, layout.initrd, initrd)

    def enter(self, vcpu: Vcpu) -> None:
        """At the one entry or the other."""
        kernel = self._kernel
        if self.use_pvh:
            assert kernel.entry_pvh is not None
            x86_entry.enter_pvh(vcpu, kernel.entry_pvh, x86_map.BOOT_PARAMS)
        else:
            assert kernel.entry_64 is not None
            x86_entry.enter_linux(vcpu, kernel.entry_64, x86_map.BOOT_PARAMS)


def _setup_header() -> bytes:
    """What a boot loader says of itself to a vmlinux, whose own setup header is not in the ELF file."""
    header = bytearray(0x268 - 0x1F1)

    def put(form: str, offset: int, *values: int | bytes) -> None:
        struct.pack_into(form, header, offset - 0x1F1, *values)

    put("<H", 0x1FE, 0xAA55)
    put("<4sH", 0x202, b"HdrS", 0x020C)
    put("<B", 0x211, 1)
    put("<I", 0x230, 2 * MIB)
    return bytes(header)


def _load_linux(
    ram: Ram,
    kernel: bzimage.KernelImage,
    layout: bzimage.Layout,
    *,
    command_line: bytes,
    rsdp: int,
    e820: Sequence[tuple[int, int, int]],
) -> None:
    ram.write(x86_map.GDT, x86_entry.descriptors())
    ram.write(x86_map.PAGE_TABLES, x86_entry.page_tables())
    ram.write(x86_map.COMMAND_LINE, command_line + b"\0")
    ram.write(x86_map.SETUP_DATA, bzimage.rng_seed(os.urandom(_RNG_SEED_SIZE)))
    params = bzimage.boot_params(
        kernel,
        layout,
        command_line=x86_map.COMMAND_LINE,
        rsdp=rsdp,
        setup_data=x86_map.SETUP_DATA,
        e820=e820,
    )
    ram.write(x86_map.BOOT_PARAMS, params)


def _load_content(ram: Ram, gpa: int, content: Content) -> None:
    if content.size:
        with ram.view(gpa, content.size) as view:
            content.load(view)
