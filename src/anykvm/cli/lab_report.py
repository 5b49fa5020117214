# SPDX-License-Identifier: GPL-2.0-only
"""``anykvm lab report``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table

from . import lab, messages, options

_F = TypeVar("_F", bound=Callable[..., Any])


def _results(what: str) -> Callable[[_F], _F]:
    return click.option(
        f"--{what}",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help=f"Take the results of anykvm lab {what} --json instead of running it.",
    )


@click.command()
@click.argument("arch", nargs=-1)
@lab.output("the page")
@_results("sweep")
@_results("flows")
@_results("races")
@click.option(
    "--bound",
    type=click.IntRange(0, 20),
    default=1,
    show_default=True,
    help="How many preemptions, where orders are run for the report.",
)
@lab.workers
@options.common
def report(  # noqa: PLR0917  (click passes them by name)
    arch: tuple[str, ...],
    output: Path | None,
    sweep: Path | None,
    flows: Path | None,
    races: Path | None,
    bound: int,
    processes: int | None,
    scheduler: str | None,
    as_json: bool,
) -> int:
    """Put what the lab finds into one HTML page with pictures (--output), JSON (--json) or a table.

    Runs the sweep of single faults, the flows and a short exploration of orders, unless their results are given. The
    exit status is 1 if anything is not as it should be.
    """
    from anykvm.lab.report import gather, page  # noqa: PLC0415  (loads the engine)

    sources = gather.Sources(sweep, flows, races)
    found = gather.gather(arch, sources, processes=processes, scheduler=scheduler, bound=bound)
    if output is not None:
        page.write(output, found)
        messages.line(f"wrote {output}")
    if as_json:
        click.echo(json.dumps(found, indent=1))
    elif output is None:
        _show(Console(highlight=False), found)
    return 1 if page.bad(found) else 0


def _show(console: Console, found: dict[str, Any]) -> None:
    from anykvm.lab.report.page import totals  # noqa: PLC0415

    from .lab_flows import verdict  # noqa: PLC0415

    counted = totals(found)
    table = Table(show_edge=False, pad_edge=False)
    for name in ("experiment", "how many", "result"):
        table.add_column(name, overflow="fold")
    sweep, orders = found["sweep"], found["races"]
    findings, failing = _result(counted["findings"], "findings"), _result(counted["failing"], "fail")
    table.add_row("faults", f"{counted['faults']:,} at {sweep['points']:,} points", findings)
    table.add_row("orders", f"{counted['orders']:,} in {len(orders)} scenarios", failing)
    for arch, one in found["flows"].items():
        faults = sum(flow["faults"] for flow in one["flows"])
        table.add_row(f"flows of {arch}", f"{faults} faults", "\n".join(verdict(one)))
    for one in found["timeline"]:
        slow = sorted(one["steps"], key=lambda step: -step["us"])[:3]
        table.add_row(
            f"one vCPU of {one['arch']}",
            f"{one['plain_us']} µs",
            "most of it: " + ", ".join(f"{step['name']} {step['us']} µs" for step in slow),
        )
    console.print(table)
    for finding in sweep["findings"]:
        console.print(f"{finding['subject']}: {finding['finding']} ({finding['plan']})")
    for row in found["races"]:
        for failure in row["failures"]:
            console.print(f"{row['arch']}/{row['scenario']}: {failure['why']} ({failure['replay']})")


def _result(bad: int, word: str) -> str:
    return f"{bad:,} {word}" if bad else "all good"
