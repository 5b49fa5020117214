# SPDX-License-Identifier: GPL-2.0-only
"""``anykvm lab``: its subcommands by name, and the options of those that work on many cores or machines."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

_F = TypeVar("_F", bound=Callable[..., Any])

# Name, where it is, and what --help says: a subcommand's modules are imported when it is used.
_COMMANDS: Final[dict[str, tuple[str, str, str]]] = {
    "sweep": ("anykvm.cli.lab_sweep", "sweep", "Make every step of creation fail, and look at what is left."),
    "flows": ("anykvm.cli.lab_flows", "flows_command", "Show Linux 5.5's, 5.6's and today's way to create a vCPU."),
    "races": ("anykvm.cli.lab_races", "races", "Run every order of a few operations, up to a bound."),
    "report": ("anykvm.cli.lab_report", "report", "Put what the lab finds into one page with pictures."),
}


class _Commands(click.Group):
    """Subcommands by name, imported late."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = _COMMANDS.get(cmd_name)
        if found is None:
            return None
        module, attribute, _ = found
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in _COMMANDS.items()])


@click.command(cls=_Commands)
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


def scale(function: _F) -> _F:
    """--processes, --scheduler and --resume."""
    resume = click.option(
        "--resume",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="A journal: what it has is not done again, what is finished is added to it.",
    )
    return workers(resume(function))
