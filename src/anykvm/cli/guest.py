# SPDX-License-Identifier: GPL-2.0-only
"""``anykvm guest``."""

from __future__ import annotations

import json

import click

from anykvm.guests import Guest, cache_dir, list_guests

from . import debian, options


@click.group()
def guest() -> None:
    """List and fetch Debian guests."""


@guest.command("list")
@options.common
def list_command(as_json: bool) -> None:
    """Show the guests in the cache ($ANYKVM_CACHE, or ~/.cache/anykvm)."""
    guests = list_guests()
    if as_json:
        click.echo(json.dumps([_describe(item) for item in guests], indent=1))
    elif not guests:
        click.echo(f"no guests in {cache_dir()}: fetch one with anykvm guest pull arm64")
    else:
        for item in guests:
            click.echo(f"{item.arch:8} {item.release:32} {item.directory}")


@guest.command("pull")
@click.argument("arch", default="arm64")
@click.option("--refresh", is_flag=True, help="Look for a newer kernel even if there is one in the cache.")
@options.common
def pull_command(arch: str, refresh: bool, as_json: bool) -> None:
    """Fetch the newest Debian kernel, busybox and hackbench for ARCH (arm64 if nothing is said)."""
    debian.check(arch)
    found = debian.guest(arch, refresh=refresh)
    click.echo(json.dumps(_describe(found), indent=1) if as_json else f"{found.arch:8} {found.release}")


def _describe(item: Guest) -> dict[str, object]:
    return {
        "arch": item.arch,
        "release": item.release,
        "kernel": str(item.kernel),
        "directory": str(item.directory),
        "packages": dict(item.packages),
    }
