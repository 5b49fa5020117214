# SPDX-License-Identifier: GPL-2.0-only
"""Whether a vCPU runs: off and on by PSCI or KVM_SET_MP_STATE, asleep in WFI, or in the guest."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import NamedTuple


class ResetState(NamedTuple):
    """What a CPU started by PSCI begins with: the entry point and x0."""

    pc: int
    x0: int


class Power:
    """A vCPU's power state. Any thread may change it; only the vCPU's own thread sleeps.

    Sleeping is taking a lock nobody holds back: whoever has a reason to wake the vCPU releases it, before it sleeps or
    while it does, so no wake-up is lost. A needless one costs one more look at the reasons.
    """

    __slots__ = ("_sleep", "asleep", "reset_state", "stopped", "suspended")

    def __init__(self) -> None:
        self.stopped = False
        self.suspended = False
        self.asleep = False
        self.reset_state: ResetState | None = None
        self._sleep = threading.Lock()
        self._sleep.acquire()

    def off(self) -> None:
        """Stop (PSCI CPU_OFF, KVM_MP_STATE_STOPPED). The caller kicks a vCPU that is in the guest."""
        self.stopped = True

    def on(self, state: ResetState | None) -> None:
        """Start; with ``state`` the vCPU resets itself to it before it runs again."""
        if state is not None:
            self.reset_state = state
        self.stopped = False
        self.wake()

    def suspend(self) -> None:
        """Sleep, before the guest goes on, until an interrupt comes (PSCI CPU_SUSPEND)."""
        self.suspended = True

    def wake(self) -> None:
        """Make the vCPU look whether it still has to sleep."""
        # RuntimeError: it has been told already and has not looked yet.
        with suppress(RuntimeError):
            self._sleep.release()

    def sleep_until(self, awake: Callable[[], bool]) -> None:
        """Sleep on the host until ``awake()``; it is looked at again whenever :meth:`wake` is called."""
        self.asleep = True
        try:
            while not awake():
                self._sleep.acquire()
        finally:
            self.asleep = False
