# SPDX-License-Identifier: GPL-2.0-only
"""Hyper-V's interface, for guests that know it better than KVM's: its clocks, its hypercall page, the vCPU's index.

What a guest sees of it is what its CPUID has; the MSRs are there for a guest whose CPUID has Hyper-V's interface, and
for userspace always. Not here: the synthetic interrupt controller and its timers, TLB flushes, IPIs, the APIC's MSRs,
crash reports, debugging. So CPUID offers none of them.

Source: the Top Level Functional Specification 6.0b; api.rst 4.118; ``arch/x86/kvm/hyperv.c``.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from anykvm.uapi import x86 as uapi

from . import cpuid, engine, timer

if TYPE_CHECKING:
    from .engine import CpuidLeaf
    from .vcpu import X86Vcpu

_MAX_VCPUS: Final = 1024
_ENABLE: Final = uapi.HV_X64_MSR_ENABLE
_U64: Final = 0xFFFFFFFFFFFFFFFF
_VENDOR: Final = b"Linux KVM Hv"
_VERSION: Final = (0x3839, 0x000A0000)
"""Windows Server 2012's build and version, which the kernel gives too."""
_SPINS: Final = 0xFFF
"""After so many tries at a lock a guest may tell by HVCALL_NOTIFY_LONG_SPIN_WAIT."""
_APIC_HZ: Final = 1_000_000_000
_TICK_NS: Final = 100
"""All of Hyper-V's clocks count in 100 ns."""
_PAGE: Final = struct.Struct("<IIQq")
"""The reference page: sequence, reserved, scale, offset."""
_SMT: Final = "/sys/devices/system/cpu/smt/control"


def _smt_possible() -> bool:
    try:
        with open(_SMT) as control:
            return control.read().strip() not in ("forceoff", "notsupported")
    except OSError:
        return True


def supported() -> tuple[CpuidLeaf, ...]:
    """KVM_GET_SUPPORTED_HV_CPUID: the leaves the kernel has, with what works here."""
    vendor = tuple(int.from_bytes(_VENDOR[start : start + 4], "little") for start in (0, 4, 8))
    last = uapi.HYPERV_CPUID_SYNDBG_PLATFORM_CAPABILITIES
    features = (
        uapi.HV_MSR_VP_RUNTIME_AVAILABLE
        | uapi.HV_MSR_TIME_REF_COUNT_AVAILABLE
        | uapi.HV_MSR_HYPERCALL_AVAILABLE
        | uapi.HV_MSR_VP_INDEX_AVAILABLE
        | uapi.HV_MSR_REFERENCE_TSC_AVAILABLE
        | uapi.HV_ACCESS_FREQUENCY_MSRS
        | uapi.HV_ACCESS_REENLIGHTENMENT
    )
    advice = uapi.HV_X64_RELAXED_TIMING_RECOMMENDED
    if not _smt_possible():
        advice |= uapi.HV_X64_NO_NONARCH_CORESHARING
    words: dict[int, tuple[int, ...]] = {
        uapi.HYPERV_CPUID_VENDOR_AND_MAX_FUNCTIONS: (last, *vendor),
        uapi.HYPERV_CPUID_INTERFACE: (uapi.HYPERV_INTERFACE_SIGNATURE, 0, 0, 0),
        uapi.HYPERV_CPUID_VERSION: (*_VERSION, 0, 0),
        uapi.HYPERV_CPUID_FEATURES: (features, 0, 0, uapi.HV_FEATURE_FREQUENCY_MSRS_AVAILABLE),
        uapi.HYPERV_CPUID_ENLIGHTMENT_INFO: (advice, _SPINS, 0, 0),
        uapi.HYPERV_CPUID_IMPLEMENT_LIMITS: (_MAX_VCPUS, 64, 0, 0),
        # The kernel has this bit whether or not the CPU can nest; a guest without VMX and SVM has no use for it.
        uapi.HYPERV_CPUID_NESTED_FEATURES: (uapi.HV_X64_NESTED_MSR_BITMAP, 0, 0, 0),
        uapi.HYPERV_CPUID_SYNDBG_VENDOR_AND_MAX_FUNCTIONS: (0, *vendor),
        uapi.HYPERV_CPUID_SYNDBG_INTERFACE: (uapi.HYPERV_SYNDBG_SIGNATURE, 0, 0, 0),
        uapi.HYPERV_CPUID_SYNDBG_PLATFORM_CAPABILITIES: (0, 0, 0, 0),
    }
    return tuple((function, 0, 0, *registers) for function, registers in words.items())  # type: ignore[misc]


