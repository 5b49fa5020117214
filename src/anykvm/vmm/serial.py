# SPDX-License-Identifier: GPL-2.0-only
"""A PL011 UART: what an arm64 guest calls ttyAMA0.

Source: ARM DDI 0183G, PrimeCell UART (PL011) Technical Reference Manual, chapter 3. Revision r1p5, with FIFOs of 32
characters. Not there: DMA, modem lines that change, loopback, line errors, baud rates (characters take no time).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from .serial_port import INPUT_LIMIT, OUTPUT_LIMIT, SerialPort

__all__ = ["INPUT_LIMIT", "OUTPUT_LIMIT", "Pl011"]

DR: Final = 0x00
RSR: Final = 0x04
FR: Final = 0x18
ILPR: Final = 0x20
IBRD: Final = 0x24
FBRD: Final = 0x28
LCR_H: Final = 0x2C
CR: Final = 0x30
IFLS: Final = 0x34
IMSC: Final = 0x38
RIS: Final = 0x3C
MIS: Final = 0x40
ICR: Final = 0x44
DMACR: Final = 0x48
PERIPH_ID: Final = 0xFE0

FR_CTS_DSR_DCD: Final = 0x07
FR_RXFE: Final = 1 << 4
FR_TXFF: Final = 1 << 5
FR_RXFF: Final = 1 << 6
FR_TXFE: Final = 1 << 7
LCR_H_FEN: Final = 1 << 4
INT_RX: Final = 1 << 4
INT_TX: Final = 1 << 5
INT_RT: Final = 1 << 6
INT_ALL: Final = 0x7FF

FIFO_SIZE: Final = 32
_RX_TRIGGERS: Final = (4, 8, 16, 24, 28)  # of 32, by IFLS.RXIFLSEL: 1/8, 1/4, 1/2, 3/4, 7/8
_ID: Final = bytes((0x11, 0x10, 0x34, 0x00, 0x0D, 0xF0, 0x05, 0xB1))

# Registers that keep what is written: offset, mask, value after reset.
_STORED: Final = {
    ILPR: (0xFF, 0),
    IBRD: (0xFFFF, 0),
    FBRD: (0x3F, 0),
    CR: (0xFF87, 0x300),
    DMACR: (0x7, 0),
}


class Pl011(SerialPort):
    """The registers."""

    def __init__(
        self, set_irq: Callable[[bool], None], wake: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(set_irq, wake, clock)
        self._stored = {offset: initial for offset, (_, initial) in _STORED.items()}
        self._lcr_h = 0
        self._ifls = 0x12
        self._imsc = 0
        self._ris = 0

    # The guest's side.

    def read(self, offset: int, size: int) -> int:
        """A register; ones that do not exist read as zero."""
        if offset == FR:
            return self._flags()
        if offset == DR:
            return self._receive_character()
        if offset >= PERIPH_ID:
            index = (offset - PERIPH_ID) // 4
            return _ID[index] if index < len(_ID) else 0
        if offset in self._stored:
            return self._stored[offset]
        match offset:
            case 0x2C:
                return self._lcr_h
            case 0x34:
                return self._ifls
            case 0x38:
                return self._imsc
            case 0x3C:
                return self._ris
            case 0x40:
                return self._ris & self._imsc
            case _:
                return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A register; ones that do not exist, or cannot be written, stay as they are."""
        if offset == DR:
            self._send_character(value & 0xFF)
            return
        with self._lock:
            if offset in self._stored:
                self._stored[offset] = value & _STORED[offset][0]
                return
            match offset:
                case 0x2C:
                    self._lcr_h = value & 0xFF
                    self._refill()
                case 0x34:
                    self._ifls = value & 0x3F
                case 0x38:
                    self._set_mask(value & INT_ALL)
                case 0x44:
                    self._ris &= ~value
            self._update()

    def _flags(self) -> int:
        full = self._is_full()
        level = len(self._fifo)
        flags = FR_CTS_DSR_DCD
        flags |= FR_TXFF if full else FR_TXFE
        if level == 0:
            flags |= FR_RXFE
        elif level >= self._depth():
            flags |= FR_RXFF
        return flags

    def _depth(self) -> int:
        return FIFO_SIZE if self._lcr_h & LCR_H_FEN else 1

    def _send_character(self, character: int) -> None:
        with self._lock:
            if self._put(character) and not self._ris & INT_TX:
                self._ris |= INT_TX
                self._update()

    def _receive_character(self) -> int:
        with self._lock:
            character = self._fifo.popleft() if self._fifo else 0
            if not self._fifo:
                self._ris &= ~INT_RT
            if len(self._fifo) < self._trigger():
                self._ris &= ~INT_RX
            self._refill()
            self._update()
            return character

    def _trigger(self) -> int:
        if not self._lcr_h & LCR_H_FEN:
            return 1
        return _RX_TRIGGERS[min(self._ifls >> 3 & 7, len(_RX_TRIGGERS) - 1)]

    def _set_mask(self, mask: int) -> None:
        self._imsc = mask
        self._listen(bool(mask & (INT_RX | INT_RT)))

    def _arrived(self) -> None:
        self._ris |= INT_RT
        if len(self._fifo) >= self._trigger():
            self._ris |= INT_RX

    def _emptied(self) -> None:
        self._ris |= INT_TX

    def _interrupts(self) -> bool:
        return bool(self._ris & self._imsc)
