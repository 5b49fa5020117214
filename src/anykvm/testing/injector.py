# SPDX-License-Identifier: GPL-2.0-only
"""Carries a fault plan out: counts the points as they are passed, and fails where the plan says so."""

from __future__ import annotations

import errno
import os
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .faults import Fault, Plan


@dataclass(frozen=True, slots=True)
class Point:
    """A point that was passed: in which call of which request, what kind, its name, the errnos it can give.

    ``nth`` counts the points of this kind and name in this call, from 1; ``fault`` is what happened there.
    """

    request: str
    call: int
    at: str
    name: str
    nth: int
    errnos: tuple[int, ...]
    fault: Fault | None = None

    def faults(self) -> list[Fault]:
        """The faults that make exactly this point fail, one for each errno that it can give."""
        # A process id is another one in the next process.
        name = self.name.replace(str(os.getpid()), "*")
        return [
            Fault(self.at, name, self.nth, self.nth, errno.errorcode[code], self.request, self.call)
            for code in self.errnos
        ]


class _Call:
    __slots__ = ("number", "request", "seen")

    def __init__(self, request: str, number: int) -> None:
        self.request = request
        self.number = number
        self.seen: Counter[tuple[str, str]] = Counter()


class Injector:
    """One plan being carried out. Threads may share it; a call belongs to the thread that makes it.

    ``fired`` are the points where a fault happened, ``points`` all that were passed while ``recording``.
    """

    def __init__(self, plan: Plan | None = None) -> None:
        self.recording = False
        self.points: list[Point] = []
        self.fired: list[Point] = []
        self._calls: Counter[str] = Counter()
        self._local = threading.local()
        self._lock = threading.Lock()
        self.arm(plan or Plan())

    def arm(self, plan: Plan) -> None:
        """Carry out another plan from now on: everything is counted from here."""
        with self._lock:
            self.plan = plan
            self._counts = [0] * len(plan)
            self._calls.clear()
            self.points.clear()
            self.fired.clear()

    @contextmanager
    def call(self, request: str) -> Iterator[None]:
        """A call by userspace; it may fail before it does anything."""
        with self._lock:
            self._calls[request] += 1
            number = self._calls[request]
        outer = getattr(self._local, "call", None)
        self._local.call = _Call(request, number)
        try:
            self.point("call", request, ())
            yield
        finally:
            self._local.call = outer

    def point(self, at: str, name: str, errnos: tuple[int, ...]) -> None:
        """Pass a point: OSError if the plan has a fault there."""
        call: _Call | None = getattr(self._local, "call", None)
        request, number = (call.request, call.number) if call is not None else ("", 0)
        hit: Fault | None = None
        with self._lock:
            for index, fault in enumerate(self.plan):
                if fault.matches(at, name, request, number):
                    self._counts[index] += 1
                    if hit is None and fault.hits(self._counts[index]):
                        hit = fault
            if hit is not None or self.recording:
                seen = 1
                if call is not None:
                    call.seen[at, name] += 1
                    seen = call.seen[at, name]
                point = Point(request, number, at, name, seen, errnos, hit)
                if self.recording:
                    self.points.append(point)
                if hit is not None:
                    self.fired.append(point)
        if hit is not None:
            raise OSError(hit.code, f"{at} {name} fails, as the plan says: {hit}")
