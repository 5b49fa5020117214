# SPDX-License-Identifier: GPL-2.0-only
"""Local APICs, an IOAPIC, and accesses as a guest makes them."""

from __future__ import annotations

from x86_irq_rig import make_lapics

from anykvm.arch.x86.ioapic import (
    IOAPIC_DEFAULT_BASE,
    Ioapic,
)
from anykvm.arch.x86.lapic import SPURIOUS, Lapic


class Rig:
    """Local APICs, an IOAPIC, and accesses as a guest makes them."""

    def __init__(self, cpus: int = 1) -> None:
        self.clock, self.bus, self.lapics = make_lapics(cpus)
        self.notifiers: set[int] = set()
        self.notified: list[int] = []
        self.unmasked: list[int] = []
        self.on_notify = lambda pin: None
        self.ioapic = Ioapic(
            self.bus, has_notifier=self.notifiers.__contains__, notify=self._notify, unmasked=self.unmasked.append
        )
        self.bus.on_eoi = lambda lapic, vector, level: self.ioapic.eoi(vector, level)

    def _notify(self, pin: int) -> None:
        assert not self.bus.lock.locked(), "whoever is told drives pins"
        self.notified.append(pin)
        self.on_notify(pin)

    @property
    def cpu(self) -> Lapic:
        return self.lapics[0]

    def read(self, register: int) -> int:
        assert self.ioapic.write(None, IOAPIC_DEFAULT_BASE, 4, register)
        value = self.ioapic.read(None, IOAPIC_DEFAULT_BASE + 0x10, 4)
        assert value is not None
        return value

    def write(self, register: int, value: int) -> None:
        assert self.ioapic.write(None, IOAPIC_DEFAULT_BASE, 4, register)
        assert self.ioapic.write(None, IOAPIC_DEFAULT_BASE + 0x10, 4, value)

    def route(self, pin: int, low: int, dest: int = 0) -> None:
        self.write(0x11 + pin * 2, dest << 24)
        self.write(0x10 + pin * 2, low)

    def rte(self, pin: int) -> int:
        return self.read(0x11 + pin * 2) << 32 | self.read(0x10 + pin * 2)

    def take(self) -> list[int]:
        """Acknowledge and end everything."""
        taken = []
        while (vector := self.cpu.ack()) != SPURIOUS:
            taken.append(vector)
            self.cpu.eoi()
            assert len(taken) < 20, "a storm"
        return taken
