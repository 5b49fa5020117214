# SPDX-License-Identifier: GPL-2.0-only
"""Hyper-V's synthetic interrupt controller: sixteen sources of a vCPU, each with a vector, and a page of messages.

Messages are the synthetic timers' (:mod:`.hyperv_stimer`) and userspace's, which also writes the page of events and
then raises a source through an irqfd (KVM_IRQ_ROUTING_HV_SINT).

Source: the Top Level Functional Specification 6.0b, chapter 11; ``arch/x86/kvm/hyperv.c``.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from anykvm.uapi import common
from anykvm.uapi import x86 as uapi

if TYPE_CHECKING:
    from .vcpu import X86Vcpu

_ENABLE: Final = uapi.HV_X64_MSR_ENABLE
_VECTOR: Final = 0xFF
_FLAGS: Final = 5
"""Where in a message its flags are."""


class Synic:
    """One vCPU's. Invariant: its local APIC's ``sints`` and ``auto_eoi`` are bitmaps of the vectors of ``sints``."""

    __slots__ = ("_keep_pages", "_vcpu", "active", "control", "event_page", "message_page", "sints", "version")

    def __init__(self, vcpu: X86Vcpu) -> None:
        self._vcpu = vcpu
        self.active = False
        self._keep_pages = False
        self.control = 0
        self.version = uapi.HV_SYNIC_VERSION_1
        self.event_page = 0
        self.message_page = 0
        self.sints = [uapi.HV_SYNIC_SINT_MASKED] * uapi.HV_SYNIC_SINT_COUNT

    def activate(self, *, keep_pages: bool) -> None:
        """KVM_CAP_HYPERV_SYNIC; with ``keep_pages`` userspace clears the guest's pages, not we."""
        self.active = True
        self._keep_pages = keep_pages
        self.control = _ENABLE

    # MSRs.

    def read(self, msr: int) -> int:
        """RDMSR, of a guest that has it; userspace reads it also before it is active."""
        if msr == uapi.HV_X64_MSR_SCONTROL:
            return self.control
        if msr == uapi.HV_X64_MSR_SVERSION:
            return self.version
        if msr == uapi.HV_X64_MSR_SIEFP:
            return self.event_page
        if msr == uapi.HV_X64_MSR_SIMP:
            return self.message_page
        return self.sints[msr - uapi.HV_X64_MSR_SINT0] if msr >= uapi.HV_X64_MSR_SINT0 else 0

    def write(self, msr: int, value: int, *, host: bool) -> None:
        """WRMSR; ValueError. Userspace learns of what the guest wrote (KVM_EXIT_HYPERV)."""
        if not self.active and (not host or value):
            raise ValueError("there is no synthetic interrupt controller")
        if msr >= uapi.HV_X64_MSR_SINT0:
            self._set_sint(msr - uapi.HV_X64_MSR_SINT0, value, host)
        elif msr == uapi.HV_X64_MSR_SVERSION:
            if not host:
                raise ValueError("HV_X64_MSR_SVERSION is read-only")
            self.version = value
        elif msr == uapi.HV_X64_MSR_EOM:
            if self.active:
                for sint in range(uapi.HV_SYNIC_SINT_COUNT):
                    self._acked(sint)
        else:
            if msr == uapi.HV_X64_MSR_SCONTROL:
                self.control = value
            else:
                self._set_page(msr, value, host)
            if not host:
                self._vcpu.own_hyperv().request_synic(msr)

    def _set_page(self, msr: int, value: int, host: bool) -> None:
        fresh = value & _ENABLE and not host and not self._keep_pages
        if fresh and not self._vcpu.vm.write_guest(value & ~0xFFF, bytes(4096)):
            raise ValueError("there is no memory for the page")
        if msr == uapi.HV_X64_MSR_SIEFP:
            self.event_page = value
        else:
            self.message_page = value

    def _set_sint(self, sint: int, value: int, host: bool) -> None:
        masked = value & uapi.HV_SYNIC_SINT_MASKED
        if value & _VECTOR < uapi.HV_SYNIC_FIRST_VALID_VECTOR and not host and not masked:
            raise ValueError(f"a synthetic interrupt cannot have vector {value & _VECTOR}")
        self.sints[sint] = value
        lapic = self._vcpu.lapic
        if lapic is None:
            return
        vectors = ended = 0
        for one in self.sints:
            if one & uapi.HV_SYNIC_SINT_MASKED or one & _VECTOR < uapi.HV_SYNIC_FIRST_VALID_VECTOR:
                continue
            vectors |= 1 << (one & _VECTOR)
            if one & uapi.HV_SYNIC_SINT_AUTO_EOI:
                ended |= 1 << (one & _VECTOR)
        lapic.sints, lapic.auto_eoi = vectors, ended

    # Interrupts.

    def set_irq(self, sint: int) -> int:
        """Raise a source, from any thread; how many took it; EINVAL, ENOENT while it is masked."""
        if not self.active or sint >= uapi.HV_SYNIC_SINT_COUNT:
            raise OSError(errno.EINVAL, f"the vCPU has no synthetic interrupt source {sint}")
        value = self.sints[sint]
        if value & uapi.HV_SYNIC_SINT_MASKED:
            raise OSError(errno.ENOENT, f"synthetic interrupt source {sint} is masked")
        lapic = self._vcpu.lapic
        assert lapic is not None
        return lapic.interrupt(value & _VECTOR)

    def ended(self, vector: int) -> None:
        """The guest ended an interrupt whose vector a source has."""
        for sint, value in enumerate(self.sints):
            if not value & uapi.HV_SYNIC_SINT_MASKED and value & _VECTOR == vector:
                self._acked(sint)

    def _acked(self, sint: int) -> None:
        vcpu = self._vcpu
        own = vcpu.own_hyperv()
        for stimer in own.stimers:
            stimer.retry(sint)
        vcpu.vm.vm.irq.notify_acked_own((common.KVM_IRQ_ROUTING_HV_SINT, own.vp_index, sint))

    # Messages.

    def send(self, sint: int, message: bytes, *, drop: bool) -> bool:
        """Put a message into a source's slot, on the vCPU's own thread; False if it cannot be, now.

        Is the slot taken, the guest is asked to say when it is free (EOM), or with ``drop`` the message is given up.
        """
        vm = self._vcpu.vm
        if not self.message_page & _ENABLE:
            return False
        slot = (self.message_page & ~0xFFF) + sint * uapi.HV_MESSAGE_SIZE
        kind = vm.read_guest(slot, 4)
        if kind is None:
            return False
        if int.from_bytes(kind, "little") != uapi.HVMSG_NONE:
            if not drop:
                vm.write_guest(slot + _FLAGS, bytes((uapi.HV_MESSAGE_FLAG_PENDING,)))
            return drop
        if not vm.write_guest(slot, message):
            return False
        try:
            return self.set_irq(sint) > 0
        except OSError:
            return False
