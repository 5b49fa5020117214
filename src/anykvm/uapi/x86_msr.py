# SPDX-License-Identifier: GPL-2.0-only
"""Model-specific registers: the requests' structures, the filter, the indices.

Source: ``arch/x86/include/uapi/asm/kvm.h``; Intel SDM volume 4 (the indices); for KVM's own
``Documentation/virt/kvm/x86/msr.rst`` and ``asm/kvm_para.h``.
"""

from __future__ import annotations

from ctypes import Structure, c_uint32, c_uint64
from typing import Final


class KvmMsrEntry(Structure):
    """One register and its value."""

    _fields_ = (("index", c_uint32), ("reserved", c_uint32), ("data", c_uint64))


class KvmMsrs(Structure):
    """KVM_GET_MSRS and KVM_SET_MSRS: the head; ``nmsrs`` entries follow."""

    _fields_ = (("nmsrs", c_uint32), ("pad", c_uint32), ("entries", KvmMsrEntry * 0))


class KvmMsrList(Structure):
    """KVM_GET_MSR_INDEX_LIST and KVM_GET_MSR_FEATURE_INDEX_LIST: the head; ``nmsrs`` indices follow."""

    _fields_ = (("nmsrs", c_uint32), ("indices", c_uint32 * 0))


KVM_MSR_FILTER_MAX_BITMAP_SIZE: Final = 0x600
KVM_MSR_FILTER_READ: Final = 1 << 0
KVM_MSR_FILTER_WRITE: Final = 1 << 1
KVM_MSR_FILTER_RANGE_VALID_MASK: Final = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE
KVM_MSR_FILTER_MAX_RANGES: Final = 16
KVM_MSR_FILTER_DEFAULT_ALLOW: Final = 0
KVM_MSR_FILTER_DEFAULT_DENY: Final = 1 << 0
KVM_MSR_FILTER_VALID_MASK: Final = KVM_MSR_FILTER_DEFAULT_DENY

# KVM_CAP_X86_USER_SPACE_MSR, and kvm_run.msr.reason.
KVM_MSR_EXIT_REASON_INVAL: Final = 1 << 0
KVM_MSR_EXIT_REASON_UNKNOWN: Final = 1 << 1
KVM_MSR_EXIT_REASON_FILTER: Final = 1 << 2
KVM_MSR_EXIT_REASON_VALID_MASK: Final = (
    KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER
)


class KvmMsrFilterRange(Structure):
    """``nmsrs`` registers from ``base`` on; a 0 bit in the bitmap denies what ``flags`` names. ``bitmap`` points."""

    _fields_ = (("flags", c_uint32), ("nmsrs", c_uint32), ("base", c_uint32), ("bitmap", c_uint64))


class KvmMsrFilter(Structure):
    """KVM_X86_SET_MSR_FILTER."""

    _fields_ = (("flags", c_uint32), ("ranges", KvmMsrFilterRange * KVM_MSR_FILTER_MAX_RANGES))


