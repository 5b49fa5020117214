# SPDX-License-Identifier: GPL-2.0-only
"""The 8254: counter 0's ticks and their reinjection, saved state."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from x86_pit_rig import NS, Rig

from anykvm.arch.x86.lapic_timer import MIN_PERIOD_NS
from anykvm.arch.x86.pit import PIT_HZ, PIT_STATE2_SIZE, PIT_STATE_SIZE
from anykvm.uapi.x86_irqchip import (
    KVM_PIT_FLAGS_HPET_LEGACY,
    KVM_PIT_FLAGS_SPEAKER_DATA_ON,
    KvmPitState,
    KvmPitState2,
)


@pytest.fixture
def rig() -> Rig:
    return Rig()


# Ticks.


def test_nothing_ticks_at_reset(rig: Rig) -> None:
    rig.clock.advance(NS)
    assert rig.ticks == []
    assert [channel.mode for channel in rig.pit.channels] == [0xFF] * 3
    assert [channel.gate for channel in rig.pit.channels] == [1, 1, 0]
    assert [channel.count for channel in rig.pit.channels] == [0x10000] * 3


@pytest.mark.parametrize("hz", [100, 250, 1000])
@pytest.mark.parametrize("mode", [2, 3])
def test_periodic_ticks_as_linux_asks_for_them(rig: Rig, hz: int, mode: int) -> None:
    count = (PIT_HZ + hz // 2) // hz
    start = rig.clock.ns
    rig.load(0, mode, count)
    for _ in range(1000):
        rig.clock.advance(NS // 1000)
    assert abs(len(rig.ticks) - hz) <= 1
    period = count * NS // PIT_HZ
    assert [at - start for at in rig.ticks] == [period * (index + 1) for index in range(len(rig.ticks))]
    assert rig.watched == len(rig.ticks)
    assert rig.level == 0, "each tick is an edge"


def test_a_count_of_zero_is_65536(rig: Rig) -> None:
    start = rig.clock.ns
    rig.load(0, 2, 0)
    rig.clock.advance(NS // 10)
    assert rig.ticks[0] - start == 0x10000 * NS // PIT_HZ


@pytest.mark.parametrize("mode", [0, 4])
def test_one_shot(rig: Rig, mode: int) -> None:
    start = rig.clock.ns
    rig.load(0, mode, 1000)
    rig.clock.advance(NS)
    assert [at - start for at in rig.ticks] == [1000 * NS // PIT_HZ]
    rig.outb(0x40, 0xE8)
    rig.outb(0x40, 0x03)
    rig.clock.advance(NS)
    assert len(rig.ticks) == 2


def test_loading_it_again_replaces_the_deadline(rig: Rig) -> None:
    rig.load(0, 0, 1000)
    rig.pass_ticks(900)
    rig.load(0, 0, 1000)
    rig.pass_ticks(900)
    assert rig.ticks == []
    rig.pass_ticks(100)
    assert len(rig.ticks) == 1


def test_a_callback_that_was_on_its_way_finds_a_later_deadline(rig: Rig) -> None:
    rig.load(0, 0, 1000)
    rig.clock.timers[0].callback()
    assert rig.ticks == []
    rig.pass_ticks(1000)
    assert len(rig.ticks) == 1
    rig.clock.timers[0].callback()
    assert len(rig.ticks) == 1


def test_no_period_is_shorter_than_the_kernels(rig: Rig) -> None:
    rig.load(0, 2, 10)
    rig.clock.advance(NS // 100)
    assert len(rig.ticks) <= NS // 100 // MIN_PERIOD_NS + 1


def test_modes_without_ticks(rig: Rig) -> None:
    rig.load(0, 2, 1000)
    rig.load(0, 5, 1000)
    rig.clock.advance(NS)
    assert rig.ticks == []


def test_no_tick_after_the_vm_has_gone(rig: Rig) -> None:
    rig.load(0, 2, 1000)
    rig.pit.stop()
    rig.clock.timers[0].callback()
    rig.clock.advance(NS)
    assert rig.ticks == []


# Reinjection.


def test_ticks_the_guest_was_too_slow_for_come_later() -> None:
    rig = Rig(ends=False)
    rig.load(0, 2, 1000)
    rig.pass_ticks(5000)
    assert len(rig.ticks) == 1, "it has not ended the first"
    for expected in (2, 3, 4, 5):
        rig.pit.irq_acked()
        assert len(rig.ticks) == expected
    rig.pit.irq_acked()
    assert len(rig.ticks) == 5, "none is left"
    rig.pass_ticks(1000)
    assert len(rig.ticks) == 6


def test_ticks_a_late_host_missed_come_later() -> None:
    rig = Rig(ends=False)
    rig.load(0, 2, 10_000)
    rig.clock.stall(35_000 * NS // PIT_HZ)
    assert len(rig.ticks) == 1
    rig.pit.irq_acked()
    rig.pit.irq_acked()
    rig.pit.irq_acked()
    assert len(rig.ticks) == 3


def test_without_reinjection_every_tick_is_one_edge() -> None:
    rig = Rig(ends=False)
    rig.pit.set_reinject(False)
    rig.load(0, 2, 1000)
    rig.pass_ticks(5000)
    assert len(rig.ticks) == 5
    rig.pit.irq_acked()
    assert len(rig.ticks) == 5
    rig.pit.set_reinject(True)
    rig.pass_ticks(3000)
    assert len(rig.ticks) == 6


def test_a_tick_that_nobody_took_is_not_waited_for() -> None:
    rig = Rig(ends=False)
    rig.taken = -1
    rig.load(0, 2, 1000)
    rig.pass_ticks(5000)
    assert len(rig.ticks) == 5


def test_unmasking_forgets_what_was_missed() -> None:
    rig = Rig(ends=False)
    rig.load(0, 2, 1000)
    rig.pass_ticks(5000)
    rig.pit.reset_reinject()
    rig.pass_ticks(1000)
    assert len(rig.ticks) == 2
    rig.pit.irq_acked()
    assert len(rig.ticks) == 2


def test_loading_a_count_forgets_what_was_missed() -> None:
    rig = Rig(ends=False)
    rig.load(0, 2, 1000)
    rig.pass_ticks(5000)
    rig.load(0, 2, 1000)
    rig.pit.irq_acked()
    assert len(rig.ticks) == 1


# Saved state.


def test_the_state_is_the_kernels_structure(rig: Rig) -> None:
    rig.load(0, 2, 1193)
    rig.load(2, 3, 0x4321)
    rig.speaker.write(None, 0x61, 1, 3)
    raw = rig.pit.get_state()
    assert (len(raw), PIT_STATE_SIZE) == (PIT_STATE2_SIZE, 72) and len(raw) == 112
    state = KvmPitState2.from_buffer_copy(raw)
    first, _, third = state.channels
    assert (first.count, first.mode, first.rw_mode, first.gate) == (1193, 2, 3, 1)
    assert (third.count, third.mode, third.gate) == (0x4321, 3, 1)
    assert third.count_load_time == rig.clock.ns and first.count_load_time == 0
    assert state.flags == KVM_PIT_FLAGS_SPEAKER_DATA_ON


def test_a_restored_state_ticks(rig: Rig) -> None:
    rig.load(0, 2, 1193)
    rig.outb(0x43, 0xC0 | 0x04)
    rig.outb(0x41, 0x12)
    other = Rig()
    other.pit.set_state(rig.pit.get_state())
    assert other.pit.get_state()[:24] == rig.pit.get_state()[:24]
    other.pass_ticks(5 * 1193)
    assert len(other.ticks) == 5


def test_the_short_state_keeps_the_flags(rig: Rig) -> None:
    rig.speaker.write(None, 0x61, 1, 2)
    state = KvmPitState()
    state.channels[0].count = 500
    state.channels[0].mode = 2
    rig.pit.set_state(bytes(state))
    assert rig.pit.flags == KVM_PIT_FLAGS_SPEAKER_DATA_ON
    rig.pass_ticks(500)
    assert len(rig.ticks) == 1


def test_with_an_hpet_in_its_place_counter_0_is_silent(rig: Rig) -> None:
    rig.load(0, 2, 1000)
    state = bytearray(rig.pit.get_state())
    struct.pack_into("<I", state, 72, KVM_PIT_FLAGS_HPET_LEGACY)
    rig.pit.set_state(bytes(state))
    rig.pass_ticks(5000)
    assert rig.ticks == []
    struct.pack_into("<I", state, 72, 0)
    rig.pit.set_state(bytes(state))
    rig.pass_ticks(1000)
    assert len(rig.ticks) == 1


@settings(max_examples=60, deadline=None)
@given(st.binary(min_size=112, max_size=112))
def test_no_state_breaks_it(state: bytes) -> None:
    rig = Rig()
    rig.pit.set_state(state)
    for port in (0x40, 0x41, 0x42, 0x40, 0x41, 0x42):
        assert 0 <= rig.inb(port) <= 0xFF
    rig.outb(0x43, 0xCE)
    for port in (0x40, 0x41, 0x42):
        assert 0 <= rig.inb(port) <= 0xFF
    assert rig.speaker.read(None, 0x61, 1) is not None
    assert len(rig.pit.get_state()) == 112
