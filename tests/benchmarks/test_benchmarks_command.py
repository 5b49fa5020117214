# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from anykvm.guests import GuestError
from benchmarks import __main__ as command
from benchmarks import report
from benchmarks.context import Benchmark, Context
from benchmarks.measure import Row, Target
from benchmarks.vmms import BenchmarkError


@pytest.fixture
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    def good(context: Context) -> list[Row]:
        context.say("measuring")
        return [Row("boot", "s", [1.5], [2.0], "QEMU", Target("ratio", 1.2), noise=0.5)]

    def bad(context: Context) -> list[Row]:
        raise BenchmarkError("the guest failed")

    benchmarks = {"good": Benchmark("good", "what is good", good), "bad": Benchmark("bad", "what is bad", bad)}
    monkeypatch.setattr(command, "BENCHMARKS", benchmarks)
    machine = {"cpu": "a CPU", "cores": 2, "qemu": None, "guest": "6.1"}
    monkeypatch.setattr(command, "describe", lambda context: machine)


def invoke(*words: str) -> tuple[int, str]:
    result = CliRunner().invoke(command.main, list(words))
    return result.exit_code, result.output


@pytest.mark.usefixtures("fakes")
def test_result_is_a_table_and_a_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    status, output = invoke("good", "--output", str(path), "-n", "3", "--no-qemu", "--arch", "x86")
    assert status == 0
    assert "0.75" in output
    content = json.loads(path.read_text())
    assert content["repetitions"] == 3
    assert content["machine"]["cores"] == 2
    [row] = content["rows"]
    assert (row["arch"], row["ratio"]) == ("x86", 0.75)
    assert row["ours"] == {"median": 1.5, "min": 1.5, "max": 1.5, "samples": [1.5]}
    assert row["peer"]["name"] == "QEMU"
    assert row["met"] is True
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.usefixtures("fakes")
def test_one_that_fails_does_not_stop_the_others(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    status, output = invoke("bad", "good", "--output", str(path), "--no-qemu")
    assert status == 1
    assert "bad, x86: the guest failed" in output
    content = json.loads(path.read_text())
    assert content["failed"] == ["bad, arm64: the guest failed", "bad, x86: the guest failed"]
    assert [row["arch"] for row in content["rows"]] == ["arm64", "x86"]


@pytest.mark.usefixtures("fakes")
def test_unknown_names_are_refused_before_anything_runs() -> None:
    status, output = invoke("good", "speed")
    assert status == 2
    assert "no benchmark 'speed': choose from good, bad" in output


@pytest.mark.usefixtures("fakes")
def test_list_and_missing_qemu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert invoke("--list") == (0, "good         what is good\nbad          what is bad\n")
    monkeypatch.setenv("PATH", str(tmp_path))
    status, output = invoke("good", "--output", str(tmp_path / "result.json"))
    assert status == 0
    assert "no qemu-system-aarch64 here" in output
    assert "no qemu-system-x86_64 here (Debian: qemu-system-x86)" in output


@pytest.mark.usefixtures("fakes")
def test_a_guest_that_cannot_be_had_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(context: Context) -> None:
        raise GuestError("no network")

    monkeypatch.setattr(command, "describe", missing)
    status, output = invoke("good")
    assert status == 1
    assert output.endswith("Error: no network\n")


def test_all_benchmarks_have_their_own_names() -> None:
    assert all(name == benchmark.name and benchmark.summary for name, benchmark in command.BENCHMARKS.items())
    assert {
        "boot",
        "hackbench1",
        "hackbench2",
        "parallel",
        "start",
        "vcpus",
        "idle",
        "exits",
        "exec",
    } <= command.BENCHMARKS.keys()


@pytest.mark.parametrize(("value", "text"), [(0.1234, "0.123"), (1.234, "1.23"), (12.34, "12.3"), (1234.5, "1234")])
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert report.number(value) == text


def test_table_shows_what_is_missed() -> None:
    console = Console(width=160, file=io.StringIO(), record=True)
    console.print(report.table([Row("boot [1]", "s", [3.0], target=Target("value", 1.0))]))
    text = console.export_text()
    assert "boot [1]" in text
    assert "3.00 (3.00 - 3.00)" in text
    assert " no " in text


# Not the path of a Python: the first line of a script takes none with spaces.
STUB = """#!/bin/sh
echo $$ > '{note}'
exec sleep 60
"""


def test_sigterm_ends_the_guest_as_well(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    program = f"""
import signal, sys
from benchmarks import vmms
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
vmms.run(["{tmp_path}/guest"])
"""
    stub = tmp_path / "guest"
    stub.write_text(STUB.format(note=note))
    stub.chmod(0o755)
    root = Path(command.__file__).parents[1]
    with subprocess.Popen([sys.executable, "-c", program], cwd=root) as process:
        until = time.monotonic() + 30
        while not (note.exists() and note.read_text()) and time.monotonic() < until:
            time.sleep(0.05)
        guest = int(note.read_text())
        process.terminate()
        assert process.wait(30) == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(guest, 0)
