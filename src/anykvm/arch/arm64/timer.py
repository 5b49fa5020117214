# SPDX-License-Identifier: GPL-2.0-only
"""The generic timer: a vCPU's virtual and physical EL1 timer.

Reading the counters is native; the compare and control registers trap to here. A timer's output is a level: high while
it is enabled, not masked, and its counter has reached the compare value. It drives a PPI of the in-kernel GIC, or, if
there is none, ``run->s.regs.device_irq_level``.

Source: Arm DDI 0487, D12 (the Generic Timer); ``arch/arm64/kvm/arch_timer.c`` for what userspace sees.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from anykvm.virt.services import Mutex

    from .engine import CpuLike

CTL_ENABLE: Final = 1
CTL_IMASK: Final = 2
CTL_ISTATUS: Final = 4
VTIMER_PPI: Final = 27
PTIMER_PPI: Final = 30
U64: Final = 0xFFFFFFFFFFFFFFFF
FOREVER: Final = 1 << 56
"""Ticks: decades. A guest that wants no interrupt sets the compare value to all ones."""


class Deadline(Protocol):
    """A one-shot timer, as ``Services.timer`` makes it."""

    def arm(self, deadline_ns: int) -> None:
        """Call back at ``deadline_ns`` on the services' clock, instead of when it was armed for before."""

    def cancel(self) -> None:
        """Do not call back."""


class ArchTimer:
    """One timer.

    ``count`` gives its counter now, ``output`` is told the level of its line, ``deadline`` calls :meth:`expire` on
    another thread. ``lock`` may be shared with the vCPU's other timer. Invariant: while the timer could rise by itself,
    ``deadline`` is armed for that moment or earlier; one that comes early, because the guest has moved on, only costs
    another look.
    """

    __slots__ = ("count", "ctl", "cval", "deadline", "level", "lock", "now", "output", "period", "ppi")

    def __init__(
        self,
        ppi: int,
        hz: int,
        count: Callable[[], int],
        *,
        now: Callable[[], int],
        output: Callable[[ArchTimer, bool], None],
        make_deadline: Callable[[Callable[[], None]], Deadline],
        lock: Mutex,
    ) -> None:
        self.ppi = ppi
        self.period = 1_000_000_000 / hz
        self.now = now
        self.count = count
        self.output = output
        self.deadline = make_deadline(self.expire)
        self.lock = lock
        self.ctl = 0
        self.cval = 0
        self.level = False

    def reset(self) -> None:
        """Disabled; the compare value is zero."""
        with self.lock:
            self.ctl = 0
            self.cval = 0
            self._update()

    def read_ctl(self) -> int:
        """CNTx_CTL_EL0, with the status bit."""
        ctl = self.ctl
        return ctl | CTL_ISTATUS if self.count() >= self.cval else ctl

    def write_ctl(self, value: int) -> None:
        """Write CNTx_CTL_EL0; the status bit is read-only."""
        with self.lock:
            self.ctl = value & (CTL_ENABLE | CTL_IMASK)
            self._update()

    def write_cval(self, value: int) -> None:
        """Write CNTx_CVAL_EL0, in ticks."""
        with self.lock:
            self.cval = value
            self._update()

    def read_tval(self) -> int:
        """CNTx_TVAL_EL0: ticks to go, 32 bits."""
        return self.cval - self.count() & 0xFFFFFFFF

    def write_tval(self, value: int) -> None:
        """Write CNTx_TVAL_EL0: a signed 32-bit number of ticks from now."""
        value &= 0xFFFFFFFF
        if value & 0x80000000:
            value -= 1 << 32
        self.write_cval(self.count() + value & U64)

    def update(self) -> None:
        """Look again: the counter was moved."""
        with self.lock:
            self._update()

    def expire(self) -> None:
        """The deadline has come (services' timer thread)."""
        with self.lock:
            self._update()

    def stop(self) -> None:
        """No callback after this; the vCPU goes away."""
        with self.lock:
            self.ctl = 0
            self.deadline.cancel()

    def _update(self) -> None:
        level = False
        if self.ctl == CTL_ENABLE:
            left = self.cval - self.count()
            level = left <= 0
            if not level and left < FOREVER:
                self.deadline.arm(self.now() + int(left * self.period) + 1)
        if level != self.level:
            self.level = level
            self.output(self, level)


class VcpuTimers:
    """A vCPU's two timers and what they count."""

    __slots__ = ("_cntvoff", "_counter", "ptimer", "vtimer")

    def __init__(
        self,
        cpu: CpuLike,
        hz: int,
        *,
        cntvoff: Callable[[], int],
        now: Callable[[], int],
        output: Callable[[ArchTimer, bool], None],
        make_deadline: Callable[[Callable[[], None]], Deadline],
        lock: Mutex,
    ) -> None:
        self._counter = cpu.counter
        self._cntvoff = cntvoff

        def make(ppi: int, count: Callable[[], int]) -> ArchTimer:
            return ArchTimer(ppi, hz, count, now=now, output=output, make_deadline=make_deadline, lock=lock)

        self.vtimer = make(VTIMER_PPI, self.virtual_count)
        self.ptimer = make(PTIMER_PPI, self.physical_count)

    def virtual_count(self) -> int:
        """CNTVCT_EL0 now."""
        return self._counter() - self._cntvoff() & U64

    def physical_count(self) -> int:
        """CNTPCT_EL0 now."""
        return self._counter()

    def reset(self) -> None:
        """Both disabled."""
        self.vtimer.reset()
        self.ptimer.reset()

    def stop(self) -> None:
        """No callback after this."""
        self.vtimer.stop()
        self.ptimer.stop()
