# SPDX-License-Identifier: GPL-2.0-only
"""The table of model-specific registers: which there are, what they hold after reset, what they accept.

Those the engine keeps (system calls, segment bases, EFER, PAT, TSC) are the engine's; what is here serves the rest, for
the guest's RDMSR and WRMSR and for userspace. A register that is not here does not exist (KeyError: the guest gets
#GP); a value it does not take is ValueError, which gives the guest #GP too.

Source: ``kvm_set_msr_common`` and ``kvm_get_msr_common`` in ``arch/x86/kvm/x86.c``; ``arch/x86/kvm/mtrr.c``; Intel SDM
volume 4; ``Documentation/virt/kvm/x86/msr.rst``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from anykvm.uapi import x86 as uapi

from . import hyperv_vcpu, idle, lapic_x2apic, mtrr, pv, quirks, smm, timer, xen

if TYPE_CHECKING:
    from .vcpu import X86Vcpu

U64: Final = 0xFFFFFFFFFFFFFFFF

KVM_MAX_MCE_BANKS: Final = 32
MCG_CTL_P: Final = 1 << 8
MCG_SER_P: Final = 1 << 24
MCG_CMCI_P: Final = 1 << 10
MCE_CAP_SUPPORTED: Final = MCG_CTL_P | MCG_SER_P | MCG_CMCI_P
"""KVM_X86_GET_MCE_CAP_SUPPORTED, without the number of banks."""
MISC_ENABLE_FAST_STRING: Final = 1
UCODE_REV: Final = 0x100000000
ARCH_CAPABILITIES: Final = sum(1 << bit for bit in (0, 3, 4, 5, 6, 8, 13, 14, 15, 20, 24, 26, 27, 62))
"""A software CPU leaks nothing by speculation: RDCL_NO, SKIP_L1DFL_VMENTRY, SSB_NO, MDS_NO, PSCHANGE_MC_NO, TAA_NO,
SBDR_SSDP_NO, FBSDP_NO, PSDP_NO, BHI_NO, PBRSB_NO, GDS_NO, RFDS_NO, ITS_NO."""
HWCR_MC_STATUS_WR_EN: Final = 1 << 18
HWCR_TSC_FREQ_SEL: Final = 1 << 24

NATIVE: Final = (
    uapi.MSR_IA32_SYSENTER_CS,
    uapi.MSR_IA32_SYSENTER_ESP,
    uapi.MSR_IA32_SYSENTER_EIP,
    uapi.MSR_STAR,
    uapi.MSR_LSTAR,
    uapi.MSR_CSTAR,
    uapi.MSR_SYSCALL_MASK,
    uapi.MSR_FS_BASE,
    uapi.MSR_GS_BASE,
    uapi.MSR_KERNEL_GS_BASE,
    uapi.MSR_TSC_AUX,
)
"""The engine's registers that take any value here (canonical where an address)."""
_CANONICAL: Final = frozenset(
    {
        uapi.MSR_LSTAR,
        uapi.MSR_CSTAR,
        uapi.MSR_FS_BASE,
        uapi.MSR_GS_BASE,
        uapi.MSR_KERNEL_GS_BASE,
    }
)

_MADE_CANONICAL: Final = frozenset({uapi.MSR_IA32_SYSENTER_ESP, uapi.MSR_IA32_SYSENTER_EIP})
"""Here some processors take any value, so the kernel makes it one that all of them take."""

_COUNTERS: Final = (
    *range(uapi.MSR_IA32_PERFCTR0, uapi.MSR_IA32_PERFCTR0 + 2),
    *range(uapi.MSR_P6_EVNTSEL0, uapi.MSR_P6_EVNTSEL0 + 2),
    *range(uapi.MSR_K7_EVNTSEL0, uapi.MSR_K7_EVNTSEL0 + 8),
)
"""Old performance counters, which guests poke without asking CPUID."""

