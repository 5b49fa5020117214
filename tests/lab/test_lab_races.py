# SPDX-License-Identifier: GPL-2.0-only
"""Orders: every scenario of every architecture with one preemption, and the explorer itself."""

from __future__ import annotations

from collections.abc import Callable
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anykvm.api import architectures
from anykvm.lab.races import plan, report, scenarios
from anykvm.lab.races.explore import Found, branches, explore
from anykvm.lab.races.invariants import check_edges
from anykvm.lab.races.scenario import Scenario, run
from anykvm.lab.races.schedule import from_text, preemptions, to_text
from anykvm.lab.races.scheduler import Scheduler
from anykvm.lab.races.world import World

EVERY = [(arch, scenario.name) for arch, many in scenarios.ALL.items() for scenario in many]


def test_every_architecture_has_scenarios() -> None:
    assert tuple(scenarios.ALL) == architectures()


@pytest.mark.parametrize(("arch", "name"), EVERY)
def test_every_order_with_one_preemption(arch: str, name: str) -> None:
    found = explore(scenarios.find(arch, name), arch, 1)
    found.conclude()
    assert found.failures == []
    assert found.interleavings > len(scenarios.find(arch, name).tasks)


@pytest.mark.parametrize("arch", architectures())
def test_two_creations_of_one_id_meet_in_every_way_with_two_preemptions(arch: str) -> None:
    found = explore(scenarios.find(arch, "same-id"), arch, 2)
    found.conclude()
    assert found.failures == []
    assert set(found.outcomes) == {("ok", "EEXIST"), ("EEXIST", "ok")}


# The explorer is exhaustive.


def pausing(steps: int) -> Callable[[World], str]:
    def task(world: World) -> str:
        for step in range(1, steps):
            world.pause(str(step))
        return "done"

    return task


def free(first: int, second: int) -> Scenario:
    """Two tasks that have nothing to do with each other."""
    tasks = {"first": pausing(first), "second": pausing(second)}
    return Scenario("free", "nothing", tasks, lambda outcome: outcome == ("done", "done"))


@pytest.mark.parametrize(("first", "second"), [(1, 1), (2, 3), (4, 4), (5, 3)])
def test_without_a_bound_every_order_is_run(first: int, second: int) -> None:
    assert explore(free(first, second), "x86", 99).interleavings == comb(first + second, first)


def orders(left: tuple[int, int], last: int, bound: int) -> int:
    """How many orders of so many steps have at most ``bound`` preemptions, counted another way."""
    if left == (0, 0):
        return 1
    total = 0
    for task in (0, 1):
        cost = last >= 0 and task != last and left[last] > 0
        if left[task] and cost <= bound:
            rest = (left[0] - 1, left[1]) if task == 0 else (left[0], left[1] - 1)
            total += orders(rest, task, bound - cost)
    return total


@pytest.mark.parametrize("bound", [0, 1, 2, 3])
def test_with_a_bound_every_order_within_it_is_run_once(bound: int) -> None:
    scenario = free(5, 4)
    seen = []
    todo = [b""]
    while todo:
        prefix = todo.pop()
        one = run(scenario, "x86", prefix)
        seen.append(one.schedule)
        assert preemptions(one.schedule, one.enabled) <= bound
        todo.extend(branches(one, len(prefix), bound))
    assert len(seen) == len(set(seen)) == orders((5, 4), -1, bound)
    assert explore(scenario, "x86", bound).interleavings == len(seen)


# Deadlock and the order of locks.


def crossing(scheduler: Scheduler) -> list[Callable[[], None]]:
    one, two = scheduler.mutex("one"), scheduler.mutex("two")

    def first() -> None:
        with one, two:
            pass

    def second() -> None:
        with two, one:
            pass

    return [first, second]


def test_a_deadlock_is_found() -> None:
    failures = {}
    for switch in range(1, 6):
        scheduler = Scheduler(lambda: None)
        scheduler.run(crossing(scheduler), b"\0" * switch + b"\1" * 2)
        failures[switch] = scheduler.failure
    wait = "deadlock: A waits for two, held by B; B waits for one, held by A"
    # A has one of them after its second step, both after its third.
    assert failures == {1: None, 2: wait, 3: None, 4: None, 5: None}


def test_locks_in_a_circle_are_noticed_without_a_deadlock() -> None:
    edges: set[tuple[str, str]] = set()
    scheduler = Scheduler(lambda: None, edges)
    scheduler.run(crossing(scheduler))
    assert scheduler.failure is None
    assert check_edges(edges) == "mutexes are taken in a circle: one, two, one"


def test_locks_in_the_documented_order_are_fine() -> None:
    assert (
        check_edges({("vm lock", "vcpu mutex"), ("vcpu mutex", "vm slots_lock"), ("vm lock", "vm slots_lock")}) is None
    )
    assert check_edges({("vm irq_lock", "vm lock")}) is not None


def test_a_task_that_waits_in_a_loop_ends() -> None:
    scheduler = Scheduler(lambda: None)

    def forever() -> None:
        while True:
            scheduler.point(("pause", ""))

    scheduler.run([forever])
    assert scheduler.failure == "no end after 5000 steps"


# The same wherever it is done.


def pieces(arch: str, name: str, bound: int) -> Found:
    total = Found()
    for item in reversed(plan.items(arch, name, bound)):
        total.add(plan.from_json(plan.work(item)))
    return total


@pytest.mark.parametrize("arch", architectures())
def test_the_pieces_add_up_to_the_whole(arch: str) -> None:
    whole = explore(scenarios.find(arch, "destroy"), arch, 1)
    assert plan.to_json(pieces(arch, "destroy", 1)) == plan.to_json(whole)


def test_a_run_is_the_same_again() -> None:
    scenario = scenarios.find("arm64", "vm-close")
    first = run(scenario, "arm64", from_text("B2,A1,C5"))
    again = run(scenario, "arm64", first.schedule)
    assert (first.schedule, first.labels, first.outcome) == (again.schedule, again.labels, again.outcome)


# Schedules as text.


@given(st.binary(max_size=40).map(lambda steps: bytes(step & 7 for step in steps)))
def test_a_schedule_is_read_as_it_was_written(schedule: bytes) -> None:
    assert from_text(to_text(schedule)) == schedule


@pytest.mark.parametrize("text", ["A", "A0x", "Z3", "A3;B2", "A3,,B2", "3A"])
def test_a_schedule_that_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="a schedule is like"):
        from_text(text)


def test_a_schedule_that_does_not_fit_says_so() -> None:
    lines = list(report.replay("x86", "same-id", from_text("A4,B4,A1,B9")))
    assert lines[-1] == "failed: the schedule does not fit: task B cannot make step 8"
