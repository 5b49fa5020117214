# SPDX-License-Identifier: GPL-2.0-only
"""How kernels are entered on x86: 64-bit mode with identity-mapped memory, as Linux's boot protocol wants it, or 32-bit
protected mode without paging, as PVH does.

Sources: ``Documentation/arch/x86/boot.rst``, "64-bit Boot Protocol"; Intel SDM volume 3, 4.5 (four-level paging), 3.4.5
(segment descriptors), 9.8 (switching to IA-32e mode); Xen's ``docs/misc/pvh.pandoc``.
"""

from __future__ import annotations

import struct
from typing import Final

from anykvm.api import Vcpu
from anykvm.uapi import x86

from . import x86_map
from .memory import GIB, MIB, PAGE_SIZE

_PRESENT_WRITABLE: Final = 0x3
_LARGE: Final = 1 << 7
_EFER_LME: Final = 1 << 8
_EFER_LMA: Final = 1 << 10

_CODE: Final = 0x10
_DATA: Final = 0x18
_TASK: Final = 0x20
# Present, without base: 64-bit code and data of 4 GiB, a busy 64-bit TSS of 0x68 bytes (in two entries).
_DESCRIPTORS: Final = (0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x0000_8B00_0000_0067, 0)

_CODE_32: Final = 0x28
# The same, with 32-bit code at the end of it; the TSS is one of 32 bits, in one entry.
_DESCRIPTORS_PVH: Final = (*_DESCRIPTORS[:5], 0x00CF_9B00_0000_FFFF)

_MISC_ENABLE: Final = 0x1A0
_FAST_STRINGS: Final = 1
_MTRR_DEFAULT: Final = 0x2FF
_MTRR_ON_WRITE_BACK: Final = 1 << 11 | 6


def descriptors(*, pvh: bool = False) -> bytes:
    """The GDT, for ``x86_map.GDT``: for Linux's 64-bit entry, or for PVH's."""
    return struct.pack("<6Q", *(_DESCRIPTORS_PVH if pvh else _DESCRIPTORS))


def page_tables() -> bytes:
    """Six pages for ``x86_map.PAGE_TABLES``: the first 4 GiB, each address at itself, in pages of 2 MiB."""
    base = x86_map.PAGE_TABLES
    tables = base + 2 * PAGE_SIZE
    top = struct.pack("<Q", base + PAGE_SIZE | _PRESENT_WRITABLE).ljust(PAGE_SIZE, b"\0")
    pointers = b"".join(struct.pack("<Q", tables + PAGE_SIZE * n | _PRESENT_WRITABLE) for n in range(4))
    pages = range(0, 4 * GIB, 2 * MIB)
    return (
        top
        + pointers.ljust(PAGE_SIZE, b"\0")
        + b"".join(struct.pack("<Q", page | _LARGE | _PRESENT_WRITABLE) for page in pages)
    )


def enter_linux(vcpu: Vcpu, entry: int, boot_params: int) -> None:
    """Set the boot vCPU's registers; both arguments are guest-physical addresses."""
    sregs = vcpu.get_sregs()
    _segments(sregs, _CODE, _DESCRIPTORS)
    sregs.cr0 = x86.X86_CR0_PE | x86.X86_CR0_ET | x86.X86_CR0_NE | x86.X86_CR0_WP | x86.X86_CR0_PG
    sregs.cr3 = x86_map.PAGE_TABLES
    sregs.cr4 = x86.X86_CR4_PAE
    sregs.efer |= _EFER_LME | _EFER_LMA
    vcpu.set_sregs(sregs)
    vcpu.set_regs(x86.KvmRegs(rip=entry, rsi=boot_params, rsp=x86_map.BOOT_STACK, rflags=x86.X86_EFLAGS_FIXED))


def enter_pvh(vcpu: Vcpu, entry: int, start_info: int) -> None:
    """Set the boot vCPU's registers; both arguments are guest-physical addresses."""
    sregs = vcpu.get_sregs()
    _segments(sregs, _CODE_32, _DESCRIPTORS_PVH)
    sregs.cr0 = x86.X86_CR0_PE | x86.X86_CR0_ET
    sregs.cr3 = sregs.cr4 = 0
    sregs.efer &= ~(_EFER_LME | _EFER_LMA)
    vcpu.set_sregs(sregs)
    vcpu.set_regs(x86.KvmRegs(rip=entry, rbx=start_info, rsp=x86_map.BOOT_STACK, rflags=x86.X86_EFLAGS_FIXED))


def _segments(sregs: x86.KvmSregs, code: int, table: tuple[int, ...]) -> None:
    _segment(sregs.cs, code, table)
    for segment in (sregs.ds, sregs.es, sregs.ss, sregs.fs, sregs.gs):
        _segment(segment, _DATA, table)
    _segment(sregs.tr, _TASK, table)
    sregs.gdt.base, sregs.gdt.limit = x86_map.GDT, 8 * len(table) - 1
    sregs.idt.base, sregs.idt.limit = 0, 0  # no interrupt before the kernel has its own


def _segment(segment: x86.KvmSegment, selector: int, table: tuple[int, ...]) -> None:
    """Load a segment register, hidden part and all, from its descriptor."""
    low, high = struct.unpack("<II", struct.pack("<Q", table[selector // 8]))
    granular = high >> 23 & 1
    limit = high & 0xF_0000 | low & 0xFFFF
    segment.selector, segment.base = selector, 0
    segment.limit = limit << 12 | 0xFFF if granular else limit
    segment.type, segment.s, segment.dpl, segment.present = high >> 8 & 15, high >> 12 & 1, high >> 13 & 3, 1
    segment.avl, segment.l, segment.db, segment.g = 0, high >> 21 & 1, high >> 22 & 1, granular
    segment.unusable = 0


def set_msrs(vcpu: Vcpu) -> None:
    """What firmware leaves in every CPU: fast string operations, and memory that is cached."""
    for index, value in ((_MISC_ENABLE, _FAST_STRINGS), (_MTRR_DEFAULT, _MTRR_ON_WRITE_BACK)):
        vcpu.set_msrs({index: value})  # one that this KVM does not have stays as it is


def program_counter(vcpu: Vcpu) -> int:
    """Where a vCPU is, for a message."""
    return int(vcpu.get_regs().rip)
