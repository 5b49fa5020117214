# SPDX-License-Identifier: GPL-2.0-only
"""Hyper-V's CPUID leaves: what is offered, and what a guest may use if its CPUID is to count.

Source: the Top Level Functional Specification 6.0b, chapter 2; api.rst 4.118 and 8.29 (KVM_CAP_HYPERV_ENFORCE_CPUID);
``arch/x86/kvm/hyperv.c``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anykvm.uapi import x86 as uapi

from . import cpuid

if TYPE_CHECKING:
    from .engine import CpuidLeaf

MAX_VCPUS: Final = 1024
_VENDOR: Final = b"Linux KVM Hv"
_VERSION: Final = (0x3839, 0x000A0000)
"""Hyper-V 2016's build and version, which the kernel gives too."""
_SPINS: Final = 0xFFF
"""After so many tries at a lock a guest may tell by HVCALL_NOTIFY_LONG_SPIN_WAIT."""
_NO_SPINS: Final = 0xFFFFFFFF
_SMT: Final = "/sys/devices/system/cpu/smt/control"
_MSRS: Final = (
    uapi.HV_MSR_VP_RUNTIME_AVAILABLE
    | uapi.HV_MSR_TIME_REF_COUNT_AVAILABLE
    | uapi.HV_MSR_SYNIC_AVAILABLE
    | uapi.HV_MSR_SYNTIMER_AVAILABLE
    | uapi.HV_MSR_APIC_ACCESS_AVAILABLE
    | uapi.HV_MSR_HYPERCALL_AVAILABLE
    | uapi.HV_MSR_VP_INDEX_AVAILABLE
    | uapi.HV_MSR_RESET_AVAILABLE
    | uapi.HV_MSR_REFERENCE_TSC_AVAILABLE
    | uapi.HV_ACCESS_FREQUENCY_MSRS
    | uapi.HV_ACCESS_REENLIGHTENMENT
)
_CALLS: Final = uapi.HV_POST_MESSAGES | uapi.HV_SIGNAL_EVENTS | uapi.HV_DEBUGGING
_MISC: Final = (
    uapi.HV_X64_GUEST_DEBUGGING_AVAILABLE
    | uapi.HV_X64_HYPERCALL_XMM_INPUT_AVAILABLE
    | uapi.HV_FEATURE_FREQUENCY_MSRS_AVAILABLE
    | uapi.HV_FEATURE_GUEST_CRASH_MSR_AVAILABLE
    | uapi.HV_FEATURE_DEBUG_MSRS_AVAILABLE
)
_ADVICE: Final = (
    uapi.HV_X64_REMOTE_TLB_FLUSH_RECOMMENDED
    | uapi.HV_X64_APIC_ACCESS_RECOMMENDED
    | uapi.HV_X64_RELAXED_TIMING_RECOMMENDED
    | uapi.HV_DEPRECATING_AEOI_RECOMMENDED
    | uapi.HV_X64_EX_PROCESSOR_MASKS_RECOMMENDED
)


def _smt_possible() -> bool:
    try:
        with open(_SMT) as control:
            return control.read().strip() not in ("forceoff", "notsupported")
    except OSError:
        return True


def supported(*, lapic: bool = True) -> tuple[CpuidLeaf, ...]:
    """KVM_GET_SUPPORTED_HV_CPUID. Some of it takes a local APIC in the kernel, which a vCPU may lack."""
    vendor = tuple(int.from_bytes(_VENDOR[start : start + 4], "little") for start in (0, 4, 8))
    misc, advice = _MISC, _ADVICE
    if lapic:
        misc |= uapi.HV_STIMER_DIRECT_MODE_AVAILABLE
        advice |= uapi.HV_X64_CLUSTER_IPI_RECOMMENDED
    if not _smt_possible():
        advice |= uapi.HV_X64_NO_NONARCH_CORESHARING
    last = uapi.HYPERV_CPUID_SYNDBG_PLATFORM_CAPABILITIES
    words: dict[int, tuple[int, ...]] = {
        uapi.HYPERV_CPUID_VENDOR_AND_MAX_FUNCTIONS: (last, *vendor),
        uapi.HYPERV_CPUID_INTERFACE: (uapi.HYPERV_INTERFACE_SIGNATURE, 0, 0, 0),
        uapi.HYPERV_CPUID_VERSION: (*_VERSION, 0, 0),
        uapi.HYPERV_CPUID_FEATURES: (_MSRS, _CALLS, 0, misc),
        uapi.HYPERV_CPUID_ENLIGHTMENT_INFO: (advice, _SPINS, 0, 0),
        uapi.HYPERV_CPUID_IMPLEMENT_LIMITS: (MAX_VCPUS, 64, 0, 0),
        uapi.HYPERV_CPUID_SYNDBG_VENDOR_AND_MAX_FUNCTIONS: (0, *vendor),
        uapi.HYPERV_CPUID_SYNDBG_INTERFACE: (uapi.HYPERV_SYNDBG_SIGNATURE, 0, 0, 0),
        uapi.HYPERV_CPUID_SYNDBG_PLATFORM_CAPABILITIES: (uapi.HV_X64_SYNDBG_CAP_ALLOW_KERNEL_DEBUGGING, 0, 0, 0),
        # The kernel has this bit whether or not the CPU can nest; a guest without VMX and SVM has no use for it.
        uapi.HYPERV_CPUID_NESTED_FEATURES: (uapi.HV_X64_NESTED_MSR_BITMAP, 0, 0, 0),
    }
    return tuple((function, 0, 0, *registers) for function, registers in words.items())  # type: ignore[misc]


