# SPDX-License-Identifier: GPL-2.0-only
"""``anykvm lab sweep``."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from anykvm.testing.faults import Plan, PlanError

from . import lab, messages, options


def _plan(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is None:
        return None
    try:
        plan = Plan.parse(value)
    except PlanError as error:
        raise click.BadParameter(str(error)) from None
    if not plan:
        raise click.BadParameter("the plan has no fault in it")
    return str(plan)


@click.command()
@click.argument("what", metavar="[ARCH|ARCH/VARIANT]...", nargs=-1)
@click.option("--pairs", is_flag=True, help="Also make two points fail in one history.")
@click.option("--plan", callback=_plan, help="Run this fault plan only, as a finding's line gives it.")
@lab.scale
@options.common
def sweep(  # noqa: PLR0917  (click passes them by name)
    what: tuple[str, ...],
    pairs: bool,
    plan: str | None,
    as_json: bool,
    processes: int | None,
    scheduler: str | None,
    resume: Path | None,
) -> int:
    """Make every step of the creation of VMs and vCPUs fail, and look at what is left.

    Each finding is one line with the plan that replays it. The exit status is 1 if there is one.
    """
    from anykvm.lab import sweep as work  # noqa: PLC0415  (loads the engine)

    started = time.monotonic()
    if plan is not None:
        subjects = work.subjects_of(what)
        swept = work.Swept()
        for subject in subjects:
            one = work.replay(subject, plan)
            swept.findings += one.findings
            swept.trials += one.trials
            swept.faults += one.faults
    else:
        swept = work.sweep(
            what, with_pairs=pairs, processes=processes, scheduler=scheduler, resume=resume, progress="faults"
        )
    seconds = time.monotonic() - started
    if as_json:
        click.echo(json.dumps(swept.to_json() | {"seconds": round(seconds, 1)}, indent=1))
        return 1 if swept.findings else 0
    for subject, replay, finding in swept.findings:
        again = f" (anykvm lab sweep {subject} --plan '{replay}')" if replay else ""
        click.echo(f"{subject}: {finding}{again}")
    if messages.verbose:
        for subject, plans in swept.fired.items():
            for text in plans:
                click.echo(f"{subject}: {text}")
    for subject, counts in swept.by_subject.items():
        click.echo(f"{subject:18} " + ", ".join(f"{value} {name}" for name, value in counts.items()))
    if plan is None:
        click.echo(
            f"{swept.points} points, {swept.faults} faults, {swept.pairs} pairs, {swept.refusals} refusals;"
            f" {swept.trials} trials in {seconds:.1f} s: {len(swept.findings)} findings"
        )
    else:
        click.echo(f"{swept.trials} trials in {seconds:.1f} s: {len(swept.findings)} findings")
    return 1 if swept.findings else 0
