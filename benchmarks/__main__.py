# SPDX-License-Identifier: GPL-2.0-only
"""``python -m benchmarks``."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import click
from rich.console import Console

from anykvm.guests import GuestError

from . import boot, exits, hackbench, idle, micro, parallel, report, slots, start, vcpus
from . import exec as under_exec
from .context import ALIKE, Benchmark, Context
from .machine import describe
from .measure import Row
from .vmms import ARCHITECTURES, QEMU_PROGRAMS, BenchmarkError, Qemu

BENCHMARKS: Final[dict[str, Benchmark]] = {
    benchmark.name: benchmark
    for benchmark in (
        boot.BENCHMARK,
        hackbench.ONE,
        hackbench.TWO,
        parallel.BENCHMARK,
        start.BENCHMARK,
        vcpus.BENCHMARK,
        slots.BENCHMARK,
        idle.BENCHMARK,
        exits.BENCHMARK,
        under_exec.BENCHMARK,
        micro.BENCHMARK,
    )
}


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("-n", "--repetitions", type=click.IntRange(min=1), default=5, show_default=True, help="Of each side.")
@click.option(
    "--arch", type=click.Choice(["all", *ARCHITECTURES]), default="all", show_default=True, help="Of the guests."
)
@click.option("--no-qemu", is_flag=True, help="Measure anykvm only.")
@click.option("--words", default=ALIKE, show_default=True, help="For the guest's command line, on both sides.")
@click.option("--output", type=click.Path(path_type=Path), help="The result file; else one in benchmarks/results.")
@click.option("--list", "list_", is_flag=True, help="Say which benchmarks there are.")
def main(
    *,
    names: tuple[str, ...],
    repetitions: int,
    arch: str,
    no_qemu: bool,
    words: str,
    output: Path | None,
    list_: bool,
) -> None:
    """Measure anykvm beside QEMU: the benchmarks called NAME, or all of them."""
    if list_:
        for benchmark in BENCHMARKS.values():
            click.echo(f"{benchmark.name:12} {benchmark.summary}")
        return
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        raise click.UsageError(f"no benchmark {unknown[0]!r}: choose from {', '.join(BENCHMARKS)}")
    news = Console(stderr=True, soft_wrap=True)

    def say(text: str) -> None:
        news.print(text, style="dim", highlight=False, markup=False)

    contexts = []
    for one in ARCHITECTURES if arch == "all" else [arch]:
        qemu = None if no_qemu else Qemu.found(one)
        if qemu is None and not no_qemu:
            program, package = QEMU_PROGRAMS[one]
            say(f"no {program} here (Debian: {package}): measuring anykvm only")
        contexts.append(Context(repetitions, qemu, words, say, one))
    path = output or report.RESULTS / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    try:
        machines = [describe(context) for context in contexts]
    except GuestError as error:
        raise click.ClickException(str(error)) from None
    rows: list[Row] = []
    failed: list[str] = []
    machine = machines[0] | {"guests": [found["guest"] for found in machines]}
    for name, context in ((name, context) for name in names or BENCHMARKS for context in contexts):
        try:
            made = BENCHMARKS[name].run(context)
            for row in made:
                row.arch = context.arch
            rows += made
        except (BenchmarkError, GuestError, OSError, subprocess.TimeoutExpired) as error:
            failed.append(f"{name}, {context.arch}: {error}")
            say(f"FAILED: {failed[-1]}")
        # After each: what was measured stays if a later one is interrupted.
        report.write(path, machine, repetitions, rows, failed)
    # A file or a pipe has no width to fit the table to.
    Console(width=None if sys.stdout.isatty() else 160).print(report.table(rows))
    click.echo(
        f"{machine['cpu']}, {machine['cores']} cores; {machine['qemu'] or 'no QEMU'}; "
        f"guests {', '.join(machine['guests'])}; medians of {repetitions}; {path}"
    )
    if failed:
        raise click.ClickException("; ".join(failed))


if __name__ == "__main__":
    # As SystemExit it ends the guest that runs, too: that has a session of its own.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    main(prog_name="python -m benchmarks")
