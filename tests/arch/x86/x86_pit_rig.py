# SPDX-License-Identifier: GPL-2.0-only
"""A PIT whose ticks are written down."""

from __future__ import annotations

import threading

from x86_irq_rig import Clock

from anykvm.arch.x86.pit import PIT_HZ, Pit, Speaker

NS = 1_000_000_000


class Rig:
    """A PIT whose ticks are written down; ``ends`` makes the guest end each of them at once."""

    def __init__(self, *, ends: bool = True) -> None:
        self.clock = Clock()
        self.ends = ends
        self.taken = 1
        self.ticks: list[int] = []
        self.watched = 0
        self.level = 0
        self.pit = Pit(
            threading.Lock(),
            now=self.clock.now,
            make_deadline=self.clock.make_deadline,
            set_irq=self._set_irq,
            tick=self._tick,
        )
        self.speaker = Speaker(self.pit)

    def _set_irq(self, level: int) -> int:
        assert not self.pit.lock.locked(), "whoever takes it may end it"
        self.level = level
        if level:
            self.ticks.append(self.clock.ns)
        elif self.ends and self.taken > 0:
            self.pit.acked = True
            self.pit.pending = max(self.pit.pending - 1, 0)
        return self.taken

    def _tick(self) -> None:
        self.watched += 1

    def outb(self, port: int, value: int) -> None:
        assert self.pit.write(None, port, 1, value)

    def inb(self, port: int) -> int:
        return self.pit.read(None, port, 1)

    def load(self, channel: int, mode: int, count: int) -> None:
        """Write mode and count, low byte first."""
        self.outb(0x43, channel << 6 | 0x30 | mode << 1)
        self.outb(0x40 + channel, count & 0xFF)
        self.outb(0x40 + channel, count >> 8)

    def word(self, channel: int) -> int:
        return self.inb(0x40 + channel) | self.inb(0x40 + channel) << 8

    def latched(self, channel: int) -> int:
        self.outb(0x43, channel << 6)
        return self.word(channel)

    def pass_ticks(self, ticks: int) -> None:
        """Let that many ticks of the PIT's clock pass, and a bit of the next."""
        self.clock.advance(-(-ticks * NS // PIT_HZ) + 1)
