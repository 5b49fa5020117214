# SPDX-License-Identifier: GPL-2.0-only
"""A 16550A UART: what an x86 guest calls ttyS0.

Source: PC16550D data sheet (National Semiconductor, 1995), chapter 8. FIFOs of 16 characters. Not there: DMA, line
errors, breaks, modem lines that change by themselves, baud rates (characters take no time).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from .serial_port import OUTPUT_LIMIT, SerialPort

RBR: Final = 0  # read; THR: written; DLL: with DLAB
IER: Final = 1  # DLM: with DLAB
IIR: Final = 2  # read; FCR: written
LCR: Final = 3
MCR: Final = 4
LSR: Final = 5
MSR: Final = 6
SCR: Final = 7
PORTS: Final = 8
"""How many ports a UART has."""

IER_RX: Final = 1 << 0
IER_TX: Final = 1 << 1
IIR_NONE: Final = 0x01
IIR_TX: Final = 0x02
IIR_RX: Final = 0x04
IIR_TIMEOUT: Final = 0x0C
IIR_FIFO: Final = 0xC0
FCR_ENABLE: Final = 1 << 0
FCR_CLEAR_RX: Final = 1 << 1
LCR_DLAB: Final = 1 << 7
MCR_LOOP: Final = 1 << 4
LSR_DR: Final = 1 << 0
LSR_THRE: Final = 1 << 5
LSR_TEMT: Final = 1 << 6
MSR_CTS_DSR_DCD: Final = 0xB0

FIFO_SIZE: Final = 16
_TRIGGERS: Final = (1, 4, 8, 14)  # by FCR bits 7:6


class Uart16550(SerialPort):
    """The registers, for the bus of ports: all are one byte."""

    def __init__(
        self, set_irq: Callable[[bool], None], wake: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(set_irq, wake, clock)
        self._divisor = 12  # 9600 baud, as firmware leaves it
        self._ier = 0
        self._fcr = 0
        self._lcr = 3
        self._mcr = 0
        self._scr = 0
        self._empty = False  # the transmitter became empty, and the guest has not taken note

    def read(self, offset: int, size: int) -> int:
        """A register."""
        if offset == LSR:
            return self._line_status()
        with self._lock:
            if offset == RBR and not self._lcr & LCR_DLAB:
                return self._receive_character()
            match offset:
                case 0:
                    return self._divisor & 0xFF
                case 1:
                    return self._divisor >> 8 if self._lcr & LCR_DLAB else self._ier
                case 2:
                    return self._identify()
                case 3:
                    return self._lcr
                case 4:
                    return self._mcr
                case 6:
                    return self._modem_status()
                case _:
                    return self._scr

    def write(self, offset: int, size: int, value: int) -> None:
        """A register; those that can only be read stay as they are."""
        with self._lock:
            if offset == 0 and not self._lcr & LCR_DLAB:
                self._send_character(value)
                return
            match offset:
                case 0:
                    self._divisor = self._divisor & 0xFF00 | value
                case 1 if self._lcr & LCR_DLAB:
                    self._divisor = self._divisor & 0xFF | value << 8
                case 1:
                    self._enable(value & 0x0F)
                case 2:
                    self._control_fifo(value)
                case 3:
                    self._lcr = value
                case 4:
                    self._mcr = value & 0x1F
                case 7:
                    self._scr = value
            self._update()

    def _line_status(self) -> int:
        status = 0 if self._is_full() else LSR_THRE | LSR_TEMT
        return status | LSR_DR if self._fifo else status

    def _modem_status(self) -> int:
        if not self._mcr & MCR_LOOP:
            return MSR_CTS_DSR_DCD
        # Looped back: DTR is DSR, RTS is CTS, OUT1 is RI, OUT2 is DCD.
        mcr = self._mcr
        return (mcr & 1) << 5 | (mcr & 2) << 3 | (mcr & 4) << 4 | (mcr & 8) << 4

    def _send_character(self, character: int) -> None:
        if self._mcr & MCR_LOOP:
            if len(self._fifo) < self._depth():
                self._fifo.append(character)
            self._empty = True
        else:
            self._empty = self._put(character)
        self._update()

    def _receive_character(self) -> int:
        character = self._fifo.popleft() if self._fifo else 0
        self._refill()
        self._update()
        return character

    def _enable(self, value: int) -> None:
        if value & ~self._ier & IER_TX and len(self._output) < OUTPUT_LIMIT:
            self._empty = True
        self._ier = value
        self._listen(bool(value & IER_RX))

    def _control_fifo(self, value: int) -> None:
        if (value ^ self._fcr) & FCR_ENABLE or value & FCR_CLEAR_RX:
            self._fifo.clear()
        self._fcr = value & 0xC9 if value & FCR_ENABLE else 0
        self._refill()

    def _identify(self) -> int:
        found = self._source()
        if found == IIR_TX:
            self._empty = False
            self._update()
        return found | (IIR_FIFO if self._fcr & FCR_ENABLE else 0)

    def _source(self) -> int:
        """The interrupt of the highest priority."""
        if self._ier & IER_RX and self._fifo:
            full = len(self._fifo) >= (_TRIGGERS[self._fcr >> 6] if self._fcr & FCR_ENABLE else 1)
            return IIR_RX if full else IIR_TIMEOUT
        return IIR_TX if self._ier & IER_TX and self._empty else IIR_NONE

    def _depth(self) -> int:
        return FIFO_SIZE if self._fcr & FCR_ENABLE else 1

    def _interrupts(self) -> bool:
        return self._source() != IIR_NONE

    def _emptied(self) -> None:
        self._empty = True
