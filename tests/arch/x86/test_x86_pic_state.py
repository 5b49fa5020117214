# SPDX-License-Identifier: GPL-2.0-only
"""The 8259A pair: saved state, and random sequences against a model."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from x86_irq_rig import init_pics
from x86_pic_rig import Rig

from anykvm.arch.x86.apic_bus import ApicBus
from anykvm.arch.x86.lapic import SPURIOUS
from anykvm.arch.x86.pic import Pic, PicPair
from anykvm.uapi.x86_irqchip import KvmPicState


@pytest.fixture
def rig() -> Rig:
    rig = Rig()
    rig.open()
    return rig


# Saved state.


def test_the_state_is_the_kernels_structure(rig: Rig) -> None:
    rig.outb(0x4D1, 0x08)
    rig.outb(0xA1, 0x80)
    rig.pics.set_irq(11, 1)
    rig.cpu.ack()
    rig.pics.set_irq(14, 1)
    state = KvmPicState.from_buffer_copy(rig.pics.get_state(1))
    assert (state.irr, state.last_irr, state.isr, state.imr) == (0x48, 0x48, 0x08, 0x80)
    assert (state.irq_base, state.elcr, state.elcr_mask, state.init4) == (0x38, 0x08, 0xDE, 1)
    assert KvmPicState.from_buffer_copy(rig.pics.get_state(0)).elcr_mask == 0xF8


def test_a_state_moves_to_another_pair(rig: Rig) -> None:
    rig.pulse(12)
    rig.pulse(3)
    other = Rig()
    for index in (0, 1):
        other.pics.set_state(index, rig.pics.get_state(index) + bytes(496))
        assert other.pics.get_state(index) == rig.pics.get_state(index)
    assert other.line
    assert other.cpu.ack() == 0x3C
    other.eoi(12)
    assert other.cpu.ack() == 0x33


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=16, max_size=16))
def test_no_state_breaks_it(state: bytes) -> None:
    rig = Rig()
    rig.pics.set_state(0, state)
    expected = bytearray(state)
    expected[4] &= 7
    expected[0] &= 0xFF
    assert rig.pics.get_state(0)[4:] == bytes(expected[4:])
    for pin in range(16):
        rig.pics.set_irq(pin, 1)
        rig.pics.set_irq(pin, 0)
    rig.cpu.ack()
    rig.inb(0x20)
    rig.inb(0x21)
    rig.outb(0x21, 0)


@given(st.integers(0, 255), st.integers(0, 7))
def test_priority_against_counting(mask: int, first: int) -> None:
    pic = Pic(True)
    pic.priority_add = first
    order = [(first + step) & 7 for step in range(8)]
    expected = next((step for step, irq in enumerate(order) if mask >> irq & 1), 8)
    assert pic.priority(mask) == expected


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(["pulse", "mask"]), st.integers(0, 255)),
            st.tuples(st.sampled_from(["ack", "eoi"]), st.just(0)),
        ),
        max_size=40,
    )
)
def test_the_master_against_the_model(steps: list[tuple[str, int]]) -> None:
    rig = Rig()
    rig.open()
    requests: set[int] = set()
    serving: set[int] = set()
    mask = 0

    def deliverable() -> int | None:
        top = min((irq for irq in requests if not mask >> irq & 1), default=8)
        return top if top < min(serving, default=8) else None

    for step, value in steps:
        if step == "pulse":
            # Input 2 is the slave's.
            irq = value & 7 if value & 7 != 2 else 3
            rig.pulse(irq)
            requests.add(irq)
        elif step == "mask":
            mask = value
            rig.outb(0x21, value)
        elif step == "ack":
            expected = deliverable()
            assert rig.cpu.ack() == (SPURIOUS if expected is None else 0x30 + expected)
            if expected is not None:
                requests.remove(expected)
                serving.add(expected)
        elif serving:
            serving.remove(min(serving))
            rig.outb(0x20, 0x20)
        assert rig.line == (deliverable() is not None)


def test_a_pair_without_cpus_works_by_polling() -> None:
    pics = PicPair(ApicBus(threading.Lock()))
    init_pics(lambda port, value: pics.write(None, port, 1, value))
    pics.write(None, 0x21, 1, 0)
    assert pics.set_irq(1, 1) == 1
    assert pics.output
    pics.write(None, 0x20, 1, 0x0C)
    assert pics.read(None, 0x20, 1) == 1
    assert not pics.output