class HyperV:
    """What is the whole VM's; ``scale`` and ``offset`` make its time of the TSC once the guest has a reference page."""

    __slots__ = (
        "_seq",
        "emulation_control",
        "emulation_status",
        "guest_os_id",
        "hypercall",
        "offset",
        "reenlightenment",
        "reference",
        "scale",
    )

    def __init__(self) -> None:
        self.guest_os_id = 0
        self.hypercall = 0
        self.reference = 0
        self.reenlightenment = 0
        self.emulation_control = 0
        self.emulation_status = 0
        self.scale = 0
        self.offset = 0
        self._seq = 0

    def update_page(self, vcpu: X86Vcpu, *, asked: bool = False) -> None:
        """Write the reference page anew, if there is one: the clock or the TSC moved, or the guest ``asked`` for it.

        A guest that has said that it will be told of a changed TSC keeps its page until then. Memory that is not there
        is ignored.
        """
        if not self.reference & _ENABLE or (self.emulation_control and not asked):
            return
        vm = vcpu.vm
        tsc = timer.read_tsc(vcpu)
        scale = (10_000 << 64) // vcpu.cpu.tsc_khz
        address = self.reference & ~0xFFF
        # Sequence 0 says that the page means nothing for now.
        if scale > _U64 or not vm.write_guest(address, bytes(4)):
            self.scale = 0
            return
        self.scale = scale
        self.offset = vm.clock.now() // _TICK_NS - (tsc * scale >> 64)
        self._seq = (self._seq + 1) % 0xFFFFFFFF or 1
        page = _PAGE.pack(0, 0, self.scale, self.offset)
        vm.write_guest(address, page)
        vm.write_guest(address, self._seq.to_bytes(4, "little"))


def enabled(leaves: tuple[CpuidLeaf, ...]) -> bool:
    """Whether a CPUID has Hyper-V's interface."""
    return any(leaf[0] == uapi.HYPERV_CPUID_INTERFACE and leaf[3] == uapi.HYPERV_INTERFACE_SIGNATURE for leaf in leaves)


# The MSRs.


def _reference_time(vcpu: X86Vcpu) -> int:
    hv = vcpu.vm.hyperv
    if hv.reference & _ENABLE and hv.scale:
        return (timer.read_tsc(vcpu) * hv.scale >> 64) + hv.offset & _U64
    return vcpu.vm.clock.now() // _TICK_NS


def _set_guest_os_id(vcpu: X86Vcpu, value: int, host: bool) -> None:
    hv = vcpu.vm.hyperv
    hv.guest_os_id = value
    if not value:
        hv.hypercall &= ~_ENABLE


def _set_hypercall(vcpu: X86Vcpu, value: int, host: bool) -> None:
    """The page gets the instruction and a RET; nothing happens before the guest has said what it is."""
    vm = vcpu.vm
    if not vm.hyperv.guest_os_id:
        return
    if value & _ENABLE and not vm.write_guest(value & ~0xFFF, cpuid.hypercall_insn(vcpu.cpuid) + b"\xc3"):
        raise ValueError("there is no memory for the hypercall page")
    vm.hyperv.hypercall = value


def _set_reference(vcpu: X86Vcpu, value: int, host: bool) -> None:
    hv = vcpu.vm.hyperv
    hv.reference = value
    hv.scale = 0
    # In a VM that is being restored the memory may come later than the registers.
    if host:
        vcpu.clock_stale = vcpu.attention = True
    hv.update_page(vcpu, asked=True)


def _set_vp_index(vcpu: X86Vcpu, value: int, host: bool) -> None:
    if not host or value >= _MAX_VCPUS:
        raise ValueError(f"a vCPU's index is userspace's to set, and less than {_MAX_VCPUS}")
    vcpu.msrs[uapi.HV_X64_MSR_VP_INDEX] = value


def _vp_runtime(vcpu: X86Vcpu) -> int:
    return time.thread_time_ns() // _TICK_NS + vcpu.msrs.get(uapi.HV_X64_MSR_VP_RUNTIME, 0) & _U64


