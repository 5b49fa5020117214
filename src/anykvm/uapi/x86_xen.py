# SPDX-License-Identifier: GPL-2.0-only
"""Xen's interface to guests, as far as KVM serves it, and KVM's requests for it.

Source: ``include/uapi/linux/kvm.h``; api.rst 4.29, 4.126 to 4.129, 5 (KVM_EXIT_XEN) and 8.31; Xen's public headers.
"""

from __future__ import annotations

from ctypes import Structure, Union, c_int32, c_uint8, c_uint16, c_uint32, c_uint64
from typing import Final

from .ioctl import _IOW, _IOWR, KVMIO


class KvmXenHvmConfig(Structure):
    """KVM_XEN_HVM_CONFIG: the MSR that fills in hypercall pages, and whose they are; sizes are in pages."""

    _fields_ = (
        ("flags", c_uint32),
        ("msr", c_uint32),
        ("blob_addr_32", c_uint64),
        ("blob_addr_64", c_uint64),
        ("blob_size_32", c_uint8),
        ("blob_size_64", c_uint8),
        ("pad2", c_uint8 * 30),
    )


class KvmXenHvmAttr(Structure):
    """KVM_XEN_HVM_GET_ATTR, KVM_XEN_HVM_SET_ATTR: ``type`` says which member of ``u`` counts."""

    class _Value(Union):
        class _SharedInfo(Structure):
            _fields_ = (("gfn", c_uint64),)

        class _Evtchn(Structure):
            class _Deliver(Union):
                class _Port(Structure):
                    _fields_ = (("port", c_uint32), ("vcpu", c_uint32), ("priority", c_uint32))

                class _Eventfd(Structure):
                    _fields_ = (("port", c_uint32), ("fd", c_int32))

                _fields_ = (("port", _Port), ("eventfd", _Eventfd), ("padding", c_uint32 * 4))

            _fields_ = (("send_port", c_uint32), ("type", c_uint32), ("flags", c_uint32), ("deliver", _Deliver))

        _fields_ = (
            ("long_mode", c_uint8),
            ("vector", c_uint8),
            ("shared_info", _SharedInfo),
            ("evtchn", _Evtchn),
            ("xen_version", c_uint32),
            ("pad", c_uint64 * 8),
        )

    _fields_ = (("type", c_uint16), ("pad", c_uint16 * 3), ("u", _Value))


class KvmXenVcpuAttr(Structure):
    """KVM_XEN_VCPU_GET_ATTR, KVM_XEN_VCPU_SET_ATTR: ``type`` says which member of ``u`` counts; times are in ns."""

    class _Value(Union):
        class _Runstate(Structure):
            _fields_ = (
                ("state", c_uint64),
                ("state_entry_time", c_uint64),
                ("time_running", c_uint64),
                ("time_runnable", c_uint64),
                ("time_blocked", c_uint64),
                ("time_offline", c_uint64),
            )

        class _Timer(Structure):
            _fields_ = (("port", c_uint32), ("priority", c_uint32), ("expires_ns", c_uint64))

        _fields_ = (
            ("gpa", c_uint64),
            ("pad", c_uint64 * 8),
            ("runstate", _Runstate),
            ("vcpu_id", c_uint32),
            ("timer", _Timer),
            ("vector", c_uint8),
        )

    _fields_ = (("type", c_uint16), ("pad", c_uint16 * 3), ("u", _Value))


class KvmXenExit(Structure):
    """KVM_EXIT_XEN: a hypercall that userspace serves."""

    class _Exit(Union):
        class _Hcall(Structure):
            _fields_ = (
                ("longmode", c_uint32),
                ("cpl", c_uint32),
                ("input", c_uint64),
                ("result", c_uint64),
                ("params", c_uint64 * 6),
            )

        _fields_ = (("hcall", _Hcall),)

    _fields_ = (("type", c_uint32), ("u", _Exit))