READ_AS_ZERO: Final = frozenset(
    {
        uapi.MSR_IA32_P5_MC_ADDR,
        uapi.MSR_IA32_P5_MC_TYPE,
        uapi.MSR_IA32_PLATFORM_ID,
        uapi.MSR_EBL_CR_POWERON,
        uapi.MSR_IA32_PERF_CTL,
        uapi.MSR_IA32_LASTBRANCHFROMIP,
        uapi.MSR_IA32_LASTBRANCHTOIP,
        uapi.MSR_IA32_LASTINTFROMIP,
        uapi.MSR_IA32_LASTINTTOIP,
        uapi.MSR_AMD64_SYSCFG,
        uapi.MSR_K8_INT_PENDING_MSG,
        uapi.MSR_VM_HSAVE_PA,
        uapi.MSR_AMD64_DC_CFG,
        uapi.MSR_AMD64_BU_CFG2,
        uapi.MSR_AMD64_NB_CFG,
        *_COUNTERS,
    }
)
"""Registers that are there for guests that look at them without asking CPUID; they hold nothing."""
_WRITE_IGNORED: Final = frozenset(
    {
        uapi.MSR_AMD64_NB_CFG,
        uapi.MSR_IA32_UCODE_WRITE,
        uapi.MSR_VM_HSAVE_PA,
        uapi.MSR_AMD64_PATCH_LOADER,
        uapi.MSR_AMD64_BU_CFG2,
        uapi.MSR_AMD64_DC_CFG,
        *_COUNTERS,
    }
)

_HYPERVISORS: Final = 4
"""The upper four bits of the MSRs of Hyper-V and Xen, which no processor has."""
_X2APIC: Final = range(uapi.MSR_X2APIC_FIRST, uapi.MSR_X2APIC_LAST + 1)

Getter = Callable[["X86Vcpu"], int]
Setter = Callable[["X86Vcpu", int, bool], None]
"""Takes the vCPU, the value, and whether userspace writes it."""


def _kept(index: int, reset: int = 0, allowed: int = U64) -> tuple[int, tuple[Getter, Setter]]:
    def get(vcpu: X86Vcpu) -> int:
        return vcpu.msrs.get(index, reset)

    def put(vcpu: X86Vcpu, value: int, host: bool) -> None:
        if value & ~allowed:
            raise ValueError(f"MSR {index:#x} has no bits {value & ~allowed:#x}")
        vcpu.msrs[index] = value

    return index, (get, put)


def _read_only(index: int, value: int, *, host_writes: bool = True) -> tuple[int, tuple[Getter, Setter]]:
    def put(vcpu: X86Vcpu, new: int, host: bool) -> None:
        if not (host and host_writes):
            raise ValueError(f"MSR {index:#x} is read-only")
        vcpu.msrs[index] = new

    return index, (lambda vcpu: vcpu.msrs.get(index, value), put)


def _set_efer(vcpu: X86Vcpu, value: int, host: bool) -> None:
    allowed = uapi.EFER_SCE | uapi.EFER_LME | uapi.EFER_LMA | uapi.EFER_NX
    if value & ~allowed:
        raise ValueError(f"EFER has no bits {value & ~allowed:#x} here")
    cpu = vcpu.cpu
    # LMA is the CPU's own: it follows LME and paging.
    cpu.efer = value & ~uapi.EFER_LMA | cpu.efer & uapi.EFER_LMA


def _set_pat(vcpu: X86Vcpu, value: int, host: bool) -> None:
    if any(value >> shift & 0xFF not in mtrr.PAT_TYPES for shift in range(0, 64, 8)):
        raise ValueError(f"the PAT cannot be {value:#x}")
    vcpu.cpu.set_msr(uapi.MSR_IA32_CR_PAT, value)


def _set_apic_base(vcpu: X86Vcpu, value: int, host: bool) -> None:
    try:
        vcpu.check_apic_base(value, host=host)
    except OSError as error:
        raise ValueError(error.strerror) from None
    vcpu.set_apic_base(value)


