# SPDX-License-Identifier: GPL-2.0-only
"""The IOAPIC: its registers, edges and levels, ends of interrupt, destinations."""

from __future__ import annotations

import pytest
from x86_ioapic_rig import Rig
from x86_irq_rig import bits, put, side_of

from anykvm.arch.x86 import lapic_regs as R
from anykvm.arch.x86.apic_bus import DM_INIT, DM_NMI
from anykvm.arch.x86.ioapic import (
    IOAPIC_DEFAULT_BASE,
    RTE_LEVEL,
    RTE_LOGICAL,
    RTE_MASKED,
    RTE_REMOTE_IRR,
)
from anykvm.arch.x86.lapic import SPURIOUS

LOWEST = 1 << 8


@pytest.fixture
def rig() -> Rig:
    return Rig()


# Registers.


def test_identification(rig: Rig) -> None:
    assert rig.read(1) == 0x00170011
    assert rig.read(0) == 0
    rig.write(0, 0xFF000000)
    assert rig.read(0) == rig.read(2) == 0x0F000000
    rig.write(1, 0)
    rig.write(2, 0)
    assert rig.read(1) == 0x00170011


def test_entries_are_masked_at_reset(rig: Rig) -> None:
    assert [rig.rte(pin) for pin in range(24)] == [RTE_MASKED] * 24


def test_beyond_the_last_entry(rig: Rig) -> None:
    before = rig.ioapic.get_state()
    for register in (0x40, 0x41, 0xFF):
        rig.write(register, 0)
        assert rig.read(register) == 0xFFFFFFFF
    assert rig.ioapic.get_state()[24:] == before[24:]
    for register in (3, 0xF):
        rig.write(register, 5)


def test_an_entry_keeps_what_is_written_but_the_read_only_bits(rig: Rig) -> None:
    rig.route(5, 0xFFFFFFFF, 0xFF)
    assert rig.rte(5) == 0xFF000000_FFFFFFFF & ~(1 << 12 | RTE_REMOTE_IRR)


def test_register_select_has_eight_bits(rig: Rig) -> None:
    rig.ioapic.write(None, IOAPIC_DEFAULT_BASE, 4, 0x101)
    assert rig.ioapic.read(None, IOAPIC_DEFAULT_BASE, 4) == 1


def test_widths_of_accesses(rig: Rig) -> None:
    rig.ioapic.write(None, IOAPIC_DEFAULT_BASE, 1, 1)
    assert rig.ioapic.read(None, IOAPIC_DEFAULT_BASE + 0x10, 1) == 0x11
    assert rig.ioapic.read(None, IOAPIC_DEFAULT_BASE + 0x10, 2) == 0x0011
    assert rig.ioapic.read(None, IOAPIC_DEFAULT_BASE + 0x10, 8) == 0x00170011
    assert rig.ioapic.read(None, IOAPIC_DEFAULT_BASE + 0x20, 4) == 0
    assert rig.ioapic.write(None, IOAPIC_DEFAULT_BASE + 0x40, 4, 0x50), "no EOI register in this version"


def test_outside_its_page_it_is_not_asked(rig: Rig) -> None:
    for address in (IOAPIC_DEFAULT_BASE - 1, IOAPIC_DEFAULT_BASE + 0x100):
        assert rig.ioapic.read(None, address, 4) is None
        assert not rig.ioapic.write(None, address, 4, 0)


# Edges.


def test_an_edge_is_one_interrupt(rig: Rig) -> None:
    rig.route(4, 0x34)
    assert rig.ioapic.set_irq(4, 1) == 1
    assert rig.ioapic.set_irq(4, 1) == 0, "it has not fallen yet"
    assert rig.take() == [0x34]
    assert rig.ioapic.set_irq(4, 0) == 1
    assert rig.take() == []
    assert rig.ioapic.set_irq(4, 1) == 1
    assert rig.take() == [0x34]
    assert rig.cpu.tmr == 0


def test_edges_at_a_masked_pin_are_lost(rig: Rig) -> None:
    rig.route(4, 0x34 | RTE_MASKED)
    assert rig.ioapic.set_irq(4, 1) == -1
    rig.ioapic.set_irq(4, 0)
    rig.route(4, 0x34)
    assert rig.take() == []


def test_an_edge_that_is_still_high_when_unmasked_is_not_an_edge(rig: Rig) -> None:
    rig.route(4, 0x34 | RTE_MASKED)
    rig.ioapic.set_irq(4, 1)
    rig.route(4, 0x34)
    assert rig.take() == []


