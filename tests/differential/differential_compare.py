# SPDX-License-Identifier: GPL-2.0-only
"""Comparing the outcomes of a sequence on two KVMs."""

from __future__ import annotations

import json
from typing import Any

from differential_known import known
from differential_player import Operation, Outcome


def difference(sequence: list[Operation], theirs: list[Outcome], ours: list[Outcome]) -> str | None:
    """What differs first, for a person to read; None if nothing does that is not known."""
    for index, (operation, one, other) in enumerate(zip(sequence, theirs, ours, strict=True)):
        if one == other:
            continue
        if known(sequence[: index + 1], theirs[: index + 1], ours[: index + 1]) is not None:
            if str(operation[2]).startswith("KVM_GET_"):
                continue  # it changed nothing
            return None
        before = "".join(f"\n    {json.dumps(earlier)}" for earlier in sequence[:index])
        return (
            f"operation {index}, {json.dumps(operation)}:\n  the kernel: {show(one, other)}\n"
            f"  software:   {show(other, one)}\n  after{before or ' nothing'}"
        )
    return None


def show(outcome: Any, other: Any) -> str:
    """An outcome; of a structure only what the other one has not."""
    if isinstance(outcome, list) and isinstance(other, list) and isinstance(outcome[-1], dict):
        there = other[-1] if isinstance(other[-1], dict) else {}
        return json.dumps([outcome[0], {path: value for path, value in outcome[1].items() if there.get(path) != value}])
    return json.dumps(outcome)