def _set_feat_ctl(vcpu: X86Vcpu, value: int, host: bool) -> None:
    # Without VMX and SGX there is only the lock bit, and it locks.
    if value & ~1 or (not host and vcpu.msrs.get(uapi.MSR_IA32_FEAT_CTL, 0) & 1):
        raise ValueError(f"IA32_FEAT_CTL cannot be {value:#x}")
    vcpu.msrs[uapi.MSR_IA32_FEAT_CTL] = value


def _set_ucode_rev(vcpu: X86Vcpu, value: int, host: bool) -> None:
    # A guest writes zero before it has CPUID put the revision here, where it is already.
    if host:
        vcpu.msrs[uapi.MSR_IA32_UCODE_REV] = value


def _set_tsc_adjust(vcpu: X86Vcpu, value: int, host: bool) -> None:
    if not host:
        timer.adjust_tsc(vcpu, value - vcpu.msrs.get(uapi.MSR_IA32_TSC_ADJUST, 0))
    vcpu.msrs[uapi.MSR_IA32_TSC_ADJUST] = value


def _misc_enable(vcpu: X86Vcpu) -> int:
    return vcpu.msrs.get(uapi.MSR_IA32_MISC_ENABLE, MISC_ENABLE_FAST_STRING)


def _set_misc_enable(vcpu: X86Vcpu, value: int, host: bool) -> None:
    quirks.set_misc_enable(vcpu, value, _misc_enable(vcpu) ^ value)


def _arch_capabilities(vcpu: X86Vcpu) -> int:
    return vcpu.msrs.get(uapi.MSR_IA32_ARCH_CAPABILITIES, ARCH_CAPABILITIES)


def _set_arch_capabilities(vcpu: X86Vcpu, value: int, host: bool) -> None:
    if not host or value & ~ARCH_CAPABILITIES:
        raise ValueError(f"IA32_ARCH_CAPABILITIES cannot be {value:#x}")
    vcpu.msrs[uapi.MSR_IA32_ARCH_CAPABILITIES] = value


def _set_platform(vcpu: X86Vcpu, value: int, host: bool) -> None:
    if not host:
        raise ValueError("MSR_PLATFORM_INFO is read-only")
    vcpu.msrs[uapi.MSR_PLATFORM_INFO] = value


def _guest_may_read(vcpu: X86Vcpu, index: int) -> bool:
    """Whether RDMSR finds a register that userspace always finds."""
    if index == uapi.MSR_IA32_MCG_CTL:
        return bool(vcpu.mcg_cap & MCG_CTL_P)
    if index == uapi.MSR_IA32_ARCH_CAPABILITIES:
        leaf = vcpu.cpuid_leaf(7)
        return leaf is not None and bool(leaf[6] & uapi.CPUID_7_EDX_ARCH_CAPABILITIES)
    if index == smm.HOST_ONLY:
        return False
    return index != uapi.MSR_PLATFORM_INFO or vcpu.vm.platform_info_readable


# Machine checks.


def _set_mcg_ctl(vcpu: X86Vcpu, value: int, host: bool) -> None:
    if not vcpu.mcg_cap & MCG_CTL_P and (value or not host):
        raise KeyError(uapi.MSR_IA32_MCG_CTL)
    if value not in (0, U64):
        raise ValueError("IA32_MCG_CTL is all zeroes or all ones")
    vcpu.mcg_ctl = value


def _bank(vcpu: X86Vcpu, index: int) -> int | None:
    """Which word of ``vcpu.mce_banks`` an MSR is; None if it is none of them."""
    word = index - uapi.MSR_IA32_MC0_CTL
    return word if 0 <= word < 4 * (vcpu.mcg_cap & 0xFF) else None


def _set_bank(vcpu: X86Vcpu, word: int, value: int, host: bool) -> None:
    if word & 3 == 0 and value not in (0, U64) and value | 1 << 10 | 1 != U64:
        raise ValueError("a machine-check bank's control register is all zeroes or all ones")
    if word & 3 == 1 and not host and value:
        raise ValueError("a guest can only clear the status of a machine-check bank")
    vcpu.mce_banks[word] = value


