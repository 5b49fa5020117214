# SPDX-License-Identifier: GPL-2.0-only
"""The local APIC: the timer against a clock that the test moves, KVM_GET_LAPIC and KVM_SET_LAPIC."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from x86_irq_rig import bits, get, make_lapics, put, side_of
from x86_lapic_rig import MASKED, STEPS, inject, one

from anykvm.arch.x86 import lapic_regs as R
from anykvm.arch.x86.apic_bus import (
    DM_EXTINT,
)
from anykvm.arch.x86.lapic_timer import MIN_PERIOD_NS, divisor_of

# The timer.


@pytest.mark.parametrize(("tdcr", "by"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)])
def test_the_divide_configuration(tdcr: int, by: int) -> None:
    assert divisor_of(tdcr) == by
    clock, _, (lapic,) = make_lapics(1)
    put(lapic, R.APIC_TDCR, tdcr)
    put(lapic, R.APIC_LVTT, 0x40)
    put(lapic, R.APIC_TMICT, 1000)
    clock.advance(1000 * by - 1)
    assert not lapic.irr
    clock.advance(1)
    assert bits(lapic.irr) == [0x40]


def test_one_shot_counts_down_and_stays_at_zero() -> None:
    clock, _, (lapic,) = make_lapics(1)
    put(lapic, R.APIC_LVTT, 0x40)
    put(lapic, R.APIC_TDCR, 0xB)
    put(lapic, R.APIC_TMICT, 10_000)
    assert get(lapic, R.APIC_TMCCT) == 10_000
    clock.advance(4_000)
    assert get(lapic, R.APIC_TMCCT) == 6_000
    clock.advance(7_000)
    assert get(lapic, R.APIC_TMCCT) == 0
    assert get(lapic, R.APIC_TMICT) == 10_000
    assert lapic.ack() == 0x40
    lapic.eoi()
    clock.advance(1_000_000)
    assert not lapic.irr


def test_starting_it_again_replaces_the_deadline() -> None:
    clock, _, (lapic,) = make_lapics(1)
    put(lapic, R.APIC_LVTT, 0x40)
    put(lapic, R.APIC_TDCR, 0xB)
    put(lapic, R.APIC_TMICT, 10_000)
    clock.advance(9_000)
    put(lapic, R.APIC_TMICT, 10_000)
    clock.advance(9_999)
    assert not lapic.irr
    clock.advance(1)
    assert lapic.irr


def test_a_callback_that_was_on_its_way_finds_a_later_deadline() -> None:
    clock, _, (lapic,) = make_lapics(1)
    put(lapic, R.APIC_LVTT, 0x40)
    put(lapic, R.APIC_TDCR, 0xB)
    put(lapic, R.APIC_TMICT, 10_000)
    clock.timers[0].callback()
    assert not lapic.irr
    clock.advance(10_000)
    assert lapic.irr
    clock.timers[0].callback()


def test_an_initial_count_of_zero_stops_it() -> None:
    clock, _, (lapic,) = make_lapics(1)
    put(lapic, R.APIC_LVTT, 0x40)
    put(lapic, R.APIC_TMICT, 10_000)
    put(lapic, R.APIC_TMICT, 0)
    clock.timers[0].callback()
    clock.advance(1_000_000)
    assert not lapic.irr
    assert get(lapic, R.APIC_TMCCT) == 0


def test_a_masked_timer_counts_but_does_not_interrupt() -> None:
    clock, _, (lapic,) = make_lapics(1)
    put(lapic, R.APIC_LVTT, 0x40 | MASKED)
    put(lapic, R.APIC_TDCR, 0xB)
    put(lapic, R.APIC_TMICT, 10_000)
    clock.advance(2_500)
    assert get(lapic, R.APIC_TMCCT) == 7_500
    clock.advance(10_000)
    assert not lapic.irr


def test_periodic_ticks_keep_their_phase() -> None:
    clock, _, (lapic,) = make_lapics(1)
    put(lapic, R.APIC_TDCR, 0xB)
    put(lapic, R.APIC_LVTT, 0x40 | R.LVT_PERIODIC)
    put(lapic, R.APIC_TMICT, 1_000_000)
    start = clock.ns
    ticks = []
    for _ in range(40):
        clock.advance(100_000)
        if lapic.ack() == 0x40:
            ticks.append(clock.ns - start)
            lapic.eoi()
    assert ticks == [1_000_000, 2_000_000, 3_000_000, 4_000_000]


def test_ticks_missed_by_a_late_host_are_one() -> None:
    clock, _, (lapic,) = make_lapics(1)
    put(lapic, R.APIC_TDCR, 0xB)
    put(lapic, R.APIC_LVTT, 0x40 | R.LVT_PERIODIC)
    put(lapic, R.APIC_TMICT, 1_000_000)
    clock.stall(3_500_000)
    assert lapic.ack() == 0x40
    lapic.eoi()
    assert not lapic.irr
    assert get(lapic, R.APIC_TMCCT) == 500_000
    clock.advance(500_000)
    assert lapic.irr


def test_a_periodic_timer_that_nobody_looked_at_still_shows_its_phase() -> None:
    clock, _, (lapic,) = make_lapics(1)
    put(lapic, R.APIC_TDCR, 0xB)
    put(lapic, R.APIC_LVTT, 0x40 | R.LVT_PERIODIC)
    put(lapic, R.APIC_TMICT, 1_000_000)
    clock.ns += 1_200_000
    assert get(lapic, R.APIC_TMCCT) == 800_000


def test_no_period_is_shorter_than_the_kernels() -> None:
    clock, _, (lapic,) = make_lapics(1)
    put(lapic, R.APIC_TDCR, 0xB)
    put(lapic, R.APIC_LVTT, 0x40 | R.LVT_PERIODIC)
    put(lapic, R.APIC_TMICT, 10)
    clock.advance(MIN_PERIOD_NS - 1)
    assert not lapic.irr
    clock.advance(1)
    assert lapic.irr


def test_one_shot_may_be_short() -> None:
    clock, _, (lapic,) = make_lapics(1)
    put(lapic, R.APIC_TDCR, 0xB)
    put(lapic, R.APIC_LVTT, 0x40)
    put(lapic, R.APIC_TMICT, 10)
    clock.advance(10)
    assert lapic.irr


def test_from_periodic_to_one_shot_the_running_count_is_the_last() -> None:
    clock, _, (lapic,) = make_lapics(1)
    put(lapic, R.APIC_TDCR, 0xB)
    put(lapic, R.APIC_LVTT, 0x40 | R.LVT_PERIODIC)
    put(lapic, R.APIC_TMICT, 1_000_000)
    clock.advance(1_500_000)
    assert lapic.ack() == 0x40
    lapic.eoi()
    put(lapic, R.APIC_LVTT, 0x41)
    clock.advance(500_000)
    assert lapic.ack() == 0x41
    lapic.eoi()
    clock.advance(5_000_000)
    assert not lapic.irr


def test_a_change_of_the_divisor_rescales_what_is_left() -> None:
    clock, _, (lapic,) = make_lapics(1)
    put(lapic, R.APIC_LVTT, 0x40)
    put(lapic, R.APIC_TDCR, 0xB)
    put(lapic, R.APIC_TMICT, 10_000)
    clock.advance(5_000)
    put(lapic, R.APIC_TDCR, 0)
    assert get(lapic, R.APIC_TMCCT) == 5_000
    clock.advance(9_999)
    assert not lapic.irr
    clock.advance(1)
    assert lapic.irr


def test_a_change_of_the_divisor_after_the_end_is_quiet() -> None:
    clock, _, (lapic,) = make_lapics(1)
    put(lapic, R.APIC_LVTT, 0x40)
    put(lapic, R.APIC_TMICT, 1_000)
    clock.advance(10_000)
    assert lapic.ack() == 0x40
    put(lapic, R.APIC_TDCR, 3)
    clock.advance(10_000_000)
    assert not lapic.irr


def test_no_tick_after_the_vcpu_has_gone() -> None:
    clock, bus, (lapic,) = make_lapics(1)
    put(lapic, R.APIC_LVTT, 0x40)
    put(lapic, R.APIC_TMICT, 1_000)
    lapic.close()
    assert bus.lapics == [] and bus.pic_takers == [] and bus.nmi_takers == []
    clock.timers[0].callback()
    clock.advance(10_000)
    assert not lapic.irr


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 0xFFFFFFFF), st.sampled_from(range(8)), st.integers(0, 100))
def test_the_current_count_goes_down_in_step_with_the_clock(initial: int, shift: int, percent: int) -> None:
    clock, _, (lapic,) = make_lapics(1)
    tdcr = [11, 0, 1, 2, 3, 8, 9, 10][shift]
    put(lapic, R.APIC_TDCR, tdcr)
    put(lapic, R.APIC_TMICT, initial)
    passed = initial * percent // 100
    clock.advance(passed << shift)
    assert get(lapic, R.APIC_TMCCT) == initial - passed


# KVM_GET_LAPIC and KVM_SET_LAPIC.


def word(page: bytes, offset: int) -> int:
    return int.from_bytes(page[offset : offset + 4], "little")


def test_the_page_has_every_register_at_its_offset() -> None:
    clock, _, (lapic,) = make_lapics(1)
    put(lapic, R.APIC_ID, 0x07000000)
    put(lapic, R.APIC_TPR, 0x21)
    put(lapic, R.APIC_LDR, 0x02000000)
    put(lapic, R.APIC_TDCR, 0xB)
    put(lapic, R.APIC_LVTT, 0x40)
    put(lapic, R.APIC_TMICT, 10_000)
    inject(lapic, 0x85, level=True)
    lapic.ack()
    inject(lapic, 0xFF)
    clock.advance(4_000)
    page = lapic.get_state()
    assert len(page) == 1024
    assert word(page, R.APIC_ID) == 0x07000000
    assert word(page, R.APIC_LVR) == 0x50014
    assert word(page, R.APIC_TPR) == 0x21 and word(page, R.APIC_PPR) == 0x80
    assert word(page, R.APIC_ISR + 0x40) == 1 << 5 and word(page, R.APIC_TMR + 0x40) == 1 << 5
    assert word(page, R.APIC_IRR + 0x70) == 1 << 31
    assert (word(page, R.APIC_TMICT), word(page, R.APIC_TMCCT)) == (10_000, 6_000)


def test_a_state_moves_to_another_apic_with_its_timer() -> None:
    clock, _, (lapic,) = make_lapics(1)
    put(lapic, R.APIC_TPR, 0x30)
    put(lapic, R.APIC_LVT0, DM_EXTINT << 8)
    put(lapic, R.APIC_TDCR, 0xB)
    put(lapic, R.APIC_LVTT, 0xEF)
    put(lapic, R.APIC_TMICT, 10_000)
    inject(lapic, 0x41)
    clock.advance(4_000)
    page = lapic.get_state()
    there, _, (other,) = make_lapics(1)
    other.set_state(page)
    assert other.get_state() == page
    assert side_of(other).cr8 == 3 and side_of(other).line and other.accepts_pic
    assert other.ack() == 0x41
    there.advance(5_999)
    assert not other.irr
    there.advance(1)
    assert bits(other.irr) == [0xEF]


def test_loading_a_state_replaces_the_old_one() -> None:
    clock, _, (lapic,) = make_lapics(1)
    empty = lapic.get_state()
    put(lapic, R.APIC_LVTT, 0x40)
    put(lapic, R.APIC_TMICT, 1_000)
    inject(lapic, 0x90)
    lapic.set_state(empty)
    assert not side_of(lapic).line
    clock.advance(100_000)
    assert not lapic.irr


def test_the_version_cannot_be_loaded() -> None:
    lapic = one()
    page = bytearray(lapic.get_state())
    page[R.APIC_LVR] = 0x99
    lapic.set_state(bytes(page))
    assert word(lapic.get_state(), R.APIC_LVR) == 0x50014


def test_what_is_between_the_registers_comes_back() -> None:
    lapic = one()
    page = bytearray(lapic.get_state())
    page[0x24:0x30] = b"between them"
    page[0x3F0:0x3F4] = b"last"
    lapic.set_state(bytes(page))
    assert lapic.get_state() == bytes(page)
    lapic.reset()
    assert lapic.get_state()[0x24:0x30] == bytes(12)


def test_an_expired_one_shot_does_not_tick_again_elsewhere_but_once() -> None:
    clock, _, (lapic,) = make_lapics(1)
    put(lapic, R.APIC_LVTT, 0x40)
    put(lapic, R.APIC_TMICT, 1_000)
    clock.advance(5_000)
    lapic.ack()
    lapic.eoi()
    page = lapic.get_state()
    assert word(page, R.APIC_TMCCT) == 0
    there, _, (other,) = make_lapics(1)
    other.set_state(page)
    there.advance(1_000_000)
    # As in the kernel, a count that has come to its end expires when it is restored.
    assert bits(other.irr) == [0x40]


@settings(max_examples=50, deadline=None)
@given(STEPS, st.lists(st.booleans(), min_size=8, max_size=8))
def test_any_state_round_trips(steps: list[tuple[str, int]], levels: list[bool]) -> None:
    lapic = one()
    for index, (step, value) in enumerate(steps):
        if step == "inject":
            inject(lapic, value, level=levels[index % 8])
        elif step == "ack":
            lapic.ack()
        elif step == "eoi":
            lapic.eoi()
        else:
            put(lapic, R.APIC_TPR, value)
    other = one(on=False)
    other.set_state(lapic.get_state())
    assert other.get_state() == lapic.get_state()
    assert (other.irr, other.isr, other.tmr, other.ppr) == (lapic.irr, lapic.isr, lapic.tmr, lapic.ppr)
    assert side_of(other).line == side_of(lapic).line
    assert other.ack() == lapic.ack()
