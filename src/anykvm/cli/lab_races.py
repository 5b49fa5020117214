# SPDX-License-Identifier: GPL-2.0-only
"""``anykvm lab races``."""

from __future__ import annotations

import json
import time
from contextlib import closing
from pathlib import Path
from typing import Final

import click

from anykvm.lab.races import plan, report, scenarios
from anykvm.lab.races.scenario import Scenario
from anykvm.lab.spread import spread

from . import messages, options
from .lab import scale


@click.command()
@click.argument("arch", required=False)
@click.option("--scenario", "names", multiple=True, metavar="NAME", help="Only this one; may be given again.")
@click.option("--bound", type=click.IntRange(0, 20), help="How many preemptions; by default what suits each scenario.")
@click.option("--all", "every", is_flag=True, help="Without a bound: every order, up to swaps of independent steps.")
@click.option(
    "--most",
    type=click.IntRange(min=0),
    default=20_000,
    show_default=True,
    help="With --all: leave a scenario after so many runs; 0 is never.",
)
@click.option("--list", "list_only", is_flag=True, help="Only say which scenarios there are.")
@click.option("--replay", metavar="ARCH/SCENARIO:SCHEDULE", help="Run one schedule, and show its steps.")
@scale
@options.common
def races(
    as_json: bool,
    *,
    arch: str | None,
    names: tuple[str, ...],
    bound: int | None,
    every: bool,
    most: int,
    list_only: bool,
    replay: str | None,
    processes: int | None,
    scheduler: str | None,
    resume: Path | None,
) -> int:
    """Run every order of a few operations on one VM, with at most so many preemptions, or with --all without a bound.

    Looks at every step whether what always holds does hold. A failing order is printed so that --replay runs it again.
    The exit status is 1 if any failed.
    """
    if replay is not None:
        return _replay(replay)
    chosen = _choose(arch, names)
    if list_only:
        for one_arch, scenario in chosen:
            click.echo(f"{one_arch:6} {scenario.name:25} {scenario.what}")
        return 0
    began = time.monotonic()
    if every:
        if bound is not None:
            raise click.UsageError("--all has no bound: leave one of --all and --bound out")
        items = [plan.item_of_all(one_arch, scenario.name, most) for one_arch, scenario in chosen]
    else:
        items = [
            item
            for one_arch, scenario in chosen
            for item in plan.items(one_arch, scenario.name, scenario.bound if bound is None else bound)
        ]
    with closing(
        spread(plan.work, items, processes=processes, scheduler=scheduler, resume=resume, progress="orders")
    ) as found:
        rows = report.rows((done.item, done.result) for done in found)
    seconds = time.monotonic() - began
    if as_json:
        click.echo(json.dumps([row.as_json() for row in rows], indent=1))
    else:
        _show(rows, seconds)
    return 1 if any(row.found.failing for row in rows) else 0


def _replay(text: str) -> int:
    try:
        arch, name, schedule = report.parse_replay(text)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    last = ""
    for last in report.replay(arch, name, schedule):
        click.echo(last)
    return 1 if last.startswith("failed") else 0


def _choose(arch: str | None, names: tuple[str, ...]) -> list[tuple[str, Scenario]]:
    if arch is not None and arch not in scenarios.ALL:
        raise click.UsageError(f"there are no scenarios for {arch!r}: choose one of {', '.join(scenarios.ALL)}")
    every = [(one, scenario) for one, many in scenarios.ALL.items() if arch in (None, one) for scenario in many]
    known = {scenario.name for _, scenario in every}
    for name in names:
        if name not in known:
            raise click.UsageError(f"there is no scenario {name!r}: --list shows what there is")
    return [(one, scenario) for one, scenario in every if not names or scenario.name in names]


_TITLES: Final = ("arch", "scenario", "tasks", "points", "steps", "bound", "orders", "outcomes", "failing")
_LINE: Final = "{:6} {:25} {:>5} {:>6} {:>5} {:>5} {:>9} {:>8} {:>7}"


def _show(rows: list[report.Row], seconds: float) -> None:
    click.echo(_LINE.format(*_TITLES))
    for row in rows:
        found = row.found
        bound = "none" if row.bound is None else row.bound
        counts = (len(row.scenario.tasks), len(found.points), found.steps, bound)
        orders = f"{found.interleavings:,}{'+' if found.cut else ''}"
        results = (len(found.outcomes), f"{found.failing:,}")
        click.echo(_LINE.format(row.arch, row.scenario.name, *counts, orders, *results))
    for row in rows:
        for schedule, why in row.found.failures:
            click.echo(f"{row.arch}/{row.scenario.name}: {why}")
            if schedule:
                click.echo(f"  anykvm lab races --replay {row.replay(schedule)}")
    cut = [f"{row.arch}/{row.scenario.name}" for row in rows if row.found.cut]
    if cut:
        messages.line(f"not finished, --most says so: {', '.join(cut)}")
    total = sum(row.found.interleavings for row in rows)
    failing = sum(row.found.failing for row in rows)
    messages.line(f"{total:,} orders in {seconds:.1f} s ({total / seconds * 60:,.0f} a minute), {failing:,} failing")
