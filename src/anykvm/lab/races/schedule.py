# SPDX-License-Identifier: GPL-2.0-only
"""A schedule as text: ``A12,B3,A9`` is twelve steps of task A, three of B, nine of A.

A step is what a task does from one scheduling point to the next. Within a run a schedule is bytes, one for each step:
the number of the task.
"""

from __future__ import annotations

import re
from itertools import groupby
from typing import Final

TASKS: Final = "ABCDEFGH"
"""The names of tasks, by number."""

_PART: Final = re.compile(r"([A-H])(\d{1,5})")


def to_text(schedule: bytes) -> str:
    """Write a schedule."""
    return ",".join(f"{TASKS[task]}{len(list(steps))}" for task, steps in groupby(schedule))


def from_text(text: str) -> bytes:
    """Read a schedule; ValueError for one that is not written as :func:`to_text` does."""
    schedule = bytearray()
    for part in text.split(",") if text else []:
        found = _PART.fullmatch(part.strip())
        if found is None:
            raise ValueError(f"a schedule is like A12,B3,A9: {part!r} is not a task and a number of steps")
        schedule += bytes([TASKS.index(found[1])]) * int(found[2])
    return bytes(schedule)


def preemptions(schedule: bytes, enabled: list[int]) -> int:
    """How often a task was taken off that could have gone on; ``enabled`` is a mask of tasks for each step."""
    pairs = zip(schedule, schedule[1:], enabled[1:], strict=False)
    return sum(task != before and mask >> before & 1 for before, task, mask in pairs)
