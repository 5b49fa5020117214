# SPDX-License-Identifier: GPL-2.0-only
"""The IOAPIC: saved state, and random sequences against a model."""

from __future__ import annotations

import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from x86_ioapic_rig import Rig
from x86_irq_rig import bits

from anykvm.arch.x86.apic_bus import ApicBus
from anykvm.arch.x86.ioapic import (
    IOAPIC_DEFAULT_BASE,
    IOAPIC_STATE_SIZE,
    RTE_LEVEL,
    RTE_MASKED,
    RTE_REMOTE_IRR,
    Ioapic,
)
from anykvm.arch.x86.lapic import SPURIOUS
from anykvm.uapi.x86_irqchip import KvmIoapicState


@pytest.fixture
def rig() -> Rig:
    return Rig()


# Saved state.


def test_the_state_is_the_kernels_structure(rig: Rig) -> None:
    rig.write(0, 0x05000000)
    rig.route(9, 0x39 | RTE_LEVEL, dest=3)
    rig.ioapic.set_irq(7, 1)
    state = KvmIoapicState.from_buffer_copy(rig.ioapic.get_state())
    assert IOAPIC_STATE_SIZE == 216
    assert (state.base_address, state.id, state.irr, state.pad) == (IOAPIC_DEFAULT_BASE, 5, 1 << 7, 0)
    entry = state.redirtbl[9].fields
    assert (entry.vector, entry.trig_mode, entry.mask, entry.dest_id) == (0x39, 1, 0, 3)
    assert state.redirtbl[8].bits == RTE_MASKED


def test_an_edge_that_was_delivered_is_not_pending(rig: Rig) -> None:
    rig.route(4, 0x34)
    rig.ioapic.set_irq(4, 1)
    rig.ioapic.set_irq(5, 1)
    assert struct.unpack_from("<I", rig.ioapic.get_state(), 16)[0] == 1 << 5


def test_a_restored_level_is_sent(rig: Rig) -> None:
    rig.route(9, 0x39 | RTE_LEVEL | RTE_MASKED)
    rig.ioapic.set_irq(9, 1)
    state = bytearray(rig.ioapic.get_state())
    struct.pack_into("<Q", state, 24 + 9 * 8, 0x39 | RTE_LEVEL)
    other = Rig()
    other.ioapic.set_state(bytes(state))
    assert other.cpu.ack() == 0x39
    assert other.rte(9) & RTE_REMOTE_IRR
    other.ioapic.set_irq(9, 0)
    other.cpu.eoi()
    assert other.cpu.ack() == SPURIOUS


def test_a_level_in_service_is_not_sent_twice(rig: Rig) -> None:
    rig.route(9, 0x39 | RTE_LEVEL)
    rig.ioapic.set_irq(9, 1)
    rig.cpu.ack()
    other = Rig()
    other.cpu.set_state(rig.cpu.get_state())
    other.ioapic.set_state(rig.ioapic.get_state())
    assert other.cpu.ack() == SPURIOUS
    other.cpu.eoi()
    assert other.cpu.ack() == 0x39


def test_a_state_that_moves_it_away(rig: Rig) -> None:
    state = bytearray(rig.ioapic.get_state())
    struct.pack_into("<Q", state, 0, 0xFEC10000)
    rig.ioapic.set_state(bytes(state))
    assert rig.ioapic.read(None, IOAPIC_DEFAULT_BASE, 4) is None
    assert rig.ioapic.read(None, 0xFEC10000, 4) == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, (1 << 64) - 1), min_size=24, max_size=24),
    st.integers(0, 255),
    st.integers(0, 15),
)
def test_any_table_round_trips(table: list[int], select: int, apic_id: int) -> None:
    state = struct.pack("<QIIII24Q", IOAPIC_DEFAULT_BASE, select, apic_id, 0, 0, *table)
    ioapic = Ioapic(ApicBus(threading.Lock()))
    ioapic.set_state(state)
    assert ioapic.get_state() == state


# Against a model.


class Pin:
    """One pin in words: is the line high, does a message wait for its end."""

    def __init__(self, level: bool) -> None:
        self.level = level
        self.high = False
        self.masked = False
        self.waits = False

    def sends(self) -> bool:
        return self.high and not self.masked and not self.waits


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.booleans(), min_size=4, max_size=4),
    st.lists(st.tuples(st.sampled_from(["raise", "lower", "mask", "unmask", "serve"]), st.integers(0, 3)), max_size=50),
)
def test_pins_against_the_model(levels: list[bool], steps: list[tuple[str, int]]) -> None:
    rig = Rig()
    model = [Pin(level) for level in levels]
    pending: set[int] = set()

    def low(pin: int) -> int:
        return 0x40 + 16 * pin | levels[pin] * RTE_LEVEL

    for pin in range(4):
        rig.route(pin, low(pin))

    def settle(pin: int) -> None:
        if model[pin].level and model[pin].sends():
            model[pin].waits = True
            pending.add(pin)

    for step, pin in steps:
        state = model[pin]
        if step == "raise":
            if not state.level and not state.high and not state.masked:
                pending.add(pin)
            state.high = True
            rig.ioapic.set_irq(pin, 1)
        elif step == "lower":
            state.high = False
            rig.ioapic.set_irq(pin, 0)
        elif step in ("mask", "unmask"):
            state.masked = step == "mask"
            rig.write(0x10 + pin * 2, low(pin) | state.masked * RTE_MASKED)
        else:
            top = max(pending, default=None)
            assert rig.cpu.ack() == (SPURIOUS if top is None else 0x40 + 16 * top)
            if top is not None:
                pending.discard(top)
                rig.cpu.eoi()
                model[top].waits = False
                settle(top)
        settle(pin)
        assert bits(rig.cpu.irr) == [0x40 + 16 * pin for pin in sorted(pending)]
        for index, expected in enumerate(model):
            assert bool(rig.rte(index) & RTE_REMOTE_IRR) == expected.waits
