# SPDX-License-Identifier: GPL-2.0-only
"""The 8259A pair: initialisation as Linux does it, priorities, ends of interrupt, cascade, LINT0."""

from __future__ import annotations

import pytest
from x86_irq_rig import init_pics, put, side_of
from x86_pic_rig import Rig

from anykvm.arch.x86 import lapic_regs as R
from anykvm.arch.x86.apic_bus import DM_EXTINT
from anykvm.arch.x86.lapic import SPURIOUS


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.open()
    return rig


def test_initialisation_as_linux_does_it() -> None:
    rig = Rig()
    init_pics(rig.outb)
    assert (rig.inb(0x21), rig.inb(0xA1)) == (0xFB, 0xFF)
    assert (rig.pics.master.irq_base, rig.pics.slave.irq_base) == (0x30, 0x38)
    assert (rig.pics.master.init_state, rig.pics.slave.init_state) == (0, 0)
    assert rig.unmasked == [], "ICW1 had opened the mask: input 2 is the one that stays open"
    assert not rig.line


def test_initialisation_without_icw4_clears_what_icw4_sets() -> None:
    rig = Rig()
    init_pics(rig.outb, auto_eoi=True)
    assert rig.pics.master.auto_eoi == 1
    rig.outb(0x20, 0x10)
    rig.outb(0x21, 0x20)
    rig.outb(0x21, 4)
    assert (rig.pics.master.auto_eoi, rig.pics.master.init_state) == (0, 0)
    rig.outb(0x21, 0x55)
    assert rig.inb(0x21) == 0x55, "the next byte is the mask"


def test_icw1_unmasks_everything_and_forgets_edges_but_not_levels(rig: Rig) -> None:
    rig.outb(0x4D0, 0x20)
    rig.outb(0x21, 0xFF)
    rig.pulse(3)
    rig.pics.set_irq(5, 1)
    assert rig.inb(0x20) == 0x28
    rig.outb(0x20, 0x11)
    assert rig.inb(0x20) == 0x20
    assert rig.pics.master.imr == 0
    assert rig.ended == [3], "whoever waits for its end need not wait"


# One interrupt.


def test_an_edge_from_the_pin_to_its_end(rig: Rig) -> None:
    assert rig.pics.set_irq(4, 1) == 1
    assert rig.line
    assert rig.inb(0x20) == 0x10
    assert rig.cpu.ack() == 0x34
    assert not rig.line
    rig.outb(0x20, 0x0B)
    assert rig.inb(0x20) == 0x10, "in service"
    rig.outb(0x20, 0x0A)
    assert rig.inb(0x20) == 0, "no request any more"
    rig.eoi(4)
    assert rig.ended == [4]
    assert not rig.line, "the line is still high, but that is no edge"
    rig.pics.set_irq(4, 0)
    rig.pics.set_irq(4, 1)
    assert rig.line


def test_an_edge_is_remembered_while_it_is_masked(rig: Rig) -> None:
    rig.outb(0x21, 0xFF)
    assert rig.pulse(4) == -1
    assert not rig.line
    rig.outb(0x21, 0xEF)
    assert rig.line
    assert rig.unmasked == [4]
    assert rig.cpu.ack() == 0x34


def test_two_edges_before_the_acknowledgement_are_one(rig: Rig) -> None:
    assert rig.pulse(4) == 1
    assert rig.pulse(4) == 0
    assert rig.cpu.ack() == 0x34
    rig.eoi(4)
    assert not rig.line


def test_a_level_comes_again_until_it_falls(rig: Rig) -> None:
    rig.outb(0x4D0, 0x20)
    rig.pics.set_irq(5, 1)
    for _ in range(3):
        assert rig.cpu.ack() == 0x35
        assert not rig.line
        rig.eoi(5)
        assert rig.line
    rig.pics.set_irq(5, 0)
    assert not rig.line


def test_a_level_lowered_when_the_end_is_told_does_not_come_again(rig: Rig) -> None:
    rig.outb(0x4D0, 0x20)
    rig.on_end = lambda pin: rig.pics.set_irq(pin, 0)
    rig.pics.set_irq(5, 1)
    assert rig.cpu.ack() == 0x35
    changes = side_of(rig.cpu).changes
    rig.eoi(5)
    assert not rig.line
    assert side_of(rig.cpu).changes == changes, "not even for a moment"


