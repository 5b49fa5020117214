# SPDX-License-Identifier: GPL-2.0-only
"""What a vCPU handle has on x86: registers in bulk, CPUID, MSRs, the local APIC, events."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Mapping, Sequence

from anykvm.api.handle import Handle
from anykvm.api.x86 import CpuidEntry, encode_cpuid, encode_msrs, fetch_cpuid, fetch_msrs
from anykvm.uapi.common import KVM_INTERRUPT, KVM_NMI, KvmInterrupt
from anykvm.uapi.x86 import (
    KVM_GET_CPUID2,
    KVM_GET_DEBUGREGS,
    KVM_GET_FPU,
    KVM_GET_LAPIC,
    KVM_GET_REGS,
    KVM_GET_SREGS,
    KVM_GET_SREGS2,
    KVM_GET_TSC_KHZ,
    KVM_GET_VCPU_EVENTS,
    KVM_GET_XCRS,
    KVM_GET_XSAVE,
    KVM_KVMCLOCK_CTRL,
    KVM_SET_CPUID2,
    KVM_SET_DEBUGREGS,
    KVM_SET_FPU,
    KVM_SET_GUEST_DEBUG,
    KVM_SET_LAPIC,
    KVM_SET_MSRS,
    KVM_SET_REGS,
    KVM_SET_SREGS,
    KVM_SET_SREGS2,
    KVM_SET_TSC_KHZ,
    KVM_SET_VCPU_EVENTS,
    KVM_SET_XCRS,
    KVM_SET_XSAVE,
    KVM_SMI,
    KVM_X86_SETUP_MCE,
    KvmDebugregs,
    KvmFpu,
    KvmGuestDebug,
    KvmLapicState,
    KvmRegs,
    KvmSregs,
    KvmSregs2,
    KvmVcpuEvents,
    KvmXcrs,
    KvmXsave,
)


class X86Cpu(Handle):
    """What :class:`Vcpu` has on x86; elsewhere these are OSError EINVAL."""

    def get_regs(self) -> KvmRegs:
        """The general registers (api.rst 4.11). Errors: EBADF."""
        regs = KvmRegs()
        self.ioctl(KVM_GET_REGS, regs)
        return regs

    def set_regs(self, regs: KvmRegs) -> None:
        """Set the general registers (api.rst 4.12); bit 1 of ``rflags`` is always 1. Errors: EBADF."""
        self.ioctl(KVM_SET_REGS, regs)

    def get_sregs(self) -> KvmSregs:
        """Control and segment registers (api.rst 4.13). Errors: EBADF."""
        sregs = KvmSregs()
        self.ioctl(KVM_GET_SREGS, sregs)
        return sregs

    def set_sregs(self, sregs: KvmSregs) -> None:
        """Set control and segment registers (api.rst 4.14). Errors: EINVAL for a mode a CPU cannot be in, EBADF."""
        self.ioctl(KVM_SET_SREGS, sregs)

    def get_sregs2(self) -> KvmSregs2:
        """The same with the PDPTRs of PAE paging (KVM_CAP_SREGS2). Errors: EINVAL where it is not offered, EBADF."""
        sregs = KvmSregs2()
        self.ioctl(KVM_GET_SREGS2, sregs)
        return sregs

    def set_sregs2(self, sregs: KvmSregs2) -> None:
        """Set what :meth:`get_sregs2` gives. Errors: EINVAL, EBADF."""
        self.ioctl(KVM_SET_SREGS2, sregs)

    def get_fpu(self) -> KvmFpu:
        """x87 and SSE (api.rst 4.22). Errors: EBADF."""
        fpu = KvmFpu()
        self.ioctl(KVM_GET_FPU, fpu)
        return fpu

    def set_fpu(self, fpu: KvmFpu) -> None:
        """Set x87 and SSE (api.rst 4.23). Errors: EBADF."""
        self.ioctl(KVM_SET_FPU, fpu)

    def get_xsave(self) -> KvmXsave:
        """The XSAVE area, 4096 bytes in the standard format (api.rst 4.42). Errors: EBADF."""
        area = KvmXsave()
        self.ioctl(KVM_GET_XSAVE, area)
        return area

    def set_xsave(self, area: KvmXsave) -> None:
        """Load an XSAVE area (api.rst 4.43). Errors: EINVAL for state the CPU does not have, EBADF."""
        self.ioctl(KVM_SET_XSAVE, area)

    def get_xcrs(self) -> KvmXcrs:
        """The extended control registers: XCR0 (api.rst 4.44). Errors: EBADF."""
        xcrs = KvmXcrs()
        self.ioctl(KVM_GET_XCRS, xcrs)
        return xcrs

    def set_xcrs(self, xcrs: KvmXcrs) -> None:
        """Set the extended control registers (api.rst 4.45). Errors: EINVAL, EBADF."""
        self.ioctl(KVM_SET_XCRS, xcrs)

    def get_debugregs(self) -> KvmDebugregs:
        """The debug registers (api.rst 4.33). Errors: EBADF."""
        regs = KvmDebugregs()
        self.ioctl(KVM_GET_DEBUGREGS, regs)
        return regs

    def set_debugregs(self, regs: KvmDebugregs) -> None:
        """Set the debug registers (api.rst 4.34). Errors: EINVAL, EBADF."""
        self.ioctl(KVM_SET_DEBUGREGS, regs)

    def set_guest_debug(self, control: int, *, debugreg: Sequence[int] = ()) -> None:
        """Stop the guest for a debugger (api.rst 4.87): ``control`` is made of KVM_GUESTDBG_*.

        ``debugreg`` is DR0 to DR7, for KVM_GUESTDBG_USE_HW_BP. Errors: EINVAL, EBUSY, EBADF.
        """
        request = KvmGuestDebug(control=control)
        request.arch.debugreg[: len(debugreg)] = debugreg
        self.ioctl(KVM_SET_GUEST_DEBUG, request)

    def get_vcpu_events(self) -> KvmVcpuEvents:
        """What is on its way to the guest: exceptions, interrupts, NMIs (api.rst 4.31). Errors: EBADF."""
        events = KvmVcpuEvents()
        self.ioctl(KVM_GET_VCPU_EVENTS, events)
        return events

    def set_vcpu_events(self, events: KvmVcpuEvents) -> None:
        """Set what is on its way to the guest (api.rst 4.32). Errors: EINVAL, EBADF."""
        self.ioctl(KVM_SET_VCPU_EVENTS, events)

    def set_cpuid2(self, entries: Iterable[CpuidEntry]) -> None:
        """What CPUID answers (api.rst 4.20). Errors: E2BIG, EINVAL for a change once the vCPU has run, EBADF."""
        self.ioctl(KVM_SET_CPUID2, encode_cpuid(entries))

    def get_cpuid2(self) -> list[CpuidEntry]:
        """What CPUID answers. Errors: EBADF."""
        return fetch_cpuid(self, KVM_GET_CPUID2)

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """Read MSRs (api.rst 4.18), each index once; from the first that there is not on they are missing.

        Errors: E2BIG for more than 255, EBADF.
        """
        return fetch_msrs(self, indices)

    def set_msrs(self, values: Mapping[int, int]) -> int:
        """Write MSRs in order (api.rst 4.19) until one is refused; returns how many were written.

        Errors: E2BIG for more than 255, EBADF.
        """
        return self.ioctl(KVM_SET_MSRS, encode_msrs(values))

    def get_lapic(self) -> KvmLapicState:
        """The local APIC's registers (api.rst 4.57). Errors: EINVAL without an in-kernel one, EBADF."""
        state = KvmLapicState()
        self.ioctl(KVM_GET_LAPIC, state)
        return state

    def set_lapic(self, state: KvmLapicState) -> None:
        """Load the local APIC's registers (api.rst 4.58). Errors: EINVAL, EBADF."""
        self.ioctl(KVM_SET_LAPIC, state)

    def interrupt(self, vector: int) -> None:
        """Inject an external interrupt, 0 to 255 (api.rst 4.16).

        For when ``run_page.ready_for_interrupt_injection`` is set; ``request_interrupt_window`` asks for that. Errors:
        EINVAL, EEXIST when one is waiting (split irqchip), ENXIO with the PICs in the kernel, EBADF.
        """
        self.ioctl(KVM_INTERRUPT, KvmInterrupt(irq=vector))

    def nmi(self) -> None:
        """Raise an NMI (api.rst 4.64). Errors: EBADF."""
        self.ioctl(KVM_NMI)

    def smi(self) -> None:
        """Raise a system management interrupt (api.rst 4.96; KVM_CAP_X86_SMM). Errors: EBADF, ENOTTY without it."""
        self.ioctl(KVM_SMI)

    def setup_mce(self, cap: int) -> None:
        """What machine checks the vCPU has (api.rst 4.105): the number of banks, and bits of
        :meth:`Kvm.get_mce_cap_supported`. Errors: EINVAL, EBADF.
        """
        value = ctypes.c_uint64(cap)
        self.ioctl(KVM_X86_SETUP_MCE, ctypes.addressof(value))

    def get_tsc_khz(self) -> int:
        """The rate of the guest's TSC in kHz (api.rst 4.56). Errors: EBADF."""
        return self.ioctl(KVM_GET_TSC_KHZ)

    def set_tsc_khz(self, khz: int) -> None:
        """Set the rate of the guest's TSC (api.rst 4.55). Errors: EINVAL for a rate it cannot have, EBADF."""
        self.ioctl(KVM_SET_TSC_KHZ, khz)

    def kvmclock_ctrl(self) -> None:
        """Tell the guest that it was stopped (api.rst 4.70). Errors: EINVAL while it does not use kvmclock, EBADF."""
        self.ioctl(KVM_KVMCLOCK_CTRL)
