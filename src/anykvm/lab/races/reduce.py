# SPDX-License-Identifier: GPL-2.0-only
"""Every order there is, without a bound: of orders that differ by swaps of independent steps only one is run.

Two steps are independent if neither writes what the other reads or writes, and they do not take the same mutex
(:mod:`.track`); swapping them gives the same state, the same answers, and the same findings. After each run, for each
step that could have come before an earlier one it depends on, a run is planned in which it does (dynamic partial-order
reduction: Flanagan and Godefroid, 2005); what a finished branch began with sleeps in the branches beside it until
something that depends on it happens, so that no order is run twice (sleep sets: Godefroid, 1996).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .explore import Found
from .scenario import Run, Scenario, run
from .track import Footprint, Recorder, Var, tracking


@dataclass
class _Node:
    """A state on the way: who could go on, who did, who shall, and who need not."""

    enabled: int
    chosen: int
    sleep: dict[int, Footprint]
    wanted: set[int] = field(default_factory=set)
    done: dict[int, Footprint] = field(default_factory=dict)


class _Clocks:
    """Which steps of a run happened before which; finds the pairs that could have been the other way around."""

    def __init__(self, tasks: int) -> None:
        self.of_step: list[list[int]] = []
        self.task_of: list[int] = []
        self.last: list[list[int]] = [[0] * tasks for _ in range(tasks)]
        self._taken: dict[Var, int] = {}
        self._given: dict[Var, list[int]] = {}
        self._written: dict[Var, int] = {}
        self._read: dict[Var, dict[int, int]] = {}

    def race(self, task: int, var: Var) -> int | None:
        """The step that took a mutex before this task's next one would, if the task could have come first."""
        before = self._taken.get(var)
        if before is None or self.task_of[before] == task:
            return None
        return before if self.last[task][self.task_of[before]] <= before else None

    def add(self, task: int, foot: Footprint) -> list[int]:
        """Add the next step; gives the earlier ones it could have come before, had it been sooner."""
        clock = self.last[task].copy()
        races = []
        if foot.acquired is not None:
            before = self.race(task, foot.acquired)
            if before is not None:
                races.append(before)
            _join(clock, self._given.get(foot.acquired))
        for before in sorted(self._conflicts(task, foot), reverse=True):
            if clock[self.task_of[before]] <= before:
                races.append(before)
            _join(clock, self.of_step[before])
        step = len(self.of_step)
        clock[task] = step + 1
        self.of_step.append(clock)
        self.task_of.append(task)
        self.last[task] = clock
        self._remember(task, step, clock, foot)
        return races

    def follows(self, step: int, before: int) -> bool:
        """Whether a step comes after an earlier one because of what they do."""
        return self.of_step[step][self.task_of[before]] > before

    def _conflicts(self, task: int, foot: Footprint) -> set[int]:
        found = set()
        written, read = self._written, self._read
        for var in foot.writes:
            if var in written:
                found.add(written[var])
            if var in read:
                found.update(read[var].values())
        for var in foot.reads:
            if var in written:
                found.add(written[var])
        return {step for step in found if self.task_of[step] != task}

    def _remember(self, task: int, step: int, clock: list[int], foot: Footprint) -> None:
        if foot.acquired is not None:
            self._taken[foot.acquired] = step
        if foot.tried is not None:
            self._taken[foot.tried] = step
        for var in foot.released:
            self._given[var] = clock
        for var in foot.reads:
            self._read.setdefault(var, {})[task] = step
        for var in foot.writes:
            self._written[var] = step
            self._read.pop(var, None)


def _join(clock: list[int], other: list[int] | None) -> None:
    if other is not None:
        for task, step in enumerate(other):
            clock[task] = max(clock[task], step)


