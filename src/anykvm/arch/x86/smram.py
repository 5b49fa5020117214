# SPDX-License-Identifier: GPL-2.0-only
"""The state save area of system management mode: 512 bytes at SMBASE + 0xfe00, in two formats.

The wide one is AMD64's, for a guest whose CPUID has long mode; the narrow one is that of 32-bit processors. Offsets are
from SMBASE + 0xfe00. Source: AMD64 manual volume 2, "SMM State-Save Area"; ``arch/x86/kvm/smm.h``, which adds the
interrupt shadow.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from anykvm.uapi import x86 as uapi

from . import engine, sregs

if TYPE_CHECKING:
    from .engine import CpuLike, Segment
    from .vcpu import X86Vcpu

OFFSET: Final = 0xFE00
SIZE: Final = 512
_REVISION: Final = 0xFC

_SHADOW: Final = uapi.KVM_X86_SHADOW_INT_STI
_U32: Final = 0xFFFFFFFF

# Wide.
_WIDE_REVISION: Final = 0x20064  # SMBASE can be changed
_SEGMENT: Final = struct.Struct("<HHIQ")  # selector, attributes, limit, base
_WIDE_SEGMENTS: Final = (
    (engine.ES, 0x00),
    (engine.CS, 0x10),
    (engine.SS, 0x20),
    (engine.DS, 0x30),
    (engine.FS, 0x40),
    (engine.GS, 0x50),
    (engine.LDT, 0x70),
    (engine.TR, 0x90),
)
_WIDE_TABLES: Final = ((engine.GDT, 0x60), (engine.IDT, 0x80))
_WIDE_SHADOW: Final = 0xCB
_WIDE_EFER: Final = 0xD0
_WIDE_BASE: Final = 0x100
_WIDE_CONTROL: Final = 0x148  # CR4, CR3, CR0, DR7, DR6, RFLAGS, RIP; R15 down to RAX
_WIDE_WORDS: Final = struct.Struct("<7Q16Q")

# Narrow.
_NARROW_REVISION: Final = 0x20000
_NARROW_BASE: Final = 0xF8
_NARROW_CR4: Final = 0x114
_NARROW_SHADOW: Final = 0x11A
_HIDDEN: Final = struct.Struct("<III")  # attributes, limit, base
_NARROW_SEGMENTS: Final = (
    # Where the hidden part is, and the selector.
    (engine.DS, 0x12C, 0x1B4),
    (engine.FS, 0x138, 0x1B8),
    (engine.GS, 0x144, 0x1BC),
    (engine.TR, 0x15C, 0x1C4),
    (engine.LDT, 0x178, 0x1C0),
    (engine.ES, 0x184, 0x1A8),
    (engine.CS, 0x190, 0x1AC),
    (engine.SS, 0x19C, 0x1B0),
)
_NARROW_TABLES: Final = ((engine.IDT, 0x154), (engine.GDT, 0x170))  # limit, base
_NARROW_WORDS_AT: Final = 0x1C8  # DR7, DR6; EAX to EDI; EIP, EFLAGS, CR3, CR0
_NARROW_WORDS: Final = struct.Struct("<2I8I4I")


def save(cpu: CpuLike, base: int, *, wide: bool) -> bytes:
    """The area, with SMBASE in it, for the state that the CPU has now."""
    image = bytearray(SIZE)
    (_save_wide if wide else _save_narrow)(cpu, base, image)
    return bytes(image)


def is_wide(image: bytes) -> bool:
    """Whether the area says that it is in the wide format."""
    return int.from_bytes(image[_REVISION : _REVISION + 4], "little") == _WIDE_REVISION


def load(vcpu: X86Vcpu, image: bytes, *, wide: bool) -> int:
    """Give the CPU the state in the area; returns SMBASE. OSError for one that no CPU can be in: nothing changed."""
    return (_load_wide if wide else _load_narrow)(vcpu, image)


def _save_wide(cpu: CpuLike, base: int, image: bytearray) -> None:
    for index, at in _WIDE_SEGMENTS:
        selector, start, limit, attributes = cpu.get_segment(index)
        _SEGMENT.pack_into(image, at, selector, attributes, limit, start)
    for table, at in _WIDE_TABLES:
        start, limit = cpu.get_table(table)
        _SEGMENT.pack_into(image, at, 0, 0, limit, start)
    image[_WIDE_SHADOW] = _SHADOW if cpu.shadow else 0
    struct.pack_into("<Q", image, _WIDE_EFER, cpu.efer)
    struct.pack_into("<II", image, _REVISION, _WIDE_REVISION, base & _U32)
    _WIDE_WORDS.pack_into(
        image,
        _WIDE_CONTROL,
        *(cpu.cr4, cpu.cr3, cpu.cr0, cpu.get_dr(7), cpu.get_dr(6), cpu.rflags, cpu.rip),
        *reversed(list(cpu.gpr)),
    )


def _load_wide(vcpu: X86Vcpu, image: bytes) -> int:
    cr4, cr3, cr0, dr7, dr6, rflags, rip, *registers = _WIDE_WORDS.unpack_from(image, _WIDE_CONTROL)
    (efer,) = struct.unpack_from("<Q", image, _WIDE_EFER)
    wanted = _control(cr0, cr3, cr4, efer)
    if efer & ~sregs.EFER_KNOWN or (dr6 | dr7) >> 32:
        raise OSError("EFER, DR6 or DR7 have bits that there are not")
    sregs.check(vcpu, wanted)
    cpu = vcpu.cpu
    for table, at in _WIDE_TABLES:
        _, _, limit, start = _SEGMENT.unpack_from(image, at)
        cpu.set_table(table, start, limit)
    _apply(vcpu, wanted)
    for index, at in _WIDE_SEGMENTS:
        selector, attributes, limit, start = _SEGMENT.unpack_from(image, at)
        cpu.set_segment(index, (selector, start, limit, attributes))
    _finish(cpu, registers[::-1], rip, rflags)
    cpu.set_dr(6, dr6)
    cpu.set_dr(7, dr7)
    cpu.shadow = image[_WIDE_SHADOW] != 0
    return int(struct.unpack_from("<I", image, _WIDE_BASE)[0])


def _save_narrow(cpu: CpuLike, base: int, image: bytearray) -> None:
    for index, at, selector_at in _NARROW_SEGMENTS:
        selector, start, limit, attributes = cpu.get_segment(index)
        _HIDDEN.pack_into(image, at, attributes << 8, limit, start & _U32)
        struct.pack_into("<I", image, selector_at, selector)
    for table, at in _NARROW_TABLES:
        start, limit = cpu.get_table(table)
        struct.pack_into("<II", image, at, limit, start & _U32)
    struct.pack_into("<II", image, _NARROW_BASE, base & _U32, _NARROW_REVISION)
    struct.pack_into("<I", image, _NARROW_CR4, cpu.cr4)
    image[_NARROW_SHADOW] = _SHADOW if cpu.shadow else 0
    words = (cpu.get_dr(7), cpu.get_dr(6), *list(cpu.gpr)[:8], cpu.rip, cpu.rflags, cpu.cr3, cpu.cr0)
    _NARROW_WORDS.pack_into(image, _NARROW_WORDS_AT, *(word & _U32 for word in words))


def _load_narrow(vcpu: X86Vcpu, image: bytes) -> int:
    dr7, dr6, *registers, rip, rflags, cr3, cr0 = _NARROW_WORDS.unpack_from(image, _NARROW_WORDS_AT)
    (cr4,) = struct.unpack_from("<I", image, _NARROW_CR4)
    cpu = vcpu.cpu
    wanted = _control(cr0, cr3, cr4, cpu.efer)
    sregs.check(vcpu, wanted)
    for table, at in _NARROW_TABLES:
        limit, start = struct.unpack_from("<II", image, at)
        cpu.set_table(table, start, limit)
    _apply(vcpu, wanted)
    for index, at, selector_at in _NARROW_SEGMENTS:
        attributes, limit, start = _HIDDEN.unpack_from(image, at)
        (selector,) = struct.unpack_from("<H", image, selector_at)
        segment: Segment = (selector, start, limit, attributes >> 8 & 0xFFFF)
        cpu.set_segment(index, segment)
    _finish(cpu, registers, rip, rflags)
    cpu.set_dr(6, dr6)
    cpu.set_dr(7, dr7)
    cpu.shadow = image[_NARROW_SHADOW] != 0
    return int(struct.unpack_from("<I", image, _NARROW_BASE)[0])


def _control(cr0: int, cr3: int, cr4: int, efer: int) -> uapi.KvmSregs:
    """The control registers; EFER.LMA follows from the others."""
    long = cr0 & uapi.X86_CR0_PG and efer & uapi.EFER_LME
    efer = efer & ~uapi.EFER_LMA | (uapi.EFER_LMA if long else 0)
    return uapi.KvmSregs(cr0=cr0, cr3=cr3, cr4=cr4, efer=efer)


def _apply(vcpu: X86Vcpu, wanted: uapi.KvmSregs) -> None:
    cpu = vcpu.cpu
    cpu.cr3 = wanted.cr3
    # As in KVM_SET_SREGS: EFER.LMA before paging.
    cpu.efer = wanted.efer
    cpu.cr4 = wanted.cr4
    cpu.cr0 = wanted.cr0


def _finish(cpu: CpuLike, registers: list[int], rip: int, rflags: int) -> None:
    for index, value in enumerate(registers):
        cpu.gpr[index] = value
    cpu.rip = rip
    cpu.rflags = rflags | uapi.X86_EFLAGS_FIXED
