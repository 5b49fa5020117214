# SPDX-License-Identifier: GPL-2.0-only
"""The table of memory slots: against a plain dict, and what one more slot costs when there are many."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from anykvm.virt import slot_table
from anykvm.virt.memory import MemorySlot
from anykvm.virt.slot_table import SlotTable

PAGES = 4
"""The slots of these tests begin at multiples of it, and have at most as many pages: so none overlaps another."""


def slot(gfn: int, npages: int = PAGES) -> MemorySlot:
    return MemorySlot(0, gfn // PAGES, gfn, npages, 0x10_0000, 0, None)


class Tables(RuleBasedStateMachine):
    """Slots come, go and move; with chunks of 4, so that they are split and emptied all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.full, slot_table.FULL = slot_table.FULL, 4  # type: ignore[misc]
        self.table = SlotTable()
        self.model: dict[int, MemorySlot] = {}
        self.history: list[tuple[SlotTable, list[MemorySlot]]] = []

    def teardown(self) -> None:
        slot_table.FULL = self.full  # type: ignore[misc]
        for table, slots in self.history:
            assert list(table) == slots, "a state changed after the next was made"

    def change(self, old: MemorySlot | None, new: MemorySlot | None) -> None:
        self.history.append((self.table, list(self.table)))
        self.table = self.table.replace(old, new)
        if old is not None:
            del self.model[old.base_gfn]
        if new is not None:
            self.model[new.base_gfn] = new

    @rule(place=st.integers(0, 30), npages=st.integers(1, PAGES))
    def create(self, place: int, npages: int) -> None:
        if place * PAGES not in self.model:
            self.change(None, slot(place * PAGES, npages))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        self.change(self.model[data.draw(st.sampled_from(sorted(self.model)))], None)

    @precondition(lambda self: self.model)
    @rule(data=st.data(), place=st.integers(0, 30))
    def move(self, data: st.DataObject, place: int) -> None:
        old = self.model[data.draw(st.sampled_from(sorted(self.model)))]
        if place * PAGES not in self.model or place * PAGES == old.base_gfn:
            self.change(old, slot(place * PAGES, old.npages))

    @rule(gfn=st.integers(0, 31 * PAGES))
    def look(self, gfn: int) -> None:
        expected = [one for one in self.model.values() if one.base_gfn <= gfn < one.base_gfn + one.npages]
        assert self.table.find(gfn) is (expected[0] if expected else None)
        before = sorted((base for base in self.model if base <= gfn), reverse=True)
        assert [one.base_gfn for one in self.table.backwards(gfn)] == before

    @invariant()
    def sorted_by_address(self) -> None:
        assert list(self.table) == [self.model[base] for base in sorted(self.model)]


TestTables = Tables.TestCase


def test_one_more_of_32764_slots_copies_a_few_hundred_entries() -> None:
    table = SlotTable()
    for number in range(32_763):
        table = table.replace(None, slot(number * PAGES))
    sizes = [len(bases) for bases, _ in table._chunks]
    assert sum(sizes) == 32_763
    assert max(sizes) <= slot_table.FULL
    assert len(sizes) <= 2 * 32_763 // slot_table.FULL + 1
    middle = 16_000 * PAGES
    after = table.replace(table.find(middle), None)
    shared = {id(chunk) for chunk in table._chunks} & {id(chunk) for chunk in after._chunks}
    assert len(shared) == len(sizes) - 1
    assert after.find(middle) is None
    assert table.find(middle) is not None
