# SPDX-License-Identifier: GPL-2.0-only
"""The machine's bus: which device answers at a guest-physical address."""

from __future__ import annotations

from typing import Protocol

from .memory import PAGE_SIZE, Region


class MmioDevice(Protocol):
    """Registers in memory. Both functions are called on vCPU threads, several at a time."""

    def read(self, offset: int, size: int) -> int:
        """The value (`size` bytes, 1 to 8) at `offset` from the start of the device's region."""

    def write(self, offset: int, size: int, value: int) -> None:
        """Store `value` (`size` bytes) at `offset`."""


class Bus:
    """Finds the device by the page of an address: one dictionary lookup per access.

    Where no device is, reads give zero and writes do nothing, as on a bus without error responses; ``unclaimed``
    counts them.
    """

    def __init__(self) -> None:
        self._pages: dict[int, tuple[int, int, MmioDevice]] = {}
        self.unclaimed = 0

    def attach(self, region: Region, device: MmioDevice) -> None:
        """Put a device at whole pages that no other has; ``ValueError`` otherwise."""
        if region.base % PAGE_SIZE or region.size % PAGE_SIZE or region.size <= 0:
            raise ValueError(f"the region at {region.base:#x} is not made of whole pages")
        pages = range(region.base // PAGE_SIZE, region.end // PAGE_SIZE)
        if any(page in self._pages for page in pages):
            raise ValueError(f"the region at {region.base:#x} overlaps another")
        for page in pages:
            self._pages[page] = (region.base, region.size, device)

    def read(self, address: int, size: int) -> int:
        """A load of `size` bytes by a vCPU."""
        found = self._pages.get(address // PAGE_SIZE)
        if found is None:
            self.unclaimed += 1
            return 0
        base, _, device = found
        return device.read(address - base, size)

    def write(self, address: int, size: int, value: int) -> None:
        """A store of `size` bytes by a vCPU."""
        found = self._pages.get(address // PAGE_SIZE)
        if found is None:
            self.unclaimed += 1
            return
        base, _, device = found
        device.write(address - base, size, value)
