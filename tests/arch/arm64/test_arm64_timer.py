# SPDX-License-Identifier: GPL-2.0-only
"""The generic timer against a clock that the test moves."""

from __future__ import annotations

import threading

import pytest
from arm64_fake import FakeCpu, Rig
from hypothesis import given, settings
from hypothesis import strategies as st

from anykvm.arch.arm64 import sysreg_ids as ids
from anykvm.arch.arm64.timer import CTL_ENABLE, CTL_IMASK, CTL_ISTATUS, FOREVER, ArchTimer
from anykvm.uapi import arm64 as A

HZ = 62_500_000
NS = 16


class Clock:
    """A counter, a deadline, a line."""

    def __init__(self) -> None:
        self.ticks = 1000
        self.armed: int | None = None
        self.levels: list[bool] = []
        self.timer = ArchTimer(
            27,
            HZ,
            lambda: self.ticks,
            now=lambda: self.ticks * NS,
            output=lambda timer, level: self.levels.append(level),
            make_deadline=lambda callback: self,
            lock=threading.Lock(),
        )

    def arm(self, deadline_ns: int) -> None:
        self.armed = deadline_ns

    def cancel(self) -> None:
        self.armed = None

    def advance(self, ticks: int) -> None:
        """Let time pass, with the callback where it is due."""
        end = self.ticks + ticks
        while self.armed is not None and self.armed <= end * NS:
            self.ticks = max(self.ticks, -(-self.armed // NS))
            self.armed = None
            self.timer.expire()
        self.ticks = end


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_it_fires_when_the_counter_gets_there(clock: Clock) -> None:
    clock.timer.write_cval(1500)
    clock.timer.write_ctl(CTL_ENABLE)
    assert clock.levels == []
    clock.advance(499)
    assert clock.levels == []
    clock.advance(2)
    assert clock.levels == [True]
    assert clock.timer.read_ctl() == CTL_ENABLE | CTL_ISTATUS


def test_a_past_compare_value_fires_at_once(clock: Clock) -> None:
    clock.timer.write_cval(1000)
    clock.timer.write_ctl(CTL_ENABLE)
    assert clock.levels == [True]
    assert clock.armed is None


def test_the_line_falls_when_masked_disabled_or_moved_on(clock: Clock) -> None:
    clock.timer.write_ctl(CTL_ENABLE)
    clock.timer.write_ctl(CTL_ENABLE | CTL_IMASK)
    clock.timer.write_ctl(CTL_ENABLE)
    clock.timer.write_ctl(0)
    clock.timer.write_ctl(CTL_ENABLE)
    clock.timer.write_cval(2000)
    assert clock.levels == [True, False, True, False, True, False]


def test_status_is_read_only_and_shown_when_masked(clock: Clock) -> None:
    clock.timer.write_ctl(CTL_ENABLE | CTL_IMASK | CTL_ISTATUS | 0xF0)
    assert clock.timer.ctl == CTL_ENABLE | CTL_IMASK
    assert clock.timer.read_ctl() == CTL_ENABLE | CTL_IMASK | CTL_ISTATUS
    clock.timer.write_cval(5000)
    assert clock.timer.read_ctl() == CTL_ENABLE | CTL_IMASK


@pytest.mark.parametrize(
    ("written", "cval"), [(500, 1500), (0, 1000), (0xFFFF_FFFF, 999), (0x8000_0000, (1000 - (1 << 31)) % 2**64)]
)
def test_timer_values_are_relative_and_signed(clock: Clock, written: int, cval: int) -> None:
    clock.timer.write_tval(written)
    assert clock.timer.cval == cval
    assert clock.timer.read_tval() == written


def test_a_deadline_that_comes_early_only_looks(clock: Clock) -> None:
    clock.timer.write_cval(1100)
    clock.timer.write_ctl(CTL_ENABLE)
    clock.timer.expire()
    assert clock.levels == []
    assert clock.armed is not None


def test_all_ones_means_never(clock: Clock) -> None:
    clock.timer.write_cval(2**64 - 1)
    clock.timer.write_ctl(CTL_ENABLE)
    assert clock.armed is None
    clock.timer.write_cval(clock.ticks + FOREVER - 1)
    assert clock.armed is not None


def test_masked_and_disabled_timers_arm_nothing(clock: Clock) -> None:
    clock.timer.write_cval(5000)
    clock.timer.write_ctl(CTL_ENABLE | CTL_IMASK)
    assert clock.armed is None


def test_reset_and_stop(clock: Clock) -> None:
    clock.timer.write_ctl(CTL_ENABLE)
    clock.timer.reset()
    assert (clock.timer.ctl, clock.timer.cval, clock.levels) == (0, 0, [True, False])
    clock.timer.write_cval(5000)
    clock.timer.write_ctl(CTL_ENABLE)
    clock.timer.stop()
    assert clock.armed is None
    clock.timer.expire()
    assert clock.levels == [True, False]


def test_a_moved_counter_is_looked_at(clock: Clock) -> None:
    clock.timer.write_cval(5000)
    clock.timer.write_ctl(CTL_ENABLE)
    clock.ticks = 6000
    clock.timer.update()
    assert clock.levels == [True]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["ctl", "cval", "tval", "advance"]), st.integers(0, 3000)), max_size=40))
