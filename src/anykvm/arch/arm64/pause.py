# SPDX-License-Identifier: GPL-2.0-only
"""Stopping all vCPUs of a VM for a moment: when memory changes under them, no instruction may see half of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .vm import Arm64Vm


class Pause:
    """A gate every vCPU passes before it goes on in the guest.

    A vCPU is inside from :meth:`enter` to :meth:`leave`; whoever pauses waits until nobody is. vCPUs look at the gate
    when they are kicked, so a pause lasts as long as the slowest one takes to come out.
    """

    def __init__(self, arch: Arm64Vm) -> None:
        self._arch = arch
        self._changed = threading.Condition()
        self._inside = 0
        self._pausing = 0

    def enter(self) -> None:
        """Go in, once nobody pauses."""
        with self._changed:
            while self._pausing:
                self._changed.wait()
            self._inside += 1

    def leave(self) -> None:
        """Come out."""
        with self._changed:
            self._inside -= 1
            if self._pausing:
                self._changed.notify_all()

    def pass_through(self) -> None:
        """Come out and go in again if someone pauses; called by a vCPU that is inside."""
        if self._pausing:
            self.leave()
            self.enter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No vCPU is in the guest inside the ``with``. The caller is not a vCPU that is inside."""
        with self._changed:
            self._pausing += 1
        try:
            self._arch.kick_all()
            with self._changed:
                while self._inside:
                    self._changed.wait()
            yield
        finally:
            with self._changed:
                self._pausing -= 1
                self._changed.notify_all()
