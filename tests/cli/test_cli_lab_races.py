# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import json
from pathlib import Path

import pytest

from anykvm.cli.main import run


def test_races_in_a_table(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["lab", "races", "x86", "--scenario", "same-id", "--bound", "1"]) == 0
    out, err = capfd.readouterr()
    assert "same-id" in out
    assert "failing" in err


def test_races_as_json(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["lab", "races", "--scenario", "two-ids", "--bound", "0", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert [(row["arch"], row["interleavings"]) for row in rows] == [("arm64", 2), ("x86", 2)]
    assert rows[0]["outcomes"] == {"create 0: ok; create 1: ok": 2}


def test_orders_are_the_same_in_other_processes(capfd: pytest.CaptureFixture[str]) -> None:
    told = []
    for where in ("0", "2"):
        chosen = ["--scenario", "destroy", "--scenario", "same-id", "--bound", "1", "--json", "--processes", where]
        assert run(["lab", "races", "x86", *chosen]) == 0
        told.append(capfd.readouterr().out)
    assert told[0] == told[1]


def test_orders_without_a_bound(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["lab", "races", "--all", "--scenario", "lookup", "--scenario", "same-id", "--most", "9", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert [(row["scenario"], row["bound"], row["interleavings"], row["complete"]) for row in rows] == [
        ("same-id", None, 9, False),
        ("lookup", None, 9, False),
    ] * 2


def test_an_interrupted_search_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    journal = str(tmp_path / "journal")
    chosen = ["lab", "races", "arm64", "--scenario", "irq-line", "--bound", "1", "--json", "--processes", "0"]
    assert run([*chosen, "--resume", journal]) == 0
    whole = capfd.readouterr().out
    lines = Path(journal).read_text().splitlines(keepends=True)
    Path(journal).write_text("".join(lines[: len(lines) // 2]))
    assert run([*chosen, "--resume", journal]) == 0
    assert capfd.readouterr().out == whole
    assert len(Path(journal).read_text().splitlines()) == len(lines)


def test_the_list_of_scenarios(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["lab", "races", "arm64", "--list"]) == 0
    out = capfd.readouterr().out
    assert "gic-init" in out
    assert "irqchip" not in out


def test_a_replay_shows_its_steps(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["lab", "races", "--replay", "arm64/same-id:A10,B8"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[10].startswith("  11 B create 0 too  begin")
    assert lines[-1] == "passed: create 0: EEXIST; create 0 too: ok"


@pytest.mark.parametrize(
    "arguments",
    [
        ["sparc"],
        ["--scenario", "nothing"],
        ["--replay", "x86"],
        ["--replay", "x86/same-id:Q3"],
        ["--replay", "sparc/same-id:A3"],
        ["--replay", "x86/nothing:A3"],
        ["--bound", "-1"],
        ["--all", "--bound", "2"],
    ],
)
def test_bad_input_is_one_line(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["lab", "races", *arguments]) == 2
    err = capfd.readouterr().err
    assert err.startswith("anykvm: ")
    assert err.count("\n") == 1
