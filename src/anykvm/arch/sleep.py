# SPDX-License-Identifier: GPL-2.0-only
"""Where an idle vCPU's thread sleeps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anykvm.virt.services import Mutex


class Sleep:
    """A place for a vCPU's own thread to sleep; anyone may wake it. ``lock`` is its own, and free.

    Sleeping is taking a lock nobody holds back: whoever has a reason to wake the vCPU releases it, before it sleeps or
    while it does, so no wake-up is lost. A needless one costs one more look at the reasons.
    """

    __slots__ = ("_lock", "asleep")

    def __init__(self, lock: Mutex) -> None:
        self.asleep = False
        self._lock = lock
        self._lock.acquire()

    def wake(self) -> None:
        """Make the sleeper look again."""
        # RuntimeError: it has been told already and has not looked yet.
        with suppress(RuntimeError):
            self._lock.release()

    def until(self, awake: Callable[[], bool]) -> bool:
        """Sleep until ``awake()``, which is asked again after each :meth:`wake`; True if a signal ended it instead.

        A signal does so where the services' wait queues say it: by not having been taken.
        """
        self.asleep = True
        try:
            while not awake():
                if not self._lock.acquire():
                    return True
        finally:
            self.asleep = False
        return False
