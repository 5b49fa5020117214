# SPDX-License-Identifier: GPL-2.0-only
"""KVM's paravirtual features: which CPUID offers, and the MSRs of asynchronous page faults, stolen time and polling.

Memory is never paged out behind the guest's back here, so that a guest that asks for asynchronous page faults gets
none. The clock is :mod:`.timer`'s.

Source: ``Documentation/virt/kvm/x86/cpuid.rst`` and ``msr.rst``; ``arch/x86/kvm/x86.c``.
"""

from __future__ import annotations

from ctypes import sizeof
from typing import TYPE_CHECKING, Final

from anykvm.uapi import x86 as uapi

if TYPE_CHECKING:
    from .vcpu import X86Vcpu

OFFERED: Final = sum(
    1 << bit
    for bit in (
        uapi.KVM_FEATURE_CLOCKSOURCE,
        uapi.KVM_FEATURE_NOP_IO_DELAY,
        uapi.KVM_FEATURE_CLOCKSOURCE2,
        uapi.KVM_FEATURE_ASYNC_PF,
        uapi.KVM_FEATURE_STEAL_TIME,
        uapi.KVM_FEATURE_PV_UNHALT,
        uapi.KVM_FEATURE_PV_SEND_IPI,
        uapi.KVM_FEATURE_PV_SCHED_YIELD,
        uapi.KVM_FEATURE_POLL_CONTROL,
        uapi.KVM_FEATURE_ASYNC_PF_INT,
        uapi.KVM_FEATURE_CLOCKSOURCE_STABLE_BIT,
    )
)
"""KVM_CPUID_FEATURES' eax."""

FEATURE_OF_MSR: Final = {
    uapi.MSR_KVM_WALL_CLOCK: uapi.KVM_FEATURE_CLOCKSOURCE,
    uapi.MSR_KVM_SYSTEM_TIME: uapi.KVM_FEATURE_CLOCKSOURCE,
    uapi.MSR_KVM_WALL_CLOCK_NEW: uapi.KVM_FEATURE_CLOCKSOURCE2,
    uapi.MSR_KVM_SYSTEM_TIME_NEW: uapi.KVM_FEATURE_CLOCKSOURCE2,
    uapi.MSR_KVM_ASYNC_PF_EN: uapi.KVM_FEATURE_ASYNC_PF,
    uapi.MSR_KVM_ASYNC_PF_INT: uapi.KVM_FEATURE_ASYNC_PF_INT,
    uapi.MSR_KVM_ASYNC_PF_ACK: uapi.KVM_FEATURE_ASYNC_PF_INT,
    uapi.MSR_KVM_STEAL_TIME: uapi.KVM_FEATURE_STEAL_TIME,
    uapi.MSR_KVM_PV_EOI_EN: uapi.KVM_FEATURE_PV_EOI,
    uapi.MSR_KVM_POLL_CONTROL: uapi.KVM_FEATURE_POLL_CONTROL,
}

_ASYNC_PF_RESERVED: Final = 0x30
_ASYNC_PF_INT_RESERVED: Final = ~0xFF
_STEAL_RESERVED: Final = 0x3E
_STEAL_INTERVAL_NS: Final = 100_000
_STEAL_VERSION: Final = uapi.KvmStealTime.version.offset


def has(vcpu: X86Vcpu, feature: int) -> bool:
    """Whether the guest may use a feature: any, until KVM_CAP_ENFORCE_PV_FEATURE_CPUID makes its CPUID count."""
    return not vcpu.pv_enforced or bool(vcpu.pv_features >> feature & 1)


def check_msr(vcpu: X86Vcpu, index: int) -> None:
    """KeyError for an MSR of a feature that the guest may not use."""
    feature = FEATURE_OF_MSR.get(index)
    if feature is not None and not has(vcpu, feature):
        raise KeyError(index)


