# SPDX-License-Identifier: GPL-2.0-only
"""``struct kvm_run``: the page a vCPU fd maps, through which KVM_RUN and userspace talk.

Source: ``include/uapi/linux/kvm.h``; ``Documentation/virt/kvm/api.rst``, section 5. The s390 layout, which has two more
words before the union, is not this one.
"""

from __future__ import annotations

from ctypes import Structure, Union, c_uint8, c_uint16, c_uint32, c_uint64
from typing import Final

SYNC_REGS_SIZE_BYTES: Final = 2048

# The largest kvm_debug_exit_arch of any architecture (x86), in bytes.
DEBUG_EXIT_ARCH_MAX: Final = 32


class RunHw(Structure):
    """KVM_EXIT_UNKNOWN."""

    _fields_ = (("hardware_exit_reason", c_uint64),)


class RunFailEntry(Structure):
    """KVM_EXIT_FAIL_ENTRY."""

    _fields_ = (("hardware_entry_failure_reason", c_uint64), ("cpu", c_uint32))


class RunEx(Structure):
    """KVM_EXIT_EXCEPTION."""

    _fields_ = (("exception", c_uint32), ("error_code", c_uint32))


class RunIo(Structure):
    """KVM_EXIT_IO: ``count`` items of ``size`` bytes at ``data_offset`` from the start of the run page."""

    _fields_ = (
        ("direction", c_uint8),
        ("size", c_uint8),
        ("port", c_uint16),
        ("count", c_uint32),
        ("data_offset", c_uint64),
    )


class RunDebug(Structure):
    """KVM_EXIT_DEBUG: the architecture's ``kvm_debug_exit_arch``."""

    _fields_ = (("arch", c_uint64 * (DEBUG_EXIT_ARCH_MAX // 8)),)


class RunMmio(Structure):
    """KVM_EXIT_MMIO: ``len`` bytes (1 to 8) at a guest-physical address."""

    _fields_ = (("phys_addr", c_uint64), ("data", c_uint8 * 8), ("len", c_uint32), ("is_write", c_uint8))


class RunHypercall(Structure):
    """KVM_EXIT_HYPERCALL."""

    class _Flags(Union):
        _fields_ = (("longmode", c_uint32), ("flags", c_uint64))

    _anonymous_ = ("_flags",)
    _fields_ = (("nr", c_uint64), ("args", c_uint64 * 6), ("ret", c_uint64), ("_flags", _Flags))


class RunInternal(Structure):
    """KVM_EXIT_INTERNAL_ERROR."""

    _fields_ = (("suberror", c_uint32), ("ndata", c_uint32), ("data", c_uint64 * 16))


class RunEmulationFailure(Structure):
    """KVM_EXIT_INTERNAL_ERROR with suberror KVM_INTERNAL_ERROR_EMULATION."""

    _fields_ = (
        ("suberror", c_uint32),
        ("ndata", c_uint32),
        ("flags", c_uint64),
        ("insn_size", c_uint8),
        ("insn_bytes", c_uint8 * 15),
    )


class RunSystemEvent(Structure):
    """KVM_EXIT_SYSTEM_EVENT: ``ndata`` valid words in ``data``."""

    class _Data(Union):
        _fields_ = (("flags", c_uint64), ("data", c_uint64 * 16))

    _anonymous_ = ("_data",)
    _fields_ = (("type", c_uint32), ("ndata", c_uint32), ("_data", _Data))


class RunArmNisv(Structure):
    """KVM_EXIT_ARM_NISV: a data abort whose syndrome does not describe the access."""

    _fields_ = (("esr_iss", c_uint64), ("fault_ipa", c_uint64))


class RunMemoryFault(Structure):
    """KVM_EXIT_MEMORY_FAULT: a guest-physical range (bytes) KVM could not resolve."""

    _fields_ = (("flags", c_uint64), ("gpa", c_uint64), ("size", c_uint64))


class _Exit(Union):
    _fields_ = (
        ("hw", RunHw),
        ("fail_entry", RunFailEntry),
        ("ex", RunEx),
        ("io", RunIo),
        ("debug", RunDebug),
        ("mmio", RunMmio),
        ("hypercall", RunHypercall),
        ("internal", RunInternal),
        ("emulation_failure", RunEmulationFailure),
        ("system_event", RunSystemEvent),
        ("arm_nisv", RunArmNisv),
        ("memory_fault", RunMemoryFault),
        ("padding", c_uint8 * 256),
    )


class _SyncRegs(Union):
    _fields_ = (("padding", c_uint8 * SYNC_REGS_SIZE_BYTES),)


class KvmRun(Structure):
    """The run page. ``exit_reason`` says which member of the union counts."""

    _anonymous_ = ("_exit",)
    _fields_ = (
        ("request_interrupt_window", c_uint8),
        ("immediate_exit", c_uint8),
        ("padding1", c_uint8 * 6),
        ("exit_reason", c_uint32),
        ("ready_for_interrupt_injection", c_uint8),
        ("if_flag", c_uint8),
        ("flags", c_uint16),
        ("cr8", c_uint64),
        ("apic_base", c_uint64),
        ("_exit", _Exit),
        ("kvm_valid_regs", c_uint64),
        ("kvm_dirty_regs", c_uint64),
        ("s", _SyncRegs),
    )
