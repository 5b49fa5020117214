# SPDX-License-Identifier: GPL-2.0-only
"""The numbers, addresses and names that generated sequences are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from differential_player import PAGE
from hypothesis import strategies as st

Draw = Callable[[st.SearchStrategy[Any]], Any]

VMS = ("vm0", "vm1")
VCPUS = ("cpu0", "cpu1", "cpu2", "cpu3")
EVENTS = ("event0", "event1")
U32, U64 = (1 << 32) - 1, (1 << 64) - 1

pick = st.sampled_from
IDS = pick([0, 0, 1, 1, 2, 3, 7, 8, 1023, 1024, 4095, 4096, 5000, 1 << 31, U32, 1 << 32, U64])
NUMBERS = pick([0, 1, 2, 3, 4, 8, 16, 0xFF, 0xFFF, PAGE, 1 << 31, U32, 1 << 47, 1 << 63, U64])
ADDRESSES = pick(["@ram", "@ram+4096", "@ram+65536", "@ram+8", "@readonly", "@hole", "@null"])
BAD = pick(["@null", "@hole", "@readonly"])


def some(draw: Draw, table: dict[str, list[Any]], most: int = 3) -> dict[str, Any]:
    """A few fields with values out of a table."""
    paths = draw(st.lists(pick(sorted(table)), min_size=1, max_size=most, unique=True))
    return {path: draw(pick(table[path])) for path in paths}
