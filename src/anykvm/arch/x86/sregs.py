# SPDX-License-Identifier: GPL-2.0-only
"""KVM_GET_SREGS, KVM_SET_SREGS and their second version (api.rst 4.13, 4.14): control and segment registers.

What is refused is the kernel's: ``kvm_is_valid_sregs`` and ``kvm_is_valid_cr4`` in ``arch/x86/kvm/x86.c``.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from anykvm.uapi import x86 as uapi

from . import cpuid, engine

if TYPE_CHECKING:
    from .engine import CpuLike, Segment
    from .vcpu import X86Vcpu

SEGMENTS: Final = (
    ("es", engine.ES),
    ("cs", engine.CS),
    ("ss", engine.SS),
    ("ds", engine.DS),
    ("fs", engine.FS),
    ("gs", engine.GS),
    ("ldt", engine.LDT),
    ("tr", engine.TR),
)

CR4_ALWAYS: Final = (
    uapi.X86_CR4_VME
    | uapi.X86_CR4_PVI
    | uapi.X86_CR4_TSD
    | uapi.X86_CR4_DE
    | uapi.X86_CR4_PSE
    | uapi.X86_CR4_PAE
    | uapi.X86_CR4_MCE
    | uapi.X86_CR4_PGE
    | uapi.X86_CR4_PCE
    | uapi.X86_CR4_OSFXSR
    | uapi.X86_CR4_OSXMMEXCPT
)
CR4_FEATURES: Final = (
    # CR4's bit; leaf, word (as in CpuidLeaf) and bit of CPUID.
    (uapi.X86_CR4_OSXSAVE, 1, 5, uapi.CPUID_1_ECX_XSAVE),
    (uapi.X86_CR4_UMIP, 7, 5, uapi.CPUID_7_ECX_UMIP),
    (uapi.X86_CR4_PKE, 7, 5, uapi.CPUID_7_ECX_PKU),
    (uapi.X86_CR4_FSGSBASE, 7, 4, uapi.CPUID_7_EBX_FSGSBASE),
    (uapi.X86_CR4_SMEP, 7, 4, uapi.CPUID_7_EBX_SMEP),
    (uapi.X86_CR4_SMAP, 7, 4, uapi.CPUID_7_EBX_SMAP),
)


def cr4_bits(leaves: tuple[engine.CpuidLeaf, ...]) -> int:
    """The bits of CR4 that a CPUID has."""
    bits = CR4_ALWAYS
    for bit, function, word, feature in CR4_FEATURES:
        leaf = cpuid.find(leaves, function)
        if leaf is not None and leaf[word] & feature:
            bits |= bit
    return bits


EFER_KNOWN: Final = uapi.EFER_SCE | uapi.EFER_LME | uapi.EFER_LMA | uapi.EFER_NX
CR0_HIGH: Final = 0xFFFFFFFF00000000
DESCRIPTOR_P: Final = 1 << 7


def pack_segment(into: uapi.KvmSegment, value: Segment) -> None:
    """From the engine's form to the ABI's."""
    into.selector, into.base, into.limit, attributes = value
    into.type = attributes & 0xF
    into.s = attributes >> 4 & 1
    into.dpl = attributes >> 5 & 3
    into.present = attributes >> 7 & 1
    into.avl = attributes >> 12 & 1
    into.l = attributes >> 13 & 1
    into.db = attributes >> 14 & 1
    into.g = attributes >> 15 & 1
    into.unusable = not into.present


def unpack_segment(segment: uapi.KvmSegment) -> Segment:
    """From the ABI's form to the engine's: an unusable segment is one that is not present."""
    present = segment.present and not segment.unusable
    attributes = (
        segment.type & 0xF
        | (segment.s & 1) << 4
        | (segment.dpl & 3) << 5
        | (DESCRIPTOR_P if present else 0)
        | (segment.avl & 1) << 12
        | (segment.l & 1) << 13
        | (segment.db & 1) << 14
        | (segment.g & 1) << 15
    )
    return segment.selector, segment.base, segment.limit, attributes


def _get_common(vcpu: X86Vcpu, cpu: CpuLike, into: uapi.KvmSregs | uapi.KvmSregs2) -> None:
    for name, index in SEGMENTS:
        pack_segment(getattr(into, name), cpu.get_segment(index))
    into.gdt.base, into.gdt.limit = cpu.get_table(engine.GDT)
    into.idt.base, into.idt.limit = cpu.get_table(engine.IDT)
    into.cr0, into.cr2, into.cr3, into.cr4 = cpu.cr0, cpu.cr2, cpu.cr3, cpu.cr4
    into.cr8 = vcpu.cr8
    into.efer = cpu.efer
    into.apic_base = vcpu.apic_base


def get(vcpu: X86Vcpu) -> uapi.KvmSregs:
    """``struct kvm_sregs``."""
    sregs = uapi.KvmSregs()
    _get_common(vcpu, vcpu.load(), sregs)
    queued = vcpu.injected_irq
    if queued is not None:
        sregs.interrupt_bitmap[queued >> 6] |= 1 << (queued & 63)
    return sregs


def get2(vcpu: X86Vcpu) -> uapi.KvmSregs2:
    """``struct kvm_sregs2``: with the PDPTRs if PAE paging uses them."""
    sregs = uapi.KvmSregs2()
    cpu = vcpu.load()
    _get_common(vcpu, cpu, sregs)
    if is_pae_paging(sregs):
        table = sregs.cr3 & 0xFFFFFFE0
        for index in range(4):
            sregs.pdptrs[index] = int.from_bytes(vcpu.vm.read_guest(table + 8 * index, 8) or bytes(8), "little")
        sregs.flags = uapi.KVM_SREGS2_FLAGS_PDPTRS_VALID
    return sregs


def is_pae_paging(sregs: uapi.KvmSregs | uapi.KvmSregs2) -> bool:
    """Whether the registers describe 32-bit paging with PAE."""
    paging = sregs.cr0 & uapi.X86_CR0_PG and sregs.cr4 & uapi.X86_CR4_PAE
    return bool(paging) and not sregs.efer & uapi.EFER_LMA


def _invalid(why: str) -> OSError:
    return OSError(errno.EINVAL, why)


def check(vcpu: X86Vcpu, sregs: uapi.KvmSregs | uapi.KvmSregs2) -> None:
    """EINVAL for control registers that a CPU cannot have together."""
    paging = sregs.cr0 & uapi.X86_CR0_PG
    if sregs.efer & uapi.EFER_LME and paging:
        # As the architecture has it on entering long mode.
        if not (sregs.cr4 & uapi.X86_CR4_PAE and sregs.efer & uapi.EFER_LMA):
            raise _invalid("long mode with paging needs CR4.PAE and EFER.LMA")
        if sregs.cr3 >> vcpu.maxphyaddr:
            raise _invalid(f"CR3 {sregs.cr3:#x} is beyond {vcpu.maxphyaddr} address bits")
    elif sregs.efer & uapi.EFER_LMA or sregs.cs.l:
        raise _invalid("EFER.LMA and CS.L are for long mode with paging")
    known = cr4_bits(cpuid.supported())
    if vcpu.cpuid:
        known &= cr4_bits(vcpu.cpuid)
    if sregs.cr4 & ~known:
        raise _invalid(f"CR4 bits {sregs.cr4 & ~known:#x} are not in this vCPU's CPUID")
    if sregs.cr0 & CR0_HIGH or (sregs.cr0 & uapi.X86_CR0_NW and not sregs.cr0 & uapi.X86_CR0_CD):
        raise _invalid(f"CR0 cannot be {sregs.cr0:#x}")
    if paging and not sregs.cr0 & uapi.X86_CR0_PE:
        raise _invalid("paging needs protected mode")


def _set_common(vcpu: X86Vcpu, cpu: CpuLike, sregs: uapi.KvmSregs | uapi.KvmSregs2) -> None:
    cpu.set_table(engine.IDT, sregs.idt.base, sregs.idt.limit)
    cpu.set_table(engine.GDT, sregs.gdt.base, sregs.gdt.limit)
    cpu.cr2 = sregs.cr2
    cpu.cr3 = sregs.cr3
    if sregs.cr8 <= 0xF:
        vcpu.write_cr8(sregs.cr8)
    # EFER.LMA before paging, so that CR0 and CR4 find the mode they are of.
    cpu.efer = sregs.efer & EFER_KNOWN
    cpu.cr4 = sregs.cr4
    cpu.cr0 = sregs.cr0
    for name, index in SEGMENTS:
        cpu.set_segment(index, unpack_segment(getattr(sregs, name)))


def set_(vcpu: X86Vcpu, sregs: uapi.KvmSregs) -> None:
    """Write all of them; EINVAL for a combination a CPU cannot be in."""
    check(vcpu, sregs)
    vcpu.check_apic_base(sregs.apic_base)
    if vcpu.half_done and bytes(sregs) == bytes(get(vcpu)):
        # Nothing changes: the instruction can wait on.
        return
    cpu = vcpu.coherent()
    vcpu.set_apic_base(sregs.apic_base)
    _set_common(vcpu, cpu, sregs)
    for word in range(4):
        bits = sregs.interrupt_bitmap[word]
        if bits:
            vcpu.queue_interrupt(word * 64 + bits.bit_length() - 1)
            break


def _same(one: uapi.KvmSregs2, other: uapi.KvmSregs2) -> bool:
    """Whether they mean the same; an older userspace leaves the PDPTRs out."""
    size = uapi.KvmSregs2.flags.offset
    return bytes(one)[:size] == bytes(other)[:size]


def set2(vcpu: X86Vcpu, sregs: uapi.KvmSregs2) -> None:
    """Write all of them; EINVAL also for unknown flags, and for PDPTRs where paging does not use them."""
    valid = sregs.flags & uapi.KVM_SREGS2_FLAGS_PDPTRS_VALID
    if sregs.flags & ~uapi.KVM_SREGS2_FLAGS_PDPTRS_VALID or (valid and not is_pae_paging(sregs)):
        raise _invalid(f"kvm_sregs2.flags cannot be {sregs.flags:#x} here")
    check(vcpu, sregs)
    vcpu.check_apic_base(sregs.apic_base)
    if vcpu.half_done and _same(sregs, get2(vcpu)):
        return
    cpu = vcpu.coherent()
    vcpu.set_apic_base(sregs.apic_base)
    # The engine reads the PDPTRs from memory, where a guest that may be migrated has them too.
    _set_common(vcpu, cpu, sregs)
