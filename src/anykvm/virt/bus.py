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


_Ranges = tuple[list[int], list[int], list[IoDevice]]
"""Bases in ascending order, sizes, devices: lists, since a copy of those costs next to nothing."""


class _Tables:
    """One immutable state of a bus: devices with a range, and devices that match one address exactly."""

    __slots__ = ("bases", "count", "devices", "points", "reach", "sizes")

    def __init__(
        self, ranges: _Ranges, reach: int, points: dict[int, tuple[tuple[int, IoDevice], ...]], count: int
    ) -> None:
        self.bases, self.sizes, self.devices = ranges
        self.reach = reach
        """No range is longer than this."""
        self.points = points
        self.count = count

    def copy(self) -> _Ranges:
        """The ranges, to be changed."""
        return self.bases.copy(), self.sizes.copy(), self.devices.copy()


class IoBus:
    """One address space of devices. Registering and unregistering is done with the VM's slots_lock held."""

    __slots__ = ("_tables", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._tables = _Tables(([], [], []), 0, {}, 0)

    def __len__(self) -> int:
        return self._tables.count

    def _room(self) -> _Tables:
        tables = self._tables
        if tables.count >= NR_IOBUS_DEVS:
            raise OSError(errno.ENOSPC, f"the {self.name} bus is full: it has {NR_IOBUS_DEVS} devices")
        return tables

    def register(self, addr: int, size: int, device: IoDevice) -> None:
        """Put a device on [addr, addr + size); ENOSPC."""
        tables = self._room()
        bases, sizes, devices = ranges = tables.copy()
        index = bisect_right(bases, addr)
        bases.insert(index, addr)
        sizes.insert(index, size)
        devices.insert(index, device)
        self._tables = _Tables(ranges, max(tables.reach, size), tables.points, tables.count + 1)

    def register_point(self, addr: int, size: int, device: IoDevice) -> None:
        """Put a device on accesses that start at ``addr`` and have ``size`` bytes (0: any); ENOSPC."""
        tables = self._room()
        points = dict(tables.points)
        points[addr] = (*points.get(addr, ()), (size, device))
        ranges = tables.bases, tables.sizes, tables.devices
        self._tables = _Tables(ranges, tables.reach, points, tables.count + 1)

    def unregister(self, device: IoDevice) -> None:
        """Take a device off its one place."""
        tables = self._tables
        # From the end: what came last goes first, and is mostly there.
        for index in range(len(tables.devices) - 1, -1, -1):
            if tables.devices[index] is device:
                ranges = tables.copy()
                for column in ranges:
                    del column[index]
                self._tables = _Tables(ranges, max(ranges[1], default=0), tables.points, tables.count - 1)
                return
        for addr, entries in tables.points.items():
            left = tuple(entry for entry in entries if entry[1] is not device)
            if len(left) != len(entries):
                points = {**tables.points, addr: left}
                if not left:
                    del points[addr]
                ranges = tables.bases, tables.sizes, tables.devices
                self._tables = _Tables(ranges, tables.reach, points, tables.count - 1)
                return

    def write(self, vcpu: Any, addr: int, size: int, value: int) -> bool:
        """Offer a write to the devices; False if userspace has to take it."""
        tables = self._tables
        if not tables.count:
            return False
        if tables.points:
            for length, device in tables.points.get(addr, ()):
                if length in (0, size) and device.write(vcpu, addr, size, value):
                    return True
        bases = tables.bases
        index = bisect_right(bases, addr) - 1
        while index >= 0:
            base = bases[index]
            if addr + size <= base + tables.sizes[index] and tables.devices[index].write(vcpu, addr, size, value):
                return True
            if addr - base >= tables.reach:
                return False
            index -= 1
        return False

    def read(self, vcpu: Any, addr: int, size: int) -> int | None:
        """Offer a read to the devices; None if userspace has to answer it."""
        tables = self._tables
        if not tables.count:
            return None
        index = bisect_right(tables.bases, addr) - 1
        while index >= 0:
            base = tables.bases[index]
            if addr + size <= base + tables.sizes[index]:
                value = tables.devices[index].read(vcpu, addr, size)
                if value is not None:
                    return value
            if addr - base >= tables.reach:
                return None
            index -= 1
        return None