# Interrupts for corrected errors: whether each bank sends one, and after how many.
CTL2_ENABLE: Final = 1 << 30
_CTL2_BITS: Final = CTL2_ENABLE | 0x7FFF
_CTL2: Final = range(uapi.MSR_IA32_MC0_CTL2, uapi.MSR_IA32_MC0_CTL2 + KVM_MAX_MCE_BANKS)


def _ctl2(vcpu: X86Vcpu, index: int, host: bool) -> int:
    """IA32_MCi_CTL2; KeyError for a bank there is not, and for a guest without the capability."""
    if index - _CTL2.start >= vcpu.mcg_cap & 0xFF or not (host or vcpu.mcg_cap & MCG_CMCI_P):
        raise KeyError(index)
    return vcpu.msrs.get(index, 0)


def _set_ctl2(vcpu: X86Vcpu, index: int, value: int, host: bool) -> None:
    _ctl2(vcpu, index, host)
    if value & ~_CTL2_BITS or (value and not vcpu.mcg_cap & MCG_CMCI_P):
        raise ValueError(f"IA32_MC{index - _CTL2.start}_CTL2 cannot be {value:#x}")
    vcpu.msrs[index] = value


TABLE: Final[dict[int, tuple[Getter, Setter]]] = {
    uapi.MSR_IA32_TSC: (timer.read_tsc, timer.write_tsc),
    uapi.MSR_IA32_APICBASE: (lambda vcpu: vcpu.apic_base, _set_apic_base),
    uapi.MSR_EFER: (lambda vcpu: vcpu.cpu.efer, _set_efer),
    uapi.MSR_IA32_CR_PAT: (lambda vcpu: vcpu.cpu.get_msr(uapi.MSR_IA32_CR_PAT), _set_pat),
    uapi.MSR_IA32_FEAT_CTL: (lambda vcpu: vcpu.msrs.get(uapi.MSR_IA32_FEAT_CTL, 0), _set_feat_ctl),
    uapi.MSR_IA32_TSC_ADJUST: (lambda vcpu: vcpu.msrs.get(uapi.MSR_IA32_TSC_ADJUST, 0), _set_tsc_adjust),
    **dict(
        (
            (uapi.MSR_IA32_MISC_ENABLE, (_misc_enable, _set_misc_enable)),
            _kept(uapi.MSR_IA32_MCG_STATUS, 0, U64),
            _kept(uapi.MSR_IA32_DEBUGCTLMSR, 0, 0x3),
            _kept(uapi.MSR_MISC_FEATURES_ENABLES, 0, 0),
            _kept(uapi.MSR_K7_HWCR, 0, HWCR_MC_STATUS_WR_EN | HWCR_TSC_FREQ_SEL),
            _kept(uapi.MSR_AMD64_DE_CFG, 0, 0x2),
            _kept(uapi.MSR_KVM_POLL_CONTROL, 1, 1),
            (uapi.MSR_IA32_UCODE_REV, (lambda vcpu: vcpu.msrs.get(uapi.MSR_IA32_UCODE_REV, UCODE_REV), _set_ucode_rev)),
            (uapi.MSR_PLATFORM_INFO, (lambda vcpu: vcpu.msrs.get(uapi.MSR_PLATFORM_INFO, 0), _set_platform)),
            _read_only(uapi.MSR_IA32_PERF_STATUS, 1000 | 4 << 40, host_writes=False),
            _kept(uapi.MSR_IA32_POWER_CTL),
            (uapi.MSR_IA32_ARCH_CAPABILITIES, (_arch_capabilities, _set_arch_capabilities)),
        )
    ),
    **smm.MSRS,
    uapi.MSR_IA32_MCG_CAP: (
        lambda vcpu: vcpu.mcg_cap,
        lambda vcpu, value, host: _refuse_change(uapi.MSR_IA32_MCG_CAP, vcpu.mcg_cap, value, host),
    ),
    uapi.MSR_IA32_MCG_CTL: (lambda vcpu: vcpu.mcg_ctl, _set_mcg_ctl),
    uapi.MSR_IA32_TSC_DEADLINE: (timer.read_deadline, timer.write_deadline),
    uapi.MSR_KVM_ASYNC_PF_EN: (lambda vcpu: vcpu.msrs.get(uapi.MSR_KVM_ASYNC_PF_EN, 0), pv.set_async_pf),
    uapi.MSR_KVM_ASYNC_PF_INT: (lambda vcpu: vcpu.msrs.get(uapi.MSR_KVM_ASYNC_PF_INT, 0), pv.set_async_pf_int),
    uapi.MSR_KVM_ASYNC_PF_ACK: (lambda vcpu: 0, pv.set_async_pf_ack),
    uapi.MSR_KVM_STEAL_TIME: (lambda vcpu: vcpu.steal_msr, pv.set_steal_time),
    uapi.MSR_KVM_PV_EOI_EN: (lambda vcpu: vcpu.msrs.get(uapi.MSR_KVM_PV_EOI_EN, 0), pv.set_pv_eoi),
    uapi.MSR_KVM_WALL_CLOCK: (lambda vcpu: vcpu.vm.clock.wall_msr, timer.write_wall_clock),
    uapi.MSR_KVM_WALL_CLOCK_NEW: (lambda vcpu: vcpu.vm.clock.wall_msr, timer.write_wall_clock),
    uapi.MSR_KVM_SYSTEM_TIME: (lambda vcpu: vcpu.system_time, timer.write_system_time),
    uapi.MSR_KVM_SYSTEM_TIME_NEW: (lambda vcpu: vcpu.system_time, timer.write_system_time),
    **hyperv_vcpu.MSRS,
}


