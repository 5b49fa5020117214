# SPDX-License-Identifier: GPL-2.0-only
"""The in-kernel I/O bus: which device answers an access before userspace is asked (kvm_io_bus).

Readers take no lock: a change builds a new set of tables and publishes it in one assignment, as the kernel does with
RCU.
"""

from __future__ import annotations

import errno
from bisect import bisect_right
from typing import Any, Final, Protocol

NR_IOBUS_DEVS: Final = 1000


class IoDevice(Protocol):
    """A device on the bus. Addresses and sizes are in bytes; a value is the access's bytes as a number."""

    def read(self, vcpu: Any, addr: int, size: int) -> int | None:
        """Give what a read returns, or None if it is not this device's."""

    def write(self, vcpu: Any, addr: int, size: int, value: int) -> bool:
        """Take a write; False if it is not this device's."""


class _Tables:
    """One immutable state of a bus: devices with a range, and devices that match one address exactly."""

    __slots__ = ("bases", "points", "ranges", "reach")

    def __init__(
        self, ranges: tuple[tuple[int, int, IoDevice], ...], points: dict[int, tuple[tuple[int, IoDevice], ...]]
    ) -> None:
        self.ranges = ranges
        self.points = points
        self.bases = [base for base, _, _ in ranges]
        self.reach = max((size for _, size, _ in ranges), default=0)

    def __len__(self) -> int:
        return len(self.ranges) + sum(map(len, self.points.values()))


class IoBus:
    """One address space of devices. Registering and unregistering is done with the VM's slots_lock held."""

    __slots__ = ("_tables", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._tables = _Tables((), {})

    def __len__(self) -> int:
        return len(self._tables)

    def _room(self) -> _Tables:
        tables = self._tables
        if len(tables) >= NR_IOBUS_DEVS:
            raise OSError(errno.ENOSPC, f"the {self.name} bus is full: it has {NR_IOBUS_DEVS} devices")
        return tables

    def register(self, addr: int, size: int, device: IoDevice) -> None:
        """Put a device on [addr, addr + size); ENOSPC."""
        tables = self._room()
        ranges = sorted((*tables.ranges, (addr, size, device)), key=lambda entry: entry[0])
        self._tables = _Tables(tuple(ranges), tables.points)

    def register_point(self, addr: int, size: int, device: IoDevice) -> None:
        """Put a device on accesses that start at ``addr`` and have ``size`` bytes (0: any); ENOSPC."""
        tables = self._room()
        points = dict(tables.points)
        points[addr] = (*points.get(addr, ()), (size, device))
        self._tables = _Tables(tables.ranges, points)

    def unregister(self, device: IoDevice) -> None:
        """Take a device off wherever it is."""
        tables = self._tables
        ranges = tuple(entry for entry in tables.ranges if entry[2] is not device)
        points = {
            addr: left
            for addr, entries in tables.points.items()
            if (left := tuple(entry for entry in entries if entry[1] is not device))
        }
        self._tables = _Tables(ranges, points)

    def write(self, vcpu: Any, addr: int, size: int, value: int) -> bool:
        """Offer a write to the devices; False if userspace has to take it."""
        tables = self._tables
        for length, device in tables.points.get(addr, ()):
            if length in (0, size) and device.write(vcpu, addr, size, value):
                return True
        index = bisect_right(tables.bases, addr) - 1
        while index >= 0:
            base, length, device = tables.ranges[index]
            if addr + size <= base + length and device.write(vcpu, addr, size, value):
                return True
            if addr - base >= tables.reach:
                return False
            index -= 1
        return False

    def read(self, vcpu: Any, addr: int, size: int) -> int | None:
        """Offer a read to the devices; None if userspace has to answer it."""
        tables = self._tables
        index = bisect_right(tables.bases, addr) - 1
        while index >= 0:
            base, length, device = tables.ranges[index]
            if addr + size <= base + length:
                value = device.read(vcpu, addr, size)
                if value is not None:
                    return value
            if addr - base >= tables.reach:
                return None
            index -= 1
        return None
