# SPDX-License-Identifier: GPL-2.0-only
"""Runs every schedule of a scenario with at most so many preemptions.

A preemption takes a task off that could have gone on; where a task ends or has to wait, whoever goes on is free. A bug
that needs few tasks to meet in few places needs few preemptions, so the bound is the useful one: with it the number of
schedules grows with the number of steps to the power of the bound, not exponentially (Musuvathi and Qadeer, "Iterative
context bounding for systematic testing of multithreaded programs", 2007).

The search is depth first and keeps nothing but schedules to come. Each run begins anew with a VM of its own: it costs
less than to bring a VM back to a state between two steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from . import invariants
from .scenario import Outcome, Run, Scenario, run
from .schedule import to_text

FAILURES_KEPT: Final = 5
"""How many failing schedules a result keeps: those with the shortest text, then in alphabetical order."""


@dataclass
class Found:
    """What exploring a scenario, or a part of it, found. Two of them add up, in any order, to the same."""

    interleavings: int = 0
    repeated: int = 0
    """Runs that were given up on the way, being the same as others (:mod:`.reduce`)."""
    cut: bool = False
    """Whether the search was ended before its end."""
    steps: int = 0
    """The longest run, in steps."""
    outcomes: dict[Outcome, int] = field(default_factory=dict)
    failing: int = 0
    failures: list[tuple[str, str]] = field(default_factory=list)
    """Failing schedules and what went wrong, at most :data:`FAILURES_KEPT`."""
    edges: set[tuple[str, str]] = field(default_factory=set)
    points: set[tuple[str, str]] = field(default_factory=set)
    """The service points met."""

    def add_run(self, one: Run) -> None:
        """Count a run."""
        self.interleavings += 1
        self.steps = max(self.steps, len(one.schedule))
        self.points.update(one.labels)
        if one.failure is None:
            self.outcomes[one.outcome] = self.outcomes.get(one.outcome, 0) + 1
        else:
            self.failing += 1
            self._keep([(to_text(one.schedule), one.failure)])

    def _keep(self, failures: list[tuple[str, str]]) -> None:
        order = sorted({*self.failures, *failures}, key=lambda failure: (len(failure[0]), failure))
        self.failures = order[:FAILURES_KEPT]

    def add(self, other: Found) -> None:
        """Add what another part found."""
        self.interleavings += other.interleavings
        self.repeated += other.repeated
        self.cut = self.cut or other.cut
        self.steps = max(self.steps, other.steps)
        for outcome, number in other.outcomes.items():
            self.outcomes[outcome] = self.outcomes.get(outcome, 0) + number
        self.failing += other.failing
        self._keep(other.failures)
        self.edges |= other.edges
        self.points |= other.points

    def conclude(self) -> None:
        """Look at what only all runs together show: the order mutexes were taken in."""
        complaint = invariants.check_edges(self.edges)
        if complaint is not None:
            self.failing += 1
            self._keep([("", complaint)])


def branches(one: Run, given: int, bound: int) -> Iterator[bytes]:
    """The schedules that part from a run at a step that ``given`` did not fix, within the bound; earliest first."""
    schedule = one.schedule
    used = 0
    before = -1
    for step, chosen in enumerate(schedule):
        mask = one.enabled[step]
        could = before >= 0 and mask >> before & 1 != 0
        if step >= given and mask & mask - 1:
            others = mask & ~(1 << chosen)
            task = 0
            while others:
                if others & 1 and used + (could and task != before) <= bound:
                    yield schedule[:step] + bytes([task])
                others >>= 1
                task += 1
        used += could and chosen != before
        before = chosen


def explore(
    scenario: Scenario,
    arch: str,
    bound: int,
    start: bytes = b"",
    *,
    progress: Callable[[int], None] | None = None,
    stop_at_failure: bool = False,
) -> Found:
    """Run every schedule that begins with ``start`` and has at most ``bound`` preemptions."""
    found = Found()
    todo = [start]
    while todo:
        prefix = todo.pop()
        one = run(scenario, arch, prefix, found.edges)
        found.add_run(one)
        if one.failure is not None and stop_at_failure:
            break
        todo.extend(branches(one, len(prefix), bound))
        if progress is not None and found.interleavings % 256 == 0:
            progress(found.interleavings)
    return found