def test_the_line_is_always_what_the_registers_say(steps: list[tuple[str, int]]) -> None:
    clock = Clock()
    for what, value in steps:
        if what == "ctl":
            clock.timer.write_ctl(value & 3)
        elif what == "cval":
            clock.timer.write_cval(value)
        elif what == "tval":
            clock.timer.write_tval(value - 1500)
        else:
            clock.advance(value)
        # The callback is at most one tick late.
        left = clock.timer.cval - clock.ticks
        if left != 0:
            high = clock.timer.ctl == CTL_ENABLE and left < 0
            assert (clock.levels[-1] if clock.levels else False) == high


# In a VM.


def test_registers_trap_to_the_timers(rig: Rig) -> None:
    rig.create_vcpu()
    vcpu = rig.vcpu()
    traps = rig.arch.traps
    for ctl, cval, tval, timer in (
        (ids.CNTV_CTL_EL0, ids.CNTV_CVAL_EL0, ids.CNTV_TVAL_EL0, vcpu.timers.vtimer),
        (ids.CNTP_CTL_EL0, ids.CNTP_CVAL_EL0, ids.CNTP_TVAL_EL0, vcpu.timers.ptimer),
    ):
        traps[cval][1](vcpu, 5_000_000)
        assert traps[cval][0](vcpu) == timer.cval == 5_000_000
        traps[tval][1](vcpu, 100)
        assert traps[tval][0](vcpu) == 100
        traps[ctl][1](vcpu, 3)
        assert traps[ctl][0](vcpu) == timer.ctl == 3


def test_the_virtual_counter_starts_at_zero(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.create_vcpu()
    assert rig.get_reg(A.KVM_REG_ARM_TIMER_CNT) == 0
    assert rig.get_reg(A.KVM_REG_ARM_PTIMER_CNT) == FakeCpu.ticks
    monkeypatch.setattr(FakeCpu, "ticks", FakeCpu.ticks + 123)
    assert rig.get_reg(A.KVM_REG_ARM_TIMER_CNT) == 123


def test_setting_the_counter_moves_every_vcpus(rig: Rig) -> None:
    rig.create_vcpu()
    rig.create_vcpu()
    rig.set_reg(A.KVM_REG_ARM_TIMER_CNT, 5000)
    assert rig.get_reg(A.KVM_REG_ARM_TIMER_CNT, 1) == 5000
    rig.set_reg(A.KVM_REG_ARM_PTIMER_CNT, 5000)
    assert rig.get_reg(A.KVM_REG_ARM_PTIMER_CNT) == FakeCpu.ticks


def test_the_historical_swap_of_the_virtual_timers_ids() -> None:
    assert ids.enc(3, 3, 14, 0, 2) == A.KVM_REG_ARM_TIMER_CVAL & 0xFFFF
    assert A.KVM_REG_ARM_TIMER_CNT & 0xFFFF == ids.CNTV_CVAL_EL0


def test_a_timer_drives_its_ppi(rig: Rig) -> None:
    rig.create_vcpu()
    rig.vgic_v2()
    rig.set_reg(A.KVM_REG_ARM_TIMER_CTL, 1)
    rig.set_reg(A.KVM_REG_ARM_PTIMER_CTL, 1)
    private = rig.vcpu().vgic.private
    assert [irq.intid for irq in private if irq.level] == [27, 30]
    rig.init(rig.vcpus[0])
    assert not any(irq.level for irq in private)
