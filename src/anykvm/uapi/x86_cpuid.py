# SPDX-License-Identifier: GPL-2.0-only
"""CPUID: the requests' structures, KVM's paravirtual leaves, and the feature bits anykvm looks at.

Source: ``arch/x86/include/uapi/asm/kvm.h`` and ``kvm_para.h``; ``Documentation/virt/kvm/x86/cpuid.rst``; Intel SDM
volume 2, CPUID.
"""

from __future__ import annotations

from ctypes import Structure, c_uint32
from typing import Final


class KvmCpuidEntry(Structure):
    """One leaf of KVM_SET_CPUID."""

    _fields_ = tuple((name, c_uint32) for name in ("function", "eax", "ebx", "ecx", "edx", "padding"))


class KvmCpuid(Structure):
    """KVM_SET_CPUID: the head; ``nent`` entries follow."""

    _fields_ = (("nent", c_uint32), ("padding", c_uint32), ("entries", KvmCpuidEntry * 0))


class KvmCpuidEntry2(Structure):
    """One leaf, or one subleaf where ``flags`` has KVM_CPUID_FLAG_SIGNIFCANT_INDEX."""

    _fields_ = (
        *((name, c_uint32) for name in ("function", "index", "flags", "eax", "ebx", "ecx", "edx")),
        ("padding", c_uint32 * 3),
    )


class KvmCpuid2(Structure):
    """KVM_SET_CPUID2, KVM_GET_CPUID2, KVM_GET_SUPPORTED_CPUID: the head; ``nent`` entries follow."""

    _fields_ = (("nent", c_uint32), ("padding", c_uint32), ("entries", KvmCpuidEntry2 * 0))


KVM_CPUID_FLAG_SIGNIFCANT_INDEX: Final = 1 << 0
KVM_CPUID_FLAG_STATEFUL_FUNC: Final = 1 << 1
KVM_CPUID_FLAG_STATE_READ_NEXT: Final = 1 << 2

KVM_CPUID_SIGNATURE: Final = 0x40000000
KVM_SIGNATURE: Final = b"KVMKVMKVM\0\0\0"
KVM_CPUID_FEATURES: Final = 0x40000001

# Bit numbers of KVM_CPUID_FEATURES' eax.
KVM_FEATURE_CLOCKSOURCE: Final = 0
KVM_FEATURE_NOP_IO_DELAY: Final = 1
KVM_FEATURE_MMU_OP: Final = 2
KVM_FEATURE_CLOCKSOURCE2: Final = 3
KVM_FEATURE_ASYNC_PF: Final = 4
KVM_FEATURE_STEAL_TIME: Final = 5
KVM_FEATURE_PV_EOI: Final = 6
KVM_FEATURE_PV_UNHALT: Final = 7
KVM_FEATURE_PV_TLB_FLUSH: Final = 9
KVM_FEATURE_ASYNC_PF_VMEXIT: Final = 10
KVM_FEATURE_PV_SEND_IPI: Final = 11
KVM_FEATURE_POLL_CONTROL: Final = 12
KVM_FEATURE_PV_SCHED_YIELD: Final = 13
KVM_FEATURE_ASYNC_PF_INT: Final = 14
KVM_FEATURE_MSI_EXT_DEST_ID: Final = 15
KVM_FEATURE_HC_MAP_GPA_RANGE: Final = 16
KVM_FEATURE_MIGRATION_CONTROL: Final = 17
KVM_FEATURE_CLOCKSOURCE_STABLE_BIT: Final = 24
KVM_HINTS_REALTIME: Final = 0

# Leaf 1.
CPUID_1_ECX_MWAIT: Final = 1 << 3
CPUID_1_ECX_VMX: Final = 1 << 5
CPUID_1_ECX_CX16: Final = 1 << 13
CPUID_1_ECX_PCID: Final = 1 << 17
CPUID_1_ECX_X2APIC: Final = 1 << 21
CPUID_1_ECX_TSC_DEADLINE: Final = 1 << 24
CPUID_1_ECX_XSAVE: Final = 1 << 26
CPUID_1_ECX_OSXSAVE: Final = 1 << 27
CPUID_1_ECX_AVX: Final = 1 << 28
CPUID_1_ECX_HYPERVISOR: Final = 1 << 31
CPUID_1_EDX_FPU: Final = 1 << 0
CPUID_1_EDX_DE: Final = 1 << 2
CPUID_1_EDX_PSE: Final = 1 << 3
CPUID_1_EDX_TSC: Final = 1 << 4
CPUID_1_EDX_MSR: Final = 1 << 5
CPUID_1_EDX_PAE: Final = 1 << 6
CPUID_1_EDX_MCE: Final = 1 << 7
CPUID_1_EDX_CX8: Final = 1 << 8
CPUID_1_EDX_APIC: Final = 1 << 9
CPUID_1_EDX_SEP: Final = 1 << 11
CPUID_1_EDX_MTRR: Final = 1 << 12
CPUID_1_EDX_PGE: Final = 1 << 13
CPUID_1_EDX_MCA: Final = 1 << 14
CPUID_1_EDX_PAT: Final = 1 << 16
CPUID_1_EDX_FXSR: Final = 1 << 24
CPUID_1_EDX_SSE: Final = 1 << 25
CPUID_1_EDX_SSE2: Final = 1 << 26

# Leaf 7, subleaf 0.
CPUID_7_EBX_FSGSBASE: Final = 1 << 0
CPUID_7_EBX_TSC_ADJUST: Final = 1 << 1
CPUID_7_EBX_SMEP: Final = 1 << 7
CPUID_7_EBX_INVPCID: Final = 1 << 10
CPUID_7_EBX_MPX: Final = 1 << 14
CPUID_7_EBX_SMAP: Final = 1 << 20
CPUID_7_ECX_UMIP: Final = 1 << 2
CPUID_7_ECX_PKU: Final = 1 << 3
CPUID_7_ECX_LA57: Final = 1 << 16
CPUID_7_EDX_ARCH_CAPABILITIES: Final = 1 << 29

# Leaf 0x80000001.
CPUID_80000001_ECX_LAHF_LM: Final = 1 << 0
CPUID_80000001_ECX_SVM: Final = 1 << 2
CPUID_80000001_EDX_SYSCALL: Final = 1 << 11
CPUID_80000001_EDX_NX: Final = 1 << 20
CPUID_80000001_EDX_PAGE1GB: Final = 1 << 26
CPUID_80000001_EDX_RDTSCP: Final = 1 << 27
CPUID_80000001_EDX_LM: Final = 1 << 29
