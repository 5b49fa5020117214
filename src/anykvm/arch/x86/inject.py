# SPDX-License-Identifier: GPL-2.0-only
"""Delivering to the guest: exceptions, NMIs, interrupts, INIT and start-up.

The engine does the delivery itself; what is here decides what and when. Source: ``kvm_check_and_inject_events`` and
``kvm_vcpu_reset`` in ``arch/x86/kvm/x86.c``; Intel SDM volume 3, sections 10.1.1 and 11.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anykvm.uapi import x86 as uapi

from . import engine, smm, tpr
from .engine import SPURIOUS

if TYPE_CHECKING:
    from .engine import CpuLike
    from .vcpu import X86Vcpu

_U64: Final = 0xFFFFFFFFFFFFFFFF
_DR6_TRAPS: Final = 0xF
_DR6_ACTIVE_LOW: Final = 0xFFFF0FF0
FAMILY_MODEL: Final = 0x600
"""RDX after reset, when CPUID does not say."""


def acknowledge(vcpu: X86Vcpu) -> int:
    """The guest takes an interrupt now: give its vector, or SPURIOUS."""
    queued = vcpu.injected_irq
    if queued is not None:
        vcpu.queue_interrupt(None)
        return queued
    if vcpu.xen_line and vcpu.xen is not None:
        if vcpu.xen.has_upcall():
            return vcpu.vm.xen.upcall_vector
        vcpu.set_xen_line(False)
    lapic = vcpu.lapic
    if lapic is None:
        return SPURIOUS
    if not vcpu.vapic_addr:
        return lapic.ack()
    tpr.sync_from_guest(vcpu)
    vector = lapic.ack()
    tpr.sync_to_guest(vcpu)
    return vector


def deliver_pending(vcpu: X86Vcpu) -> None:
    """Hand the engine what userspace or another vCPU left; an exception waits until no instruction is half done."""
    cpu = vcpu.cpu
    if vcpu.exception is not None and not vcpu.mid_instruction:
        (vector, error_code), vcpu.exception = vcpu.exception, None
        payload, vcpu.exception_payload = vcpu.exception_payload, None
        if payload is not None:
            _deliver_payload(cpu, vector, payload)
        cpu.raise_exception(vector, -1 if error_code is None else error_code)
    if vcpu.nmi_injected:
        # It has begun already, and masked the next ones.
        cpu.nmi_masked = False
    if vcpu.nmi_waits:
        vcpu.nmi_pending = vcpu.nmi_injected = False
        cpu.nmi()


def _deliver_payload(cpu: CpuLike, vector: int, payload: int) -> None:
    """What a pending exception leaves in CR2 or DR6 (``kvm_deliver_exception_payload``).

    A payload for DR6 has its active-low bits inverted.
    """
    if vector == uapi.PF_VECTOR:
        cpu.cr2 = payload
    elif vector == uapi.DB_VECTOR:
        dr6 = cpu.get_dr(6) & ~_DR6_TRAPS | _DR6_ACTIVE_LOW | payload
        cpu.set_dr(6, dr6 ^ (payload & _DR6_ACTIVE_LOW))


def general_protection(cpu: CpuLike) -> None:
    """The instruction at RIP faults with #GP(0); nothing is half done after it."""
    cpu.raise_exception(uapi.GP_VECTOR, 0)


def init(vcpu: X86Vcpu) -> None:
    """INIT: as reset, with the signature of CPUID in RDX, but the FPU, XCR0, the TSC and what MSRs hold stay."""
    cpu = vcpu.load()
    vcpu.drop_instruction()
    fx, xcr0, offset = cpu.get_fx(), cpu.xcr0, cpu.tsc_offset
    pat = cpu.get_msr(uapi.MSR_IA32_CR_PAT)
    cache = cpu.cr0 & (uapi.X86_CR0_CD | uapi.X86_CR0_NW)
    cpu.reset()
    cpu.set_fx(fx)
    cpu.xcr0 = xcr0
    cpu.tsc_offset = offset
    cpu.set_msr(uapi.MSR_IA32_CR_PAT, pat)
    cpu.cr0 = cpu.cr0 & ~(uapi.X86_CR0_CD | uapi.X86_CR0_NW) | cache
    leaf = vcpu.cpuid_leaf(1)
    cpu.gpr[engine.RDX] = leaf[3] if leaf is not None else FAMILY_MODEL
    vcpu.exception = None
    smm.init(vcpu)
    vcpu.nmi_pending = vcpu.nmi_injected = False
    vcpu.queue_interrupt(None)
    vcpu.drive_line()


def start(vcpu: X86Vcpu, vector: int) -> None:
    """A start-up IPI: begin in real mode at ``vector`` << 12."""
    cpu = vcpu.load()
    _, _, limit, attributes = cpu.get_segment(engine.CS)
    cpu.set_segment(engine.CS, (vector << 8, vector << 12, limit, attributes))
    cpu.rip = 0
