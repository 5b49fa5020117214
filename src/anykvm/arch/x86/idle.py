# SPDX-License-Identifier: GPL-2.0-only
"""What a guest does when it has nothing to do, and KVM_CAP_X86_DISABLE_EXITS: which of it stays within KVM.

With HLT disabled a vCPU that halts sleeps in KVM_RUN until something wakes it, in-kernel local APIC or not; on
hardware it would halt the physical CPU. PAUSE never comes out. MWAIT is accepted and means nothing, as by a kernel
whose CPU cannot have it in a guest: here it is a hint that does nothing (:mod:`.quirks`). With CSTATE the guest can
read how long it was in deep idle states, which is never.

Source: api.rst, KVM_CAP_X86_DISABLE_EXITS; ``kvm_vm_ioctl_enable_cap`` in ``arch/x86/kvm/x86.c``.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from anykvm.uapi import common
from anykvm.uapi import x86 as uapi

from . import cpuid

if TYPE_CHECKING:
    from anykvm.virt.vm import Vm

    from .engine import CpuidLeaf
    from .vcpu import X86Vcpu

OFFERED: Final = uapi.KVM_X86_DISABLE_EXITS_HLT | uapi.KVM_X86_DISABLE_EXITS_PAUSE | uapi.KVM_X86_DISABLE_EXITS_CSTATE
_VALID: Final = OFFERED | uapi.KVM_X86_DISABLE_EXITS_MWAIT
_RESIDENCY: Final = frozenset(
    {
        uapi.MSR_CORE_C1_RES,
        uapi.MSR_CORE_C3_RESIDENCY,
        uapi.MSR_CORE_C6_RESIDENCY,
        uapi.MSR_CORE_C7_RESIDENCY,
    }
)


def disable_exits(vm: Vm, value: int) -> None:
    """Enable KVM_CAP_X86_DISABLE_EXITS; EINVAL for unknown bits, and once there are vCPUs. Bits are only ever added."""
    if value & ~_VALID:
        raise OSError(errno.EINVAL, f"there are no exits {value & ~_VALID:#x} to disable")
    with vm.lock:
        if vm.created_vcpus:
            raise OSError(errno.EINVAL, "exits are disabled before the first vCPU is created")
        vm.arch.disabled_exits |= value


def halts_within(vcpu: X86Vcpu) -> bool:
    """Whether HLT stays within KVM_RUN."""
    return vcpu.lapic is not None or bool(vcpu.vm.disabled_exits & uapi.KVM_X86_DISABLE_EXITS_HLT)


def halt(vcpu: X86Vcpu) -> None:
    """The guest halts; it sleeps before it goes on."""
    vcpu.mp_state = common.KVM_MP_STATE_HALTED
    vcpu.halted_unseen = bool(vcpu.vm.disabled_exits & uapi.KVM_X86_DISABLE_EXITS_HLT)
    vcpu.attention = True


def shown_state(vcpu: X86Vcpu) -> int:
    """The state that userspace sees: KVM does not know of a HLT that does not exit."""
    if vcpu.mp_state == common.KVM_MP_STATE_HALTED and (vcpu.pv_unhalted or vcpu.halted_unseen):
        return common.KVM_MP_STATE_RUNNABLE
    return vcpu.mp_state


def is_residency(vcpu: X86Vcpu, index: int) -> bool:
    """Whether RDMSR reads an idle state's residency, 0."""
    return index in _RESIDENCY and bool(vcpu.vm.disabled_exits & uapi.KVM_X86_DISABLE_EXITS_CSTATE)


def kvm_leaves(vcpu: X86Vcpu, leaves: tuple[CpuidLeaf, ...]) -> tuple[CpuidLeaf, ...]:
    """CPUID as a vCPU has it: nobody could wake one by hypercall whose HLT does not exit."""
    if vcpu.vm.disabled_exits & uapi.KVM_X86_DISABLE_EXITS_HLT:
        return cpuid.without_kvm_feature(leaves, uapi.KVM_FEATURE_PV_UNHALT)
    return leaves
