# SPDX-License-Identifier: GPL-2.0-only
"""Whether a vCPU runs: off and on by PSCI or KVM_SET_MP_STATE, asleep in WFI, or in the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ..sleep import Sleep

if TYPE_CHECKING:
    from anykvm.virt.services import Mutex


class ResetState(NamedTuple):
    """What a CPU started by PSCI begins with: the entry point and x0."""

    pc: int
    x0: int


class Power(Sleep):
    """A vCPU's power state. Any thread may change it; only the vCPU's own thread sleeps."""

    __slots__ = ("reset_state", "stopped", "suspended")

    def __init__(self, lock: Mutex) -> None:
        super().__init__(lock)
        self.stopped = False
        self.suspended = False
        self.reset_state: ResetState | None = None

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
