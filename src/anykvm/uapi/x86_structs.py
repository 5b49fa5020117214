# SPDX-License-Identifier: GPL-2.0-only
"""The state of an x86 vCPU as requests carry it: registers, FPU, events, debugging.

Source: ``arch/x86/include/uapi/asm/kvm.h``; ``Documentation/virt/kvm/api.rst``, section 4. Addresses and limits are in
bytes.
"""

from __future__ import annotations

from ctypes import Structure, c_uint8, c_uint16, c_uint32, c_uint64
from typing import Final

KVM_NR_INTERRUPTS: Final = 256
KVM_MAX_XCRS: Final = 16


class KvmRegs(Structure):
    """KVM_GET_REGS and KVM_SET_REGS: the general registers, in the ABI's order."""

    _fields_ = tuple(
        (name, c_uint64)
        for name in (
            *("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rsp", "rbp"),
            *(f"r{number}" for number in range(8, 16)),
            *("rip", "rflags"),
        )
    )


class KvmSegment(Structure):
    """A segment register with its hidden part; ``limit`` is in bytes, whatever ``g`` says."""

    _fields_ = (
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        ("type", c_uint8),
        ("present", c_uint8),
        ("dpl", c_uint8),
        ("db", c_uint8),
        ("s", c_uint8),
        ("l", c_uint8),
        ("g", c_uint8),
        ("avl", c_uint8),
        ("unusable", c_uint8),
        ("padding", c_uint8),
    )


