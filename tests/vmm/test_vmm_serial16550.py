# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anykvm.vmm import serial16550 as uart
from anykvm.vmm.serial16550 import Uart16550
from anykvm.vmm.serial_port import INPUT_LIMIT, OUTPUT_LIMIT


class Wires:
    def __init__(self) -> None:
        self.levels: list[bool] = []
        self.wakes = 0
        self.now = 50.0
        self.uart = Uart16550(self.levels.append, self._wake, lambda: self.now)

    def _wake(self) -> None:
        self.wakes += 1

    @property
    def irq(self) -> bool:
        return bool(self.levels) and self.levels[-1]

    def write(self, offset: int, value: int) -> None:
        self.uart.write(offset, 1, value)

    def read(self, offset: int) -> int:
        return self.uart.read(offset, 1)

    def listen(self, fcr: int = uart.FCR_ENABLE) -> None:
        self.write(uart.IIR, fcr)
        self.write(uart.IER, uart.IER_RX)
        self.now += 1
        assert self.uart.deliver() is None

    def characters(self, count: int) -> bytes:
        return bytes(self.read(uart.RBR) for _ in range(count))


@pytest.fixture
def wires() -> Wires:
    return Wires()


def test_a_driver_finds_a_16550a(wires: Wires) -> None:
    # As Linux's autoconfig does: a scratch register, IER with four bits, FIFOs that report themselves.
    wires.write(uart.IER, 0)
    assert wires.read(uart.IER) == 0
    wires.write(uart.IER, 0xFF)
    assert wires.read(uart.IER) == 0x0F
    wires.write(uart.IER, 0)
    wires.write(uart.SCR, 0xA5)
    assert wires.read(uart.SCR) == 0xA5
    assert wires.read(uart.IIR) == uart.IIR_NONE
    wires.write(uart.IIR, uart.FCR_ENABLE)
    assert wires.read(uart.IIR) >> 6 == 3
    wires.write(uart.MCR, uart.MCR_LOOP | 0x0A)
    assert wires.read(uart.MSR) & 0xF0 == 0x90
    wires.write(uart.MCR, 0x0B)
    assert wires.read(uart.MSR) == uart.MSR_CTS_DSR_DCD


def test_the_divisor_latch_hides_data_and_interrupt_enable(wires: Wires) -> None:
    wires.write(uart.IER, 0x05)
    wires.write(uart.LCR, uart.LCR_DLAB | 3)
    wires.write(uart.RBR, 0x01)
    wires.write(uart.IER, 0x02)
    assert (wires.read(uart.RBR), wires.read(uart.IER)) == (1, 2)
    wires.write(uart.LCR, 3)
    assert wires.read(uart.IER) == 0x05
    assert wires.read(uart.LCR) == 3
    assert wires.uart.take() == b""


def test_output_is_taken_in_chunks_and_wakes_once_each(wires: Wires) -> None:
    for byte in b"hello":
        assert wires.read(uart.LSR) & (uart.LSR_THRE | uart.LSR_TEMT) == uart.LSR_THRE | uart.LSR_TEMT
        wires.write(uart.RBR, byte)
    assert wires.wakes == 1
    assert wires.uart.take() == b"hello"
    assert wires.uart.take() == b""


def test_the_transmit_interrupt_is_cleared_by_reading_it_and_comes_with_each_character(wires: Wires) -> None:
    wires.write(uart.IER, uart.IER_TX)
    assert wires.irq
    assert wires.read(uart.IIR) == uart.IIR_TX
    assert not wires.irq
    assert wires.read(uart.IIR) == uart.IIR_NONE
    wires.write(uart.RBR, 65)
    assert wires.irq
    wires.write(uart.IER, 0)
    assert not wires.irq
    # Enabling it again asks again: that is how Linux tests for UARTs that do not.
    wires.read(uart.IIR)
    wires.write(uart.IER, uart.IER_TX)
    assert wires.irq


