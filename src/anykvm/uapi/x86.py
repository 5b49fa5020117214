# SPDX-License-Identifier: GPL-2.0-only
"""x86's part of the KVM ABI: requests, flags, control-register bits.

The structures are in ``x86_structs``, ``x86_irqchip`` (with the PIT), ``x86_msr``, ``x86_cpuid``, ``x86_hyperv`` and
``x86_xen``; all of them can be imported from here. Source: ``arch/x86/include/uapi/asm/kvm.h``,
``include/uapi/linux/kvm.h``; section numbers are those of ``Documentation/virt/kvm/api.rst``.
"""

from __future__ import annotations

from ctypes import c_uint64
from typing import Final

from .ioctl import _IO, _IOR, _IOW, _IOWR, KVMIO
from .x86_cpuid import *  # noqa: F403
from .x86_cpuid import KvmCpuid, KvmCpuid2
from .x86_hyperv import *  # noqa: F403
from .x86_irqchip import *  # noqa: F403
from .x86_irqchip import KvmLapicState, KvmPitConfig, KvmPitState, KvmPitState2
from .x86_msr import *  # noqa: F403
from .x86_msr import KvmMsrFilter, KvmMsrList, KvmMsrs
from .x86_structs import *  # noqa: F403
from .x86_structs import (
    KvmClockData,
    KvmDebugregs,
    KvmFpu,
    KvmGuestDebug,
    KvmRegs,
    KvmSregs,
    KvmSregs2,
    KvmTprAccessCtl,
    KvmVapicAddr,
    KvmVcpuEvents,
    KvmX86Mce,
    KvmXcrs,
    KvmXsave,
)
from .x86_xen import *  # noqa: F403

# In pages from the start of a vCPU's mapping.
KVM_PIO_PAGE_OFFSET: Final = 1
KVM_COALESCED_MMIO_PAGE_OFFSET: Final = 2
KVM_DIRTY_LOG_PAGE_OFFSET: Final = 64

# The system fd.
KVM_GET_MSR_INDEX_LIST: Final = _IOWR(KVMIO, 0x02, KvmMsrList)  # 4.3
KVM_GET_SUPPORTED_CPUID: Final = _IOWR(KVMIO, 0x05, KvmCpuid2)  # 4.46
KVM_GET_EMULATED_CPUID: Final = _IOWR(KVMIO, 0x09, KvmCpuid2)  # 4.88
KVM_GET_MSR_FEATURE_INDEX_LIST: Final = _IOWR(KVMIO, 0x0A, KvmMsrList)  # 4.3
KVM_GET_SUPPORTED_HV_CPUID: Final = _IOWR(KVMIO, 0xC1, KvmCpuid2)  # 4.118
KVM_X86_GET_MCE_CAP_SUPPORTED: Final = _IOR(KVMIO, 0x9D, c_uint64)  # 4.104

# A VM fd.
KVM_SET_NR_MMU_PAGES: Final = _IO(KVMIO, 0x44)
KVM_GET_NR_MMU_PAGES: Final = _IO(KVMIO, 0x45)
KVM_SET_TSS_ADDR: Final = _IO(KVMIO, 0x47)  # 4.36
KVM_SET_IDENTITY_MAP_ADDR: Final = _IOW(KVMIO, 0x48, c_uint64)  # 4.40
KVM_CREATE_PIT: Final = _IO(KVMIO, 0x64)
KVM_GET_PIT: Final = _IOWR(KVMIO, 0x65, KvmPitState)
KVM_SET_PIT: Final = _IOR(KVMIO, 0x66, KvmPitState)
KVM_REINJECT_CONTROL: Final = _IO(KVMIO, 0x71)  # 4.100
KVM_CREATE_PIT2: Final = _IOW(KVMIO, 0x77, KvmPitConfig)  # 4.71
KVM_SET_CLOCK: Final = _IOW(KVMIO, 0x7B, KvmClockData)  # 4.30
KVM_GET_CLOCK: Final = _IOR(KVMIO, 0x7C, KvmClockData)  # 4.29
KVM_GET_PIT2: Final = _IOR(KVMIO, 0x9F, KvmPitState2)  # 4.72
KVM_SET_PIT2: Final = _IOW(KVMIO, 0xA0, KvmPitState2)  # 4.73
KVM_X86_SET_MSR_FILTER: Final = _IOW(KVMIO, 0xC6, KvmMsrFilter)  # 4.97

