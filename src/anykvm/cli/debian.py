# SPDX-License-Identifier: GPL-2.0-only
"""A Debian guest for a command: from the cache, or fetched with a progress bar on the first use."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

import click

from anykvm import guests
from anykvm.guests import Guest, build_initramfs, installed
from anykvm.guests.machines import MACHINES

from . import messages

_GUESTS: Final = {"x86": "amd64"}
"""What Debian calls an architecture that anykvm calls by the kernel's name, where that differs."""


def check(arch: str) -> None:
    """Refuse a guest that there is none of."""
    known = {*_GUESTS, *MACHINES}
    if arch not in known:
        raise click.UsageError(f"no Debian guest for {arch!r}: choose one of {', '.join(sorted(known))}")


def guest(arch: str, *, refresh: bool = False) -> Guest:
    """The guest of `arch`, by anykvm's name or Debian's; ``GuestError`` if it cannot be had."""
    arch = _GUESTS.get(arch, arch)
    found = None if refresh else installed(arch)
    if found is not None:
        return found
    messages.line(f"fetching Debian's {arch} kernel, busybox and hackbench through apt (once)")
    if sys.stderr is not None and sys.stderr.isatty():
        return _with_bar(arch, refresh)
    stages: list[str] = []

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in stages:
            stages.append(stage)
            messages.line(f"{stage}...")

    return guests.pull(arch, refresh=refresh, progress=progress)


def initramfs(guest: Guest) -> Path:
    """The image that goes with `guest`; built on the first use, which takes a second."""
    return build_initramfs(guest)


def _with_bar(arch: str, refresh: bool) -> Guest:
    from rich.console import Console  # noqa: PLC0415  (slow to import)
    from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=None)
            bar.update(tasks[stage], completed=done, total=total or None)

        return guests.pull(arch, refresh=refresh, progress=progress)