def test_polarity_is_ignored(rig: Rig) -> None:
    rig.route(4, 0x34 | 1 << 13)
    assert rig.ioapic.set_irq(4, 1) == 1
    assert rig.take() == [0x34]


# Levels.


def test_a_level_stays_until_it_falls(rig: Rig) -> None:
    rig.route(9, 0x39 | RTE_LEVEL)
    assert rig.ioapic.set_irq(9, 1) == 1
    assert rig.rte(9) & RTE_REMOTE_IRR
    assert bits(rig.cpu.tmr) == [0x39]
    for _ in range(3):
        assert rig.cpu.ack() == 0x39
        assert rig.ioapic.set_irq(9, 1) == -1, "it waits for the end of interrupt"
        rig.cpu.eoi()
        assert rig.rte(9) & RTE_REMOTE_IRR, "sent again"
    assert rig.cpu.ack() == 0x39
    rig.ioapic.set_irq(9, 0)
    rig.cpu.eoi()
    assert not rig.rte(9) & RTE_REMOTE_IRR
    assert rig.cpu.ack() == SPURIOUS


def test_a_level_that_falls_before_it_was_taken_is_still_one_interrupt(rig: Rig) -> None:
    rig.route(9, 0x39 | RTE_LEVEL)
    rig.ioapic.set_irq(9, 1)
    rig.ioapic.set_irq(9, 0)
    assert rig.take() == [0x39]


def test_a_level_at_a_masked_pin_waits(rig: Rig) -> None:
    rig.route(9, 0x39 | RTE_LEVEL | RTE_MASKED)
    assert rig.ioapic.set_irq(9, 1) == -1
    assert rig.take() == []
    rig.write(0x10 + 18, 0x39 | RTE_LEVEL)
    assert rig.cpu.ack() == 0x39


def test_a_pin_masked_in_service_is_not_sent_again_until_unmasked(rig: Rig) -> None:
    rig.route(9, 0x39 | RTE_LEVEL)
    rig.ioapic.set_irq(9, 1)
    rig.cpu.ack()
    rig.write(0x10 + 18, 0x39 | RTE_LEVEL | RTE_MASKED)
    rig.cpu.eoi()
    assert rig.cpu.ack() == SPURIOUS
    assert not rig.rte(9) & RTE_REMOTE_IRR
    rig.write(0x10 + 18, 0x39 | RTE_LEVEL)
    assert rig.cpu.ack() == 0x39


def test_turning_an_entry_to_edge_ends_its_interrupt_by_hand(rig: Rig) -> None:
    rig.route(9, 0x39 | RTE_LEVEL)
    rig.ioapic.set_irq(9, 1)
    rig.cpu.ack()
    rig.write(0x10 + 18, 0x39 | RTE_MASKED)
    assert not rig.rte(9) & RTE_REMOTE_IRR
    rig.ioapic.set_irq(9, 0)
    rig.write(0x10 + 18, 0x39 | RTE_LEVEL)
    rig.ioapic.set_irq(9, 1)
    rig.cpu.eoi()
    assert rig.cpu.ack() == 0x39


def test_the_end_of_another_vector_changes_nothing(rig: Rig) -> None:
    rig.route(9, 0x39 | RTE_LEVEL)
    rig.route(10, 0x3A | RTE_LEVEL)
    rig.ioapic.set_irq(9, 1)
    rig.ioapic.set_irq(10, 1)
    assert rig.cpu.ack() == 0x3A
    rig.ioapic.set_irq(10, 0)
    rig.cpu.eoi()
    assert rig.rte(9) & RTE_REMOTE_IRR
    assert not rig.rte(10) & RTE_REMOTE_IRR
    assert rig.cpu.ack() == 0x39


def test_pins_that_share_a_vector_end_together(rig: Rig) -> None:
    rig.route(9, 0x39 | RTE_LEVEL)
    rig.route(10, 0x39 | RTE_LEVEL)
    rig.ioapic.set_irq(9, 1)
    rig.ioapic.set_irq(10, 1)
    assert rig.cpu.ack() == 0x39
    rig.ioapic.set_irq(9, 0)
    rig.cpu.eoi()
    assert not rig.rte(9) & RTE_REMOTE_IRR
    assert rig.rte(10) & RTE_REMOTE_IRR
    assert rig.cpu.ack() == 0x39


