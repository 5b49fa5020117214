# SPDX-License-Identifier: GPL-2.0-only
"""The 8254: counters, latches, outputs, port 0x61."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from x86_pit_rig import NS, Rig

from anykvm.arch.x86.pit import PIT_HZ
from anykvm.uapi.x86_irqchip import (
    KVM_PIT_FLAGS_SPEAKER_DATA_ON,
)


@pytest.fixture
def rig() -> Rig:
    return Rig()


# Reading the counters.


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([0, 1, 2, 3, 4, 5]), st.integers(1, 0xFFFF), st.integers(0, 200_000))
def test_counters_against_the_model(mode: int, count: int, ticks: int) -> None:
    rig = Rig()
    rig.load(2, mode, count)
    rig.pass_ticks(ticks)
    down = ticks * 2 if mode == 3 else ticks
    expected = count - down % count if mode in (2, 3) else (count - down) & 0xFFFF
    assert rig.latched(2) == expected
    assert rig.pit.channels[2].current(rig.clock.ns) == expected


def test_counter_0_counts_down_too(rig: Rig) -> None:
    rig.load(0, 2, 10_000)
    rig.pass_ticks(3_000)
    assert rig.latched(0) == 7_000
    rig.pass_ticks(10_000)
    assert rig.latched(0) in (6_999, 7_000)


def test_a_latched_count_stands_still(rig: Rig) -> None:
    rig.load(0, 2, 10_000)
    rig.pass_ticks(1_000)
    rig.outb(0x43, 0x00)
    rig.pass_ticks(1_000)
    rig.outb(0x43, 0x00)
    assert rig.word(0) == 9_000, "the second latch came too early"
    assert rig.latched(0) == 8_000 - 1 or rig.latched(0) == 8_000


@pytest.mark.parametrize(("access", "value"), [(1, 0x34), (2, 0x12)])
def test_single_bytes(rig: Rig, access: int, value: int) -> None:
    rig.load(2, 0, 0x1234)
    rig.outb(0x43, 2 << 6 | access << 4)
    assert rig.inb(0x42) == value
    assert rig.inb(0x42) == value
    rig.outb(0x43, 2 << 6)
    assert rig.inb(0x42) == value


def test_writing_single_bytes(rig: Rig) -> None:
    rig.outb(0x43, 0x90)
    rig.outb(0x42, 0x55)
    assert rig.pit.channels[2].count == 0x55
    rig.outb(0x43, 0xA0)
    rig.outb(0x42, 0x55)
    assert rig.pit.channels[2].count == 0x5500


def test_reading_without_a_latch_alternates(rig: Rig) -> None:
    rig.load(2, 0, 0x1234)
    assert rig.word(2) == 0x1234
    assert rig.word(2) == 0x1234


def test_modes_6_and_7_are_2_and_3(rig: Rig) -> None:
    rig.load(2, 6, 100)
    assert rig.pit.channels[2].mode == 2
    rig.load(2, 7, 100)
    assert rig.pit.channels[2].mode == 3


def test_read_back_of_counts(rig: Rig) -> None:
    for channel in range(3):
        rig.load(channel, 2, 0x1000 + channel)
    rig.outb(0x43, 0xC0 | 0x10 | 0x0E)
    assert [rig.word(channel) for channel in range(3)] == [0x1000, 0x1001, 0x1002]


def test_read_back_of_status_and_count(rig: Rig) -> None:
    rig.load(2, 0, 1000)
    rig.outb(0x43, 0xC0 | 0x08)
    assert rig.inb(0x42) == 0x30, "output low, both bytes, mode 0"
    assert rig.word(2) == 1000
    rig.pass_ticks(1000)
    rig.outb(0x43, 0xC0 | 0x20 | 0x08)
    rig.outb(0x43, 0xC0 | 0x20 | 0x08)
    assert rig.inb(0x42) == 0xB0, "output high"
    assert rig.word(2) == 0


def test_read_back_of_others_leaves_a_counter_alone(rig: Rig) -> None:
    rig.outb(0x43, 0xC0 | 0x02)
    assert not rig.pit.channels[1].status_latched and rig.pit.channels[0].status_latched


def test_the_control_port_reads_as_zero(rig: Rig) -> None:
    assert rig.inb(0x43) == 0


@pytest.mark.parametrize(
    ("mode", "outs"),
    [
        (0, [0, 0, 0, 0, 1, 1, 1, 1, 1]),
        (1, [1, 1, 1, 1, 0, 0, 0, 0, 0]),
        (2, [1, 1, 1, 0, 1, 1, 1, 0, 1]),
        (3, [1, 1, 0, 0, 1, 1, 0, 0, 1]),
        (4, [1, 1, 1, 1, 0, 1, 1, 1, 1]),
    ],
)
def test_outputs_of_a_count_of_4(mode: int, outs: list[int]) -> None:
    seen = []
    for ticks in range(9):
        rig = Rig()
        rig.load(2, mode, 4)
        rig.pass_ticks(ticks)
        seen.append(rig.pit.channels[2].out(rig.clock.ns))
    assert seen == outs


# Port 0x61.


def test_the_tsc_calibration_of_linux(rig: Rig) -> None:
    value = rig.speaker.read(None, 0x61, 1)
    assert value is not None
    rig.speaker.write(None, 0x61, 1, value & ~2 | 1)
    latch = PIT_HZ // 20
    rig.load(2, 0, latch)
    start = rig.clock.ns
    while not (rig.speaker.read(None, 0x61, 1) or 0) & 0x20:
        rig.clock.advance(10_000)
        assert rig.clock.ns - start < NS
    assert rig.clock.ns - start == pytest.approx(NS // 20, abs=20_000)
    assert rig.ticks == [], "counter 2 has no interrupt"


def test_gate_and_data_read_back(rig: Rig) -> None:
    for value in (0, 1, 2, 3):
        rig.speaker.write(None, 0x61, 1, value)
        read = rig.speaker.read(None, 0x61, 1)
        assert read is not None and read & 3 == value
    assert rig.pit.flags == KVM_PIT_FLAGS_SPEAKER_DATA_ON


def test_the_refresh_bit_toggles(rig: Rig) -> None:
    seen = set()
    for _ in range(4):
        seen.add((rig.speaker.read(None, 0x61, 1) or 0) & 0x10)
        rig.clock.advance(1 << 14)
    assert seen == {0, 0x10}


@pytest.mark.parametrize(("mode", "restarts"), [(0, False), (2, True), (3, True), (4, False)])
def test_a_rising_gate(rig: Rig, mode: int, restarts: bool) -> None:
    rig.load(2, mode, 0x8000)
    rig.pass_ticks(0x100)
    rig.speaker.write(None, 0x61, 1, 1)
    assert (rig.latched(2) == 0x8000) is restarts
    rig.pass_ticks(0x100)
    before = rig.latched(2)
    rig.speaker.write(None, 0x61, 1, 1)
    assert rig.latched(2) == before, "it was high already"


def test_only_port_0x61_is_the_speakers(rig: Rig) -> None:
    assert rig.speaker.read(None, 0x62, 1) is None
    assert not rig.speaker.write(None, 0x62, 1, 1)
