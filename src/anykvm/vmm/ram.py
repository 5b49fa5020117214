# SPDX-License-Identifier: GPL-2.0-only
"""A guest's RAM by guest-physical address."""

from __future__ import annotations

from anykvm.api import GuestMemory


class Ram:
    """`memory`, which the guest sees from `base` on."""

    def __init__(self, memory: GuestMemory, base: int) -> None:
        self._memory = memory
        self.base = base
        self.size = memory.size

    def view(self, gpa: int, size: int) -> memoryview:
        """`size` bytes at a guest-physical address; ``ValueError`` if not all of it is RAM."""
        start = gpa - self.base
        if start < 0 or size < 0 or start + size > self.size:
            raise ValueError(f"{size} bytes at {gpa:#x} are not in memory")
        return self._memory.view[start : start + size]

    def write(self, gpa: int, data: bytes) -> None:
        """Copy `data` to a guest-physical address."""
        with self.view(gpa, len(data)) as view:
            view[:] = data
