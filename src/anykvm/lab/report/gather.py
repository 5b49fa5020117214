# SPDX-License-Identifier: GPL-2.0-only
"""What a report is made of: the lab's experiments, run now, or read from the JSON that their commands wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .. import sweep
from ..errors import LabError
from ..flows import backend, compare
from ..races import plan, scenarios
from ..races import report as races
from ..spread import spread
from . import timeline

KIND: Final = "anykvm lab report"
BOUND: Final = 1
"""Preemptions in a report's own exploration: seconds instead of minutes."""


@dataclass(frozen=True)
class Sources:
    """Where results come from: a file of JSON for each, or None to run it."""

    sweep: Path | None = None
    flows: Path | None = None
    races: Path | None = None


def gather(
    arches: Sequence[str] = (),
    sources: Sources = Sources(),
    *,
    processes: int | None = None,
    scheduler: str | None = None,
    bound: int = BOUND,
) -> dict[str, Any]:
    """Give everything a report shows, as JSON has it; LabError."""
    known = backend.architectures()
    for arch in arches:
        if arch not in known:
            raise LabError(f"there is no report on {arch!r}: choose one of {', '.join(known)}")
    wanted = list(arches) or known
    where: dict[str, Any] = {"processes": processes, "scheduler": scheduler}
    return {
        "kind": KIND,
        "architectures": wanted,
        "flows": _flows(wanted, sources.flows),
        "sweep": _sweep(wanted, sources.sweep, where),
        "races": _races(wanted, sources.races, bound, where),
        "timeline": [timeline.measure(arch) for arch in wanted],
    }


def _flows(wanted: list[str], path: Path | None) -> dict[str, Any]:
    if path is None:
        return dict(compare.compare(wanted)["architectures"])
    found = _read(path, "flows")
    if not isinstance(found, dict) or found.get("kind") != compare.KIND:
        raise LabError(f"{path} is not what anykvm lab flows --json writes")
    return {arch: one for arch, one in found["architectures"].items() if arch in wanted}


def _sweep(wanted: list[str], path: Path | None, where: dict[str, Any]) -> dict[str, Any]:
    if path is None:
        return sweep.sweep(wanted, progress="faults", **where).to_json()
    found = _read(path, "sweep")
    if not isinstance(found, dict) or not {"plans", "findings", "points", "faults"} <= found.keys():
        raise LabError(f"{path} is not what anykvm lab sweep --json writes")
    return found | {"plans": {name: one for name, one in found["plans"].items() if name.split("/")[0] in wanted}}


def _races(wanted: list[str], path: Path | None, bound: int, where: dict[str, Any]) -> list[dict[str, Any]]:
    if path is None:
        chosen = [(arch, one) for arch, many in scenarios.ALL.items() if arch in wanted for one in many]
        items = [item for arch, one in chosen for item in plan.items(arch, one.name, min(bound, one.bound))]
        with closing(spread(plan.work, items, progress="orders", **where)) as found:
            return [row.as_json() for row in races.rows((done.item, done.result) for done in found)]
    read = _read(path, "races")
    if not isinstance(read, list) or not all(isinstance(row, dict) and "interleavings" in row for row in read):
        raise LabError(f"{path} is not what anykvm lab races --json writes")
    return [row for row in read if row["arch"] in wanted]


def _read(path: Path, what: str) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise LabError(f"results of {what}: {path}: {error.strerror}") from None
    except ValueError:
        raise LabError(f"results of {what}: {path} is not JSON: write it with anykvm lab {what} --json") from None
