# SPDX-License-Identifier: GPL-2.0-only
"""Options that several subcommands have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from . import messages

_F = TypeVar("_F", bound=Callable[..., Any])
BACKENDS: Final = ("auto", "software", "host")
_LONGEST: Final = 1_000_000_000
"""Seconds of --timeout: 31 years."""


def _verbose(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        messages.verbose = True


def common(function: _F) -> _F:
    """--json and -v."""
    function = click.option(
        "-v",
        "--verbose",
        is_flag=True,
        expose_value=False,
        callback=_verbose,
        help="Say more; show where errors come from.",
    )(function)
    return click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")(function)


def backend(function: _F) -> _F:
    """--backend."""
    return click.option(
        "--backend",
        type=click.Choice(BACKENDS),
        default="auto",
        show_default=True,
        help="What runs the guest: anykvm's own KVM, or the machine's /dev/kvm.",
    )(function)


def architecture(function: _F) -> _F:
    """ARCH."""
    return click.argument("arch")(function)


def _timeout(_: click.Context, __: click.Parameter, value: float | None) -> float | None:
    # No range excludes "nan".
    if value is not None and not 0 < value <= _LONGEST:
        raise click.BadParameter(f"{value} is not a number of seconds from 0 (which is too short) to {_LONGEST}")
    return value


def machine(smp: int, memory: str) -> Callable[[_F], _F]:
    """--smp, --memory, --gic, --timeout."""
    from anykvm.vmm.config import GICS  # noqa: PLC0415  (only who has a machine)

    def decorate(function: _F) -> _F:
        for option in (
            click.option("--timeout", type=float, callback=_timeout, help="Give up after so many seconds."),
            click.option("--gic", type=click.Choice(GICS), default="v3", show_default=True, help="arm64: its GIC."),
            click.option(
                "--memory", default=memory, show_default=True, help="RAM: MiB, or a number with K, M, G or T."
            ),
            click.option("--smp", type=int, default=smp, show_default=True, help="How many vCPUs."),
        ):
            function = option(function)
        return function

    return decorate


def check_backend(backend: str, arch: str, *, debian: bool, force: bool = False) -> None:
    """Refuse Linux where the machine's /dev/kvm is too little for it; `force` lets a kernel of one's own try."""
    from anykvm.host import DEV_KVM, EMULATES, host_arch, probe, virtualises  # noqa: PLC0415

    if backend != "host" or arch != host_arch() or virtualises() or probe() is not None:
        return
    if debian:
        raise click.UsageError(f"{DEV_KVM} cannot boot Debian: {EMULATES}; choose --backend software")
    if not force:
        raise click.UsageError(f"{DEV_KVM}: {EMULATES}; choose --backend software, or --force for a smaller kernel")
    messages.line(f"{DEV_KVM}: {EMULATES}")


_OF_ONE: Final = {"gic": "arm64", "entry": "x86", "firmware": "x86"}
"""Options that one architecture's machine has."""


def check_architecture(arch: str) -> None:
    """Refuse an architecture there is no machine for, and options that its machine has not."""
    from anykvm.api import architectures  # noqa: PLC0415  (not for --help)
    from anykvm.vmm.config import ARCHITECTURES  # noqa: PLC0415

    known = [name for name in ARCHITECTURES if name in architectures()]
    if arch not in known:
        raise click.UsageError(f"no machine for {arch!r}: choose one of {', '.join(known)}")
    context = click.get_current_context()
    for name, owner in _OF_ONE.items():
        if owner != arch and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--{name} is of {owner} machines only: leave it out to use {arch}")
