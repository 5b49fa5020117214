# SPDX-License-Identifier: GPL-2.0-only
"""Hyper-V's synthetic timers: four of a vCPU, which count the VM's reference time and tell by message or interrupt.

Source: the Top Level Functional Specification 6.0b, chapter 12; ``arch/x86/kvm/hyperv.c``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from anykvm.uapi import x86 as uapi

from . import hyperv

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anykvm.virt.ladder import Ladder

    from .lapic_timer import Deadline
    from .vcpu import X86Vcpu

_ENABLE: Final = uapi.HV_STIMER_ENABLE
_PERIODIC: Final = uapi.HV_STIMER_PERIODIC
_DIRECT: Final = uapi.HV_STIMER_DIRECT_MODE
_FOREVER_NS: Final = 1 << 62
_MESSAGE: Final = struct.Struct("<IBBHQIIQQ")
"""Type, length, flags, reserved, sender; the timer's number, reserved, when it expired, when this was delivered."""
_PAYLOAD: Final = 24


class Stimer:
    """One timer. ``expires`` is in 100 ns of reference time, 0 while it does not run.

    Everything but :meth:`_deadline` is on the vCPU's own thread (or its mutex is held). ``due`` is what the timer's
    thread says: look at it. ``waiting`` is an expiration that could not be delivered yet.
    """

    __slots__ = ("_armed", "_index", "_timer", "_vcpu", "config", "count", "due", "expires", "waiting")

    def __init__(self, vcpu: X86Vcpu, index: int) -> None:
        self._vcpu = vcpu
        self._index = index
        self._timer: Deadline | None = None
        self._armed = False
        self.config = 0
        self.count = 0
        self.expires = 0
        self.due = False
        self.waiting = False

    def build(self, ladder: Ladder) -> None:
        """Get a timer of the services'; ENOMEM. The vCPU has a local APIC."""
        services = self._vcpu.vcpu.services
        self._timer = ladder.acquire("stimer", services.timer, services.free_timer, "stimer", self._deadline)
        ladder.push("stimer stop", self._stop)

    def _deadline(self) -> None:
        lapic = self._vcpu.lapic
        assert lapic is not None
        # With the lock held the vCPU cannot go away between the question and the kick.
        with lapic.bus.lock:
            if self._armed:
                self._armed = False
                self.due = True
                self._vcpu.kick()

    def _arm(self, ticks: int) -> None:
        assert self._timer is not None
        self._armed = True
        delay = min(ticks * hyperv.TICK_NS, _FOREVER_NS)
        self._timer.arm(self._vcpu.vcpu.services.now() + delay)

    def _stop(self) -> None:
        lapic = self._vcpu.lapic
        assert lapic is not None and self._timer is not None
        with lapic.bus.lock:
            self._armed = False
        self._timer.cancel()

    def _clean(self) -> None:
        if self._timer is not None:
            self._stop()
        self.due = self.waiting = False
        self.expires = 0

    def _check(self, value: int, host: bool) -> None:
        if not self._vcpu.own_hyperv().synic.active and (not host or value):
            raise ValueError("there are no synthetic timers without the synthetic interrupt controller")

    def _look(self) -> None:
        if self.config & _ENABLE:
            self.due = self._vcpu.attention = True

    def set_config(self, value: int, *, host: bool) -> None:
        """HV_X64_MSR_STIMERn_CONFIG; ValueError. One that ran and now has source 0 is turned off."""
        self._check(value, host)
        if not host and value & _DIRECT and not self._vcpu.own_hyperv().rights.has_direct_timers:
            raise ValueError("the guest's CPUID has no timers with vectors of their own")
        self._clean()
        if self.config & _ENABLE and not value & _DIRECT and not value >> uapi.HV_STIMER_SINT_SHIFT & 0xF:
            value &= ~_ENABLE
        self.config = value
        self._look()

    def set_count(self, value: int, *, host: bool) -> None:
        """HV_X64_MSR_STIMERn_COUNT: when, or how often; 0 turns it off, others may turn it on; ValueError."""
        self._check(value, host)
        self._clean()
        self.count = value
        if not host:
            if not value:
                self.config &= ~_ENABLE
            elif self.config & uapi.HV_STIMER_AUTO_ENABLE:
                self.config |= _ENABLE
        self._look()

    def retry(self, sint: int) -> None:
        """A message's slot is free again."""
        of_source = self.config >> uapi.HV_STIMER_SINT_SHIFT & 0xF == sint and not self.config & _DIRECT
        if self.waiting and of_source:
            self._look()

    def process(self) -> None:
        """Expire if it is time, and go on."""
        self.due = False
        if self.config & _ENABLE and self.expires and hyperv.reference_time(self._vcpu) >= self.expires:
            self._expire()
        if not self.config & _ENABLE:
            return
        if not self.count:
            self._clean()
        elif not self.waiting:
            self._start()

    def _expire(self) -> None:
        self.waiting = True
        vcpu = self._vcpu
        if self.config & _DIRECT:
            lapic = vcpu.lapic
            assert lapic is not None
            done = lapic.interrupt(self.config >> uapi.HV_STIMER_VECTOR_SHIFT & 0xFF) > 0
        else:
            now = hyperv.reference_time(vcpu)
            message = _MESSAGE.pack(uapi.HVMSG_TIMER_EXPIRED, _PAYLOAD, 0, 0, 0, self._index, 0, self.expires, now)
            sint = self.config >> uapi.HV_STIMER_SINT_SHIFT & 0xF
            # A tick whose slot is taken is lost: the guest sees the time in the next.
            done = vcpu.own_hyperv().synic.send(sint, message, drop=bool(self.config & _PERIODIC))
        if done:
            self.waiting = False
            if not self.config & _PERIODIC:
                self.config &= ~_ENABLE

    def _start(self) -> None:
        now = hyperv.reference_time(self._vcpu)
        if self.config & _PERIODIC:
            if not self.expires:
                self.expires = now + self.count
            elif now >= self.expires:
                self.expires = now + self.count - (now - self.expires) % self.count
        else:
            self.expires = self.count
            if now >= self.count:
                # It expires at once.
                self._look()
                return
        self._arm(self.expires - now)


def process(vcpu: X86Vcpu, stimers: Iterable[Stimer]) -> None:
    """See to the timers that are due, before the guest goes on."""
    for stimer in stimers:
        while stimer.due:
            stimer.process()