class KvmIrqRoutingXenEvtchn(Structure):
    """A GSI that is an event channel; and KVM_XEN_HVM_EVTCHN_SEND. ``vcpu`` is a vcpu_id."""

    _fields_ = (("port", c_uint32), ("vcpu", c_uint32), ("priority", c_uint32))


KVM_XEN_HVM_CONFIG: Final = _IOW(KVMIO, 0x7A, KvmXenHvmConfig)
KVM_XEN_HVM_GET_ATTR: Final = _IOWR(KVMIO, 0xC8, KvmXenHvmAttr)
KVM_XEN_HVM_SET_ATTR: Final = _IOW(KVMIO, 0xC9, KvmXenHvmAttr)
KVM_XEN_VCPU_GET_ATTR: Final = _IOWR(KVMIO, 0xCA, KvmXenVcpuAttr)
KVM_XEN_VCPU_SET_ATTR: Final = _IOW(KVMIO, 0xCB, KvmXenVcpuAttr)
KVM_XEN_HVM_EVTCHN_SEND: Final = _IOW(KVMIO, 0xD0, KvmIrqRoutingXenEvtchn)

KVM_XEN_HVM_CONFIG_HYPERCALL_MSR: Final = 1 << 0
KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL: Final = 1 << 1
KVM_XEN_HVM_CONFIG_SHARED_INFO: Final = 1 << 2
KVM_XEN_HVM_CONFIG_RUNSTATE: Final = 1 << 3
KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL: Final = 1 << 4
KVM_XEN_HVM_CONFIG_EVTCHN_SEND: Final = 1 << 5

KVM_XEN_ATTR_TYPE_LONG_MODE: Final = 0
KVM_XEN_ATTR_TYPE_SHARED_INFO: Final = 1
KVM_XEN_ATTR_TYPE_UPCALL_VECTOR: Final = 2
KVM_XEN_ATTR_TYPE_EVTCHN: Final = 3
KVM_XEN_ATTR_TYPE_XEN_VERSION: Final = 4
KVM_XEN_EVTCHN_DEASSIGN: Final = 1 << 0
KVM_XEN_EVTCHN_UPDATE: Final = 1 << 1
KVM_XEN_EVTCHN_RESET: Final = 1 << 2
KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL: Final = 0xFFFFFFFF

KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO: Final = 0
KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO: Final = 1
KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR: Final = 2
KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT: Final = 3
KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA: Final = 4
KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST: Final = 5
KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID: Final = 6
KVM_XEN_VCPU_ATTR_TYPE_TIMER: Final = 7
KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR: Final = 8

KVM_EXIT_XEN_HCALL: Final = 1

# Xen's own.
XEN_INVALID: Final = 0xFFFFFFFFFFFFFFFF
"""No page, no address."""
XEN_HC_SET_TIMER_OP: Final = 15
XEN_HC_XEN_VERSION: Final = 17
XEN_HC_VCPU_OP: Final = 24
XEN_HC_SCHED_OP: Final = 29
XEN_HC_EVENT_CHANNEL_OP: Final = 32
XENVER_VERSION: Final = 0
SCHEDOP_YIELD: Final = 0
SCHEDOP_POLL: Final = 3
EVTCHNOP_SEND: Final = 4
VCPUOP_SET_SINGLESHOT_TIMER: Final = 8
VCPUOP_STOP_SINGLESHOT_TIMER: Final = 9
VCPU_SSHOTTMR_FUTURE: Final = 1 << 0
EVTCHNSTAT_INTERDOMAIN: Final = 2
EVTCHNSTAT_IPI: Final = 5
XEN_RUNSTATE_RUNNING: Final = 0
XEN_RUNSTATE_RUNNABLE: Final = 1
XEN_RUNSTATE_BLOCKED: Final = 2
XEN_RUNSTATE_OFFLINE: Final = 3
XEN_RUNSTATE_UPDATE: Final = 1 << 63
