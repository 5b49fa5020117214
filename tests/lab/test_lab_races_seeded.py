# SPDX-License-Identifier: GPL-2.0-only
"""Bugs put in on purpose: each must be found, and the schedule that shows it must show it again."""

from __future__ import annotations

import pytest
from lab_seeded import SEEDED, Seeded

from anykvm.lab.races import scenarios
from anykvm.lab.races.explore import Found, explore
from anykvm.lab.races.scenario import run
from anykvm.lab.races.schedule import from_text


def hunt(bug: Seeded) -> Found:
    """Explore with more and more preemptions until something fails."""
    found = Found()
    for bound in range(3):
        found = explore(scenarios.find(bug.arch, bug.scenario), bug.arch, bound, stop_at_failure=True)
        found.conclude()
        if found.failing:
            break
    return found


@pytest.mark.parametrize("bug", SEEDED, ids=lambda bug: bug.name)
def test_a_seeded_bug_is_caught_and_its_schedule_replays(bug: Seeded, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = scenarios.find(bug.arch, bug.scenario)
    with monkeypatch.context() as patch:
        bug.seed(patch)
        found = hunt(bug)
        assert found.failing, "not caught"
        schedule, why = found.failures[0]
        if schedule:
            again = run(scenario, bug.arch, from_text(schedule))
            assert again.failure == why
            assert again.schedule == from_text(schedule)
    assert run(scenario, bug.arch, b"").failure is None, "the bug stayed"


def test_the_count_of_seeded_bugs(capsys: pytest.CaptureFixture[str]) -> None:
    caught = 0
    for bug in SEEDED:
        with pytest.MonkeyPatch.context() as patch:
            bug.seed(patch)
            caught += hunt(bug).failing > 0
    with capsys.disabled():
        print(f"\nseeded bugs caught: {caught} of {len(SEEDED)}")
    assert caught == len(SEEDED)