MSR_IA32_P5_MC_ADDR: Final = 0x00
MSR_IA32_P5_MC_TYPE: Final = 0x01
MSR_IA32_TSC: Final = 0x10
MSR_IA32_PLATFORM_ID: Final = 0x17
MSR_IA32_APICBASE: Final = 0x1B
MSR_EBL_CR_POWERON: Final = 0x2A
MSR_SMI_COUNT: Final = 0x34
MSR_IA32_FEAT_CTL: Final = 0x3A
MSR_IA32_TSC_ADJUST: Final = 0x3B
MSR_IA32_SPEC_CTRL: Final = 0x48
MSR_IA32_PRED_CMD: Final = 0x49
MSR_IA32_UCODE_WRITE: Final = 0x79
MSR_IA32_UCODE_REV: Final = 0x8B
MSR_IA32_SMBASE: Final = 0x9E
MSR_IA32_PERFCTR0: Final = 0xC1
MSR_PLATFORM_INFO: Final = 0xCE
MSR_MTRRcap: Final = 0xFE
MSR_IA32_ARCH_CAPABILITIES: Final = 0x10A
MSR_MISC_FEATURES_ENABLES: Final = 0x140
MSR_IA32_SYSENTER_CS: Final = 0x174
MSR_IA32_SYSENTER_ESP: Final = 0x175
MSR_IA32_SYSENTER_EIP: Final = 0x176
MSR_IA32_MCG_CAP: Final = 0x179
MSR_IA32_MCG_STATUS: Final = 0x17A
MSR_IA32_MCG_CTL: Final = 0x17B
MSR_P6_EVNTSEL0: Final = 0x186
MSR_IA32_PERF_STATUS: Final = 0x198
MSR_IA32_PERF_CTL: Final = 0x199
MSR_IA32_MISC_ENABLE: Final = 0x1A0
MSR_IA32_PERF_CAPABILITIES: Final = 0x345
MSR_IA32_MISC_ENABLE_MWAIT: Final = 1 << 18
MSR_IA32_POWER_CTL: Final = 0x1FC
MSR_IA32_DEBUGCTLMSR: Final = 0x1D9
MSR_IA32_LASTBRANCHFROMIP: Final = 0x1DB
MSR_IA32_LASTBRANCHTOIP: Final = 0x1DC
MSR_IA32_LASTINTFROMIP: Final = 0x1DD
MSR_IA32_LASTINTTOIP: Final = 0x1DE
MSR_MTRRphysBase0: Final = 0x200
MSR_MTRRfix64K_00000: Final = 0x250
MSR_MTRRfix16K_80000: Final = 0x258
MSR_MTRRfix16K_A0000: Final = 0x259
MSR_MTRRfix4K_C0000: Final = 0x268
MSR_IA32_CR_PAT: Final = 0x277
MSR_MTRRdefType: Final = 0x2FF
MSR_CORE_C3_RESIDENCY: Final = 0x3FC
MSR_CORE_C6_RESIDENCY: Final = 0x3FD
MSR_CORE_C7_RESIDENCY: Final = 0x3FE
MSR_IA32_MC0_CTL: Final = 0x400
MSR_IA32_MC0_CTL2: Final = 0x280
MSR_CORE_C1_RES: Final = 0x660
MSR_IA32_TSC_DEADLINE: Final = 0x6E0
MSR_X2APIC_FIRST: Final = 0x800
MSR_X2APIC_LAST: Final = 0x8FF
MSR_IA32_XSS: Final = 0xDA0
MSR_EFER: Final = 0xC0000080
MSR_STAR: Final = 0xC0000081
MSR_LSTAR: Final = 0xC0000082
MSR_CSTAR: Final = 0xC0000083
MSR_SYSCALL_MASK: Final = 0xC0000084
MSR_FS_BASE: Final = 0xC0000100
MSR_GS_BASE: Final = 0xC0000101
MSR_KERNEL_GS_BASE: Final = 0xC0000102
MSR_TSC_AUX: Final = 0xC0000103
MSR_K7_EVNTSEL0: Final = 0xC0010000
MSR_K7_PERFCTR0: Final = 0xC0010004
MSR_AMD64_SYSCFG: Final = 0xC0010010
MSR_K7_HWCR: Final = 0xC0010015
MSR_AMD64_NB_CFG: Final = 0xC001001F
MSR_AMD64_PATCH_LEVEL: Final = 0x0000008B
MSR_AMD64_PATCH_LOADER: Final = 0xC0010020
MSR_K8_INT_PENDING_MSG: Final = 0xC0010055
MSR_VM_HSAVE_PA: Final = 0xC0010117
MSR_AMD64_DC_CFG: Final = 0xC0011022
MSR_AMD64_DE_CFG: Final = 0xC0011029
MSR_AMD64_BU_CFG2: Final = 0xC001102A

# IA32_APIC_BASE.
MSR_IA32_APICBASE_BSP: Final = 1 << 8
MSR_IA32_APICBASE_X2APIC: Final = 1 << 10
MSR_IA32_APICBASE_ENABLE: Final = 1 << 11

# EFER.
EFER_SCE: Final = 1 << 0
EFER_LME: Final = 1 << 8
EFER_LMA: Final = 1 << 10
EFER_NX: Final = 1 << 11
EFER_SVME: Final = 1 << 12
EFER_LMSLE: Final = 1 << 13
EFER_FFXSR: Final = 1 << 14

# KVM's own.
MSR_KVM_WALL_CLOCK: Final = 0x11
MSR_KVM_SYSTEM_TIME: Final = 0x12
MSR_KVM_WALL_CLOCK_NEW: Final = 0x4B564D00
MSR_KVM_SYSTEM_TIME_NEW: Final = 0x4B564D01
MSR_KVM_ASYNC_PF_EN: Final = 0x4B564D02
MSR_KVM_STEAL_TIME: Final = 0x4B564D03
MSR_KVM_PV_EOI_EN: Final = 0x4B564D04
MSR_KVM_POLL_CONTROL: Final = 0x4B564D05
MSR_KVM_ASYNC_PF_INT: Final = 0x4B564D06
MSR_KVM_ASYNC_PF_ACK: Final = 0x4B564D07
MSR_KVM_MIGRATION_CONTROL: Final = 0x4B564D08
KVM_MSR_ENABLED: Final = 1
KVM_ASYNC_PF_SEND_ALWAYS: Final = 1 << 1
KVM_ASYNC_PF_DELIVERY_AS_PF_VMEXIT: Final = 1 << 2
KVM_ASYNC_PF_DELIVERY_AS_INT: Final = 1 << 3
