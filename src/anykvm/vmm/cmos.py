# SPDX-License-Identifier: GPL-2.0-only
"""The real-time clock and its battery-backed memory (ports 0x70 and 0x71): the host's clock in UTC.

Source: MC146818A data sheet (Motorola). The clock never is in the middle of an update, has no alarm, and cannot be set.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

CENTURY: Final = 0x32
"""Where the century is, as the FADT says."""
_SIZE: Final = 128
_STATUS_A: Final = 0x26  # 32768 Hz, 1024 Hz periodic rate
_STATUS_B: Final = 0x02  # 24 hours, BCD
_STATUS_D: Final = 0x80  # the battery is good
_STATUS: Final = {0x0A: _STATUS_A, 0x0B: _STATUS_B, 0x0C: 0, 0x0D: _STATUS_D}
_CLOCK: Final = frozenset({0, 2, 4, 6, 7, 8, 9, CENTURY, *_STATUS})


class Cmos:
    """The two ports; `clock` gives seconds since 1970."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._index = 0
        self._memory = bytearray(_SIZE)

    def read(self, offset: int, size: int) -> int:
        """The data port; the index port cannot be read."""
        if offset == 0:
            return 0xFF
        index = self._index
        if index in _STATUS:
            return _STATUS[index]
        return self._now(index) if index in _CLOCK else self._memory[index]

    def write(self, offset: int, size: int, value: int) -> None:
        """Choose a byte (bit 7 masks NMIs, which there are none of), or store it; the clock's stay as they are."""
        if offset == 0:
            self._index = value & 0x7F
        elif self._index not in _CLOCK:
            self._memory[self._index] = value

    def _now(self, index: int) -> int:
        now = time.gmtime(self._clock())
        values = {
            0: now.tm_sec,
            2: now.tm_min,
            4: now.tm_hour,
            6: (now.tm_wday + 1) % 7 + 1,
            7: now.tm_mday,
            8: now.tm_mon,
            9: now.tm_year % 100,
            CENTURY: now.tm_year // 100,
        }
        value = values[index]
        return value // 10 << 4 | value % 10
