# SPDX-License-Identifier: GPL-2.0-only
"""The table for people, the file for programs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from .measure import Row, Summary

RESULTS: Final = Path(__file__).parent / "results"


def number(value: float) -> str:
    """Three significant digits, or all before the point."""
    if value >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def spread(samples: Sequence[float]) -> str:
    """Median, then the range in parentheses."""
    if not samples:
        return "-"
    summary = Summary.of(samples)
    return f"{number(summary.median)} ({number(summary.least)} - {number(summary.greatest)})"


def table(rows: Sequence[Row]) -> Table:
    """All rows: medians, least and greatest, the ratio and whether the target is met."""
    made = Table(title="medians (least - greatest); ratio: anykvm / peer; noise: cores used by other processes")
    for heading in ("guest", "what", "unit"):
        made.add_column(heading, overflow="fold")
    for heading in ("anykvm", "peer"):
        made.add_column(heading, justify="right", no_wrap=True)
    for heading in ("ratio", "of least", "noise", "target", "met"):
        made.add_column(heading, justify="right")
    for row in rows:
        made.add_row(*_cells(row))
    return made


def _cells(row: Row) -> list[str | Text]:
    verdict = {None: Text(""), True: Text("yes", "green"), False: Text("no", "bold red")}[row.met]
    return [
        row.arch,
        Text(f"{row.name} [{row.note}]" if row.note else row.name),
        row.unit,
        spread(row.ours),
        f"{row.peer_name} {spread(row.peer)}" if row.peer else "-",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        "" if row.ratio_of_least is None else f"{row.ratio_of_least:.2f}",
        "" if row.noise is None else f"{row.noise:.1f}",
        "" if row.target is None else str(row.target),
        verdict,
    ]


def write(path: Path, machine: Mapping[str, Any], repetitions: int, rows: Sequence[Row], failed: Sequence[str]) -> None:
    """Write everything to `path`, whose folder is made; whole, or as it was before."""
    content = {
        "machine": dict(machine),
        "repetitions": repetitions,
        "rows": [row.as_json() for row in rows],
        "failed": list(failed),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    temporary.replace(path)