def _refuse_change(index: int, old: int, new: int, host: bool) -> None:
    if not host or new != old:
        raise ValueError(f"MSR {index:#x} is read-only")


def get(vcpu: X86Vcpu, index: int, *, host: bool) -> int:
    """Read an MSR; KeyError if there is none, ValueError if it cannot be read."""
    if not host and not _guest_may_read(vcpu, index):
        raise KeyError(index)
    if index >> 28 == _HYPERVISORS and not host and index in hyperv_vcpu.MSRS:
        hyperv_vcpu.check_guest(vcpu, index)
    if vcpu.pv_enforced:
        pv.check_msr(vcpu, index)
    entry = TABLE.get(index)
    if entry is not None:
        return entry[0](vcpu)
    if index in _X2APIC and vcpu.lapic is not None:
        return lapic_x2apic.read_msr(vcpu.lapic, index)
    if index in READ_AS_ZERO:
        return 0
    if mtrr.is_mtrr(index):
        return mtrr.get(vcpu.msrs, index)
    if index in _CTL2:
        return _ctl2(vcpu, index, host)
    word = _bank(vcpu, index)
    if word is not None:
        return vcpu.mce_banks[word]
    if not host and idle.is_residency(vcpu, index):
        return 0
    return vcpu.cpu.get_msr(index)


def set_(vcpu: X86Vcpu, index: int, value: int, *, host: bool) -> None:
    """Write an MSR; KeyError if there is none, ValueError if it does not take that."""
    if index >> 28 == _HYPERVISORS and not host:
        if index == vcpu.vm.xen.msr:
            xen.write_hypercall_page(vcpu, value)
            return
        if index in hyperv_vcpu.MSRS:
            hyperv_vcpu.check_guest(vcpu, index)
    if vcpu.pv_enforced:
        pv.check_msr(vcpu, index)
    entry = TABLE.get(index)
    if entry is not None:
        entry[1](vcpu, value, host)
    elif index in _X2APIC and vcpu.lapic is not None:
        lapic_x2apic.write_msr(vcpu.lapic, index, value)
    elif index in _WRITE_IGNORED:
        pass
    elif index in READ_AS_ZERO:
        raise ValueError(f"MSR {index:#x} is read-only")
    elif mtrr.is_mtrr(index):
        mtrr.set_(vcpu.msrs, index, value, vcpu.maxphyaddr)
    elif index in _CTL2:
        _set_ctl2(vcpu, index, value, host)
    elif (word := _bank(vcpu, index)) is not None:
        _set_bank(vcpu, word, value, host)
    else:
        if index in _CANONICAL and not is_canonical(value):
            raise ValueError(f"{value:#x} is not a canonical address")
        if index == uapi.MSR_TSC_AUX and value >> 32:
            raise ValueError("IA32_TSC_AUX has 32 bits")
        vcpu.cpu.set_msr(index, canonical(value) if index in _MADE_CANONICAL else value)