def test_a_level_nobody_takes_is_not_waited_for() -> None:
    rig = Rig()
    put(rig.cpu, R.APIC_SVR, 0xFF)
    rig.route(9, 0x39 | RTE_LEVEL)
    assert rig.ioapic.set_irq(9, 1) == 0
    assert not rig.rte(9) & RTE_REMOTE_IRR
    put(rig.cpu, R.APIC_SVR, 0x1FF)
    assert rig.ioapic.set_irq(9, 1) == 1


# Where it goes.


def test_physical_and_logical_destinations() -> None:
    rig = Rig(3)
    for index, lapic in enumerate(rig.lapics):
        put(lapic, R.APIC_LDR, 1 << 24 + index)
    rig.route(1, 0x31, dest=2)
    rig.route(2, 0x32 | RTE_LOGICAL, dest=0b011)
    rig.route(3, 0x33, dest=0xFF)
    assert [rig.ioapic.set_irq(pin, 1) for pin in (1, 2, 3)] == [1, 2, 3]
    assert [bits(lapic.irr) for lapic in rig.lapics] == [[0x32, 0x33], [0x32, 0x33], [0x31, 0x33]]


def test_lowest_priority_goes_to_one() -> None:
    rig = Rig(2)
    for index, lapic in enumerate(rig.lapics):
        put(lapic, R.APIC_LDR, 1 << 24 + index)
    rig.route(1, 0x31 | RTE_LOGICAL | LOWEST, dest=3)
    assert rig.ioapic.set_irq(1, 1) == 1
    assert sum(bool(lapic.irr) for lapic in rig.lapics) == 1


def test_nmi_and_init_modes() -> None:
    rig = Rig(2)
    rig.route(1, DM_NMI << 8, dest=1)
    rig.ioapic.set_irq(1, 1)
    assert side_of(rig.lapics[1]).nmis == 1
    rig.route(2, DM_INIT << 8, dest=1)
    rig.ioapic.set_irq(2, 1)
    assert rig.lapics[1].pending_events


def test_a_level_sent_to_another_cpu_is_ended_by_that_one() -> None:
    rig = Rig(2)
    rig.route(9, 0x39 | RTE_LEVEL, dest=1)
    rig.ioapic.set_irq(9, 1)
    assert rig.lapics[0].ack() == SPURIOUS
    assert rig.lapics[1].ack() == 0x39
    rig.write(0x11 + 18, 0)
    rig.lapics[1].eoi()
    assert rig.lapics[0].ack() == 0x39, "the destination moved meanwhile"


# Whoever wants to know the end.


def test_ends_are_told_for_edges_and_levels_if_anyone_wants_to_know(rig: Rig) -> None:
    rig.notifiers |= {4, 9}
    for pin, low in ((4, 0x34), (5, 0x35), (9, 0x39 | RTE_LEVEL)):
        rig.route(pin, low)
        rig.ioapic.set_irq(pin, 1)
        rig.ioapic.set_irq(pin, 0)
    assert rig.take() == [0x39, 0x35, 0x34]
    assert rig.notified == [9, 4]


def test_a_device_that_raises_its_line_when_told_gets_one_more_interrupt(rig: Rig) -> None:
    rig.notifiers.add(9)
    rig.route(9, 0x39 | RTE_LEVEL)
    left = [2]

    def resample(pin: int) -> None:
        rig.ioapic.set_irq(pin, 0)
        if left[0]:
            left[0] -= 1
            rig.ioapic.set_irq(pin, 1)

    rig.on_notify = resample
    rig.ioapic.set_irq(9, 1)
    assert rig.take() == [0x39] * 3
    assert not rig.rte(9) & RTE_REMOTE_IRR


def test_unmasking_a_pin_that_is_high_asks_its_owner_first(rig: Rig) -> None:
    rig.notifiers.add(9)
    rig.route(9, 0x39 | RTE_LEVEL | RTE_MASKED)
    rig.ioapic.set_irq(9, 1)
    rig.on_notify = lambda pin: rig.ioapic.set_irq(pin, 0)  # type: ignore[assignment,return-value]
    rig.write(0x10 + 18, 0x39 | RTE_LEVEL)
    assert rig.notified == [9]
    assert rig.take() == [], "the device had lowered it"


def test_who_unmasks_is_told(rig: Rig) -> None:
    rig.route(2, 0x32)
    rig.route(2, 0x32 | RTE_MASKED)
    rig.route(3, 0x33 | RTE_MASKED)
    assert rig.unmasked == [2]