def set_async_pf(vcpu: X86Vcpu, value: int, host: bool) -> None:
    """MSR_KVM_ASYNC_PF_EN: the address of the shared data, and the ways of delivery the guest takes."""
    unknown = value & _ASYNC_PF_RESERVED
    if value & uapi.KVM_ASYNC_PF_DELIVERY_AS_PF_VMEXIT and not has(vcpu, uapi.KVM_FEATURE_ASYNC_PF_VMEXIT):
        unknown |= uapi.KVM_ASYNC_PF_DELIVERY_AS_PF_VMEXIT
    if value & uapi.KVM_ASYNC_PF_DELIVERY_AS_INT and not has(vcpu, uapi.KVM_FEATURE_ASYNC_PF_INT):
        unknown |= uapi.KVM_ASYNC_PF_DELIVERY_AS_INT
    if unknown or (vcpu.lapic is None and value):
        raise ValueError(f"MSR_KVM_ASYNC_PF_EN cannot be {value:#x} here")
    vcpu.msrs[uapi.MSR_KVM_ASYNC_PF_EN] = value


def set_async_pf_int(vcpu: X86Vcpu, value: int, host: bool) -> None:
    """MSR_KVM_ASYNC_PF_INT: the vector that would say that a page is there."""
    if value & _ASYNC_PF_INT_RESERVED or (vcpu.lapic is None and value):
        raise ValueError(f"MSR_KVM_ASYNC_PF_INT cannot be {value:#x} here")
    vcpu.msrs[uapi.MSR_KVM_ASYNC_PF_INT] = value


def set_async_pf_ack(vcpu: X86Vcpu, value: int, host: bool) -> None:
    """MSR_KVM_ASYNC_PF_ACK: the guest is ready for the next event, of which there is none."""


def set_pv_eoi(vcpu: X86Vcpu, value: int, host: bool) -> None:
    """MSR_KVM_PV_EOI_EN: kept; no end of interrupt is ever left to the guest's memory, which is KVM's to choose."""
    if (value & ~uapi.KVM_MSR_ENABLED) & 3:
        raise ValueError("the paravirtual end of interrupt has an address that is a multiple of 4")
    vcpu.msrs[uapi.MSR_KVM_PV_EOI_EN] = value


# Stolen time.


def set_steal_time(vcpu: X86Vcpu, value: int, host: bool) -> None:
    """MSR_KVM_STEAL_TIME: where the guest wants to read it, and bit 0 to have it."""
    if value & _STEAL_RESERVED:
        raise ValueError(f"MSR_KVM_STEAL_TIME has no bits {value & _STEAL_RESERVED:#x}")
    vcpu.steal_msr = value
    vcpu.steal_seen = vcpu.steal_written = 0
    if value & uapi.KVM_MSR_ENABLED:
        vcpu.steal_seen = vcpu.vcpu.services.run_delay()
        vcpu.attention = True


def record_steal_time(vcpu: X86Vcpu) -> None:
    """Add what this thread waited for a CPU since last time, at most every 0.1 ms.

    Memory that is not there is ignored, as by the kernel. The version is odd while the rest is being written.
    """
    services = vcpu.vcpu.services
    now = services.now()
    if now - vcpu.steal_written < _STEAL_INTERVAL_NS:
        return
    vcpu.steal_written = now
    address = vcpu.steal_msr & ~(_STEAL_RESERVED | uapi.KVM_MSR_ENABLED)
    vm = vcpu.vm
    old = vm.read_guest(address, sizeof(uapi.KvmStealTime))
    if old is None:
        return
    time = uapi.KvmStealTime.from_buffer_copy(old)
    delay = services.run_delay()
    time.version = (time.version & ~1) + 1
    time.preempted = 0
    # Another thread may run the vCPU now, whose count is lower.
    time.steal += max(delay - vcpu.steal_seen, 0)
    vcpu.steal_seen = delay
    vm.write_guest(address, bytes(time))
    vm.write_guest(address + _STEAL_VERSION, (time.version + 1).to_bytes(4, "little"))
