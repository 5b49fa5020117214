# SPDX-License-Identifier: GPL-2.0-only
"""The command's entry: which subcommands there are, and how every error becomes one line and an exit status."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import click

from . import messages
from .late import LateGroup

EXIT_BAD_INPUT: Final = 2
EXIT_INTERNAL: Final = 4
EXIT_INTERRUPTED: Final = 130

# Name, where it is, and what --help says: a subcommand's modules are imported when it is used.
_COMMANDS: Final[dict[str, tuple[str, str, str]]] = {
    "check": ("anykvm.cli.check", "check", "Show what this machine offers: backends, architectures, and why not."),
    "boot": ("anykvm.cli.boot", "boot", "Boot Linux; its console is this terminal."),
    "hackbench": ("anykvm.cli.hackbench", "hackbench", "Boot a Debian guest, run hackbench in it, print the result."),
    "exec": ("anykvm.cli.exec", "command", "Run an unmodified KVM program with a /dev/kvm."),
    "lab": ("anykvm.cli.lab", "lab", "Make creation and destruction of vCPUs fail, race, and be seen."),
    "guest": ("anykvm.cli.guest", "guest", "List and fetch Debian guests."),
}


class _Interrupted(Exception):
    """Ctrl-C: click would print an empty line before it passes on its own exception."""


class _Ended(BaseException):
    """A signal that asks the process to end."""

    def __init__(self, number: int) -> None:
        self.number = number


@contextmanager
def _signals() -> Iterator[None]:
    """Where SIGTERM or SIGHUP would end the process on the spot, unwind it: no program stays, no file is half done.

    A second one does end it on the spot.
    """

    def handler(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise _Ended(number)

    taken = []
    if threading.current_thread() is threading.main_thread():
        taken = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


class _Commands(LateGroup):
    """The subcommands, and what Ctrl-C does to them."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise _Interrupted from None


def _version(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        from importlib.metadata import version  # noqa: PLC0415  (slow to import)

        click.echo(f"anykvm {version('anykvm')}")
        ctx.exit()


@click.command(cls=_Commands, table=_COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version.")
def anykvm() -> None:
    """KVM in user space, for every architecture."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status. What goes wrong is told in one line."""
    try:
        with _signals():
            status: Any = anykvm.main(args=arguments, prog_name="anykvm", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else error.format_message(), err=True)
        return EXIT_BAD_INPUT
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "anykvm"
        message = error.format_message().rstrip(".").replace("\n", " ")
        messages.error(f"{message[:1].lower()}{message[1:]} (see {where} --help)")
        return EXIT_BAD_INPUT
    except click.ClickException as error:
        messages.error(error.format_message())
        return error.exit_code
    except (_Interrupted, KeyboardInterrupt, click.Abort):
        messages.error("interrupted")
        return EXIT_INTERRUPTED
    except _Ended as ended:
        messages.error(f"ended by {signal.Signals(ended.number).name}")
        return 128 + ended.number
    except BrokenPipeError:
        # Whoever read our output has gone, and wants to hear nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        return _failed(error)


def _failed(error: Exception) -> int:
    from anykvm.guests.errors import GuestError  # noqa: PLC0415  (only needed when something fails)
    from anykvm.lab.errors import LabError  # noqa: PLC0415
    from anykvm.vmm.errors import VmmError  # noqa: PLC0415

    messages.trace(error)
    match error:
        case LabError():
            messages.detail(error.detail)
            messages.error(str(error))
            return EXIT_BAD_INPUT
        case VmmError():
            messages.error(str(error))
            return EXIT_BAD_INPUT
        case GuestError():
            messages.error(str(error))
            return 1
        case OSError() if error.filename is not None:
            messages.error(f"{error.filename}: {error.strerror}")
            return 1
        case OSError():
            messages.error(error.strerror or str(error))
            return 1
        case MemoryError():
            messages.error("this host has no memory left: close something, or give a smaller --memory")
            return 1
        case _:
            hint = "" if messages.verbose else " (a bug in anykvm; -v shows where)"
            messages.error(f"{type(error).__name__}: {error}".replace("\n", " ") + hint)
            return EXIT_INTERNAL
