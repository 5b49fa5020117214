# SPDX-License-Identifier: GPL-2.0-only
"""How an x86 guest powers off and resets: ACPI's fixed registers, the reset register, the keyboard controller.

Sources: ACPI specification 6.4, section 4.8.3 (PM1 registers, timer) and 4.8.3.6 (reset register); the Intel ICH data
sheets for port 0xcf9; the 8042's command 0xfe.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from .outcome import Kind, Outcome

Finish = Callable[[Outcome], None]

PM1_STATUS: Final = 0
PM1_ENABLE: Final = 2
PM1_CONTROL: Final = 4
PM1_SIZE: Final = 6
"""Ports of the event block (4), and the control block behind it (2)."""
PM_TIMER: Final = 8
"""Where the timer is, 4 ports."""
TIMER_HZ: Final = 3_579_545
SCI_ENABLED: Final = 1 << 0
SLEEP_ENABLE: Final = 1 << 13
SLEEP_TYPE_S5: Final = 5
"""What the DSDT's _S5 says, and the control register understands."""

RESET_VALUE: Final = 0x06
"""To port 0xcf9: reset the whole system."""
_PULSE_RESET: Final = 0xFE


class PowerManagement:
    """The PM1a event and control registers, 16 bits each; no event ever happens."""

    def __init__(self, finish: Finish) -> None:
        self._finish = finish
        self._enable = 0
        self._control = SCI_ENABLED

    def read(self, offset: int, size: int) -> int:
        """A register, or a byte of one."""
        value = {PM1_STATUS: 0, PM1_ENABLE: self._enable, PM1_CONTROL: self._control}[offset & ~1]
        return value >> 8 * (offset & 1) & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """A register, or a byte of one; writing SLP_EN with the type of S5 powers the machine off."""
        shift, mask = 8 * (offset & 1), (1 << 8 * size) - 1
        match offset & ~1:
            case 2:
                self._enable = self._enable & ~(mask << shift) | value << shift
            case 4:
                control = self._control & ~(mask << shift) | value << shift
                self._control = (control | SCI_ENABLED) & 0xFFFF & ~SLEEP_ENABLE
                if control & SLEEP_ENABLE and control >> 10 & 7 == SLEEP_TYPE_S5:
                    self._finish(Outcome(Kind.POWER_OFF))


class PowerTimer:
    """The power management timer: 32 bits, always running. With it Linux need not measure its APIC timer twice."""

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock

    def read(self, offset: int, size: int) -> int:
        """The counter, or a part of it."""
        return self._clock() * TIMER_HZ // 1_000_000_000 >> 8 * offset & (1 << 8 * size) - 1

    def write(self, offset: int, size: int, value: int) -> None:
        """It cannot be set."""


class ResetControl:
    """Port 0xcf9."""

    def __init__(self, finish: Finish) -> None:
        self._finish = finish
        self._value = 0

    def read(self, offset: int, size: int) -> int:
        """What was written last, without the bit that resets."""
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:
        """Bit 2 resets."""
        self._value = value & 0x0A
        if value & 0x04:
            self._finish(Outcome(Kind.RESET))


class KeyboardController:
    """Port 0x64, status and commands: no keyboard, but the reset line."""

    def __init__(self, finish: Finish) -> None:
        self._finish = finish

    def read(self, offset: int, size: int) -> int:
        """Nothing to read, and ready for commands."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """The command 0xfe resets; all else is ignored."""
        if value == _PULSE_RESET:
            self._finish(Outcome(Kind.RESET))
