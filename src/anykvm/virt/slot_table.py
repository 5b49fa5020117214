# SPDX-License-Identifier: GPL-2.0-only
"""Memory slots by guest-physical address: states that never change, each made from the one before at little cost."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .memory import MemorySlot

FULL: Final = 256
"""Slots in a chunk before it is two. Another state copies one chunk and the list of chunks: some 256 each of 32,764."""

_Chunk = tuple[list[int], "list[MemorySlot]"]
"""First page frames, and the slots that begin there; never empty, and nobody changes it."""


class SlotTable:
    """One immutable state of all slots of an address space. They do not overlap; base_gfn is in pages of 4096 bytes."""

    __slots__ = ("_chunks", "_firsts")

    def __init__(self, firsts: list[int] | None = None, chunks: list[_Chunk] | None = None) -> None:
        self._firsts = firsts or []
        self._chunks = chunks or []

    def __iter__(self) -> Iterator[MemorySlot]:
        """The slots by guest-physical address."""
        for _, slots in self._chunks:
            yield from slots

    def find(self, gfn: int) -> MemorySlot | None:
        """Find the slot that a page is in."""
        at = bisect_right(self._firsts, gfn) - 1
        if at < 0:
            return None
        bases, slots = self._chunks[at]
        slot = slots[bisect_right(bases, gfn) - 1]
        return slot if gfn < slot.base_gfn + slot.npages else None

    def backwards(self, gfn: int) -> Iterator[MemorySlot]:
        """The slots that begin at the page or before it, the nearest first."""
        at = bisect_right(self._firsts, gfn) - 1
        while at >= 0:
            bases, slots = self._chunks[at]
            for index in range(bisect_right(bases, gfn) - 1, -1, -1):
                yield slots[index]
            at -= 1

    def replace(self, old: MemorySlot | None, new: MemorySlot | None) -> SlotTable:
        """Another state, without ``old``, which is in this one, and with ``new``."""
        table = SlotTable(self._firsts.copy(), self._chunks.copy())
        if old is not None:
            table._remove(old.base_gfn)
        if new is not None:
            table._add(new)
        return table

    # Of a state that nobody else has seen: its chunks are replaced, never changed.

    def _remove(self, gfn: int) -> None:
        at = bisect_right(self._firsts, gfn) - 1
        bases, slots = self._chunks[at][0].copy(), self._chunks[at][1].copy()
        index = bisect_right(bases, gfn) - 1
        del bases[index], slots[index]
        self._put(at, [(bases, slots)] if bases else [])

    def _add(self, slot: MemorySlot) -> None:
        at = bisect_right(self._firsts, slot.base_gfn) - 1
        if at < 0:
            if not self._chunks:
                self._firsts, self._chunks = [slot.base_gfn], [([slot.base_gfn], [slot])]
                return
            at = 0
        bases, slots = self._chunks[at][0].copy(), self._chunks[at][1].copy()
        index = bisect_right(bases, slot.base_gfn)
        bases.insert(index, slot.base_gfn)
        slots.insert(index, slot)
        half = len(bases) // 2
        full = len(bases) > FULL
        self._put(at, [(bases[:half], slots[:half]), (bases[half:], slots[half:])] if full else [(bases, slots)])

    def _put(self, at: int, chunks: list[_Chunk]) -> None:
        self._firsts[at : at + 1] = [bases[0] for bases, _ in chunks]
        self._chunks[at : at + 1] = chunks
