# SPDX-License-Identifier: GPL-2.0-only
"""A guest's RAM by guest-physical address."""

from __future__ import annotations

from collections.abc import Sequence

from anykvm.api import GuestMemory


class Ram:
    """`memory`, of which the guest sees `parts`: (guest-physical address, offset in it, bytes), in this order."""

    def __init__(self, memory: GuestMemory, parts: Sequence[tuple[int, int, int]]) -> None:
        self._memory = memory
        self._parts = tuple(parts)

    def view(self, gpa: int, size: int) -> memoryview:
        """`size` bytes at a guest-physical address; ``ValueError`` if not all of it is RAM."""
        for base, offset, length in self._parts:
            start = gpa - base
            if start >= 0 and size >= 0 and start + size <= length:
                return self._memory.view[offset + start : offset + start + size]
        raise ValueError(f"{size} bytes at {gpa:#x} are not in memory")

    def write(self, gpa: int, data: bytes) -> None:
        """Copy `data` to a guest-physical address."""
        with self.view(gpa, len(data)) as view:
            view[:] = data
