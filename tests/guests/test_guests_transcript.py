# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from anykvm.guests import parse_transcript, read_transcript

WHOLE = """[    1.475029] Run /init as init process
anykvm-ready hackbench 1.59
anykvm-begin hackbench-process 1.60
Running in process mode with 2 groups using 40 file descriptors each (== 80 tasks)
Time: 13.934
anykvm-end hackbench-process 0 15.85
anykvm-begin hackbench-thread 15.86
Time: 15.233
anykvm-end hackbench-thread 0 31.28
anykvm-poweroff 31.28
[   31.380857] reboot: Power down
"""


def test_a_whole_life() -> None:
    transcript = read_transcript(WHOLE)
    assert (transcript.mode, transcript.ready, transcript.poweroff, transcript.errors) == ("hackbench", 1.59, 31.28, ())
    process, thread = transcript.results
    assert (process.name, process.status, process.began, process.ended) == ("hackbench-process", 0, 1.60, 15.85)
    assert process.output.startswith("Running in process mode")
    assert (process.seconds, thread.seconds) == (13.934, 15.233)


def test_serial_line_ends() -> None:
    assert read_transcript(WHOLE.replace("\n", "\r\n")) == read_transcript(WHOLE)


def test_cut_in_the_middle() -> None:
    first, second = parse_transcript(WHOLE[: WHOLE.index("Time: 15")])
    assert first.status == 0
    assert (second.status, second.ended, second.seconds, second.output) == (None, None, None, "")


def test_output_without_line_end_and_kernel_noise() -> None:
    text = "[ 1.0] xanykvm-ready exec 0.50\nanykvm-begin exec 0.51\nno newlineanykvm-end exec 7 0.60\n"
    transcript = read_transcript(text)
    assert transcript.ready == 0.5
    (result,) = transcript.results
    assert (result.status, result.output) == (7, "no newline\n")
    assert result.seconds is None


def test_a_program_cannot_end_for_another() -> None:
    (result,) = parse_transcript(
        "anykvm-begin exec 0.5\nanykvm-end other 0 0.6\nanykvm-poweroff 9.9\nanykvm-end exec 1 0.7\n"
    )
    assert result.status == 1
    assert "anykvm-end other 0 0.6" in result.output


def test_complaints_of_init() -> None:
    assert read_transcript("anykvm-error this image has no hackbench\r\n").errors == ("this image has no hackbench",)


def test_a_guest_that_said_nothing() -> None:
    transcript = read_transcript("")
    assert (transcript.mode, transcript.ready, transcript.results, transcript.poweroff) == (None, None, (), None)


@given(st.lists(st.sampled_from([*WHOLE.splitlines(), "anykvm-begin ", "anykvm-end x 0", "\r", "Time: x"])))
def test_any_order_of_lines_is_read(lines: list[str]) -> None:
    results = parse_transcript("\n".join(lines))
    assert len(results) == sum(line.startswith("anykvm-begin h") for line in lines)


@given(st.integers(0, len(WHOLE)))
def test_any_cut_is_read(length: int) -> None:
    transcript = read_transcript(WHOLE[:length])
    assert len(transcript.results) <= 2
