# SPDX-License-Identifier: GPL-2.0-only
"""The local APIC: registers, its base, priorities."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from x86_irq_rig import APIC_DEFAULT_BASE, bits, get, make_lapic, make_lapics, put, side_of
from x86_lapic_rig import FLAT, MASKED, STEPS, inject, one

from anykvm.arch.x86 import lapic_regs as R
from anykvm.arch.x86.apic_bus import (
    DM_EXTINT,
    DM_NMI,
)
from anykvm.arch.x86.lapic import SPURIOUS

# Registers.


def test_reset_values_of_the_boot_processor() -> None:
    lapic = one(on=False)
    assert lapic.base_msr == 0xFEE00900
    assert get(lapic, R.APIC_ID) == 0
    assert get(lapic, R.APIC_LVR) == 0x50014
    assert get(lapic, R.APIC_SVR) == 0xFF
    assert get(lapic, R.APIC_DFR) == FLAT
    assert get(lapic, R.APIC_LVT0) == DM_EXTINT << 8
    for register in (R.APIC_LVTT, R.APIC_LVTTHMR, R.APIC_LVTPC, R.APIC_LVT1, R.APIC_LVTERR):
        assert get(lapic, register) == MASKED
    for register in (R.APIC_TPR, R.APIC_APR, R.APIC_PPR, R.APIC_LDR, R.APIC_ESR, R.APIC_ICR, R.APIC_TMICT):
        assert get(lapic, register) == 0
    assert not lapic.enabled and lapic.hw_enabled and lapic.accepts_pic


def test_reset_values_of_another_processor() -> None:
    lapic = make_lapics(2, on=False)[2][1]
    assert lapic.base_msr == 0xFEE00800
    assert get(lapic, R.APIC_ID) == 1 << 24
    assert get(lapic, R.APIC_LVT0) == MASKED
    assert not lapic.accepts_pic


def test_the_id_is_the_low_byte_of_the_vcpu_id() -> None:
    clock, bus, _ = make_lapics(0)
    assert get(make_lapic(bus, clock, 300), R.APIC_ID) == (300 & 0xFF) << 24


@pytest.mark.parametrize(
    ("register", "written", "read"),
    [
        (R.APIC_ID, 0xA5FFFFFF, 0xA5000000),
        (R.APIC_LVR, 0, 0x50014),
        (R.APIC_TPR, 0x1FF, 0xFF),
        (R.APIC_APR, 0xFF, 0),
        (R.APIC_LDR, 0x12345678, 0x12000000),
        (R.APIC_DFR, 0x50000000, 0x5FFFFFFF),
        (R.APIC_SVR, 0xFFFFFFFF, 0x3FF),
        (R.APIC_ESR, 0xFF, 0),
        (R.APIC_ICR2, 0x12345678, 0x12000000),
        (R.APIC_LVTT, 0xFFFFFFFF, 0x310FF),
        (R.APIC_LVTTHMR, 0xFFFFFFFF, 0x117FF),
        (R.APIC_LVTPC, 0xFFFFFFFF, 0x117FF),
        (R.APIC_LVT0, 0xFFFFFFFF, 0x1F7FF),
        (R.APIC_LVT1, 0xFFFFFFFF, 0x1F7FF),
        (R.APIC_LVTERR, 0xFFFFFFFF, 0x110FF),
        (R.APIC_TDCR, 0xFFFFFFFF, 0xB),
        (R.APIC_ISR, 0xFFFFFFFF, 0),
        (R.APIC_IRR, 0xFFFFFFFF, 0),
        (0x2F0, 0xFF, 0),
        (0x3F0, 0xFF, 0),
        (0x400, 0xFF, 0),
        (0xFF0, 0xFF, 0),
    ],
)
def test_which_bits_a_register_has(register: int, written: int, read: int) -> None:
    lapic = one()
    put(lapic, register, written)
    assert get(lapic, register) == read


def test_the_icr_is_never_busy() -> None:
    lapic = one()
    put(lapic, R.APIC_ICR, 0x1000 | MASKED)
    assert get(lapic, R.APIC_ICR) == MASKED


def test_only_whole_aligned_writes_count() -> None:
    lapic = one()
    for offset, size in ((0, 1), (0, 2), (0, 8), (1, 4), (4, 4)):
        put(lapic, R.APIC_TPR + offset, 0x55, size)
        assert get(lapic, R.APIC_TPR) == 0
    put(lapic, R.APIC_EOI, 0, 1)


def test_parts_of_a_register_can_be_read() -> None:
    lapic = one()
    put(lapic, R.APIC_LDR, 0x12000000)
    assert get(lapic, R.APIC_LDR + 3, 1) == 0x12
    assert get(lapic, R.APIC_LDR + 2, 2) == 0x1200
    assert get(lapic, R.APIC_LVR, 1) == 0x14
    assert get(lapic, R.APIC_LVR, 2) == 0x0014
    assert get(lapic, R.APIC_LVR + 2, 4) == 0
    assert get(lapic, R.APIC_LVR, 8) == 0


def test_other_addresses_are_not_its_own() -> None:
    lapic = one()
    for address in (APIC_DEFAULT_BASE - 4, APIC_DEFAULT_BASE + 0x1000, 0, 0xFEC00000):
        assert lapic.read(address, 4) is None
        assert not lapic.write(address, 4, 0)


def test_disabling_by_software_masks_every_lvt_and_drops_what_comes() -> None:
    lapic = one()
    put(lapic, R.APIC_LVT1, DM_NMI << 8)
    put(lapic, R.APIC_LVTT, 0x40)
    put(lapic, R.APIC_SVR, 0xFF)
    assert get(lapic, R.APIC_LVT1) == DM_NMI << 8 | MASKED
    assert get(lapic, R.APIC_LVTT) == 0x40 | MASKED
    assert inject(lapic, 0x40) == 0
    put(lapic, R.APIC_LVT1, DM_NMI << 8)
    assert get(lapic, R.APIC_LVT1) == DM_NMI << 8 | MASKED, "cannot be unmasked while disabled"
    put(lapic, R.APIC_SVR, 0x1FF)
    assert inject(lapic, 0x40) == 1


def test_what_was_pending_when_it_was_disabled_is_still_delivered() -> None:
    lapic = one()
    inject(lapic, 0x40)
    put(lapic, R.APIC_SVR, 0xFF)
    assert side_of(lapic).line
    assert lapic.ack() == 0x40


# IA32_APIC_BASE.


def test_moving_the_page() -> None:
    lapic = one()
    assert lapic.set_base(0xFEE00000 + 0x5000 | 0x900)
    assert lapic.read(APIC_DEFAULT_BASE + R.APIC_LVR, 4) is None
    assert lapic.read(0xFEE05000 + R.APIC_LVR, 4) == 0x50014


@pytest.mark.parametrize("bit", [0, 1, 7, 9, 10, 40, 63])
def test_reserved_bits_of_the_base_are_refused(bit: int) -> None:
    lapic = one()
    assert not lapic.set_base(0xFEE00900 | 1 << bit, reserved=-1 << 40 & (1 << 64) - 1)
    assert lapic.base_msr == 0xFEE00900


def test_writing_the_same_base_is_always_fine() -> None:
    lapic = one()
    assert lapic.set_base(0xFEE00900, reserved=(1 << 64) - 1)


def test_a_disabled_apic_takes_nothing_and_reads_as_ones() -> None:
    lapic = one()
    inject(lapic, 0x60)
    assert lapic.set_base(0xFEE00100)
    assert not side_of(lapic).line
    assert lapic.ack() == SPURIOUS
    assert inject(lapic, 0x61) == 0
    assert lapic.read(APIC_DEFAULT_BASE + R.APIC_LVR, 4) == 0xFFFFFFFF
    assert lapic.read(APIC_DEFAULT_BASE + R.APIC_LVR, 1) == 0xFF
    assert lapic.write(APIC_DEFAULT_BASE + R.APIC_TPR, 4, 0x50)
    assert lapic.tpr == 0
    assert lapic.accepts_pic, "the PICs are wired through"
    lapic.mmio_hole = False
    assert lapic.read(APIC_DEFAULT_BASE + R.APIC_LVR, 4) is None
    assert not lapic.write(APIC_DEFAULT_BASE + R.APIC_TPR, 4, 0x50)


def test_enabling_it_again_gives_the_id_back_and_what_was_pending() -> None:
    lapic = one()
    inject(lapic, 0x60)
    put(lapic, R.APIC_ID, 0x77000000)
    lapic.set_base(0xFEE00100)
    lapic.set_base(0xFEE00900)
    assert get(lapic, R.APIC_ID) == 0
    assert side_of(lapic).line
    assert lapic.ack() == 0x60


# Priorities.


def test_an_interrupt_from_injection_to_its_end() -> None:
    lapic = one()
    assert inject(lapic, 0x41) == 1
    assert side_of(lapic).line
    assert get(lapic, R.APIC_IRR + 0x20) == 1 << 1
    assert lapic.ack() == 0x41
    assert not side_of(lapic).line
    assert get(lapic, R.APIC_IRR + 0x20) == 0
    assert get(lapic, R.APIC_ISR + 0x20) == 1 << 1
    assert get(lapic, R.APIC_PPR) == 0x40
    put(lapic, R.APIC_EOI, 0)
    assert get(lapic, R.APIC_ISR + 0x20) == 0
    assert get(lapic, R.APIC_PPR) == 0


def test_the_same_class_waits_and_a_higher_one_does_not() -> None:
    lapic = one()
    inject(lapic, 0x41)
    assert lapic.ack() == 0x41
    inject(lapic, 0x4F)
    assert not side_of(lapic).line
    assert lapic.ack() == SPURIOUS
    inject(lapic, 0x50)
    assert side_of(lapic).line
    assert lapic.ack() == 0x50
    lapic.eoi()
    assert not side_of(lapic).line, "0x41 is still in service"
    lapic.eoi()
    assert side_of(lapic).line
    assert lapic.ack() == 0x4F


def test_the_highest_vector_is_first() -> None:
    lapic = one()
    for vector in (0x31, 0xFE, 0x80, 0x30):
        inject(lapic, vector)
    order = []
    while (vector := lapic.ack()) != SPURIOUS:
        order.append(vector)
        lapic.eoi()
    assert order == [0xFE, 0x80, 0x31, 0x30]


def test_an_edge_that_comes_again_while_in_service_is_delivered_once_more() -> None:
    lapic = one()
    inject(lapic, 0x41)
    lapic.ack()
    inject(lapic, 0x41)
    inject(lapic, 0x41)
    lapic.eoi()
    assert lapic.ack() == 0x41
    lapic.eoi()
    assert lapic.ack() == SPURIOUS


def test_the_task_priority_holds_interrupts_back() -> None:
    lapic = one()
    put(lapic, R.APIC_TPR, 0x40)
    inject(lapic, 0x4F)
    assert not side_of(lapic).line
    put(lapic, R.APIC_TPR, 0x3F)
    assert side_of(lapic).line
    assert get(lapic, R.APIC_PPR) == 0x3F
    put(lapic, R.APIC_TPR, 0xF0)
    assert not side_of(lapic).line


def test_cr8_and_the_task_priority_are_one() -> None:
    lapic = one()
    put(lapic, R.APIC_TPR, 0xA7)
    assert side_of(lapic).cr8 == 0xA
    assert lapic.cr8 == 0xA
    lapic.set_cr8(0x5)
    assert get(lapic, R.APIC_TPR) == 0x50
    inject(lapic, 0x5F)
    assert not side_of(lapic).line
    lapic.set_cr8(0)
    assert side_of(lapic).line


def test_the_processor_priority_is_the_greater_of_both() -> None:
    lapic = one()
    inject(lapic, 0x65)
    lapic.ack()
    put(lapic, R.APIC_TPR, 0x61)
    assert get(lapic, R.APIC_PPR) == 0x61, "the same class: the task priority with its low bits"
    put(lapic, R.APIC_TPR, 0x51)
    assert get(lapic, R.APIC_PPR) == 0x60


def test_vectors_below_16_are_never_delivered() -> None:
    lapic = one()
    assert inject(lapic, 15) == 1
    assert not side_of(lapic).line
    assert lapic.ack() == SPURIOUS


def test_an_end_without_an_interrupt_does_nothing() -> None:
    lapic = one()
    ended: list[int] = []
    lapic.bus.on_eoi = lambda lapic, vector, level: ended.append(vector)
    put(lapic, R.APIC_EOI, 0)
    assert ended == []


def test_who_is_told_of_an_end() -> None:
    lapic = one()
    ended: list[tuple[int, bool]] = []
    lapic.bus.on_eoi = lambda lapic, vector, level: ended.append((vector, level))
    lapic.bus.eoi_vectors = {0x51}
    for vector, level in ((0x50, False), (0x51, False), (0x52, True)):
        inject(lapic, vector, level=level)
        assert lapic.ack() == vector
        lapic.eoi()
    assert ended == [(0x51, False), (0x52, True)]


def test_the_trigger_mode_is_that_of_the_last_message() -> None:
    lapic = one()
    inject(lapic, 0x52, level=True)
    assert bits(lapic.tmr) == [0x52]
    assert get(lapic, R.APIC_TMR + 0x20) == 1 << 0x12
    inject(lapic, 0x52)
    assert lapic.tmr == 0


class Model:
    """Priorities as the manual's words have them, with sets."""

    def __init__(self) -> None:
        self.irr: set[int] = set()
        self.isr: set[int] = set()
        self.tpr = 0

    @property
    def ppr(self) -> int:
        isr = max(self.isr, default=0) & 0xF0
        return self.tpr if self.tpr >> 4 >= isr >> 4 else isr

    @property
    def deliverable(self) -> int | None:
        top = max(self.irr, default=0)
        return top if top >> 4 > self.ppr >> 4 else None


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_priorities_against_the_model(steps: list[tuple[str, int]]) -> None:
    lapic, model = one(), Model()
    for step, value in steps:
        if step == "inject":
            inject(lapic, value)
            model.irr.add(value)
        elif step == "ack":
            expected = model.deliverable
            assert lapic.ack() == (SPURIOUS if expected is None else expected)
            if expected is not None:
                model.irr.remove(expected)
                model.isr.add(expected)
        elif step == "eoi":
            put(lapic, R.APIC_EOI, 0)
            if model.isr:
                model.isr.remove(max(model.isr))
        else:
            put(lapic, R.APIC_TPR, value)
            model.tpr = value
        assert get(lapic, R.APIC_PPR) == model.ppr
        assert set(bits(lapic.irr)) == model.irr and set(bits(lapic.isr)) == model.isr
        assert side_of(lapic).line == (model.deliverable is not None)
