# SPDX-License-Identifier: GPL-2.0-only
"""``anykvm exec``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from anykvm.api import architectures
from anykvm.preload import launch

from . import messages


@click.command("exec", context_settings={"allow_interspersed_args": False})
@click.option("--arch", help="The architecture of its guests; this machine's own if nothing is said.")
@click.option("--trace", is_flag=True, help="Print each request on standard error, as strace does.")
@click.option("--trace-file", type=click.Path(dir_okay=False, path_type=Path), help="Append them to this file instead.")
@click.option("--trace-json", type=click.Path(dir_okay=False, path_type=Path), help="Append each as a line of JSON.")
@click.option("--faults", metavar="PLAN", help="Let requests fail as the plan says: KVM_CREATE_VCPU#2=ENOMEM,...")
@click.option("--raw", is_flag=True, help="Also serve ioctl system calls made without libc (a seccomp filter).")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] PROGRAM [ARGUMENTS]...")
def command(
    *,
    arch: str | None,
    trace: bool,
    trace_file: Path | None,
    trace_json: Path | None,
    faults: str | None,
    raw: bool,
    command: tuple[str, ...],
) -> int:
    """Run an unmodified KVM program with a /dev/kvm.

    Its exit status is the program's; 127 and 126, as a shell's, if there is no such program or it cannot be run.
    """
    chosen = arch or launch.host_arch()
    known = architectures()
    if chosen not in known:
        raise click.UsageError(f"there is no architecture {chosen!r}: anykvm has {', '.join(known)}")
    options = {"arch": chosen}
    if trace or trace_file is not None:
        options["trace"] = _writable(trace_file) if trace_file is not None else ""
    if trace_json is not None:
        options["trace_json"] = _writable(trace_json)
    if faults is not None:
        options["faults"] = _plan(faults)
    try:
        launch.run(list(command), options, raw=raw)
    except launch.CannotStart as reason:
        messages.error(str(reason))
        return reason.status


def _writable(path: Path) -> str:
    """The absolute path of a file that can be appended to; OSError."""
    with path.open("a"):
        return os.path.abspath(path)


def _plan(text: str) -> str:
    from anykvm.testing.faults import Plan, PlanError  # noqa: PLC0415  (only who asks for faults waits for it)

    try:
        return str(Plan.parse(text))
    except PlanError as error:
        raise click.UsageError(f"--faults: {error}") from None