def canonical(address: int) -> int:
    """An address with bit 47 repeated above it."""
    low = address & (1 << 48) - 1
    return low | (U64 ^ (1 << 48) - 1) if low >> 47 else low


def is_canonical(address: int) -> bool:
    """Whether the upper bits repeat bit 47."""
    return address < 1 << 47 or address >= (1 << 64) - (1 << 47)


SAVED: Final = (
    uapi.MSR_IA32_SYSENTER_CS,
    uapi.MSR_IA32_SYSENTER_ESP,
    uapi.MSR_IA32_SYSENTER_EIP,
    uapi.MSR_STAR,
    uapi.MSR_CSTAR,
    uapi.MSR_KERNEL_GS_BASE,
    uapi.MSR_SYSCALL_MASK,
    uapi.MSR_LSTAR,
    uapi.MSR_IA32_TSC,
    uapi.MSR_IA32_CR_PAT,
    uapi.MSR_TSC_AUX,
    uapi.MSR_IA32_FEAT_CTL,
    uapi.MSR_KVM_SYSTEM_TIME,
    uapi.MSR_KVM_WALL_CLOCK,
    uapi.MSR_KVM_SYSTEM_TIME_NEW,
    uapi.MSR_KVM_WALL_CLOCK_NEW,
    uapi.MSR_KVM_ASYNC_PF_EN,
    uapi.MSR_KVM_ASYNC_PF_INT,
    uapi.MSR_KVM_ASYNC_PF_ACK,
    uapi.MSR_KVM_STEAL_TIME,
    uapi.MSR_KVM_PV_EOI_EN,
    uapi.MSR_KVM_POLL_CONTROL,
    uapi.MSR_IA32_TSC_ADJUST,
    uapi.MSR_IA32_TSC_DEADLINE,
    uapi.MSR_IA32_ARCH_CAPABILITIES,
    uapi.MSR_IA32_PERF_CAPABILITIES,
    uapi.MSR_IA32_UCODE_REV,
    uapi.MSR_IA32_POWER_CTL,
    uapi.MSR_VM_HSAVE_PA,
    uapi.MSR_IA32_MISC_ENABLE,
    uapi.MSR_IA32_MCG_STATUS,
    uapi.MSR_IA32_MCG_CTL,
    *smm.MSRS,
    uapi.MSR_PLATFORM_INFO,
    uapi.MSR_MISC_FEATURES_ENABLES,
    uapi.MSR_K7_HWCR,
    *hyperv_vcpu.SAVED,
    *mtrr.INDICES,
)
"""KVM_GET_MSR_INDEX_LIST: what userspace saves and restores."""

LISTED: Final = frozenset(SAVED)

FEATURES: Final = {
    uapi.MSR_IA32_UCODE_REV: UCODE_REV,
    uapi.MSR_IA32_ARCH_CAPABILITIES: ARCH_CAPABILITIES,
    # No performance counters: nothing to say of them.
    uapi.MSR_IA32_PERF_CAPABILITIES: 0,
    uapi.MSR_PLATFORM_INFO: 0,
}
"""KVM_GET_MSR_FEATURE_INDEX_LIST, and what KVM_GET_MSRS on the system fd gives."""