class KvmDtable(Structure):
    """GDTR or IDTR."""

    _fields_ = (("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3))


_SREGS: Final = (
    *((name, KvmSegment) for name in ("cs", "ds", "es", "fs", "gs", "ss", "tr", "ldt")),
    *((name, KvmDtable) for name in ("gdt", "idt")),
    *((name, c_uint64) for name in ("cr0", "cr2", "cr3", "cr4", "cr8", "efer", "apic_base")),
)


class KvmSregs(Structure):
    """KVM_GET_SREGS and KVM_SET_SREGS; ``interrupt_bitmap`` has the external interrupt on its way to the guest."""

    _fields_ = (*_SREGS, ("interrupt_bitmap", c_uint64 * ((KVM_NR_INTERRUPTS + 63) // 64)))


KVM_SREGS2_FLAGS_PDPTRS_VALID: Final = 1


class KvmSregs2(Structure):
    """KVM_GET_SREGS2 and KVM_SET_SREGS2: without the interrupt, with the PDPTRs of PAE paging."""

    _fields_ = (*_SREGS, ("flags", c_uint64), ("pdptrs", c_uint64 * 4))


class KvmFpu(Structure):
    """KVM_GET_FPU and KVM_SET_FPU; ``ftwx`` is the tag word as FXSAVE abridges it."""

    _fields_ = (
        ("fpr", c_uint8 * 16 * 8),
        ("fcw", c_uint16),
        ("fsw", c_uint16),
        ("ftwx", c_uint8),
        ("pad1", c_uint8),
        ("last_opcode", c_uint16),
        ("last_ip", c_uint64),
        ("last_dp", c_uint64),
        ("xmm", c_uint8 * 16 * 16),
        ("mxcsr", c_uint32),
        ("pad2", c_uint32),
    )


class KvmXsave(Structure):
    """KVM_GET_XSAVE, KVM_GET_XSAVE2 and KVM_SET_XSAVE: an XSAVE area in the standard format, 4096 bytes and more."""

    _fields_ = (("region", c_uint32 * 1024), ("extra", c_uint32 * 0))


class KvmXcr(Structure):
    """One extended control register."""

    _fields_ = (("xcr", c_uint32), ("reserved", c_uint32), ("value", c_uint64))


class KvmXcrs(Structure):
    """KVM_GET_XCRS and KVM_SET_XCRS: ``nr_xcrs`` of them; today XCR0 alone."""

    _fields_ = (
        ("nr_xcrs", c_uint32),
        ("flags", c_uint32),
        ("xcrs", KvmXcr * KVM_MAX_XCRS),
        ("padding", c_uint64 * 16),
    )


class KvmDebugregs(Structure):
    """KVM_GET_DEBUGREGS and KVM_SET_DEBUGREGS."""

    _fields_ = (
        ("db", c_uint64 * 4),
        ("dr6", c_uint64),
        ("dr7", c_uint64),
        ("flags", c_uint64),
        ("reserved", c_uint64 * 9),
    )


KVM_VCPUEVENT_VALID_NMI_PENDING: Final = 0x00000001
KVM_VCPUEVENT_VALID_SIPI_VECTOR: Final = 0x00000002
KVM_VCPUEVENT_VALID_SHADOW: Final = 0x00000004
KVM_VCPUEVENT_VALID_SMM: Final = 0x00000008
KVM_VCPUEVENT_VALID_PAYLOAD: Final = 0x00000010
KVM_VCPUEVENT_VALID_TRIPLE_FAULT: Final = 0x00000020
KVM_X86_SHADOW_INT_MOV_SS: Final = 0x01
KVM_X86_SHADOW_INT_STI: Final = 0x02


class KvmVcpuEvents(Structure):
    """KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS: exceptions, interrupts and NMIs on their way to the guest.

    ``flags`` (KVM_VCPUEVENT_VALID_*) says which optional fields count.
    """

    class Exception_(Structure):
        """An exception pending (still to be delivered) or injected (being delivered)."""

        _fields_ = (
            ("injected", c_uint8),
            ("nr", c_uint8),
            ("has_error_code", c_uint8),
            ("pending", c_uint8),
            ("error_code", c_uint32),
        )

    class Interrupt(Structure):
        """An interrupt being delivered, and the interrupt shadow (KVM_X86_SHADOW_INT_*)."""

        _fields_ = (("injected", c_uint8), ("nr", c_uint8), ("soft", c_uint8), ("shadow", c_uint8))

    class Nmi(Structure):
        """An NMI being delivered, pending, or blocked until IRET."""

        _fields_ = (("injected", c_uint8), ("pending", c_uint8), ("masked", c_uint8), ("pad", c_uint8))

    class Smi(Structure):
        """System management mode."""

        _fields_ = (("smm", c_uint8), ("pending", c_uint8), ("smm_inside_nmi", c_uint8), ("latched_init", c_uint8))

    class TripleFault(Structure):
        """Whether a triple fault is to be reported."""

        _fields_ = (("pending", c_uint8),)

    _fields_ = (
        ("exception", Exception_),
        ("interrupt", Interrupt),
        ("nmi", Nmi),
        ("sipi_vector", c_uint32),
        ("flags", c_uint32),
        ("smi", Smi),
        ("triple_fault", TripleFault),
        ("reserved", c_uint8 * 26),
        ("exception_has_payload", c_uint8),
        ("exception_payload", c_uint64),
    )


# KVM_SET_GUEST_DEBUG and KVM_EXIT_DEBUG.
KVM_GUESTDBG_USE_SW_BP: Final = 0x00010000
KVM_GUESTDBG_USE_HW_BP: Final = 0x00020000
KVM_GUESTDBG_INJECT_DB: Final = 0x00040000
KVM_GUESTDBG_INJECT_BP: Final = 0x00080000
KVM_GUESTDBG_BLOCKIRQ: Final = 0x00100000


class KvmGuestDebugArch(Structure):
    """The debug registers of KVM_SET_GUEST_DEBUG: DR0 to DR3 and DR7 count, with KVM_GUESTDBG_USE_HW_BP."""

    _fields_ = (("debugreg", c_uint64 * 8),)


class KvmGuestDebug(Structure):
    """KVM_SET_GUEST_DEBUG: ``control`` is made of KVM_GUESTDBG_*."""

    _fields_ = (("control", c_uint32), ("pad", c_uint32), ("arch", KvmGuestDebugArch))


class KvmDebugExitArch(Structure):
    """KVM_EXIT_DEBUG: the exception (1 #DB, 3 #BP), the linear address, DR6 and DR7."""

    _fields_ = (
        ("exception", c_uint32),
        ("pad", c_uint32),
        ("pc", c_uint64),
        ("dr6", c_uint64),
        ("dr7", c_uint64),
    )


KVM_SYNC_X86_REGS: Final = 1 << 0
KVM_SYNC_X86_SREGS: Final = 1 << 1
KVM_SYNC_X86_EVENTS: Final = 1 << 2
KVM_SYNC_X86_VALID_FIELDS: Final = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS


class KvmSyncRegs(Structure):
    """The synchronised registers in the run page (``kvm_run.s``)."""

    _fields_ = (("regs", KvmRegs), ("sregs", KvmSregs), ("events", KvmVcpuEvents))


class KvmX86Mce(Structure):
    """KVM_X86_SET_MCE: a machine check to inject."""

    _fields_ = (
        ("status", c_uint64),
        ("addr", c_uint64),
        ("misc", c_uint64),
        ("mcg_status", c_uint64),
        ("bank", c_uint8),
        ("pad1", c_uint8 * 7),
        ("pad2", c_uint64 * 3),
    )


class KvmClockData(Structure):
    """KVM_GET_CLOCK and KVM_SET_CLOCK: kvmclock in ns; ``flags`` (KVM_CLOCK_*) says what of the rest counts."""

    _fields_ = (
        ("clock", c_uint64),
        ("flags", c_uint32),
        ("pad0", c_uint32),
        ("realtime", c_uint64),
        ("host_tsc", c_uint64),
        ("pad", c_uint32 * 4),
    )


class RunMsr(Structure):
    """KVM_EXIT_X86_RDMSR and KVM_EXIT_X86_WRMSR: set ``error`` to give the guest #GP."""

    _fields_ = (
        ("error", c_uint8),
        ("pad", c_uint8 * 7),
        ("reason", c_uint32),
        ("index", c_uint32),
        ("data", c_uint64),
    )


class KvmTprAccessCtl(Structure):
    """KVM_TPR_ACCESS_REPORTING."""

    _fields_ = (("enabled", c_uint32), ("flags", c_uint32), ("reserved", c_uint32 * 8))


class KvmVapicAddr(Structure):
    """KVM_SET_VAPIC_ADDR."""

    _fields_ = (("vapic_addr", c_uint64),)


class KvmStealTime(Structure):
    """What MSR_KVM_STEAL_TIME writes: ns the vCPU waited for a CPU; ``version`` is odd while it is written."""

    _fields_ = (
        ("steal", c_uint64),
        ("version", c_uint32),
        ("flags", c_uint32),
        ("preempted", c_uint8),
        ("u8_pad", c_uint8 * 3),
        ("pad", c_uint32 * 11),
    )


class PvclockVcpuTimeInfo(Structure):
    """What kvmclock writes into the guest's page, 32 bytes; ``version`` is odd while it is being written.

    Source: ``Documentation/virt/kvm/x86/msr.rst``, MSR_KVM_SYSTEM_TIME_NEW.
    """

    _pack_ = 1
    _fields_ = (
        ("version", c_uint32),
        ("pad0", c_uint32),
        ("tsc_timestamp", c_uint64),
        ("system_time", c_uint64),
        ("tsc_to_system_mul", c_uint32),
        ("tsc_shift", c_uint8),
        ("flags", c_uint8),
        ("pad", c_uint8 * 2),
    )


class PvclockWallClock(Structure):
    """What MSR_KVM_WALL_CLOCK_NEW writes: the wall-clock time at which kvmclock was 0."""

    _pack_ = 1
    _fields_ = (("version", c_uint32), ("sec", c_uint32), ("nsec", c_uint32))
