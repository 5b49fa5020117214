# SPDX-License-Identifier: GPL-2.0-only
"""A PL011 UART: what an arm64 guest calls ttyAMA0.

Source: ARM DDI 0183G, PrimeCell UART (PL011) Technical Reference Manual, chapter 3. Revision r1p5, with FIFOs of 32
characters. Not there: DMA, modem lines that change, loopback, line errors, baud rates (characters take no time).

Output is collected here and taken in chunks by whoever shows it (:meth:`Pl011.take`); the first character after that
calls ``wake``. If nobody takes it, the transmit FIFO is full to the guest, which then waits, as with a slow terminal.

Input is handed to the guest only when its driver has had the receive interrupt enabled for some milliseconds. Linux
enables it for a moment and empties the FIFO when it opens the port: what was typed, or piped in, before that would be
lost otherwise.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from threading import Condition
from typing import Final

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

OUTPUT_LIMIT: Final = 1 << 16
"""Characters kept for a slow reader before the transmit FIFO is full."""
_OUTPUT_HARD_LIMIT: Final = OUTPUT_LIMIT + 4096  # for writers that do not look at the flag
INPUT_LIMIT: Final = 1 << 12
"""Characters kept for a slow guest before no more are wanted."""
_SETTLE: Final = 0.02  # seconds
_FULL_PAUSE: Final = 0.01  # seconds a vCPU sleeps when it looks at a full FIFO, instead of spinning

# Registers that keep what is written: offset, mask, value after reset.
_STORED: Final = {
    ILPR: (0xFF, 0),
    IBRD: (0xFFFF, 0),
    FBRD: (0x3F, 0),
    CR: (0xFF87, 0x300),
    DMACR: (0x7, 0),
}


class Pl011:
    """The registers.

    `set_irq` gets the level of the interrupt line; `wake` is called when there is output to take, or room for input;
    `clock` gives seconds.
    """

    def __init__(
        self, set_irq: Callable[[bool], None], wake: Callable[[], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._set_irq = set_irq
        self._wake = wake
        self._clock = clock
        self._listening: float | None = None
        self._lock = Condition()
        self._stored = {offset: initial for offset, (_, initial) in _STORED.items()}
        self._lcr_h = 0
        self._ifls = 0x12
        self._imsc = 0
        self._ris = 0
        self._line = False
        self._output = bytearray()
        self._fifo: deque[int] = deque()
        self._input = bytearray()

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
        if len(self._output) >= OUTPUT_LIMIT:
            with self._lock:
                self._lock.wait_for(lambda: len(self._output) < OUTPUT_LIMIT, _FULL_PAUSE)
        level = len(self._fifo)
        flags = FR_CTS_DSR_DCD
        flags |= FR_TXFF if len(self._output) >= OUTPUT_LIMIT else FR_TXFE
        if level == 0:
            flags |= FR_RXFE
        elif level >= self._depth():
            flags |= FR_RXFF
        return flags

    def _depth(self) -> int:
        return FIFO_SIZE if self._lcr_h & LCR_H_FEN else 1

    def _send_character(self, character: int) -> None:
        with self._lock:
            output = self._output
            if len(output) < _OUTPUT_HARD_LIMIT:
                output.append(character)
            if len(output) == 1:
                self._wake()
            if len(output) < OUTPUT_LIMIT and not self._ris & INT_TX:
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
        if not mask & (INT_RX | INT_RT):
            self._listening = None
        elif self._listening is None:
            self._listening = self._clock()
            if self._input:
                self._wake()

    def _refill(self) -> None:
        """Move input into the FIFO; the receive timeout (32 bit times) is over at once."""
        if self._listening is None or self._clock() - self._listening < _SETTLE:
            return
        count = min(self._depth() - len(self._fifo), len(self._input))
        if count > 0:
            self._fifo.extend(self._input[:count])
            del self._input[:count]
            self._ris |= INT_RT
            if len(self._fifo) >= self._trigger():
                self._ris |= INT_RX
            if len(self._input) < INPUT_LIMIT <= len(self._input) + count:
                self._wake()

    def _update(self) -> None:
        line = bool(self._ris & self._imsc)
        if line != self._line:
            self._line = line
            self._set_irq(line)

    # The other end of the line.

    def take(self) -> bytes:
        """All output there is; empty if there is none."""
        with self._lock:
            taken = bytes(self._output)
            self._output.clear()
            if len(taken) >= OUTPUT_LIMIT:
                self._ris |= INT_TX
                self._update()
                self._lock.notify_all()
            return taken

    def room(self) -> int:
        """How many characters of input are wanted."""
        return max(INPUT_LIMIT - len(self._input), 0)

    def waiting(self) -> int:
        """How many characters of input the guest has not read yet."""
        return len(self._input) + len(self._fifo)

    def receive(self, data: bytes) -> None:
        """Input for the guest; what is more than :meth:`room` is kept all the same."""
        with self._lock:
            self._input += data
            self._refill()
            self._update()

    def deliver(self) -> float | None:
        """Hand over input that had to wait; returns the seconds after which to call again, if that may do more."""
        if not self._input or self._listening is None:
            return None
        with self._lock:
            self._refill()
            self._update()
            since = self._listening
        left = 0.0 if since is None else since + _SETTLE - self._clock()
        return left if left > 0 else None
