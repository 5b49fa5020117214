# SPDX-License-Identifier: GPL-2.0-only
"""The local APIC's timer, one-shot, periodic or for a TSC deadline, over one deadline of the services.

As in KVM the timer's clock is 1 GHz before the divide configuration. Everything here is called with the APIC bus's
lock held. Source: Intel SDM volume 3, section "APIC Timer"; ``arch/x86/kvm/lapic.c``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

MIN_PERIOD_NS: Final = 200_000
"""No guest gets a periodic timer faster than this (the kernel's ``min_timer_period_us``)."""


class Deadline(Protocol):
    """A one-shot timer, as ``Services.timer`` makes it."""

    def arm(self, deadline_ns: int) -> None:
        """Call back at ``deadline_ns`` on the services' clock, instead of when it was armed for before."""

    def cancel(self) -> None:
        """Do not call back."""


def divisor_of(tdcr: int) -> int:
    """What the divide configuration register divides by: 1, 2, 4 to 128."""
    return 1 << ((tdcr & 3 | tdcr >> 1 & 4) + 1 & 7)


class LapicTimer:
    """One timer. ``target`` is when it expires (ns on the services' clock), None while it is not running.

    Invariant: while ``target`` is set, ``deadline`` is armed for it or for an earlier moment; one that comes early only
    costs another look (:meth:`fire`).
    """

    __slots__ = (
        "deadline",
        "divisor",
        "initial",
        "now",
        "of_tsc",
        "period",
        "periodic",
        "target",
        "tsc_deadline",
        "tsc_mode",
    )

    def __init__(self, now: Callable[[], int], deadline: Deadline, of_tsc: Callable[[int], int]) -> None:
        self.now = now
        self.of_tsc = of_tsc
        """When the guest's TSC reads a value, in ns on the services' clock."""
        self.deadline = deadline
        self.tsc_mode = False
        self.tsc_deadline = 0
        """IA32_TSC_DEADLINE: 0 while none is awaited."""
        self.divisor = 2
        self.initial = 0
        self.period = 0
        self.periodic = False
        self.target: int | None = None

    def _limit(self) -> None:
        if self.periodic and 0 < self.period < MIN_PERIOD_NS:
            self.period = MIN_PERIOD_NS

    def start(self, initial: int, current: int | None = None) -> None:
        """Write the initial count: start from it, or from ``current`` when a state is restored; 0 stops.

        Ignored in TSC-deadline mode.
        """
        if self.tsc_mode:
            return
        self.initial = initial
        self.period = period = initial * self.divisor
        if not period:
            self.target = None
            self.deadline.cancel()
            return
        self._limit()
        left = self.period
        if current is not None:
            left = current * self.divisor
            if left > self.period or (left == 0 and self.periodic):
                left = self.period
        self.target = target = self.now() + left
        self.deadline.arm(target)

    def start_tsc(self, value: int) -> None:
        """Write IA32_TSC_DEADLINE, in TSC-deadline mode; 0 stops."""
        self.tsc_deadline = value
        if value:
            self.target = target = self.of_tsc(value)
            self.deadline.arm(target)
        else:
            self.stop()

    def set_mode(self, periodic: bool, tsc: bool) -> None:
        """Write the mode: into and out of TSC-deadline mode the timer stops."""
        if tsc != self.tsc_mode:
            self.stop()
            self.tsc_mode = tsc
        self.set_periodic(periodic and not tsc)

    def stop(self) -> None:
        """Forget the count and the deadline; the divide configuration and the mode stay."""
        self.tsc_deadline = 0
        self.initial = 0
        self.period = 0
        self.target = None
        self.deadline.cancel()

    def set_periodic(self, periodic: bool) -> None:
        """Change the mode; a count that is running goes on and is looked at when it ends."""
        self.periodic = periodic
        self._limit()

    def set_divide(self, tdcr: int) -> None:
        """Write the divide configuration; what is left of a running count then passes at the new speed."""
        old = self.divisor
        self.divisor = new = divisor_of(tdcr)
        if new == old or not self.period:
            return
        left = self._left()
        self.period = self.initial * new
        self._limit()
        if self.target is not None:
            self.target = target = self.now() + left * new // old
            self.deadline.arm(target)

    def _left(self) -> int:
        if self.target is None:
            return 0
        left = self.target - self.now()
        if left >= 0:
            return left
        return left % self.period if self.periodic else 0

    def current(self) -> int:
        """The current count."""
        return self._left() // self.divisor if self.period else 0

    def fire(self) -> bool:
        """The deadline has come (services' timer thread): tell whether the timer has expired, and go on."""
        target = self.target
        if target is None:
            return False
        now = self.now()
        if now < target:
            # The guest started it anew while the callback was on its way.
            self.deadline.arm(target)
            return False
        self.tsc_deadline = 0
        if self.periodic:
            # Ticks that could not be delivered in time would all be one bit in IRR.
            target += ((now - target) // self.period + 1) * self.period
            self.target = target
            self.deadline.arm(target)
        else:
            self.target = None
        return True
