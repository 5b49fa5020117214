# SPDX-License-Identifier: GPL-2.0-only
"""The report as one HTML page that needs nothing else: style and pictures are in it, and no script."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import LabError
from . import flow_picture, ladder_picture
from .matrix import matrices


def page(found: dict[str, Any]) -> str:
    """Write the page from what :func:`.gather.gather` gives, or from a part of it: ``flows`` must be there."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415  (only a report needs it)
    from markupsafe import Markup  # noqa: PLC0415

    environment = Environment(
        loader=PackageLoader("anykvm.lab.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["thousands"] = lambda value: f"{value:,}"
    arches = []
    for arch, flows in found["flows"].items():
        today = next(flow for flow in flows["flows"] if flow["name"] == "today")
        arches.append(
            {
                "name": arch,
                "flows": flows,
                # Our own markup, in which every name has been escaped.
                "ladder": Markup(ladder_picture.picture(arch, today)),
                "picture": Markup(flow_picture.picture(arch, flows["flows"])),
            }
        )
    swept = found.get("sweep")
    return environment.get_template("report.html.j2").render(
        version=version("anykvm"),
        arches=arches,
        matrices=matrices(swept) if swept else [],
        sweep=swept,
        races=found.get("races"),
        timeline=found.get("timeline", []),
        totals=totals(found),
    )


def totals(found: dict[str, Any]) -> dict[str, int]:
    """The numbers at the top."""
    swept, races = found.get("sweep"), found.get("races", [])
    return {
        "faults": swept["faults"] if swept else 0,
        "findings": len(swept["findings"]) if swept else 0,
        "orders": sum(row["interleavings"] for row in races),
        "failing": sum(row["failing"] for row in races),
        "alike": sum(one["same"]["compared"] for one in found["flows"].values()),
        "differences": sum(
            len(names) for one in found["flows"].values() for names in one["same"]["differences"].values()
        ),
        "leaks_today": sum(len(one["leaks_today"]) for one in found["flows"].values()),
    }


def write(path: Path, found: dict[str, Any]) -> None:
    """Write the page to a file; LabError."""
    text = page(found)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise LabError(f"{path}: {error.strerror}: give --output another place") from None


def bad(found: dict[str, Any]) -> bool:
    """Whether anything in it is not as it should be."""
    counted = totals(found)
    return any(counted[name] for name in ("findings", "failing", "differences", "leaks_today"))
