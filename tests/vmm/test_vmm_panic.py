# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anykvm.vmm import panic
from anykvm.vmm.escape import Command, EscapeFilter
from anykvm.vmm.panic import PanicWatch

PANIC = b"[    1.234567] Kernel panic - not syncing: VFS: Unable to mount root fs on unknown-block(0,0)\r\n"
END = b"[    1.240000] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs ]---\r\n"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("stamp", [b"", b"[    0.000000] ", b"[    1.234567][    T1] "])
def test_a_panic_and_then_silence(clock: Clock, stamp: bytes) -> None:
    watch = PanicWatch(clock)
    watch.feed(b"booting\r\n" + stamp + PANIC[15:] + stamp + END[15:])
    assert watch.wait() == pytest.approx(panic.END_SECONDS)
    clock.now += panic.END_SECONDS
    assert watch.wait() == 0
    assert watch.reason == "VFS: Unable to mount root fs on unknown-block(0,0)"


def test_without_the_last_line_the_silence_is_longer(clock: Clock) -> None:
    watch = PanicWatch(clock)
    watch.feed(PANIC + b"[    1.3] CPU: 0 PID: 1 Comm: swapper/0\r\n")
    clock.now += 5
    assert watch.wait() == pytest.approx(panic.SILENT_SECONDS - 5)


def test_what_a_person_lists_is_no_panic(clock: Clock) -> None:
    watch = PanicWatch(clock)
    watch.feed(b"# dmesg | tail\r\n" + PANIC + END + b"# \r\n")
    assert watch.wait() is None
    watch.feed(b"echo Kernel panic - not syncing: no\r\n")
    assert watch.wait() is None


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_it_does_not_matter_how_the_text_is_cut(cuts: list[int]) -> None:
    text = b"one\r\ntwo\r\n" + PANIC + b"Call trace:\r\n" + END
    watch = PanicWatch()
    while text:
        for cut in cuts:
            watch.feed(text[:cut])
            text = text[cut:]
    assert watch.reason is not None
    assert watch.reason.startswith("VFS")


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_any_output_is_fine_and_little_is_kept(chunks: list[bytes]) -> None:
    watch = PanicWatch()
    for chunk in chunks:
        watch.feed(chunk)
    assert len(watch._line) <= 1024 + 300


def test_keys_for_the_machine() -> None:
    keys = EscapeFilter()
    assert keys.feed(b"ls\r") == (b"ls\r", [])
    assert keys.feed(b"\x01x") == (b"", [Command.QUIT])
    assert keys.feed(b"\x01h") == (b"", [Command.HELP])
    assert keys.feed(b"a\x01\x01b") == (b"a\x01b", [])
    assert keys.feed(b"\x01q") == (b"\x01q", [])


def test_a_key_sequence_may_come_in_two_pieces() -> None:
    keys = EscapeFilter()
    assert keys.feed(b"\x01") == (b"", [])
    assert keys.feed(b"x") == (b"", [Command.QUIT])


def test_three_quick_interrupts_end_it_and_still_reach_the_guest(clock: Clock) -> None:
    keys = EscapeFilter(clock)
    assert keys.feed(b"\x03") == (b"\x03", [])
    clock.now += 0.4
    assert keys.feed(b"\x03") == (b"\x03", [])
    clock.now += 0.4
    assert keys.feed(b"\x03") == (b"\x03", [Command.INTERRUPT])


def test_slow_interrupts_and_ones_with_text_between_do_not(clock: Clock) -> None:
    keys = EscapeFilter(clock)
    for _ in range(10):
        clock.now += 0.6
        assert keys.feed(b"\x03")[1] == []
    assert EscapeFilter(clock).feed(b"\x03\x03a\x03\x03")[1] == []
