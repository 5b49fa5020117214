# SPDX-License-Identifier: GPL-2.0-only
"""What a scenario is: a VM put in place, a few tasks, and what they may answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from .track import Recorder, Var
from .world import World

Outcome = tuple[str, ...]
"""What each task answered, in the tasks' order."""


@dataclass(frozen=True)
class Scenario:
    """Operations that meet.

    ``prepare`` puts the VM in place before any task begins. Each task is a function of the world that returns what it
    was answered, in a word or a few. ``allowed`` says whether the answers together are the kernel's; ``after`` looks at
    the VM when all tasks have ended and says what is wrong. Nothing is interleaved with ``prepare`` and ``after``.
    """

    name: str
    what: str
    tasks: dict[str, Callable[[World], str]]
    allowed: Callable[[Outcome], bool]
    prepare: Callable[[World], None] = lambda world: None
    after: Callable[[World], str | None] = lambda world: None

    @property
    def bound(self) -> int:
        """How many preemptions are enough to try, unless someone wants more: the schedules number some thousands."""
        return 3 if len(self.tasks) == 2 else 2


@dataclass
class Run:
    """One run of a scenario under one schedule."""

    schedule: bytes
    enabled: list[int]
    outcome: Outcome
    failure: str | None
    labels: list[tuple[str, str]] = field(default_factory=list)
    given_up: bool = False
    """Whether its end was left out, being the same as that of another run."""
    waiting: dict[int, Var] = field(default_factory=dict)
    """For a recorder: which tasks waited for which mutex when it ended."""


def run(
    scenario: Scenario,
    arch: str,
    prefix: bytes,
    edges: set[tuple[str, str]] | None = None,
    *,
    recorder: Recorder | None = None,
    pick: Callable[[int, int], int] | None = None,
) -> Run:
    """Run a scenario: the first steps by ``prefix``, the rest as each task goes on for as long as it can.

    With ``pick`` that decides the rest, and may give the run up; ``recorder`` is told what each step reads and writes.
    """
    world = World(arch, edges, recorder)
    scheduler = world.scheduler
    scheduler.pick = pick
    try:
        scenario.prepare(world)
    except Exception as error:
        scheduler.fail(f"before any task began: {type(error).__name__}: {error}")

    def body(task: Callable[[World], str]) -> Callable[[], Any]:
        return lambda: task(world)

    world.run([body(task) for task in scenario.tasks.values()], prefix)
    waiting: dict[int, Var] = {}
    if recorder is not None:
        recorder.end()
        waiting = {task.number: recorder.name(task.wants) for task in scheduler.tasks if task.wants is not None}
        scheduler.recorder = None
    outcome: Outcome = tuple(str(task.result) for task in scheduler.tasks)
    if scheduler.failure is None and not scheduler.given_up:
        complaint = None if scenario.allowed(outcome) else f"not the kernel's answers: {told(scenario, outcome)}"
        complaint = complaint or scenario.after(world)
        if complaint is not None:
            scheduler.fail(complaint)
        world.finish()
    done = Run(bytes(scheduler.schedule), scheduler.enabled, outcome, scheduler.failure, scheduler.labels)
    done.given_up = scheduler.given_up
    done.waiting = waiting
    return done


def told(scenario: Scenario, outcome: Outcome) -> str:
    """Write an outcome."""
    return "; ".join(f"{name}: {answer}" for name, answer in zip(scenario.tasks, outcome, strict=True))