def enabled(leaves: tuple[CpuidLeaf, ...]) -> bool:
    """Whether a CPUID has Hyper-V's interface."""
    leaf = cpuid.find(leaves, uapi.HYPERV_CPUID_INTERFACE)
    return leaf is not None and leaf[3] == uapi.HYPERV_INTERFACE_SIGNATURE


class Rights:
    """What a guest's CPUID lets it use of Hyper-V's; as long as ``enforced`` is not set, all of it.

    ``msrs``, ``calls`` and ``misc`` are eax, ebx and edx of the features, ``advice`` and ``spins`` eax and ebx of the
    recommendations, ``debug`` is eax of the debugger's capabilities.
    """

    __slots__ = ("advice", "calls", "debug", "enforced", "misc", "msrs", "spins")

    def __init__(self, *, enforced: bool = False) -> None:
        self.enforced = enforced
        self.read(())

    def read(self, leaves: tuple[CpuidLeaf, ...]) -> None:
        """Take them from a CPUID."""
        on = enabled(leaves)
        features = cpuid.find(leaves, uapi.HYPERV_CPUID_FEATURES) if on else None
        self.msrs, self.calls, _, self.misc = features[3:] if features is not None else (0,) * 4
        advice = cpuid.find(leaves, uapi.HYPERV_CPUID_ENLIGHTMENT_INFO) if on else None
        self.advice, self.spins = advice[3:5] if advice is not None else (0, 0)
        debug = cpuid.find(leaves, uapi.HYPERV_CPUID_SYNDBG_PLATFORM_CAPABILITIES) if on else None
        self.debug = debug[3] if debug is not None else 0

    @property
    def debugging(self) -> bool:
        """Whether the guest may be debugged through KVM; this counts enforced or not."""
        return bool(self.debug & uapi.HV_X64_SYNDBG_CAP_ALLOW_KERNEL_DEBUGGING)

    def has_msr(self, index: int) -> bool:
        """Whether the guest may use an MSR."""
        if not self.enforced:
            return True
        if index in _BY_MISC:
            return bool(self.misc & _BY_MISC[index])
        return bool(self.msrs & _BY_MSRS.get(index, 0))

    def has_call(self, code: int) -> bool:
        """Whether the guest may make a hypercall; one there is not is not refused here."""
        if not self.enforced:
            return True
        if code in _DEBUG_CALLS:
            # Without debugging at all they are unknown, not refused.
            return not self.debugging or bool(self.calls & uapi.HV_DEBUGGING)
        if code == uapi.HVCALL_NOTIFY_LONG_SPIN_WAIT:
            return self.spins not in (0, _NO_SPINS)
        if code in _BY_CALLS:
            return bool(self.calls & _BY_CALLS[code])
        wanted = _BY_ADVICE.get(code, 0)
        return self.advice & wanted == wanted

    @property
    def has_xmm_input(self) -> bool:
        """Whether a fast hypercall may have its input in XMM registers."""
        return not self.enforced or bool(self.misc & uapi.HV_X64_HYPERCALL_XMM_INPUT_AVAILABLE)

    @property
    def has_direct_timers(self) -> bool:
        """Whether a synthetic timer may have a vector of its own."""
        return not self.enforced or bool(self.misc & uapi.HV_STIMER_DIRECT_MODE_AVAILABLE)


