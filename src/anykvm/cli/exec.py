# SPDX-License-Identifier: GPL-2.0-only
"""``anykvm exec``."""

from __future__ import annotations

import click

from anykvm.api import architectures
from anykvm.preload import launch

from . import messages


@click.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--arch", help="The architecture of its guests; this machine's own if nothing is said.")
@click.option("--raw", is_flag=True, help="Also serve ioctl system calls made without libc (a seccomp filter).")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] PROGRAM [ARGUMENTS]...")
def command(arch: str | None, raw: bool, command: tuple[str, ...]) -> int:
    """Run an unmodified KVM program with a /dev/kvm.

    Its exit status is the program's; 127 and 126, as a shell's, if there is no such program or it cannot be run.
    """
    chosen = arch or launch.host_arch()
    known = architectures()
    if chosen not in known:
        raise click.UsageError(f"there is no architecture {chosen!r}: anykvm has {', '.join(known)}")
    try:
        launch.run(list(command), {"arch": chosen}, raw=raw)
    except launch.CannotStart as reason:
        messages.error(str(reason))
        return reason.status
