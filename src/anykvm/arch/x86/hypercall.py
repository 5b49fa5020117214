# SPDX-License-Identifier: GPL-2.0-only
"""The guest's calls to KVM: VMCALL and VMMCALL.

Source: ``Documentation/virt/kvm/x86/hypercalls.rst``; ``kvm_emulate_hypercall`` in ``arch/x86/kvm/x86.c``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anykvm.uapi import x86 as uapi

from . import engine

if TYPE_CHECKING:
    from .vcpu import X86Vcpu

_U64: Final = 0xFFFFFFFFFFFFFFFF
_CS_L: Final = 1 << 13
_DPL_SHIFT: Final = 5


def call(vcpu: X86Vcpu) -> None:
    """Serve a hypercall: number in RAX, arguments in RBX, RCX, RDX, RSI; the result goes to RAX.

    Outside 64-bit mode the registers are 32 bits wide. A call from user mode is KVM_EPERM.
    """
    cpu = vcpu.cpu
    gpr = cpu.gpr
    long_mode = bool(cpu.get_segment(engine.CS)[3] & _CS_L) and bool(cpu.efer & uapi.EFER_LMA)
    mask = _U64 if long_mode else 0xFFFFFFFF
    if cpu.get_segment(engine.SS)[3] >> _DPL_SHIFT & 3:
        result = -uapi.KVM_EPERM
    else:
        result = _serve(vcpu, gpr[engine.RAX] & mask, gpr[engine.RCX] & mask)
    gpr[engine.RAX] = result & mask


def _serve(vcpu: X86Vcpu, number: int, second: int) -> int:
    if number == uapi.KVM_HC_VAPIC_POLL_IRQ:
        return 0
    if number == uapi.KVM_HC_KICK_CPU and vcpu.lapic is not None and _has(vcpu, uapi.KVM_FEATURE_PV_UNHALT):
        _kick_cpu(vcpu, second)
        return 0
    return -uapi.KVM_ENOSYS


def _has(vcpu: X86Vcpu, feature: int) -> bool:
    leaf = vcpu.cpuid_leaf(uapi.KVM_CPUID_FEATURES)
    return leaf is not None and bool(leaf[3] >> feature & 1)


def _kick_cpu(vcpu: X86Vcpu, apic_id: int) -> None:
    """Wake the vCPU with this APIC ID from HLT; it need not be halted yet."""
    for other in vcpu.vm.vcpus:
        if other.lapic is not None and other.lapic.apic_id == apic_id & 0xFF:
            other.pv_unhalted = True
            other.sleep.wake()
            return
