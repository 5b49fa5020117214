# SPDX-License-Identifier: GPL-2.0-only
"""Hyper-V's interface to guests, as far as KVM's is served: CPUID leaves, MSRs, hypercalls; and KVM's requests for it.

Source: Microsoft's Hypervisor Top Level Functional Specification 6.0b, chapters 2, 3, 9 to 12 and appendices A and B;
``include/uapi/linux/kvm.h``, api.rst 4.115, 4.118 and section 5.
"""

from __future__ import annotations

from ctypes import Structure, Union, c_int32, c_uint32, c_uint64
from typing import Final

from .ioctl import _IOW, KVMIO

HYPERV_CPUID_VENDOR_AND_MAX_FUNCTIONS: Final = 0x40000000
HYPERV_CPUID_INTERFACE: Final = 0x40000001
HYPERV_CPUID_VERSION: Final = 0x40000002
HYPERV_CPUID_FEATURES: Final = 0x40000003
HYPERV_CPUID_ENLIGHTMENT_INFO: Final = 0x40000004
HYPERV_CPUID_IMPLEMENT_LIMITS: Final = 0x40000005
HYPERV_CPUID_NESTED_FEATURES: Final = 0x4000000A
HYPERV_CPUID_SYNDBG_VENDOR_AND_MAX_FUNCTIONS: Final = 0x40000080
HYPERV_CPUID_SYNDBG_INTERFACE: Final = 0x40000081
HYPERV_CPUID_SYNDBG_PLATFORM_CAPABILITIES: Final = 0x40000082

HYPERV_INTERFACE_SIGNATURE: Final = int.from_bytes(b"Hv#1", "little")
HYPERV_SYNDBG_SIGNATURE: Final = int.from_bytes(b"VS#1", "little")

# HYPERV_CPUID_FEATURES: eax.
HV_MSR_VP_RUNTIME_AVAILABLE: Final = 1 << 0
HV_MSR_TIME_REF_COUNT_AVAILABLE: Final = 1 << 1
HV_MSR_SYNIC_AVAILABLE: Final = 1 << 2
HV_MSR_SYNTIMER_AVAILABLE: Final = 1 << 3
HV_MSR_APIC_ACCESS_AVAILABLE: Final = 1 << 4
HV_MSR_HYPERCALL_AVAILABLE: Final = 1 << 5
HV_MSR_VP_INDEX_AVAILABLE: Final = 1 << 6
HV_MSR_RESET_AVAILABLE: Final = 1 << 7
HV_MSR_REFERENCE_TSC_AVAILABLE: Final = 1 << 9
HV_ACCESS_FREQUENCY_MSRS: Final = 1 << 11
HV_ACCESS_REENLIGHTENMENT: Final = 1 << 13
# Its ebx.
HV_POST_MESSAGES: Final = 1 << 4
HV_SIGNAL_EVENTS: Final = 1 << 5
HV_DEBUGGING: Final = 1 << 11
# Its edx.
HV_X64_GUEST_DEBUGGING_AVAILABLE: Final = 1 << 1
HV_X64_HYPERCALL_XMM_INPUT_AVAILABLE: Final = 1 << 4
HV_FEATURE_FREQUENCY_MSRS_AVAILABLE: Final = 1 << 8
HV_FEATURE_GUEST_CRASH_MSR_AVAILABLE: Final = 1 << 10
HV_FEATURE_DEBUG_MSRS_AVAILABLE: Final = 1 << 11
HV_STIMER_DIRECT_MODE_AVAILABLE: Final = 1 << 19

# HYPERV_CPUID_ENLIGHTMENT_INFO: eax.
HV_X64_REMOTE_TLB_FLUSH_RECOMMENDED: Final = 1 << 2
HV_X64_APIC_ACCESS_RECOMMENDED: Final = 1 << 3
HV_X64_RELAXED_TIMING_RECOMMENDED: Final = 1 << 5
HV_DEPRECATING_AEOI_RECOMMENDED: Final = 1 << 9
HV_X64_CLUSTER_IPI_RECOMMENDED: Final = 1 << 10
HV_X64_EX_PROCESSOR_MASKS_RECOMMENDED: Final = 1 << 11
HV_X64_NO_NONARCH_CORESHARING: Final = 1 << 18

