# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import pytest

from anykvm.virt.ladder import Ladder


class Log:
    def __init__(self) -> None:
        self.events: list[str] = []

    def do(self, name: str) -> str:
        self.events.append(f"+{name}")
        return name

    def undo(self, name: str) -> None:
        self.events.append(f"-{name}")


def fail() -> None:
    raise OSError(12, "no")


def test_unwinding_is_the_reverse_of_building() -> None:
    log, ladder = Log(), Ladder()
    for name in "abc":
        assert ladder.step(name, log.do, log.undo, name) == name
    assert ladder.steps == ["a", "b", "c"]
    ladder.unwind()
    assert log.events == ["+a", "+b", "+c", "-c", "-b", "-a"]
    assert ladder.steps == []


def test_a_failing_step_is_not_undone_and_the_others_are() -> None:
    log = Log()
    with pytest.raises(OSError), Ladder() as ladder:
        ladder.step("a", log.do, log.undo, "a")
        ladder.step("b", fail, log.undo)
    assert log.events == ["+a", "-a"]
    assert len(ladder) == 0


def test_success_leaves_the_steps() -> None:
    log = Log()
    with Ladder() as ladder:
        ladder.step("a", log.do, log.undo, "a")
    assert log.events == ["+a"]
    assert ladder.steps == ["a"]


def test_acquire_undoes_what_was_returned() -> None:
    taken: list[object] = []
    ladder = Ladder()
    value = ladder.acquire("object", object, taken.append)
    ladder.unwind()
    assert taken == [value]


def test_a_guard_takes_back_its_own_steps_only() -> None:
    log, ladder = Log(), Ladder()
    ladder.step("outside", log.do, log.undo, "outside")
    with pytest.raises(OSError), ladder.guard():
        ladder.step("inside", log.do, log.undo, "inside")
        fail()
    assert log.events == ["+outside", "+inside", "-inside"]
    assert ladder.steps == ["outside"]


def test_an_undo_that_raises_does_not_keep_the_others_from_running() -> None:
    log, ladder = Log(), Ladder()
    ladder.push("a", log.undo, "a")
    ladder.push("broken", fail)
    ladder.push("c", log.undo, "c")
    with pytest.raises(OSError):
        ladder.unwind()
    assert log.events == ["-c", "-a"]
    assert len(ladder) == 0


def test_steps_show_a_nested_ladder() -> None:
    ladder, inner = Ladder(), Ladder()
    ladder.push("before", None)
    ladder.push("arch", inner.unwind, shows=inner)
    ladder.push("after", None)
    assert ladder.steps == ["before", "arch", "after"]
    inner.push("vgic", None)
    inner.push("timer", None)
    assert ladder.steps == ["before", "arch: vgic", "arch: timer", "after"]
    ladder.unwind()
    assert inner.steps == []


def test_drop_forgets_one_step() -> None:
    log, ladder = Log(), Ladder()
    for name in "abc":
        ladder.push(name, log.undo, name)
    ladder.drop("b")
    ladder.unwind()
    assert log.events == ["-c", "-a"]
    with pytest.raises(ValueError, match="no step 'b'"):
        ladder.drop("b")


def test_unwind_to_a_depth() -> None:
    log, ladder = Log(), Ladder()
    for name in "abc":
        ladder.push(name, log.undo, name)
    ladder.unwind(2)
    assert ladder.steps == ["a", "b"]
