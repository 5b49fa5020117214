# SPDX-License-Identifier: GPL-2.0-only
"""``anykvm lab``: its subcommands by name, and the options of those that work on many cores or machines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from .late import LateGroup

_F = TypeVar("_F", bound=Callable[..., Any])

# Name, where it is, and what --help says: a subcommand's modules are imported when it is used.
_COMMANDS: Final[dict[str, tuple[str, str, str]]] = {
    "sweep": ("anykvm.cli.lab_sweep", "sweep", "Make every step of creation fail, and look at what is left."),
    "flows": ("anykvm.cli.lab_flows", "flows_command", "Show Linux 5.5's, 5.6's and today's way to create a vCPU."),
    "races": ("anykvm.cli.lab_races", "races", "Run every order of a few operations, up to a bound."),
    "report": ("anykvm.cli.lab_report", "report", "Put what the lab finds into one page with pictures."),
}


@click.command(cls=LateGroup, table=_COMMANDS)
def lab() -> None:
    """Make vCPU creation fail, race and be seen: every step, every order."""


def workers(function: _F) -> _F:
    """--processes, --scheduler: where the work is done (``anykvm.lab.spread.spread`` has the same names)."""
    for option in (
        click.option(
            "--scheduler",
            metavar="ADDRESS",
            help="A Dask scheduler (tcp://host:8786) whose workers do the work; they need this version of anykvm.",
        ),
        click.option(
            "--processes",
            type=click.IntRange(0, 4096),
            help="How many processes work here: as many as there are cores if nothing is said; 0 for none but this.",
        ),
    ):
        function = option(function)
    return function


def output(what: str) -> Callable[[_F], _F]:
    """-o, --output: a file for `what`, as --help calls it."""
    return click.option(
        "-o",
        "--output",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help=f"Write {what} here.",
    )


def scale(function: _F) -> _F:
    """--processes, --scheduler and --resume."""
    resume = click.option(
        "--resume",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="A journal: what it has is not done again, what is finished is added to it.",
    )
    return workers(resume(function))
