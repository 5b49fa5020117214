# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import pytest

from benchmarks.measure import Row, Summary, Target, alternate, rows


def test_summary_is_median_least_and_greatest() -> None:
    assert Summary.of([3.0, 1.0, 10.0]) == Summary(3.0, 1.0, 10.0)
    with pytest.raises(ValueError, match="no samples"):
        Summary.of([])


def test_sides_take_turns_and_the_first_changes() -> None:
    calls: list[str] = []

    def measure(side: str) -> dict[str, float]:
        calls.append(side)
        return {"time": float(len(calls))}

    samples = alternate(["ours", "peer"], 3, measure)
    assert calls == ["ours", "peer", "peer", "ours", "ours", "peer"]
    assert samples == {"time": [[1.0, 4.0, 5.0], [2.0, 3.0, 6.0]]}


def test_one_side_alone_has_no_peer_and_no_ratio() -> None:
    [row] = rows(alternate(["ours"], 2, lambda side: {"time": 2.0}), ["anykvm"], unit="s")
    assert row.ours == [2.0, 2.0]
    assert row.peer == []
    assert row.ratio is None
    assert row.ratio_of_least is None
    assert row.as_json()["peer"] is None


def test_ratios_are_of_medians_and_of_least() -> None:
    row = Row("boot", "s", [3.0, 1.0, 2.0], [4.0, 5.0, 2.0], "QEMU")
    assert row.ratio == 0.5
    assert row.ratio_of_least == 0.5
    assert Row("idle", "%", [1.0], [0.0], "QEMU").ratio is None


@pytest.mark.parametrize(
    ("target", "met", "text"),
    [
        (Target("ratio", 1.2), True, "ratio ≤ 1.2"),
        (Target("ratio", 1.0), False, "ratio ≤ 1"),
        (Target("value", 5.0), False, "≤ 5"),
        (Target("value", 6.0), True, "≤ 6"),
        (Target("value", 6.5, at_least=True), False, "≥ 6.5"),
        (Target("value", 1.6, at_least=True), True, "≥ 1.6"),
    ],
)
def test_targets(target: Target, met: bool, text: str) -> None:
    row = Row("x", "s", [6.0], [5.0], "QEMU", target)
    assert row.met is met
    assert str(target) == text
    assert row.as_json()["met"] is met


def test_a_ratio_cannot_be_met_without_a_peer() -> None:
    assert Row("x", "s", [6.0], target=Target("ratio", 9.0)).met is None
    assert Row("x", "s", [6.0]).met is None


def test_rows_get_units_and_targets_by_name() -> None:
    samples = {"a": [[1.0], [2.0]], "b": [[3.0], [4.0]]}
    first, second = rows(samples, ["anykvm", "QEMU"], unit={"a": "s", "b": "x"}, targets={"b": Target("ratio", 1)})
    assert (first.unit, first.target, first.peer_name) == ("s", None, "QEMU")
    assert (second.unit, second.peer, second.met) == ("x", [4.0], True)
