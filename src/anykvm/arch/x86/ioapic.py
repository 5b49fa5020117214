# SPDX-License-Identifier: GPL-2.0-only
"""The IOAPIC: 24 pins, each with a redirection entry that says which message it sends.

As in KVM the polarity is ignored: a pin's level is what it is told. The state is guarded by the APIC bus's lock.
Source: Intel 82093AA data sheet; ``arch/x86/kvm/ioapic.c``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from anykvm.uapi.x86_irqchip import KVM_IOAPIC_NUM_PINS

if TYPE_CHECKING:
    from .apic_bus import ApicBus

IOAPIC_DEFAULT_BASE: Final = 0xFEC00000
IOAPIC_MMIO_SIZE: Final = 0x100
IOAPIC_VERSION: Final = 0x11 | KVM_IOAPIC_NUM_PINS - 1 << 16

IOREGSEL: Final = 0x00
IOWIN: Final = 0x10
REG_ID: Final = 0
REG_VERSION: Final = 1
REG_ARBITRATION: Final = 2
REG_TABLE: Final = 0x10

# A redirection entry, 64 bits.
RTE_LOGICAL: Final = 1 << 11
RTE_DELIVERY_STATUS: Final = 1 << 12
RTE_REMOTE_IRR: Final = 1 << 14
RTE_LEVEL: Final = 1 << 15
RTE_MASKED: Final = 1 << 16
_READ_ONLY: Final = RTE_DELIVERY_STATUS | RTE_REMOTE_IRR

_STATE: Final = struct.Struct(f"<QIIII{KVM_IOAPIC_NUM_PINS}Q")
IOAPIC_STATE_SIZE: Final = _STATE.size
"""``struct kvm_ioapic_state`` in bytes."""


class Ioapic:
    """The VM's IOAPIC. ``irr`` has the bits of pins that are high, or of edges not delivered yet.

    ``has_notifier`` and ``notify`` are about whoever wants to know the ends of interrupt of a pin; ``notify`` is called
    without the lock, for it drives pins. ``unmasked`` is told when the guest unmasks a pin, with the lock held.
    """

    __slots__ = (
        "apic_id",
        "base",
        "bus",
        "by_vector",
        "has_notifier",
        "irr",
        "irr_delivered",
        "notify",
        "select",
        "table",
        "unmasked",
    )

    def __init__(
        self,
        bus: ApicBus,
        *,
        has_notifier: Callable[[int], bool] = lambda pin: False,
        notify: Callable[[int], None] = lambda pin: None,
        unmasked: Callable[[int], None] = lambda pin: None,
    ) -> None:
        self.bus = bus
        self.has_notifier = has_notifier
        self.notify = notify
        self.unmasked = unmasked
        self.base = IOAPIC_DEFAULT_BASE
        self.select = 0
        self.apic_id = 0
        self.irr = 0
        self.irr_delivered = 0
        self.table = [RTE_MASKED] * KVM_IOAPIC_NUM_PINS
        # The pins of each vector. Invariant: in step with the table.
        self.by_vector: dict[int, tuple[int, ...]] = {}
        self._index()

    def _index(self) -> None:
        found: dict[int, list[int]] = {}
        for pin, entry in enumerate(self.table):
            if not entry & RTE_MASKED or entry & 0xFF:
                found.setdefault(entry & 0xFF, []).append(pin)
        self.by_vector = {vector: tuple(pins) for vector, pins in found.items()}
        self.bus.eoi_vectors = self.by_vector

    # Inputs.

    def set_irq(self, pin: int, level: int) -> int:
        """Drive a pin; returns how many local APICs took it, 0 if it was coalesced, -1 if it is masked."""
        with self.bus.lock:
            return self._set_irq(pin, level)

    def _set_irq(self, pin: int, level: int) -> int:
        bit = 1 << pin
        if not level:
            self.irr &= ~bit
            return 1
        if not self.table[pin] & RTE_LEVEL:
            self.irr_delivered &= ~bit
            if self.irr & bit:
                return 0
        self.irr |= bit
        return self._service(pin)

    def _service(self, pin: int) -> int:
        """Send a pin's message, unless it is masked or waits for an end of interrupt."""
        entry = self.table[pin]
        level = entry & RTE_LEVEL != 0
        if entry & RTE_MASKED or (level and entry & RTE_REMOTE_IRR):
            return -1
        if not level:
            self.irr_delivered |= 1 << pin
        dest = self.bus.from_device(entry >> 56)
        taken = self.bus.deliver(dest, entry & RTE_LOGICAL != 0, entry >> 8 & 7, entry & 0xFF, level)
        if taken and level:
            self.table[pin] = entry | RTE_REMOTE_IRR
        return taken

    def eoi(self, vector: int, level: bool) -> None:
        """A local APIC ended an interrupt: send again what is still high. Called without the lock."""
        for pin in self.by_vector.get(vector, ()):
            # The remote IRR bit is still set: what is raised meanwhile waits in IRR until after this.
            if self.has_notifier(pin):
                self.notify(pin)
            if level:
                with self.bus.lock:
                    entry = self.table[pin]
                    if not entry & RTE_LEVEL:
                        continue
                    self.table[pin] = entry & ~RTE_REMOTE_IRR
                    if self.irr & 1 << pin:
                        self._service(pin)

    # Registers.

    def read(self, vcpu: Any, addr: int, size: int) -> int | None:
        """A guest's read."""
        offset = addr - self.base
        if not 0 <= offset < IOAPIC_MMIO_SIZE:
            return None
        with self.bus.lock:
            value = self.select if offset == IOREGSEL else self._read_window() if offset == IOWIN else 0
        return value & (1 << size * 8) - 1

    def _read_window(self) -> int:
        select = self.select
        if select == REG_VERSION:
            return IOAPIC_VERSION
        if select in (REG_ID, REG_ARBITRATION):
            return self.apic_id << 24
        pin = select - REG_TABLE >> 1
        entry = self.table[pin] if 0 <= pin < KVM_IOAPIC_NUM_PINS else (1 << 64) - 1
        return entry >> 32 if select & 1 else entry & 0xFFFFFFFF

    def write(self, vcpu: Any, addr: int, size: int, value: int) -> bool:
        """A guest's write."""
        offset = addr - self.base
        if not 0 <= offset < IOAPIC_MMIO_SIZE:
            return False
        resample = -1
        with self.bus.lock:
            if offset == IOREGSEL:
                self.select = value & 0xFF
            elif offset == IOWIN:
                resample = self._write_window(value & 0xFFFFFFFF)
        if resample >= 0:
            self.notify(resample)
        return True

    def _write_window(self, value: int) -> int:
        """Write the selected register; gives a pin whose resamplers are to be told, without the lock, or -1."""
        select = self.select
        if select == REG_ID:
            self.apic_id = value >> 24 & 0xF
        pin = select - REG_TABLE >> 1
        if not 0 <= pin < KVM_IOAPIC_NUM_PINS:
            return -1
        old = self.table[pin]
        if select & 1:
            entry = old & 0xFFFFFFFF | value << 32
        else:
            entry = old & ~0xFFFFFFFF | value & ~_READ_ONLY | old & _READ_ONLY
            if not entry & RTE_LEVEL:
                # Guests turn an entry to edge and back to end its interrupt by hand.
                entry &= ~RTE_REMOTE_IRR
        self.table[pin] = entry
        self._index()
        if old & RTE_MASKED and not entry & RTE_MASKED:
            self.unmasked(pin)
        if self.irr & 1 << pin and entry & (RTE_LEVEL | RTE_MASKED | RTE_REMOTE_IRR) == RTE_LEVEL:
            if self.has_notifier(pin):
                # The device may have lowered its line while the pin was masked: its owner raises it again if not.
                return pin
            self._service(pin)
        return -1

    # KVM_GET_IRQCHIP and KVM_SET_IRQCHIP.

    def get_state(self) -> bytes:
        """Give ``struct kvm_ioapic_state``, IOAPIC_STATE_SIZE bytes."""
        with self.bus.lock:
            irr = self.irr & ~self.irr_delivered
            return _STATE.pack(self.base, self.select, self.apic_id, irr, 0, *self.table)

    def set_state(self, state: bytes) -> None:
        """Load ``struct kvm_ioapic_state`` (what follows it is ignored) and send what it has pending."""
        with self.bus.lock:
            self.base, self.select, self.apic_id, irr, _, *self.table = _STATE.unpack_from(state)
            self.irr = 0
            self.irr_delivered = 0
            self._index()
            for pin in range(KVM_IOAPIC_NUM_PINS):
                if irr & 1 << pin:
                    self._set_irq(pin, 1)
