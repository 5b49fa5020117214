# SPDX-License-Identifier: GPL-2.0-only
"""Samples, rows of the result and targets; and how sides take turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

OURS = "anykvm"

_Side = TypeVar("_Side")


@dataclass(frozen=True)
class Summary:
    """Median, least and greatest of some samples, in their own unit."""

    median: float
    least: float
    greatest: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Summary:
        """Sum up at least one sample; ValueError for none."""
        if not samples:
            raise ValueError("no samples to sum up")
        return cls(statistics.median(samples), min(samples), max(samples))


@dataclass(frozen=True)
class Target:
    """What a row is to reach."""

    kind: Literal["ratio", "value"]
    """``ratio``: our median over the peer's; ``value``: our median itself."""
    limit: float
    at_least: bool = False
    """The limit is a lower one."""

    def met(self, number: float) -> bool:
        """Whether `number`, a ratio or a value as `kind` says, is good enough."""
        return number >= self.limit if self.at_least else number <= self.limit

    def __str__(self) -> str:
        return f"{'ratio ' if self.kind == 'ratio' else ''}{'≥' if self.at_least else '≤'} {self.limit:g}"


@dataclass
class Row:
    """One measured quantity: samples of anykvm and, if there is a peer, of the peer."""

    name: str
    unit: str
    ours: list[float]
    peer: list[float] = field(default_factory=list)
    peer_name: str = ""
    target: Target | None = None
    note: str = ""
    arch: str = ""
    """Of anykvm's guest."""
    noise: float | None = None
    """Cores that other processes used meanwhile, on average; ``None`` if nobody looked."""

    @property
    def ratio_of_least(self) -> float | None:
        """As `ratio`, of the least samples: what noise distorts least where smaller is better."""
        if not self.peer or not self.ours or not min(self.peer):
            return None
        return min(self.ours) / min(self.peer)

    @property
    def ratio(self) -> float | None:
        """Our median over the peer's; ``None`` without a peer, or with one that measured nothing."""
        if not self.peer or not self.ours:
            return None
        below = statistics.median(self.peer)
        return statistics.median(self.ours) / below if below else None

    @property
    def met(self) -> bool | None:
        """Whether the target is reached; ``None`` without a target, or where it cannot be told."""
        if self.target is None or not self.ours:
            return None
        number = self.ratio if self.target.kind == "ratio" else statistics.median(self.ours)
        return None if number is None else self.target.met(number)

    def as_json(self) -> dict[str, Any]:
        """Everything, samples included, for the result file."""
        return {
            "arch": self.arch,
            "name": self.name,
            "unit": self.unit,
            "ours": _described(self.ours),
            "peer": _described(self.peer) | {"name": self.peer_name} if self.peer else None,
            "ratio": self.ratio,
            "ratio_of_least": self.ratio_of_least,
            "target": None if self.target is None else str(self.target),
            "met": self.met,
            "note": self.note,
            "noise": self.noise,
        }


def _described(samples: Sequence[float]) -> dict[str, Any]:
    summary = Summary.of(samples)
    return {"median": summary.median, "min": summary.least, "max": summary.greatest, "samples": list(samples)}


Samples = dict[str, list[list[float]]]
"""By quantity; then one list of samples per side, in the order of the sides."""


def alternate(sides: Sequence[_Side], repetitions: int, measure: Callable[[_Side], Mapping[str, float]]) -> Samples:
    """Let the sides take turns, `repetitions` times each, the first one changing from round to round.

    So a machine that slows down or is busy for a while does it to all of them. `measure` gives a number per quantity,
    the same quantities every time.
    """
    samples: Samples = {}
    order = list(range(len(sides)))
    for round_ in range(repetitions):
        for index in order if round_ % 2 == 0 else reversed(order):
            for quantity, number in measure(sides[index]).items():
                samples.setdefault(quantity, [[] for _ in sides])[index].append(number)
    return samples


def rows(
    samples: Samples,
    names: Iterable[str],
    *,
    unit: str | Mapping[str, str],
    targets: Mapping[str, Target] | None = None,
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """One row per quantity; `names` are those of the sides, ours first; at most one peer."""
    _, *peers = names
    made = []
    for quantity, (ours, *peer) in samples.items():
        row = Row(quantity, unit if isinstance(unit, str) else unit[quantity], ours)
        if peers:
            row.peer, row.peer_name = peer[0], peers[0]
        row.target = (targets or {}).get(quantity)
        row.note = (notes or {}).get(quantity, "")
        made.append(row)
    return made
