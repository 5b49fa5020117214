# SPDX-License-Identifier: GPL-2.0-only
"""Exploring as pieces of work that can be done anywhere: what goes out and what comes back is JSON.

The schedules of a scenario form a tree: those that part from the first run at one step are a piece. A piece is found
again by its name, and its result is the same wherever and whenever it is done.
"""

from __future__ import annotations

from typing import Any

from . import scenarios
from .explore import Found, branches, explore
from .reduce import explore_all
from .scenario import run
from .schedule import from_text, to_text

Item = dict[str, Any]
Result = dict[str, Any]


def items(arch: str, name: str, bound: int) -> list[Item]:
    """Cut a scenario into pieces, the largest first."""
    scenario = scenarios.find(arch, name)
    first = run(scenario, arch, b"")
    piece = {"arch": arch, "scenario": name, "bound": bound}
    starts = [to_text(start) for start in branches(first, 0, bound)]
    return [*({**piece, "start": start} for start in starts), {**piece, "start": None}]


def item_of_all(arch: str, name: str, most: int) -> Item:
    """A scenario without a bound is one piece; ``most`` runs at most, 0 for no limit."""
    return {"arch": arch, "scenario": name, "bound": None, "most": most}


def work(item: Item) -> Result:
    """Do a piece: every schedule that begins with ``start``, the first run alone for None, or all without a bound."""
    scenario = scenarios.find(item["arch"], item["scenario"])
    if item["bound"] is None:
        found = explore_all(scenario, item["arch"], most=item["most"])
    elif item["start"] is None:
        found = Found()
        found.add_run(run(scenario, item["arch"], b"", found.edges))
    else:
        found = explore(scenario, item["arch"], item["bound"], from_text(item["start"]))
    return to_json(found)


def to_json(found: Found) -> Result:
    """Write what was found; equal results are equal text."""
    return {
        "interleavings": found.interleavings,
        "repeated": found.repeated,
        "cut": found.cut,
        "steps": found.steps,
        "outcomes": [[list(outcome), number] for outcome, number in sorted(found.outcomes.items())],
        "failing": found.failing,
        "failures": [list(failure) for failure in found.failures],
        "edges": sorted(list(edge) for edge in found.edges),
        "points": sorted(list(point) for point in found.points),
    }


def from_json(result: Result) -> Found:
    """Read what :func:`to_json` wrote."""
    return Found(
        interleavings=result["interleavings"],
        repeated=result["repeated"],
        cut=result["cut"],
        steps=result["steps"],
        outcomes={tuple(outcome): number for outcome, number in result["outcomes"]},
        failing=result["failing"],
        failures=[(schedule, why) for schedule, why in result["failures"]],
        edges={(held, taken) for held, taken in result["edges"]},
        points={(kind, name) for kind, name in result["points"]},
    )
