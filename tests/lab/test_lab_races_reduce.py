# SPDX-License-Identifier: GPL-2.0-only
"""Every order without a bound: what is left out is the same as something that is not."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from lab_seeded import SEEDED, Seeded

from anykvm.lab.races import scenarios
from anykvm.lab.races.explore import branches, explore
from anykvm.lab.races.reduce import explore_all, reduced
from anykvm.lab.races.scenario import Run
from anykvm.lab.races.scheduler import Mutex, Scheduler
from anykvm.lab.races.track import Recorder, tracking
from anykvm.virt.vm import Vm

# Small programs over a few variables and mutexes, without a VM, against every order there is.

Step = tuple[str, int]
"""("read", variable), ("write", variable), ("lock", mutex), ("unlock", mutex), ("try", mutex)."""
Program = list[list[Step]]


def task_of(scheduler: Scheduler, number: int, steps: list[Step], values: list[int], mutexes: list[Mutex]) -> str:
    recorder = scheduler.recorder
    seen: list[object] = []
    for index, (what, which) in enumerate(steps):
        if what == "lock":
            mutexes[which].acquire()
        elif what == "unlock":
            mutexes[which].release()
        elif what == "try":
            taken = mutexes[which].acquire(blocking=False)
            seen.append(taken)
            if taken:
                mutexes[which].release()
        else:
            scheduler.point((what, str(which)))
            if what == "read":
                if recorder is not None:
                    recorder.read(("value", which))
                seen.append(values[which])
            else:
                if recorder is not None:
                    recorder.write(("value", which))
                values[which] = 10 * number + index + 1
    return f"{seen}"


def run_program(
    program: Program,
    prefix: bytes,
    recorder: Recorder | None = None,
    pick: Callable[[int, int], int] | None = None,
) -> Run:
    scheduler = Scheduler(lambda: None)
    scheduler.recorder = recorder
    scheduler.pick = pick
    mutexes = [scheduler.mutex("one"), scheduler.mutex("two")]
    values = [0, 0]
    scheduler.run(
        [partial(task_of, scheduler, number, steps, values, mutexes) for number, steps in enumerate(program)], prefix
    )
    outcome = (*(str(task.result) for task in scheduler.tasks), f"{values}")
    waiting = {task.number: recorder.name(task.wants) for task in scheduler.tasks if recorder and task.wants}
    return Run(
        bytes(scheduler.schedule),
        scheduler.enabled,
        outcome,
        scheduler.failure,
        given_up=scheduler.given_up,
        waiting=waiting,
    )


def every(program: Program) -> tuple[set[object], int]:
    """How a program ends in all its orders: outcomes and failures; and how many there are."""
    ends: set[object] = set()
    number = 0
    todo = [b""]
    while todo:
        prefix = todo.pop()
        one = run_program(program, prefix)
        ends.add(one.failure or one.outcome)
        number += 1
        todo.extend(branches(one, len(prefix), 99))
    return ends, number


def reduced_ends(program: Program) -> tuple[set[object], int, int]:
    runs = list(reduced(len(program), partial(run_program, program), Recorder))
    whole = [one for one in runs if not one.given_up]
    return {one.failure or one.outcome for one in whole}, len(whole), len(runs) - len(whole)


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Two tasks of a few steps, perhaps a third of one: some hundred orders."""
    some = st.sampled_from([(what, which) for what in ("read", "write") for which in (0, 1)])
    made = []
    for most in (2, 1):
        steps: list[Step] = []
        for _ in range(draw(st.integers(1, most))):
            mutexes = draw(st.sampled_from([(), (0,), (1,), (0, 1), (1, 0)]))
            inner = draw(st.lists(some, min_size=1, max_size=2 - len(mutexes) // 2))
            steps += [("lock", mutex) for mutex in mutexes] + inner
            steps += [("unlock", mutex) for mutex in reversed(mutexes)]
        if draw(st.integers(0, 3)) == 0:
            steps.append(("try", draw(st.integers(0, 1))))
        # A task that ended with a mutex held would be a failure of its own.
        made.append(steps if len(steps) <= 6 else [("write", 0), ("read", 1)])
    if sum(map(len, made)) < 9 and draw(st.booleans()):
        made.append([draw(some)])
    return made


# Without the phase that explains: it traces every line, ten times slower.
@settings(max_examples=8, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink))
@given(programs())
def test_a_program_ends_in_the_same_ways(program: Program) -> None:
    ends, number = every(program)
    found, whole, _ = reduced_ends(program)
    assert found == ends
    assert whole <= number


def test_independent_tasks_have_one_order() -> None:
    assert reduced_ends([[("write", 0)] * 3, [("write", 1)] * 3])[1:] == (1, 0)


def test_two_sections_have_two_orders() -> None:
    section: list[Step] = [("lock", 0), ("write", 0), ("write", 1), ("unlock", 0)]
    assert reduced_ends([section, section])[1:] == (2, 0)


def test_locks_that_cross_are_a_deadlock() -> None:
    ends = reduced_ends([[("lock", 0), ("lock", 1), ("unlock", 1), ("unlock", 0)], [("lock", 1), ("lock", 0)]])[0]
    assert "deadlock: A waits for two, held by B; B waits for one, held by A" in ends


# The scenarios.

SMALL = [
    (arch, scenario.name)
    for arch, many in scenarios.ALL.items()
    for scenario in many
    if scenario.name in ("lookup", "guessed-fd", "guessed-close", "limit", "gic-init", "redistributors", "irqchip")
    or scenario.name in ("dirty-ring", "dirty-ring-reset", "run-and-log")
    or scenario.name in ("message", "message-duplicate", "max-vcpu-id", "boot-cpu", "split-irqchip", "irq-line")
]


@pytest.mark.parametrize(("arch", "name"), SMALL)
def test_every_order_of_a_scenario(arch: str, name: str) -> None:
    found = explore_all(scenarios.find(arch, name), arch)
    found.conclude()
    assert not found.cut
    assert found.failures == []
    bounded = explore(scenarios.find(arch, name), arch, 1)
    assert set(found.outcomes) >= set(bounded.outcomes), "an answer that only one preemption gives"


@pytest.mark.parametrize("bug", SEEDED, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_caught(bug: Seeded, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        bug.seed(patch)
        found = explore_all(scenarios.find(bug.arch, bug.scenario), bug.arch, stop_at_failure=True, most=60)
        found.conclude()
        assert found.failing


def test_the_core_is_as_it_was_afterwards() -> None:
    before = (Vm.__getattribute__, Vm.__setattr__)
    with tracking():
        assert Vm.__getattribute__ is not before[0]
    assert (Vm.__getattribute__, Vm.__setattr__) == before
