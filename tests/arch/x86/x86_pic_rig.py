# SPDX-License-Identifier: GPL-2.0-only
"""A CPU whose LINT0 is the PICs' output."""

from __future__ import annotations

from collections.abc import Callable

from x86_irq_rig import init_pics, make_lapics, side_of

from anykvm.arch.x86.lapic import Lapic
from anykvm.arch.x86.pic import PicPair


class Rig:
    """A CPU whose LINT0 is the PICs' output, and port accesses."""

    def __init__(self, cpus: int = 1) -> None:
        self.clock, self.bus, self.lapics = make_lapics(cpus, on=False)
        self.ended: list[int] = []
        self.unmasked: list[int] = []
        self.on_end: Callable[[int], object] = lambda pin: None
        self.pics = PicPair(self.bus, notify=self._notify, unmasked=self.unmasked.append)

    def _notify(self, pin: int) -> None:
        assert not self.bus.lock.locked(), "whoever is told drives pins"
        self.ended.append(pin)
        self.on_end(pin)

    @property
    def cpu(self) -> Lapic:
        return self.lapics[0]

    @property
    def line(self) -> bool:
        return side_of(self.cpu).line

    def outb(self, port: int, value: int) -> None:
        assert self.pics.write(None, port, 1, value)

    def inb(self, port: int) -> int:
        return self.pics.read(None, port, 1)

    def pulse(self, pin: int) -> int:
        taken = self.pics.set_irq(pin, 1)
        self.pics.set_irq(pin, 0)
        return taken

    def open(self, *, auto_eoi: bool = False) -> None:
        """Initialise as Linux does, then unmask everything."""
        init_pics(self.outb, auto_eoi=auto_eoi)
        self.outb(0x21, 0)
        self.outb(0xA1, 0)
        self.unmasked.clear()
        self.ended.clear()

    def eoi(self, pin: int) -> None:
        """End as Linux does: specific, at the slave and at the cascade."""
        if pin & 8:
            self.outb(0xA0, 0x60 + (pin & 7))
            self.outb(0x20, 0x62)
        else:
            self.outb(0x20, 0x60 + pin)