def test_nobody_reads_the_output_and_the_transmitter_is_full(wires: Wires) -> None:
    wires.write(uart.IER, uart.IER_TX)
    for _ in range(OUTPUT_LIMIT + 10_000):
        wires.write(uart.RBR, 65)
    assert wires.read(uart.LSR) & (uart.LSR_THRE | uart.LSR_TEMT) == 0
    assert wires.read(uart.IIR) == uart.IIR_NONE
    assert OUTPUT_LIMIT <= len(wires.uart.take()) <= OUTPUT_LIMIT + 4096
    assert wires.irq
    assert wires.read(uart.LSR) & uart.LSR_THRE


def test_input_waits_until_the_driver_listens(wires: Wires) -> None:
    wires.uart.receive(b"early")
    assert not wires.read(uart.LSR) & uart.LSR_DR
    wires.write(uart.IIR, uart.FCR_ENABLE | uart.FCR_CLEAR_RX)
    wires.read(uart.RBR)
    wires.write(uart.IER, uart.IER_RX)
    delay = wires.uart.deliver()
    assert delay is not None and 0 < delay < 0.1
    wires.write(uart.IER, 0)
    assert wires.uart.deliver() is None
    wires.listen()
    assert wires.irq
    assert wires.characters(5) == b"early"
    assert not wires.read(uart.LSR) & uart.LSR_DR
    assert not wires.irq


def test_few_characters_are_a_timeout_and_many_reach_the_trigger(wires: Wires) -> None:
    wires.listen(uart.FCR_ENABLE | 2 << 6)  # 8 characters
    wires.uart.receive(b"x")
    assert wires.read(uart.IIR) == uart.IIR_TIMEOUT | uart.IIR_FIFO
    wires.uart.receive(b"y" * 7)
    assert wires.read(uart.IIR) == uart.IIR_RX | uart.IIR_FIFO
    assert wires.irq
    assert wires.characters(8) == b"x" + b"y" * 7
    assert wires.read(uart.IIR) == uart.IIR_NONE | uart.IIR_FIFO


def test_input_comes_before_output(wires: Wires) -> None:
    wires.listen()
    wires.write(uart.IER, uart.IER_RX | uart.IER_TX)
    wires.uart.receive(b"x")
    assert wires.read(uart.IIR) & 0xF == uart.IIR_RX
    wires.read(uart.RBR)
    assert wires.read(uart.IIR) & 0xF == uart.IIR_TX


def test_the_receive_fifo_refills_and_can_be_cleared(wires: Wires) -> None:
    wires.listen()
    data = bytes(range(256)) * 4
    wires.uart.receive(data)
    assert wires.characters(len(data)) == data
    wires.uart.receive(b"a" * 16 + b"b")
    wires.write(uart.IIR, uart.FCR_ENABLE | uart.FCR_CLEAR_RX)
    assert wires.read(uart.RBR) == ord("b")


def test_without_fifos_one_character_fits(wires: Wires) -> None:
    wires.listen(0)
    wires.uart.receive(b"ab")
    assert wires.read(uart.IIR) == uart.IIR_RX
    assert wires.uart.waiting() == 2
    assert wires.characters(3) == b"ab\0"


def test_what_is_looped_back_goes_nowhere_else(wires: Wires) -> None:
    wires.write(uart.MCR, uart.MCR_LOOP)
    wires.write(uart.RBR, ord("x"))
    assert wires.uart.take() == b""
    assert wires.read(uart.LSR) & uart.LSR_DR
    assert wires.read(uart.RBR) == ord("x")


def test_no_more_input_is_wanted_than_there_is_room(wires: Wires) -> None:
    wires.uart.receive(bytes(INPUT_LIMIT))
    assert wires.uart.room() == 0
    wires.listen()
    assert wires.uart.room() == uart.FIFO_SIZE
    assert wires.wakes == 2  # the driver listens; there is room


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 7), st.integers(0, 255))))
def test_no_access_can_break_it(accesses: list[tuple[bool, int, int]]) -> None:
    wires = Wires()
    wires.uart.receive(b"some input")
    for is_write, offset, value in accesses:
        wires.now += 1
        if is_write:
            wires.write(offset, value)
        else:
            assert 0 <= wires.read(offset) < 256
    assert all(a != b for a, b in pairwise(wires.levels))
    assert wires.irq == (not wires.read(uart.IIR) & 1)
