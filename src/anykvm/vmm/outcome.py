# SPDX-License-Identifier: GPL-2.0-only
"""How a machine's run ended, and what the process says of it."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """Why a machine stopped."""

    POWER_OFF = "power-off"
    RESET = "reset"
    PANIC = "panic"
    CRASH = "crash"
    INTERNAL_ERROR = "internal-error"
    TIMEOUT = "timeout"
    ESCAPE = "escape"
    INTERRUPT = "interrupt"
    SIGNAL = "signal"
    HANGUP = "hangup"


_STATUS = {
    Kind.POWER_OFF: 0,
    Kind.RESET: 0,
    Kind.ESCAPE: 0,
    Kind.HANGUP: 1,
    Kind.PANIC: 3,
    Kind.CRASH: 3,
    Kind.INTERNAL_ERROR: 4,
    Kind.TIMEOUT: 124,
    Kind.INTERRUPT: 128 + signal.SIGINT,
}


@dataclass(frozen=True)
class Outcome:
    """Why a machine stopped, with one line about it (empty if there is nothing to say)."""

    kind: Kind
    message: str = ""
    signal_number: int = 0
    """For ``Kind.SIGNAL``."""
    triple_fault: bool = False
    """For ``Kind.RESET``: the guest could not handle a fault of its own, whether it meant to reset that way or not."""

    @property
    def exit_status(self) -> int:
        """The process's exit status.

        0: as the guest or the person wanted; 1: nobody reads the console; 3: the guest failed; 4: KVM did; 124: out of
        time; ended by a signal or Ctrl-C: 128 and the signal's number, as shells have it.
        """
        return 128 + self.signal_number if self.kind is Kind.SIGNAL else _STATUS[self.kind]
