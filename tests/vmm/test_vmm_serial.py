# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import threading
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anykvm.vmm import serial
from anykvm.vmm.serial import Pl011


class Wires:
    def __init__(self) -> None:
        self.levels: list[bool] = []
        self.wakes = 0
        self.now = 50.0
        self.uart = Pl011(self.levels.append, self._wake, lambda: self.now)

    def _wake(self) -> None:
        self.wakes += 1

    @property
    def irq(self) -> bool:
        return bool(self.levels) and self.levels[-1]

    def write(self, offset: int, value: int) -> None:
        self.uart.write(offset, 4, value)

    def read(self, offset: int) -> int:
        return self.uart.read(offset, 4)

    def listen(self) -> None:
        self.write(serial.LCR_H, serial.LCR_H_FEN)
        self.write(serial.IMSC, serial.INT_RX | serial.INT_RT)
        self.settle()

    def settle(self) -> None:
        self.now += 1
        assert self.uart.deliver() is None


@pytest.fixture
def wires() -> Wires:
    return Wires()


def test_the_identification_is_that_of_a_pl011_r1p5(wires: Wires) -> None:
    values = [wires.read(serial.PERIPH_ID + 4 * index) for index in range(8)]
    assert values[0] | values[1] << 8 | values[2] << 16 == 0x341011
    assert values[4:] == [0x0D, 0xF0, 0x05, 0xB1]
    assert wires.read(0xFFC + 4) == 0


def test_output_is_taken_in_chunks_and_wakes_once_each(wires: Wires) -> None:
    for byte in b"hello":
        wires.write(serial.DR, byte)
    assert wires.wakes == 1
    assert wires.uart.take() == b"hello"
    assert wires.uart.take() == b""
    wires.write(serial.DR, ord("!") | 0xFF00)
    assert (wires.wakes, wires.uart.take()) == (2, b"!")


def test_the_transmit_interrupt_comes_with_the_first_character_and_is_cleared(wires: Wires) -> None:
    wires.write(serial.IMSC, serial.INT_TX)
    assert not wires.irq
    wires.write(serial.DR, 65)
    assert wires.irq
    assert wires.read(serial.MIS) == serial.INT_TX
    wires.write(serial.ICR, serial.INT_TX)
    assert not wires.irq
    wires.write(serial.DR, 66)
    assert wires.irq
    wires.write(serial.IMSC, 0)
    assert not wires.irq
    assert wires.read(serial.RIS) == serial.INT_TX


def test_nobody_reads_the_output_and_the_fifo_is_full(wires: Wires) -> None:
    assert wires.read(serial.FR) & serial.FR_TXFE
    for _ in range(serial.OUTPUT_LIMIT + 10_000):
        wires.write(serial.DR, 65)
    assert wires.read(serial.FR) & serial.FR_TXFF
    assert not wires.read(serial.FR) & serial.FR_TXFE
    # A bound, whatever the guest does.
    assert serial.OUTPUT_LIMIT <= len(wires.uart.take()) <= serial.OUTPUT_LIMIT + 4096
    assert wires.read(serial.FR) & serial.FR_TXFE


def test_the_transmit_interrupt_returns_when_a_full_fifo_was_emptied(wires: Wires) -> None:
    wires.write(serial.IMSC, serial.INT_TX)
    for _ in range(serial.OUTPUT_LIMIT):
        wires.write(serial.DR, 65)
    wires.write(serial.ICR, serial.INT_TX)
    wires.write(serial.DR, 65)
    assert not wires.irq
    wires.uart.take()
    assert wires.irq


def test_looking_at_a_full_fifo_sleeps_until_there_is_room(wires: Wires) -> None:
    for _ in range(serial.OUTPUT_LIMIT):
        wires.write(serial.DR, 65)
    before = time.thread_time()
    for _ in range(5):
        assert wires.read(serial.FR) & serial.FR_TXFF
    assert time.thread_time() - before < 0.04
    taker = threading.Timer(0.005, wires.uart.take)
    taker.start()
    deadline = time.monotonic() + 5
    while wires.read(serial.FR) & serial.FR_TXFF:
        assert time.monotonic() < deadline
    taker.join()


