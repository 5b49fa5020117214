# SPDX-License-Identifier: GPL-2.0-only
"""What an exploration found, put together and shown: a row for each scenario, and one schedule step by step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from . import plan, scenarios
from .explore import Found
from .scenario import Scenario, run, told
from .schedule import TASKS, from_text, to_text


@dataclass
class Row:
    """One scenario of one architecture, explored with one bound."""

    arch: str
    scenario: Scenario
    bound: int | None
    """None: without one, and orders that differ by swaps of independent steps count as one."""
    found: Found

    def as_json(self) -> dict[str, Any]:
        """As a JSON object."""
        found = self.found
        return {
            "arch": self.arch,
            "scenario": self.scenario.name,
            "what": self.scenario.what,
            "tasks": list(self.scenario.tasks),
            "bound": self.bound,
            "points": len(found.points),
            "steps": found.steps,
            "interleavings": found.interleavings,
            "repeated": found.repeated,
            "complete": not found.cut,
            "outcomes": {told(self.scenario, outcome): number for outcome, number in sorted(found.outcomes.items())},
            "failing": found.failing,
            "failures": [
                {"schedule": schedule, "why": why, "replay": self.replay(schedule)} for schedule, why in found.failures
            ],
        }

    def replay(self, schedule: str) -> str:
        """What ``--replay`` takes to run a schedule of this scenario again."""
        return f"{self.arch}/{self.scenario.name}:{schedule}"


def rows(done: Iterable[tuple[plan.Item, plan.Result]]) -> list[Row]:
    """Add the pieces up, by architecture and scenario in the order of their tables."""
    made: dict[tuple[str, str, int | None], Found] = {}
    for item, result in done:
        key = (item["arch"], item["scenario"], item["bound"])
        made.setdefault(key, Found()).add(plan.from_json(result))
    order = [(arch, scenario.name) for arch, all_of_it in scenarios.ALL.items() for scenario in all_of_it]
    found = []
    for arch, name, bound in sorted(made, key=lambda key: order.index(key[:2])):
        one = made[arch, name, bound]
        one.conclude()
        found.append(Row(arch, scenarios.find(arch, name), bound, one))
    return found


def parse_replay(text: str) -> tuple[str, str, bytes]:
    """Read ``ARCH/SCENARIO:SCHEDULE``; ValueError."""
    where, colon, schedule = text.partition(":")
    arch, slash, name = where.partition("/")
    if not colon or not slash:
        raise ValueError(f"{text!r} is not ARCH/SCENARIO:SCHEDULE, like arm64/same-id:A12,B3")
    if arch not in scenarios.ALL:
        raise ValueError(f"there are no scenarios for {arch!r}: choose one of {', '.join(scenarios.ALL)}")
    scenarios.find(arch, name)
    return arch, name, from_text(schedule)


def replay(arch: str, name: str, schedule: bytes) -> Iterator[str]:
    """Run one schedule and tell its steps, a line each; the last line says how it ended."""
    scenario = scenarios.find(arch, name)
    one = run(scenario, arch, schedule)
    names = list(scenario.tasks)
    width = max(map(len, names))
    for step, (task, (kind, what)) in enumerate(zip(one.schedule, one.labels, strict=True), 1):
        mark = "" if step < 2 or one.schedule[step - 2] == task else "  <- was " + TASKS[one.schedule[step - 2]]
        yield f"{step:4} {TASKS[task]} {names[task]:{width}}  {kind} {what}".rstrip() + mark
    yield f"schedule {to_text(one.schedule)}"
    yield f"failed: {one.failure}" if one.failure is not None else f"passed: {told(scenario, one.outcome)}"