# HYPERV_CPUID_NESTED_FEATURES, HYPERV_CPUID_SYNDBG_PLATFORM_CAPABILITIES: eax.
HV_X64_NESTED_MSR_BITMAP: Final = 1 << 19
HV_X64_SYNDBG_CAP_ALLOW_KERNEL_DEBUGGING: Final = 1 << 1

HV_X64_MSR_GUEST_OS_ID: Final = 0x40000000
HV_X64_MSR_HYPERCALL: Final = 0x40000001
HV_X64_MSR_VP_INDEX: Final = 0x40000002
HV_X64_MSR_RESET: Final = 0x40000003
HV_X64_MSR_VP_RUNTIME: Final = 0x40000010
HV_X64_MSR_TIME_REF_COUNT: Final = 0x40000020
HV_X64_MSR_REFERENCE_TSC: Final = 0x40000021
HV_X64_MSR_TSC_FREQUENCY: Final = 0x40000022
HV_X64_MSR_APIC_FREQUENCY: Final = 0x40000023
HV_X64_MSR_EOI: Final = 0x40000070
HV_X64_MSR_ICR: Final = 0x40000071
HV_X64_MSR_TPR: Final = 0x40000072
HV_X64_MSR_VP_ASSIST_PAGE: Final = 0x40000073
HV_X64_MSR_SCONTROL: Final = 0x40000080
HV_X64_MSR_SVERSION: Final = 0x40000081
HV_X64_MSR_SIEFP: Final = 0x40000082
HV_X64_MSR_SIMP: Final = 0x40000083
HV_X64_MSR_EOM: Final = 0x40000084
HV_X64_MSR_SINT0: Final = 0x40000090
HV_X64_MSR_STIMER0_CONFIG: Final = 0x400000B0
HV_X64_MSR_STIMER0_COUNT: Final = 0x400000B1
HV_X64_MSR_SYNDBG_CONTROL: Final = 0x400000F1
HV_X64_MSR_SYNDBG_STATUS: Final = 0x400000F2
HV_X64_MSR_SYNDBG_SEND_BUFFER: Final = 0x400000F3
HV_X64_MSR_SYNDBG_RECV_BUFFER: Final = 0x400000F4
HV_X64_MSR_SYNDBG_PENDING_BUFFER: Final = 0x400000F5
HV_X64_MSR_SYNDBG_OPTIONS: Final = 0x400000FF
HV_X64_MSR_CRASH_P0: Final = 0x40000100
HV_X64_MSR_CRASH_CTL: Final = 0x40000105
HV_X64_MSR_REENLIGHTENMENT_CONTROL: Final = 0x40000106
HV_X64_MSR_TSC_EMULATION_CONTROL: Final = 0x40000107
HV_X64_MSR_TSC_EMULATION_STATUS: Final = 0x40000108

HV_X64_MSR_ENABLE: Final = 1 << 0
"""Bit 0 of the MSRs that give KVM a page, whose address is in bits 12 and up."""
HV_CRASH_PARAMETERS: Final = 5
HV_CRASH_CTL_CRASH_NOTIFY: Final = 1 << 63
HV_X64_SYNDBG_OPTION_USE_HCALLS: Final = 1 << 2

HV_SYNIC_SINT_COUNT: Final = 16
HV_SYNIC_VERSION_1: Final = 1
HV_SYNIC_FIRST_VALID_VECTOR: Final = 16
HV_SYNIC_SINT_MASKED: Final = 1 << 16
HV_SYNIC_SINT_AUTO_EOI: Final = 1 << 17
HV_MESSAGE_SIZE: Final = 256
HVMSG_NONE: Final = 0
HVMSG_TIMER_EXPIRED: Final = 0x80000010
HV_MESSAGE_FLAG_PENDING: Final = 1 << 0

HV_SYNIC_STIMER_COUNT: Final = 4
HV_STIMER_ENABLE: Final = 1 << 0
HV_STIMER_PERIODIC: Final = 1 << 1
HV_STIMER_AUTO_ENABLE: Final = 1 << 3
HV_STIMER_VECTOR_SHIFT: Final = 4
HV_STIMER_DIRECT_MODE: Final = 1 << 12
HV_STIMER_SINT_SHIFT: Final = 16

HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE: Final = 0x0002
HVCALL_FLUSH_VIRTUAL_ADDRESS_LIST: Final = 0x0003
HVCALL_NOTIFY_LONG_SPIN_WAIT: Final = 0x0008
HVCALL_SEND_IPI: Final = 0x000B
HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE_EX: Final = 0x0013
HVCALL_FLUSH_VIRTUAL_ADDRESS_LIST_EX: Final = 0x0014
HVCALL_SEND_IPI_EX: Final = 0x0015
HVCALL_POST_MESSAGE: Final = 0x005C
HVCALL_SIGNAL_EVENT: Final = 0x005D
HVCALL_POST_DEBUG_DATA: Final = 0x0069
HVCALL_RETRIEVE_DEBUG_DATA: Final = 0x006A
HVCALL_RESET_DEBUG_SESSION: Final = 0x006B

HV_HYPERCALL_FAST: Final = 1 << 16
HV_HYPERCALL_VARHEAD_SHIFT: Final = 17
HV_HYPERCALL_REP_COMP_SHIFT: Final = 32
HV_HYPERCALL_REP_START_SHIFT: Final = 48
HV_HYPERCALL_RESERVED: Final = 0x1F << 27 | 0xF << 44 | 0xF << 60
HV_FLUSH_ALL_PROCESSORS: Final = 1 << 0
HV_GENERIC_SET_SPARSE_4K: Final = 0
HV_GENERIC_SET_ALL: Final = 1
HV_MAX_XMM_REGISTERS: Final = 6

HV_STATUS_SUCCESS: Final = 0
HV_STATUS_INVALID_HYPERCALL_CODE: Final = 2
HV_STATUS_INVALID_HYPERCALL_INPUT: Final = 3
HV_STATUS_INVALID_ALIGNMENT: Final = 4
HV_STATUS_INVALID_PARAMETER: Final = 5
HV_STATUS_ACCESS_DENIED: Final = 6
HV_STATUS_OPERATION_DENIED: Final = 8
HV_STATUS_INVALID_PORT_ID: Final = 17

# KVM's own.

KVM_EXIT_HYPERV_SYNIC: Final = 1
KVM_EXIT_HYPERV_HCALL: Final = 2
KVM_EXIT_HYPERV_SYNDBG: Final = 3


class KvmHypervExit(Structure):
    """KVM_EXIT_HYPERV: what ``type`` says, of Hyper-V's."""

    class _Exit(Union):
        class _Synic(Structure):
            _fields_ = (
                ("msr", c_uint32),
                ("pad2", c_uint32),
                ("control", c_uint64),
                ("evt_page", c_uint64),
                ("msg_page", c_uint64),
            )

        class _Hcall(Structure):
            _fields_ = (("input", c_uint64), ("result", c_uint64), ("params", c_uint64 * 2))

        class _Syndbg(Structure):
            _fields_ = (
                ("msr", c_uint32),
                ("pad2", c_uint32),
                ("control", c_uint64),
                ("status", c_uint64),
                ("send_page", c_uint64),
                ("recv_page", c_uint64),
                ("pending_page", c_uint64),
            )

        _fields_ = (("synic", _Synic), ("hcall", _Hcall), ("syndbg", _Syndbg))

    _fields_ = (("type", c_uint32), ("pad1", c_uint32), ("u", _Exit))


class KvmHypervEventfd(Structure):
    """KVM_HYPERV_EVENTFD: the eventfd that HVCALL_SIGNAL_EVENT signals for a connection."""

    _fields_ = (("conn_id", c_uint32), ("fd", c_int32), ("flags", c_uint32), ("padding", c_uint32 * 3))


class KvmIrqRoutingHvSint(Structure):
    """A GSI that goes to a synthetic interrupt source: the vCPU by its index, and which of the 16."""

    _fields_ = (("vcpu", c_uint32), ("sint", c_uint32))


KVM_HYPERV_EVENTFD: Final = _IOW(KVMIO, 0xBD, KvmHypervEventfd)  # 4.115
KVM_HYPERV_CONN_ID_MASK: Final = 0x00FFFFFF
KVM_HYPERV_EVENTFD_DEASSIGN: Final = 1 << 0
