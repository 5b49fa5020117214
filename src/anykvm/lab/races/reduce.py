# SPDX-License-Identifier: GPL-2.0-only
"""Every order there is, without a bound: of orders that differ by swaps of independent steps only one is run.

Two steps are independent if neither writes what the other reads or writes, and they do not take the same mutex
(:mod:`.track`); swapping them gives the same state, the same answers, and the same findings. After each run, for each
step that could have come before an earlier one it depends on, a run is planned in which it does (dynamic partial-order
reduction: Flanagan and Godefroid, 2005); what a finished branch began with sleeps in the branches beside it until
something that depends on it happens, so that no order is run twice (sleep sets: Godefroid, 1996).
"""

from __future__ import annotations

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
        self._last: list[list[int]] = [[0] * tasks for _ in range(tasks)]
        self._taken: dict[Var, int] = {}
        self._given: dict[Var, list[int]] = {}
        self._written: dict[Var, int] = {}
        self._read: dict[Var, dict[int, int]] = {}

    def race(self, task: int, var: Var) -> int | None:
        """The step that took a mutex before this task's next one would, if the task could have come first."""
        before = self._taken.get(var)
        if before is None or self.task_of[before] == task:
            return None
        return before if self._last[task][self.task_of[before]] <= before else None

    def add(self, task: int, foot: Footprint) -> list[int]:
        """Add the next step; gives the earlier ones it could have come before, had it been sooner."""
        clock = self._last[task].copy()
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
        self._last[task] = clock
        self._remember(task, step, clock, foot)
        return races

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

    def picker(self, recorder: Recorder, prefix: int) -> None:
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

    def plan(self, steps: list[Footprint]) -> None:
        """Look at a run that has ended, and note at each node who should go first there some time."""
        clocks = _Clocks(self._tasks)
        for node, foot in zip(self.path, steps, strict=False):
            task = node.chosen
            races = clocks.add(task, foot)
            for before in races:
                self._want(before, len(clocks.of_step) - 1, task, clocks)

    def stuck(self, steps: list[Footprint], waiting: dict[int, Var]) -> None:
        """After a run in which tasks waited at the end: each could have had its mutex before whoever took it."""
        clocks = _Clocks(self._tasks)
        for node, foot in zip(self.path, steps, strict=False):
            clocks.add(node.chosen, foot)
        for task, var in waiting.items():
            before = clocks.race(task, var)
            if before is not None:
                self._want(before, None, task, clocks)

    def _want(self, before: int, step: int | None, task: int, clocks: _Clocks) -> None:
        node = self.path[before]
        if node.enabled >> task & 1:
            node.wanted.add(task)
            return
        able = {other for other in range(self._tasks) if node.enabled >> other & 1}
        if step is not None:
            # A task that has to go on before this step can: then this step is nearer.
            clock = clocks.of_step[step]
            helps = {
                clocks.task_of[between]
                for between in range(before + 1, step)
                if clock[clocks.task_of[between]] > between and clocks.task_of[between] in able
            }
            if helps:
                if not helps & node.wanted:
                    node.wanted.add(min(helps))
                return
        node.wanted |= able

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


def explore_all(scenario: Scenario, arch: str, *, stop_at_failure: bool = False, most: int = 0) -> Found:
    """Run every order of a scenario up to swaps of independent steps; ``most`` runs at most, 0 for no limit.

    ``found.repeated`` counts the runs that were given up on the way, being the same as others.
    """
    found = Found()
    search = _Search(len(scenario.tasks))
    with tracking() as fresh:
        prefix: bytes | None = b""
        while prefix is not None:
            recorder = fresh()
            search.picker(recorder, len(prefix))
            one: Run = run(scenario, arch, prefix, found.edges, recorder=recorder, pick=search.pick)
            if one.given_up:
                found.repeated += 1
            else:
                found.add_run(one)
            search.plan(recorder.steps)
            if (one.failure is not None and stop_at_failure) or found.interleavings + found.repeated == most:
                break
            prefix = search.next(recorder.steps)
    return found
