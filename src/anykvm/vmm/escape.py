# SPDX-License-Identifier: GPL-2.0-only
"""What a person types: text for the guest, and commands for the machine behind the escape key."""

from __future__ import annotations

import time
from collections.abc import Callable
from enum import Enum
from typing import Final

ESCAPE: Final = 0x01  # Ctrl-A
_INTERRUPT: Final = 0x03  # Ctrl-C
_TRIPLE_SECONDS: Final = 1.0

HELP: Final = (
    "\r\n"
    "Ctrl-A x       end the machine\r\n"
    "Ctrl-A h       this help\r\n"
    "Ctrl-A Ctrl-A  send one Ctrl-A to the guest\r\n"
    "Ctrl-C         goes to the guest; three within a second end the machine\r\n"
)


class Command(Enum):
    """What a key sequence asks of the machine."""

    QUIT = "quit"
    HELP = "help"
    INTERRUPT = "interrupt"


class EscapeFilter:
    """Takes key sequences out of what is typed. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._escaped = False
        self._interrupts: list[float] = []

    def feed(self, typed: bytes) -> tuple[bytes, list[Command]]:
        """Bytes for the guest, and commands, of some bytes typed."""
        out = bytearray()
        commands: list[Command] = []
        for byte in typed:
            if self._escaped:
                self._escaped = False
                match byte:
                    case 0x78 | 0x58:  # x
                        commands.append(Command.QUIT)
                    case 0x68 | 0x48 | 0x3F:  # h ?
                        commands.append(Command.HELP)
                    case 0x01:
                        out.append(byte)
                    case _:  # no command: it was meant for the guest
                        out += bytes((ESCAPE, byte))
            elif byte == ESCAPE:
                self._escaped = True
            else:
                out.append(byte)
                if byte == _INTERRUPT:
                    if self._third():
                        commands.append(Command.INTERRUPT)
                else:
                    self._interrupts.clear()
        return bytes(out), commands

    def _third(self) -> bool:
        now = self._clock()
        self._interrupts = [then for then in self._interrupts if now - then <= _TRIPLE_SECONDS] + [now]
        return len(self._interrupts) >= 3