# A vCPU fd; the TSC frequency's two on a VM fd too.
KVM_GET_REGS: Final = _IOR(KVMIO, 0x81, KvmRegs)  # 4.11
KVM_SET_REGS: Final = _IOW(KVMIO, 0x82, KvmRegs)  # 4.12
KVM_GET_SREGS: Final = _IOR(KVMIO, 0x83, KvmSregs)  # 4.13
KVM_SET_SREGS: Final = _IOW(KVMIO, 0x84, KvmSregs)  # 4.14
KVM_GET_MSRS: Final = _IOWR(KVMIO, 0x88, KvmMsrs)  # 4.18, for feature MSRs on the system fd too
KVM_SET_MSRS: Final = _IOW(KVMIO, 0x89, KvmMsrs)  # 4.19
KVM_SET_CPUID: Final = _IOW(KVMIO, 0x8A, KvmCpuid)  # 4.20
KVM_GET_FPU: Final = _IOR(KVMIO, 0x8C, KvmFpu)  # 4.22
KVM_SET_FPU: Final = _IOW(KVMIO, 0x8D, KvmFpu)  # 4.23
KVM_GET_LAPIC: Final = _IOR(KVMIO, 0x8E, KvmLapicState)  # 4.57
KVM_SET_LAPIC: Final = _IOW(KVMIO, 0x8F, KvmLapicState)  # 4.58
KVM_SET_CPUID2: Final = _IOW(KVMIO, 0x90, KvmCpuid2)  # 4.20
KVM_GET_CPUID2: Final = _IOWR(KVMIO, 0x91, KvmCpuid2)
KVM_TPR_ACCESS_REPORTING: Final = _IOWR(KVMIO, 0x92, KvmTprAccessCtl)
KVM_SET_VAPIC_ADDR: Final = _IOW(KVMIO, 0x93, KvmVapicAddr)
KVM_SET_GUEST_DEBUG: Final = _IOW(KVMIO, 0x9B, KvmGuestDebug)  # 4.87
KVM_X86_SETUP_MCE: Final = _IOW(KVMIO, 0x9C, c_uint64)  # 4.105
KVM_X86_SET_MCE: Final = _IOW(KVMIO, 0x9E, KvmX86Mce)  # 4.106
KVM_GET_VCPU_EVENTS: Final = _IOR(KVMIO, 0x9F, KvmVcpuEvents)  # 4.31
KVM_SET_VCPU_EVENTS: Final = _IOW(KVMIO, 0xA0, KvmVcpuEvents)  # 4.32
KVM_GET_DEBUGREGS: Final = _IOR(KVMIO, 0xA1, KvmDebugregs)  # 4.33
KVM_SET_DEBUGREGS: Final = _IOW(KVMIO, 0xA2, KvmDebugregs)  # 4.34
KVM_SET_TSC_KHZ: Final = _IO(KVMIO, 0xA2)  # 4.55
KVM_GET_TSC_KHZ: Final = _IO(KVMIO, 0xA3)  # 4.56
KVM_GET_XSAVE: Final = _IOR(KVMIO, 0xA4, KvmXsave)  # 4.42
KVM_SET_XSAVE: Final = _IOW(KVMIO, 0xA5, KvmXsave)  # 4.43
KVM_GET_XCRS: Final = _IOR(KVMIO, 0xA6, KvmXcrs)  # 4.44
KVM_SET_XCRS: Final = _IOW(KVMIO, 0xA7, KvmXcrs)  # 4.45
KVM_KVMCLOCK_CTRL: Final = _IO(KVMIO, 0xAD)  # 4.70
KVM_SMI: Final = _IO(KVMIO, 0xB7)  # 4.96
KVM_GET_SREGS2: Final = _IOR(KVMIO, 0xCC, KvmSregs2)
KVM_SET_SREGS2: Final = _IOW(KVMIO, 0xCD, KvmSregs2)
KVM_GET_XSAVE2: Final = _IOR(KVMIO, 0xCF, KvmXsave)  # 4.134

# kvm_run.flags.
KVM_RUN_X86_SMM: Final = 1 << 0
KVM_RUN_X86_BUS_LOCK: Final = 1 << 1

# KVM_GET_CLOCK and KVM_SET_CLOCK: kvm_clock_data.flags.
KVM_CLOCK_TSC_STABLE: Final = 2
KVM_CLOCK_REALTIME: Final = 1 << 2
KVM_CLOCK_HOST_TSC: Final = 1 << 3

# KVM_CAP_DISABLE_QUIRKS2.
KVM_X86_QUIRK_LINT0_REENABLED: Final = 1 << 0
KVM_X86_QUIRK_CD_NW_CLEARED: Final = 1 << 1
KVM_X86_QUIRK_LAPIC_MMIO_HOLE: Final = 1 << 2
KVM_X86_QUIRK_OUT_7E_INC_RIP: Final = 1 << 3
KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT: Final = 1 << 4
KVM_X86_QUIRK_FIX_HYPERCALL_INSN: Final = 1 << 5
KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS: Final = 1 << 6