def _set_vp_runtime(vcpu: X86Vcpu, value: int, host: bool) -> None:
    if not host:
        raise ValueError("HV_X64_MSR_VP_RUNTIME is read-only")
    vcpu.msrs[uapi.HV_X64_MSR_VP_RUNTIME] = value - time.thread_time_ns() // _TICK_NS


def _refuse_guest(vcpu: X86Vcpu, value: int, host: bool) -> None:
    """Userspace's write is ignored: it restores all that it saved."""
    if not host:
        raise ValueError("this MSR of Hyper-V's is read-only")


def _set_reenlightenment(vcpu: X86Vcpu, value: int, host: bool) -> None:
    vcpu.vm.hyperv.reenlightenment = value


def _set_emulation_control(vcpu: X86Vcpu, value: int, host: bool) -> None:
    vcpu.vm.hyperv.emulation_control = value


def _set_emulation_status(vcpu: X86Vcpu, value: int, host: bool) -> None:
    # The TSC is never emulated behind the guest's back: what it reads is what userspace restored.
    if value and not host:
        raise ValueError("HV_X64_MSR_TSC_EMULATION_STATUS can only be cleared")
    vcpu.vm.hyperv.emulation_status = value


MSRS: Final[dict[int, tuple[Callable[[X86Vcpu], int], Callable[[X86Vcpu, int, bool], None]]]] = {
    uapi.HV_X64_MSR_GUEST_OS_ID: (lambda vcpu: vcpu.vm.hyperv.guest_os_id, _set_guest_os_id),
    uapi.HV_X64_MSR_HYPERCALL: (lambda vcpu: vcpu.vm.hyperv.hypercall, _set_hypercall),
    uapi.HV_X64_MSR_VP_INDEX: (
        lambda vcpu: vcpu.msrs.get(uapi.HV_X64_MSR_VP_INDEX, vcpu.vcpu.vcpu_idx),
        _set_vp_index,
    ),
    uapi.HV_X64_MSR_VP_RUNTIME: (_vp_runtime, _set_vp_runtime),
    uapi.HV_X64_MSR_TIME_REF_COUNT: (_reference_time, _refuse_guest),
    uapi.HV_X64_MSR_REFERENCE_TSC: (lambda vcpu: vcpu.vm.hyperv.reference, _set_reference),
    uapi.HV_X64_MSR_TSC_FREQUENCY: (lambda vcpu: vcpu.cpu.tsc_khz * 1000, _refuse_guest),
    uapi.HV_X64_MSR_APIC_FREQUENCY: (lambda vcpu: _APIC_HZ, _refuse_guest),
    uapi.HV_X64_MSR_REENLIGHTENMENT_CONTROL: (lambda vcpu: vcpu.vm.hyperv.reenlightenment, _set_reenlightenment),
    uapi.HV_X64_MSR_TSC_EMULATION_CONTROL: (lambda vcpu: vcpu.vm.hyperv.emulation_control, _set_emulation_control),
    uapi.HV_X64_MSR_TSC_EMULATION_STATUS: (lambda vcpu: vcpu.vm.hyperv.emulation_status, _set_emulation_status),
}


# Hypercalls.


def takes_calls(vcpu: X86Vcpu) -> bool:
    """Whether VMCALL is Hyper-V's: the guest has its interface, and has said what it is."""
    return vcpu.hyperv_enabled and vcpu.vm.hyperv.guest_os_id != 0


def call(vcpu: X86Vcpu, long_mode: bool) -> None:
    """A hypercall from kernel mode: RCX, or EDX:EAX, says which; its status goes to RAX, or EDX:EAX."""
    gpr = vcpu.cpu.gpr
    low = (gpr[engine.RDX] & 0xFFFFFFFF) << 32 | gpr[engine.RAX] & 0xFFFFFFFF
    control = gpr[engine.RCX] if long_mode else low
    status = uapi.HV_STATUS_INVALID_HYPERCALL_CODE
    if control & 0xFFFF == uapi.HVCALL_NOTIFY_LONG_SPIN_WAIT:
        # It has no list of items and no variable header.
        if control >> 32 & 0xFFF or control >> 48 & 0xFFF or control >> 17 & 0x3FF:
            status = uapi.HV_STATUS_INVALID_HYPERCALL_INPUT
        else:
            os.sched_yield()
            status = uapi.HV_STATUS_SUCCESS
    gpr[engine.RAX] = status
    if not long_mode:
        gpr[engine.RDX] = 0