def test_elcr_has_only_the_inputs_that_may_be_levels(rig: Rig) -> None:
    rig.outb(0x4D0, 0xFF)
    rig.outb(0x4D1, 0xFF)
    assert (rig.inb(0x4D0), rig.inb(0x4D1)) == (0xF8, 0xDE)


def test_a_request_that_goes_away_is_spurious(rig: Rig) -> None:
    rig.outb(0x4D0, 0x20)
    rig.pics.set_irq(5, 1)
    rig.pics.set_irq(5, 0)
    assert rig.cpu.ack() == SPURIOUS, "the line has fallen: there is nothing to deliver"
    with rig.bus.lock:
        assert rig.pics.acknowledge() == (0x37, 0), "a CPU that has begun gets the spurious vector"
    assert rig.pics.master.isr == 0


# Priorities.


def test_lower_numbers_are_first(rig: Rig) -> None:
    for pin in (7, 1, 4, 0):
        rig.pulse(pin)
    order = []
    while rig.line:
        vector = rig.cpu.ack()
        order.append(vector - 0x30)
        rig.eoi(vector - 0x30)
    assert order == [0, 1, 4, 7]


def test_a_higher_one_interrupts_a_lower_one(rig: Rig) -> None:
    rig.pulse(4)
    assert rig.cpu.ack() == 0x34
    rig.pulse(6)
    assert not rig.line
    rig.pulse(1)
    assert rig.line
    assert rig.cpu.ack() == 0x31
    rig.outb(0x20, 0x20)
    assert rig.ended == [1], "an end that names none means the highest in service"
    assert not rig.line
    rig.outb(0x20, 0x20)
    assert rig.ended == [1, 4]
    assert rig.cpu.ack() == 0x36


def test_an_end_with_nothing_in_service(rig: Rig) -> None:
    rig.outb(0x20, 0x20)
    assert rig.ended == []


def test_rotation_on_end_of_interrupt(rig: Rig) -> None:
    rig.pulse(2 + 1)
    assert rig.cpu.ack() == 0x33
    rig.outb(0x20, 0xA0)
    assert rig.pics.master.priority_add == 4
    rig.pulse(0)
    rig.pulse(5)
    assert rig.cpu.ack() == 0x35, "4 is the highest now, 3 the lowest"


def test_specific_rotation_and_set_priority(rig: Rig) -> None:
    rig.outb(0x20, 0xC0 | 4)
    assert rig.pics.master.priority_add == 5
    rig.pulse(5)
    assert rig.cpu.ack() == 0x35
    rig.outb(0x20, 0xE0 | 5)
    assert rig.pics.master.priority_add == 6
    assert rig.pics.master.isr == 0 and rig.ended == [5]


def test_no_operation(rig: Rig) -> None:
    before = rig.pics.get_state(0)
    rig.outb(0x20, 0x40)
    assert rig.pics.get_state(0) == before


def test_special_mask_lets_lower_ones_through(rig: Rig) -> None:
    rig.pulse(1)
    assert rig.cpu.ack() == 0x31
    rig.outb(0x21, 0x02)
    rig.pulse(6)
    assert not rig.line
    rig.outb(0x20, 0x68)
    rig.outb(0x21, 0x02)
    assert rig.line
    assert rig.cpu.ack() == 0x36
    rig.outb(0x20, 0x48)
    assert rig.pics.master.special_mask == 0


# Cascade.


def test_the_slave_comes_through_input_2(rig: Rig) -> None:
    rig.pulse(12)
    assert rig.line
    assert rig.cpu.ack() == 0x3C
    assert (rig.pics.master.isr, rig.pics.slave.isr) == (1 << 2, 1 << 4)
    rig.pulse(14)
    rig.pulse(3)
    assert not rig.line
    rig.pulse(1)
    assert rig.cpu.ack() == 0x31
    rig.eoi(1)
    rig.eoi(12)
    assert rig.ended == [1, 12, 2]
    assert rig.cpu.ack() == 0x3E
    rig.eoi(14)
    assert rig.cpu.ack() == 0x33


def test_without_the_cascade_there_is_no_slave(rig: Rig) -> None:
    rig.outb(0x21, 0x04)
    rig.pulse(12)
    assert not rig.line
    rig.outb(0x21, 0)
    assert rig.cpu.ack() == 0x3C


