# SPDX-License-Identifier: GPL-2.0-only
"""Timers: one thread, one heap, callbacks at a deadline on the monotonic clock (ns)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from heapq import heappop, heappush, heapreplace
from itertools import count
from typing import Final

_IDLE_SECONDS: Final = 3600.0


class Timer:
    """A one-shot timer that can be armed again and again. The callback runs on the timer thread and must be short.

    Arming to a later deadline leaves the old heap entry where it is; the thread finds it early and puts it back. Guests
    push their deadline forward far more often than they let it pass.
    """

    __slots__ = ("_callback", "_queue", "_queued_for", "deadline", "name")

    def __init__(self, queue: TimerQueue, name: str, callback: Callable[[], None]) -> None:
        self.name = name
        self.deadline: int | None = None
        self._queued_for: int | None = None
        self._callback = callback
        self._queue = queue

    def arm(self, deadline_ns: int) -> None:
        """Call back at ``deadline_ns`` (``Services.now()``), instead of at any deadline set before."""
        self._queue.arm(self, deadline_ns)

    def cancel(self) -> None:
        """Do not call back; a callback that has begun is not waited for."""
        self.deadline = None


class TimerQueue:
    """The heap and its thread, which starts with the first timer armed and ends with :meth:`close`."""

    def __init__(self, start: Callable[[str, Callable[[], None]], object]) -> None:
        self._start = start
        self._heap: list[tuple[int, int, Timer]] = []
        self._order = count()
        self._lock = threading.Lock()
        # Held while nobody wants the thread awake: it sleeps by trying to take it.
        self._sleep = threading.Lock()
        self._sleep.acquire()
        self._running = False
        self._closed = False

    def arm(self, timer: Timer, deadline_ns: int) -> None:
        """Arm a timer; see :meth:`Timer.arm`."""
        with self._lock:
            timer.deadline = deadline_ns
            queued = timer._queued_for
            if queued is not None and queued <= deadline_ns:
                return
            timer._queued_for = deadline_ns
            heappush(self._heap, (deadline_ns, next(self._order), timer))
            if not self._running:
                self._running = True
                self._start("timers", self._run)
            elif self._heap[0][2] is timer:
                self._wake()

    def _wake(self) -> None:
        if self._sleep.locked():
            self._sleep.release()

    def _due(self) -> tuple[Timer | None, float]:
        """Give a timer to call back, or how many seconds to sleep; called with the lock held."""
        heap = self._heap
        while heap:
            queued_for, _, timer = heap[0]
            deadline = timer.deadline
            if timer._queued_for != queued_for or deadline is None:
                heappop(heap)
                if timer._queued_for == queued_for:
                    timer._queued_for = None
            elif deadline > queued_for:
                timer._queued_for = deadline
                heapreplace(heap, (deadline, next(self._order), timer))
            else:
                left = deadline - time.monotonic_ns()
                if left > 0:
                    return None, left / 1e9
                heappop(heap)
                timer._queued_for = timer.deadline = None
                return timer, 0.0
        return None, _IDLE_SECONDS

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._closed:
                    return
                timer, seconds = self._due()
            if timer is not None:
                timer._callback()
            else:
                self._sleep.acquire(timeout=min(seconds, _IDLE_SECONDS))

    def close(self) -> None:
        """End the thread; no callback begins after the one in progress."""
        with self._lock:
            self._closed = True
            self._heap.clear()
            self._wake()
