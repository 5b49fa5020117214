# SPDX-License-Identifier: GPL-2.0-only
"""``anykvm lab flows``."""

from __future__ import annotations

import json
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from anykvm.lab.flows import compare as flows

from . import lab, messages, options

_COLOURS: Final = {"create": "cyan", "init": "magenta", "setup": "yellow", "precreate": "blue", "postcreate": "blue"}


@click.command()
@click.argument("arch", nargs=-1)
@lab.output("an HTML page with the picture")
@lab.scale
@options.common
def flows_command(  # noqa: PLR0917  (click passes them by name)
    arch: tuple[str, ...],
    output: Path | None,
    processes: int | None,
    scheduler: str | None,
    resume: Path | None,
    as_json: bool,
) -> int:
    """Show three ways to create a vCPU side by side: Linux 5.5's, 5.6's and today's, over the same steps.

    Makes real vCPUs by each, compares them, and lets every step fail to see what each way leaves behind. The exit
    status is 1 if the vCPUs differ, or today's way leaves anything.
    """
    from anykvm.lab.flows.backend import architectures  # noqa: PLC0415  (not for --help)

    where = processes if processes is not None or scheduler else 0
    found = flows.compare(arch or architectures(), processes=where, scheduler=scheduler, resume=resume)
    if output is not None:
        from anykvm.lab.report import page  # noqa: PLC0415

        page.write(output, {"flows": found["architectures"]})
        messages.line(f"wrote {output}")
    if as_json:
        click.echo(json.dumps(found, indent=1))
    else:
        console = Console(highlight=False)
        for name, one in found["architectures"].items():
            _show(console, name, one)
    return 1 if any(map(_bad, found["architectures"].values())) else 0


def _bad(one: dict[str, Any]) -> bool:
    return bool(one["leaks_today"] or any(one["same"]["differences"].values()))


def _show(console: Console, arch: str, one: dict[str, Any]) -> None:
    table = Table(title=f"{arch}: the same steps in three flows", title_justify="left", show_edge=False, pad_edge=False)
    for flow in one["flows"]:
        table.add_column(f"{flow['name']}", overflow="fold")
    columns = [[_step(step) for step in flow["steps"]] for flow in one["flows"]]
    for row in zip_longest(*columns, fillvalue=Text()):
        table.add_row(*row)
    table.add_section()
    table.add_row(*(Text(f"creates: {', '.join(flow['create_hooks'])}") for flow in one["flows"]))
    table.add_row(*(Text(f"destroys: {', '.join(flow['destroy_hooks'])}") for flow in one["flows"]))
    table.add_section()
    table.add_row(*(_leaks(flow) for flow in one["flows"]))
    console.print(table)
    console.print()
    order = Table(show_edge=False, pad_edge=False)
    order.add_column("where they differ")
    for flow in one["flows"]:
        order.add_column(flow["name"], overflow="fold")
    for name in dict.fromkeys(name for flow in one["flows"] for name in flow["order"]):
        order.add_row(name, *(flow["order"].get(name, "-") for flow in one["flows"]))
    console.print(order)
    console.print()
    for line in verdict(one):
        console.print(line)
    console.print()


def _step(step: dict[str, Any]) -> Text:
    depth = step["hook"].count("/") + 1 if step["hook"] else 0
    inner = step["hook"].rpartition("/")[2]
    if step["what"] == "hook":
        text = Text("  " * depth + step["name"] + "()", style=f"bold {_COLOURS.get(step['name'], 'green')}")
    else:
        style = _COLOURS.get(inner, "")
        text = Text("  " * depth + step["name"], style=f"{style} italic" if step["what"] == "check" else style)
    if step["locked"]:
        text.append(" (locked)", style="dim")
    return text


def _leaks(flow: dict[str, Any]) -> Text:
    text = Text(f"{flow['faults']} faults, ")
    if not flow["leaks"]:
        return text.append("nothing left", style="green")
    text.append(f"{sum(leak['faults'] for leak in flow['leaks'])} leave something:", style="bold red")
    for leak in flow["leaks"]:
        text.append(f"\n{', '.join(leak['left'])}", style="red")
        text.append(f"\n  at {', '.join(leak['at'])}", style="dim")
    return text


def verdict(one: dict[str, Any]) -> list[str]:
    """What the comparison comes to, in lines."""
    same = one["same"]
    differ = {name: names for name, names in same["differences"].items() if names}
    lines = [f"the same vCPU in each: {same['compared']:,} values and a guest's whole run compared"]
    if differ:
        lines = [f"vCPUs of {name} differ from today's in {', '.join(names[:5])}" for name, names in differ.items()]
    lines.append(f"fixed by the series: {', '.join(one['fixed_by_the_series']) or 'nothing that applies here'}")
    if one["found_later"]:
        lines.append(f"found later, and left by 5.6 too: {', '.join(one['found_later'])}")
    if one["leaks_today"]:
        lines.append(f"left today: {', '.join(one['leaks_today'])}")
    return lines
