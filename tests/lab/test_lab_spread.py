# SPDX-License-Identifier: GPL-2.0-only
"""Work spread over processes: the same results everywhere, and nothing left behind."""

from __future__ import annotations

import doctest
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lab_works
import pytest

from anykvm.lab import spread as module
from anykvm.lab.call import fingerprint
from anykvm.lab.errors import LabError
from anykvm.lab.spread import spread

SPREADER = (
    "import sys; sys.path[:0] = [{here!r}]\n"
    "from anykvm.lab.spread import spread\n"
    "for done in spread('lab_works:sleeps', [{directory!r}] * 2, processes=2): pass\n"
)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be noticed by its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def results(*arguments: Any, **options: Any) -> list[Any]:
    return [done.result for done in spread(*arguments, **options)]


def test_the_example() -> None:
    assert doctest.testmod(module).failed == 0
    assert doctest.testmod(module).attempted == 1


@pytest.mark.parametrize("processes", [0, 1, 3])
def test_results_are_the_same_wherever_they_are_made(processes: int) -> None:
    done = list(spread(lab_works.square, range(40), processes=processes))
    assert [one.index for one in done] == [one.item for one in done] == list(range(40))
    assert [one.result for one in done] == [{"square": n * n, "pair": [n, n]} for n in range(40)]


def test_results_come_in_the_order_of_the_items() -> None:
    items = [0.3, 0.0, 0.1, 0.0]
    assert results("lab_works:uneven", items, processes=4) == items


def test_all_processes_work() -> None:
    pids = set(results(lab_works.whose, range(60), processes=2))
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert not any(map(alive, pids))


def test_no_items_are_no_work() -> None:
    assert results(lab_works.square, []) == []


@pytest.mark.parametrize("processes", [0, 2])
@pytest.mark.parametrize(
    ("work", "words"),
    [
        ("lab_works:fails", "lab_works:fails failed on 3: ZeroDivisionError: integer division or modulo by zero"),
        ("lab_works:no_json", "an item and a result are JSON, and this is not"),
    ],
)
def test_work_that_raises_is_one_line(processes: int, work: str, words: str) -> None:
    with pytest.raises(LabError) as failure:
        results(work, range(3, 4), processes=processes)
    assert words in str(failure.value)
    assert "\n" not in str(failure.value)
    assert work == "lab_works:no_json" or "return 1 // (item - THREE)" in failure.value.detail


def test_a_worker_that_is_killed_is_one_line_that_names_the_item() -> None:
    with pytest.raises(LabError) as failure:
        results(lab_works.dies, range(8), processes=2)
    assert str(failure.value) == "a worker was killed by SIGSEGV on item 3, 3"


def test_a_worker_that_leaves_is_one_line() -> None:
    with pytest.raises(LabError) as failure:
        results(lab_works.leaves, ["a" * 100], processes=1)
    assert str(failure.value) == f'a worker ended with status 5 on item 0, "{"a" * 56}...'


@pytest.mark.parametrize(
    ("work", "words"),
    [
        ("lab_works:nothing", "lab_works:nothing cannot be imported here"),
        ("no_such_module:work", "cannot be imported here: No module named 'no_such_module'"),
        ("", "cannot be imported here"),
        ("lab_works:THREE", "is not a function"),
        (lambda item: item, "put it at the top level of a module"),
    ],
)
def test_work_that_cannot_be_found_is_one_line(work: Any, words: str) -> None:
    with pytest.raises(LabError) as failure:
        spread(work, [1])
    assert words in str(failure.value)


def test_a_negative_number_of_processes() -> None:
    with pytest.raises(LabError, match="give 1 or more"):
        spread(lab_works.square, [1], processes=-1)


def test_an_item_that_is_not_json() -> None:
    with pytest.raises(LabError, match="JSON"):
        spread(lab_works.square, [object()])


def test_closing_the_iterator_ends_the_workers() -> None:
    found = spread(lab_works.whose, range(100000), processes=2)
    pids = {next(found).result for _ in range(40)}
    found.close()
    assert not any(map(alive, pids))


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_its_parent(tmp_path: Path, end: signal.Signals) -> None:
    program = SPREADER.format(here=str(Path(__file__).parent), directory=str(tmp_path))
    parent = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    try:
        wait_for(lambda: len(list(tmp_path.iterdir())) == 2)
        parent.send_signal(end)
        _, err = parent.communicate(timeout=60)
    finally:
        parent.kill()
        parent.wait()
    assert parent.returncode == -end
    assert ("KeyboardInterrupt" in err) == (end == signal.SIGINT)
    pids = [int(path.name) for path in tmp_path.iterdir()]
    wait_for(lambda: not any(map(alive, pids)))


# The journal.


def marks(directory: Path) -> list[int]:
    return sorted(int(path.name.split(".")[0]) for path in directory.glob("*.*"))