SYNIC: Final = (
    *range(uapi.HV_X64_MSR_SCONTROL, uapi.HV_X64_MSR_EOM + 1),
    *range(uapi.HV_X64_MSR_SINT0, uapi.HV_X64_MSR_SINT0 + uapi.HV_SYNIC_SINT_COUNT),
)
STIMERS: Final = range(uapi.HV_X64_MSR_STIMER0_CONFIG, uapi.HV_X64_MSR_STIMER0_CONFIG + 2 * uapi.HV_SYNIC_STIMER_COUNT)
APIC: Final = (uapi.HV_X64_MSR_EOI, uapi.HV_X64_MSR_ICR, uapi.HV_X64_MSR_TPR, uapi.HV_X64_MSR_VP_ASSIST_PAGE)
CRASH: Final = range(uapi.HV_X64_MSR_CRASH_P0, uapi.HV_X64_MSR_CRASH_CTL + 1)
SYNDBG: Final = (
    uapi.HV_X64_MSR_SYNDBG_OPTIONS,
    *range(uapi.HV_X64_MSR_SYNDBG_CONTROL, uapi.HV_X64_MSR_SYNDBG_PENDING_BUFFER + 1),
)

_BY_MSRS: Final = {
    uapi.HV_X64_MSR_GUEST_OS_ID: uapi.HV_MSR_HYPERCALL_AVAILABLE,
    uapi.HV_X64_MSR_HYPERCALL: uapi.HV_MSR_HYPERCALL_AVAILABLE,
    uapi.HV_X64_MSR_VP_RUNTIME: uapi.HV_MSR_VP_RUNTIME_AVAILABLE,
    uapi.HV_X64_MSR_TIME_REF_COUNT: uapi.HV_MSR_TIME_REF_COUNT_AVAILABLE,
    uapi.HV_X64_MSR_VP_INDEX: uapi.HV_MSR_VP_INDEX_AVAILABLE,
    uapi.HV_X64_MSR_RESET: uapi.HV_MSR_RESET_AVAILABLE,
    uapi.HV_X64_MSR_REFERENCE_TSC: uapi.HV_MSR_REFERENCE_TSC_AVAILABLE,
    uapi.HV_X64_MSR_TSC_FREQUENCY: uapi.HV_ACCESS_FREQUENCY_MSRS,
    uapi.HV_X64_MSR_APIC_FREQUENCY: uapi.HV_ACCESS_FREQUENCY_MSRS,
    uapi.HV_X64_MSR_REENLIGHTENMENT_CONTROL: uapi.HV_ACCESS_REENLIGHTENMENT,
    uapi.HV_X64_MSR_TSC_EMULATION_CONTROL: uapi.HV_ACCESS_REENLIGHTENMENT,
    uapi.HV_X64_MSR_TSC_EMULATION_STATUS: uapi.HV_ACCESS_REENLIGHTENMENT,
    **dict.fromkeys(SYNIC, uapi.HV_MSR_SYNIC_AVAILABLE),
    **dict.fromkeys(STIMERS, uapi.HV_MSR_SYNTIMER_AVAILABLE),
    **dict.fromkeys(APIC, uapi.HV_MSR_APIC_ACCESS_AVAILABLE),
}
_BY_MISC: Final = {
    **dict.fromkeys(CRASH, uapi.HV_FEATURE_GUEST_CRASH_MSR_AVAILABLE),
    **dict.fromkeys(SYNDBG, uapi.HV_FEATURE_DEBUG_MSRS_AVAILABLE),
}
_DEBUG_CALLS: Final = frozenset(
    {uapi.HVCALL_POST_DEBUG_DATA, uapi.HVCALL_RETRIEVE_DEBUG_DATA, uapi.HVCALL_RESET_DEBUG_SESSION}
)
_BY_CALLS: Final = {
    uapi.HVCALL_POST_MESSAGE: uapi.HV_POST_MESSAGES,
    uapi.HVCALL_SIGNAL_EVENT: uapi.HV_SIGNAL_EVENTS,
}
_EX: Final = uapi.HV_X64_EX_PROCESSOR_MASKS_RECOMMENDED
_BY_ADVICE: Final = {
    uapi.HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE: uapi.HV_X64_REMOTE_TLB_FLUSH_RECOMMENDED,
    uapi.HVCALL_FLUSH_VIRTUAL_ADDRESS_LIST: uapi.HV_X64_REMOTE_TLB_FLUSH_RECOMMENDED,
    uapi.HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE_EX: uapi.HV_X64_REMOTE_TLB_FLUSH_RECOMMENDED | _EX,
    uapi.HVCALL_FLUSH_VIRTUAL_ADDRESS_LIST_EX: uapi.HV_X64_REMOTE_TLB_FLUSH_RECOMMENDED | _EX,
    uapi.HVCALL_SEND_IPI: uapi.HV_X64_CLUSTER_IPI_RECOMMENDED,
    uapi.HVCALL_SEND_IPI_EX: uapi.HV_X64_CLUSTER_IPI_RECOMMENDED | _EX,
}