def test_input_waits_until_the_driver_listens(wires: Wires) -> None:
    wires.uart.receive(b"early")
    assert wires.read(serial.FR) & serial.FR_RXFE
    # Linux empties the FIFO when it opens the port.
    for _ in range(64):
        wires.read(serial.DR)
    wires.listen()
    assert wires.irq
    assert not wires.read(serial.FR) & serial.FR_RXFE
    assert bytes(wires.read(serial.DR) for _ in range(5)) == b"early"
    assert wires.read(serial.FR) & serial.FR_RXFE
    assert not wires.irq


def test_a_driver_that_listens_for_a_moment_only_gets_nothing(wires: Wires) -> None:
    wires.uart.receive(b"kept")
    wires.write(serial.IMSC, serial.INT_RX | serial.INT_RT)
    delay = wires.uart.deliver()
    assert delay is not None and 0 < delay < 0.1
    assert wires.read(serial.FR) & serial.FR_RXFE
    assert not wires.irq
    wires.write(serial.IMSC, 0)
    assert wires.uart.deliver() is None
    wires.now += 10
    wires.listen()
    assert bytes(wires.read(serial.DR) for _ in range(4)) == b"kept"


def test_one_character_interrupts_at_once_and_many_reach_the_trigger(wires: Wires) -> None:
    wires.listen()
    wires.uart.receive(b"x")
    assert wires.read(serial.MIS) == serial.INT_RT
    wires.uart.receive(b"y" * 15)
    assert wires.read(serial.MIS) == serial.INT_RT | serial.INT_RX
    for _ in range(16):
        wires.read(serial.DR)
    assert wires.read(serial.RIS) & (serial.INT_RT | serial.INT_RX) == 0


def test_the_receive_fifo_is_32_deep_and_refills(wires: Wires) -> None:
    wires.listen()
    data = bytes(range(256)) * 4
    wires.uart.receive(data)
    assert wires.read(serial.FR) & serial.FR_RXFF
    assert bytes(wires.read(serial.DR) for _ in range(len(data))) == data
    assert not wires.irq


def test_without_fifos_one_character_fits(wires: Wires) -> None:
    wires.write(serial.IMSC, serial.INT_RX)
    wires.settle()
    wires.uart.receive(b"ab")
    assert wires.read(serial.FR) & serial.FR_RXFF
    assert wires.read(serial.RIS) & serial.INT_RX
    assert (wires.read(serial.DR), wires.read(serial.DR)) == (97, 98)
    assert not wires.read(serial.RIS) & serial.INT_RX


def test_a_throttled_driver_gets_nothing_until_it_listens_again(wires: Wires) -> None:
    wires.listen()
    wires.write(serial.IMSC, 0)
    wires.uart.receive(b"z" * 100)
    assert wires.read(serial.FR) & serial.FR_RXFE
    wires.listen()
    assert wires.read(serial.DR) == ord("z")


def test_no_more_input_is_wanted_than_there_is_room(wires: Wires) -> None:
    wires.uart.receive(bytes(serial.INPUT_LIMIT))
    assert wires.uart.room() == 0
    before = wires.wakes
    wires.listen()
    assert wires.uart.room() == 32
    assert wires.wakes == before + 2  # whoever waits for room hears of it, and that the driver listens
    assert wires.uart.waiting() == serial.INPUT_LIMIT


def test_registers_keep_what_fits_them(wires: Wires) -> None:
    for offset, value in ((serial.IBRD, 0xFFFF), (serial.FBRD, 0x3F), (serial.LCR_H, 0xFF), (serial.CR, 0xFF87)):
        wires.write(offset, 0xFFFFFFFF)
        assert wires.read(offset) == value
    assert wires.read(serial.RSR) == 0


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 0x1000), st.integers(0, (1 << 64) - 1), st.sampled_from((1, 2, 4, 8)))
    )
)
def test_no_access_can_break_it(accesses: list[tuple[bool, int, int, int]]) -> None:
    wires = Wires()
    wires.uart.receive(b"some input")
    for is_write, offset, value, size in accesses:
        if is_write:
            wires.uart.write(offset, size, value)
        else:
            assert 0 <= wires.uart.read(offset, size) < 1 << 32
    assert wires.irq == bool(wires.read(serial.MIS))
    assert all(a != b for a, b in pairwise(wires.levels))