# KVM_CAP_X2APIC_API and KVM_CAP_X86_DISABLE_EXITS.
KVM_X2APIC_API_USE_32BIT_IDS: Final = 1 << 0
KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK: Final = 1 << 1
KVM_X2APIC_API_VALID_FLAGS: Final = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
KVM_X86_DISABLE_EXITS_MWAIT: Final = 1 << 0
KVM_X86_DISABLE_EXITS_HLT: Final = 1 << 1
KVM_X86_DISABLE_EXITS_PAUSE: Final = 1 << 2
KVM_X86_DISABLE_EXITS_CSTATE: Final = 1 << 3

# Device attributes on the system fd.
KVM_X86_XCOMP_GUEST_SUPP: Final = 0

# KVM_CAP_EXIT_HYPERCALL.
KVM_EXIT_HYPERCALL_VALID_MASK: Final = 1 << 12

# Device attributes on a vCPU fd.
KVM_VCPU_TSC_CTRL: Final = 0
KVM_VCPU_TSC_OFFSET: Final = 0

# Hypercalls: the number in rax; the result is 0 or minus an errno.
KVM_HC_VAPIC_POLL_IRQ: Final = 1
KVM_HC_KICK_CPU: Final = 5
KVM_HC_CLOCK_PAIRING: Final = 9
KVM_HC_SEND_IPI: Final = 10
KVM_HC_SCHED_YIELD: Final = 11
KVM_HC_MAP_GPA_RANGE: Final = 12
KVM_CLOCK_PAIRING_WALLCLOCK: Final = 0
KVM_ENOSYS: Final = 1000
KVM_EFAULT: Final = 14
KVM_EINVAL: Final = 22
KVM_E2BIG: Final = 7
KVM_EPERM: Final = 1
KVM_EOPNOTSUPP: Final = 95

# Exception vectors.
DE_VECTOR: Final = 0
DB_VECTOR: Final = 1
NMI_VECTOR: Final = 2
BP_VECTOR: Final = 3
OF_VECTOR: Final = 4
BR_VECTOR: Final = 5
UD_VECTOR: Final = 6
NM_VECTOR: Final = 7
DF_VECTOR: Final = 8
TS_VECTOR: Final = 10
NP_VECTOR: Final = 11
SS_VECTOR: Final = 12
GP_VECTOR: Final = 13
PF_VECTOR: Final = 14
MF_VECTOR: Final = 16
AC_VECTOR: Final = 17
MC_VECTOR: Final = 18
XM_VECTOR: Final = 19
VE_VECTOR: Final = 20

# RFLAGS.
X86_EFLAGS_FIXED: Final = 1 << 1
X86_EFLAGS_TF: Final = 1 << 8
X86_EFLAGS_IF: Final = 1 << 9
X86_EFLAGS_DF: Final = 1 << 10
X86_EFLAGS_RF: Final = 1 << 16
X86_EFLAGS_VM: Final = 1 << 17

# CR0.
X86_CR0_PE: Final = 1 << 0
X86_CR0_MP: Final = 1 << 1
X86_CR0_EM: Final = 1 << 2
X86_CR0_TS: Final = 1 << 3
X86_CR0_ET: Final = 1 << 4
X86_CR0_NE: Final = 1 << 5
X86_CR0_WP: Final = 1 << 16
X86_CR0_AM: Final = 1 << 18
X86_CR0_NW: Final = 1 << 29
X86_CR0_CD: Final = 1 << 30
X86_CR0_PG: Final = 1 << 31

# CR4.
X86_CR4_VME: Final = 1 << 0
X86_CR4_PVI: Final = 1 << 1
X86_CR4_TSD: Final = 1 << 2
X86_CR4_DE: Final = 1 << 3
X86_CR4_PSE: Final = 1 << 4
X86_CR4_PAE: Final = 1 << 5
X86_CR4_MCE: Final = 1 << 6
X86_CR4_PGE: Final = 1 << 7
X86_CR4_PCE: Final = 1 << 8
X86_CR4_OSFXSR: Final = 1 << 9
X86_CR4_OSXMMEXCPT: Final = 1 << 10
X86_CR4_UMIP: Final = 1 << 11
X86_CR4_LA57: Final = 1 << 12
X86_CR4_FSGSBASE: Final = 1 << 16
X86_CR4_PCIDE: Final = 1 << 17
X86_CR4_OSXSAVE: Final = 1 << 18
X86_CR4_SMEP: Final = 1 << 20
X86_CR4_SMAP: Final = 1 << 21
X86_CR4_PKE: Final = 1 << 22