class _Search:
    """The search: a path of nodes, from the first state to the end of the last run."""

    def __init__(self, tasks: int) -> None:
        self.path: list[_Node] = []
        self._tasks = tasks
        self._recorder = Recorder()

    def begin(self, recorder: Recorder, prefix: int) -> None:
        """A new run begins: its first ``prefix`` steps are those of the path."""
        self._recorder = recorder
        del self.path[prefix:]

    def pick(self, mask: int, last: int) -> int:
        """Say who makes the next step: the last task if it can, or else the first that does not sleep."""
        sleep: dict[int, Footprint] = {}
        if self.path:
            node = self.path[-1]
            foot = self._recorder.steps[-1]
            sleep = {
                task: other
                for task, other in {**node.sleep, **node.done}.items()
                if task != node.chosen and not other.conflicts(foot)
            }
        number = last
        if last < 0 or not mask >> last & 1 or last in sleep:
            awake = [task for task in range(self._tasks) if mask >> task & 1 and task not in sleep]
            if not awake:
                return -1
            number = awake[0]
        self.path.append(_Node(mask, number, sleep, {number}))
        return number

    def plan(self, steps: list[Footprint], waiting: dict[int, Var]) -> None:
        """Look at a run that has ended, and note at each node who should go first there some time.

        ``waiting`` are the tasks that waited for a mutex at its end: they could have had it before whoever took it.
        """
        clocks = _Clocks(self._tasks)
        for step, (node, foot) in enumerate(zip(self.path, steps, strict=False)):
            for before in clocks.add(node.chosen, foot):
                self._want(before, step, node.chosen, clocks)
        for task, var in waiting.items():
            taken = clocks.race(task, var)
            if taken is not None:
                self._want(taken, len(clocks.of_step), task, clocks)

    def _want(self, before: int, step: int, task: int, clocks: _Clocks) -> None:
        """Plan an order in which a step comes before an earlier one that it depends on.

        What leads there from the state before that: the steps since that do not depend on it, and then the step. Any
        task that can begin this is as good as another (a source set: Abdulla and others, 2014); one that sleeps has.
        """
        node = self.path[before]
        led = [other for other in range(before + 1, step) if not clocks.follows(other, before)]
        first: set[int] = set()
        moved: set[int] = set()
        for at, other in enumerate((*led, step)):
            by = task if other == step else clocks.task_of[other]
            clock = clocks.of_step[other] if other < len(clocks.of_step) else clocks.last[task]
            if by not in moved and not any(clock[clocks.task_of[one]] > one for one in led[:at]):
                first.add(by)
            moved.add(by)
        if not first & (node.wanted | node.sleep.keys()):
            node.wanted.add(min(first))

    def next(self, steps: list[Footprint]) -> bytes | None:
        """Finish the deepest node that has something left; gives the prefix of the next run, None when all is done."""
        while self.path:
            at = len(self.path) - 1
            node = self.path[at]
            if node.chosen not in node.done and at < len(steps):
                node.done[node.chosen] = steps[at]
            left = sorted(task for task in node.wanted if task not in node.done and task not in node.sleep)
            if left:
                node.chosen = left[0]
                return bytes(one.chosen for one in self.path)
            self.path.pop()
        return None


Runner = Callable[[bytes, Recorder, Callable[[int, int], int]], Run]
"""Makes a run: its first steps, who is told of each step, who decides the rest."""


def reduced(tasks: int, runner: Runner, fresh: Callable[[], Recorder]) -> Iterator[Run]:
    """Give the runs that stand for all orders of so many tasks; some are given up, being the same as another."""
    search = _Search(tasks)
    prefix: bytes | None = b""
    while prefix is not None:
        recorder = fresh()
        search.begin(recorder, len(prefix))
        one = runner(prefix, recorder, search.pick)
        search.plan(recorder.steps, one.waiting)
        yield one
        prefix = search.next(recorder.steps)


def explore_all(scenario: Scenario, arch: str, *, stop_at_failure: bool = False, most: int = 0) -> Found:
    """Run every order of a scenario up to swaps of independent steps; ``most`` runs at most, 0 for no limit.

    ``found.repeated`` counts the runs that were given up on the way, being the same as others; ``found.cut`` says that
    there would have been more.
    """
    found = Found()

    def runner(prefix: bytes, recorder: Recorder, pick: Callable[[int, int], int]) -> Run:
        return run(scenario, arch, prefix, found.edges, recorder=recorder, pick=pick)

    with tracking() as fresh:
        for one in reduced(len(scenario.tasks), runner, fresh):
            if most and found.interleavings + found.repeated == most:
                found.cut = True
                break
            if one.given_up:
                found.repeated += 1
            else:
                found.add_run(one)
            if one.failure is not None and stop_at_failure:
                break
    return found