def test_a_slave_request_that_goes_away_is_spurious_there(rig: Rig) -> None:
    rig.outb(0x4D1, 0x10)
    rig.pics.set_irq(12, 1)
    rig.pics.set_irq(12, 0)
    assert rig.line, "the master has latched it"
    assert rig.cpu.ack() == 0x3F
    assert (rig.pics.master.isr, rig.pics.slave.isr) == (1 << 2, 0)


def test_special_fully_nested_mode_lets_a_higher_one_of_the_slave_through() -> None:
    rig = Rig()
    rig.outb(0x20, 0x11)
    rig.outb(0x21, 0x30)
    rig.outb(0x21, 4)
    rig.outb(0x21, 0x11)
    rig.outb(0xA0, 0x11)
    rig.outb(0xA1, 0x38)
    rig.outb(0xA1, 2)
    rig.outb(0xA1, 1)
    rig.pulse(12)
    assert rig.cpu.ack() == 0x3C
    rig.pulse(9)
    assert rig.cpu.ack() == 0x39


# Automatic end, poll.


def test_automatic_end_of_interrupt() -> None:
    rig = Rig()
    rig.open(auto_eoi=True)
    rig.pulse(4)
    assert rig.cpu.ack() == 0x34
    assert rig.pics.master.isr == 0
    assert rig.ended == [4]
    rig.pulse(6)
    assert rig.cpu.ack() == 0x36


def test_automatic_rotation() -> None:
    rig = Rig()
    rig.open(auto_eoi=True)
    rig.outb(0x20, 0x80)
    rig.pulse(4)
    rig.cpu.ack()
    assert rig.pics.master.priority_add == 5
    rig.outb(0x20, 0x00)
    rig.pulse(6)
    rig.cpu.ack()
    assert rig.pics.master.priority_add == 5


def test_poll_takes_and_ends_in_one(rig: Rig) -> None:
    rig.pulse(6)
    rig.pulse(3)
    rig.outb(0x20, 0x0C)
    assert rig.inb(0x20) == 3
    assert rig.ended == [3]
    assert rig.line, "6 is still there"
    rig.outb(0x20, 0x0C)
    assert rig.inb(0x21) == 6
    rig.outb(0x20, 0x0C)
    assert rig.inb(0x20) == 7, "nothing there"
    assert not rig.line


def test_poll_of_the_slave_withdraws_the_cascade(rig: Rig) -> None:
    rig.pulse(12)
    rig.outb(0xA0, 0x0C)
    assert rig.inb(0xA0) == 4
    assert rig.ended == [12]
    assert not rig.line


# Ports.


def test_only_bytes_count(rig: Rig) -> None:
    assert rig.pics.write(None, 0x21, 2, 0xFFFF)
    assert rig.inb(0x21) == 0
    assert rig.pics.read(None, 0x21, 2) == 0
    rig.outb(0x21, 0xFF)
    assert rig.pics.read(None, 0x21, 4) == 0


# LINT0.


def test_the_output_reaches_every_cpu_whose_lint0_is_open() -> None:
    rig = Rig(2)
    rig.open()
    put(rig.lapics[1], R.APIC_SVR, 0x1FF)
    rig.pulse(0)
    assert [side_of(lapic).line for lapic in rig.lapics] == [True, False]
    put(rig.lapics[1], R.APIC_LVT0, DM_EXTINT << 8)
    assert [side_of(lapic).line for lapic in rig.lapics] == [True, True]
    assert rig.lapics[1].ack() == 0x30
    assert [side_of(lapic).line for lapic in rig.lapics] == [False, False]
    assert rig.lapics[0].ack() == SPURIOUS


def test_masking_lint0_as_linux_does_when_it_uses_the_ioapic(rig: Rig) -> None:
    put(rig.cpu, R.APIC_SVR, 0x1FF)
    put(rig.cpu, R.APIC_LVT0, 0x10000 | DM_EXTINT << 8)
    rig.pulse(0)
    assert not rig.line
    assert rig.bus.pic_takers == []
    assert rig.cpu.ack() == SPURIOUS


def test_the_task_priority_does_not_hold_the_pics_back(rig: Rig) -> None:
    rig.cpu.set_cr8(15)
    rig.pulse(0)
    assert rig.line
    assert rig.cpu.ack() == 0x30