def items(directory: Path, stop: int | None = None) -> list[dict[str, Any]]:
    return [{"number": n, "directory": str(directory)} | ({"stop": True} if n == stop else {}) for n in range(6)]


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    directory = tmp_path / "marks"
    directory.mkdir()
    return directory


def test_an_interrupted_run_goes_on(tmp_path: Path, marked: Path) -> None:
    journal = tmp_path / "journal"
    work = items(marked, stop=4)
    with pytest.raises(LabError, match="stopped half way"):
        results(lab_works.marked, work, processes=0, resume=journal)
    assert marks(marked) == [0, 1, 2, 3, 4]
    (marked / "go").touch()
    assert results(lab_works.marked, work, processes=2, resume=journal) == list(range(6))
    assert marks(marked) == [0, 1, 2, 3, 4, 4, 5]
    assert results(lab_works.marked, work, processes=2, resume=journal) == list(range(6))
    assert len(marks(marked)) == 7


def test_every_length_of_a_torn_journal_goes_on(tmp_path: Path, marked: Path) -> None:
    journal = tmp_path / "journal"
    assert results(lab_works.marked, items(marked), processes=0, resume=journal) == list(range(6))
    whole = journal.read_bytes()
    for length in range(0, len(whole), 7):
        journal.write_bytes(whole[:length])
        assert results(lab_works.marked, items(marked), processes=0, resume=journal) == list(range(6))
        assert journal.read_bytes() == whole


def test_equal_items_are_done_each(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    assert results(lab_works.square, [2, 2, 3], processes=0, resume=journal)[1]["square"] == 4
    assert len(journal.read_text().splitlines()) == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("the poem\nof another\n", "is not a journal of the lab"),
        ("the poem", "is not a journal of the lab"),
        ("[]\n", "is not a journal of the lab"),
        ('{"kind": "other"}\n', "is not a journal of the lab"),
        (
            '{"kind": "anykvm lab journal 1", "work": "lab_works:square", "code": "0"}\n',
            "is of another version of the code: remove it",
        ),
        ('{"kind": "anykvm lab journal 1", "work": "x:y", "code": "0"}\n', "is of another kind of run: remove it"),
    ],
)
def test_a_file_that_is_no_journal_of_this_run_is_left_alone(tmp_path: Path, text: str, words: str) -> None:
    journal = tmp_path / "journal"
    journal.write_text(text)
    with pytest.raises(LabError, match=words):
        results(lab_works.square, [1], processes=0, resume=journal)
    assert journal.read_text() == text


def test_a_journal_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="No such file or directory"):
        results(lab_works.square, [1], processes=0, resume=tmp_path / "no" / "journal")


def test_two_runs_do_not_share_a_journal(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    first = spread(lab_works.square, [1, 2], processes=0, resume=journal)
    next(first)
    with pytest.raises(LabError, match="in use by another run"):
        results(lab_works.square, [1], processes=0, resume=journal)
    first.close()
    assert results(lab_works.square, [1], processes=0, resume=journal)


def test_a_full_disk_is_one_line_and_the_run_goes_on_from_there(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\n"
        "import resource, signal\n"
        "from anykvm.lab.spread import spread\n"
        "from anykvm.lab.errors import LabError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))\n"
        "try:\n"
        f"    list(spread('lab_works:square', range(9), processes=0, resume={str(tmp_path / 'journal')!r}))\n"
        "except LabError as error: print(error, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == f"journal {tmp_path / 'journal'}: File too large\n"
    lines = [json.loads(line) for line in (tmp_path / "journal").read_text().splitlines()]
    assert 1 < len(lines) < 9
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    made = results(lab_works.square, range(9), processes=0, resume=tmp_path / "journal")
    assert [one["square"] for one in made] == [n * n for n in range(9)]


@pytest.mark.skipif(not os.access("/dev/full", os.W_OK), reason="no /dev/full here")
def test_a_full_device_says_that_there_is_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from anykvm.lab import journal

    monkeypatch.setattr(os, "ftruncate", lambda fd, size: None)
    monkeypatch.setattr(Path, "read_bytes", lambda path: b"")
    with pytest.raises(LabError, match="No space left on device; make room and run it again"):
        journal.Journal(Path("/dev/full"), "work", "code")


def test_the_fingerprint_is_of_the_code() -> None:
    assert fingerprint("lab_works:square") == fingerprint("lab_works:dies")
    assert fingerprint("lab_works:square") != fingerprint("anykvm.lab.call:name_of")
    assert len(fingerprint("math:factorial")) == 16


# The bar.


def test_the_bar_is_for_a_terminal_only(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(results(lab_works.square, range(3), processes=0, progress="sweep")) == 3
    assert "sweep" not in capfd.readouterr().err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert len(results(lab_works.square, range(3), processes=0, progress="sweep")) == 3
