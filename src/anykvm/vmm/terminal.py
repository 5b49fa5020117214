# SPDX-License-Identifier: GPL-2.0-only
"""The person's terminal in raw mode, and back again whatever happens."""

from __future__ import annotations

import atexit
import os
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

_IFLAG, _OFLAG, _CFLAG, _LFLAG, _, _, _CC = range(7)


@contextmanager
def raw_mode(fd: int) -> Iterator[bool]:
    """Put the terminal at `fd` into raw mode; tells whether there is one. A file or pipe is left alone.

    It is restored at the end of the block and, should that not be reached, when the interpreter exits. In the
    background (a job started with ``&``) the terminal is left alone too: setting it would stop the process.
    """
    try:
        before = termios.tcgetattr(fd)
        foreground = os.tcgetpgrp(fd) == os.getpgrp()
    except (termios.error, OSError, ValueError):
        yield False
        return
    if not foreground:
        yield False
        return

    def restore() -> None:
        # Hung up: there is nothing to restore.
        with suppress(termios.error, OSError):
            termios.tcsetattr(fd, termios.TCSADRAIN, before)

    atexit.register(restore)
    try:
        termios.tcsetattr(fd, termios.TCSADRAIN, _raw(before))
        yield True
    finally:
        restore()
        atexit.unregister(restore)


def _raw(before: list[Any]) -> list[Any]:
    """As ``cfmakeraw``: every byte goes through, none has a meaning."""
    mode = [*before[:_CC], list(before[_CC])]
    mode[_IFLAG] &= ~(
        termios.IGNBRK
        | termios.BRKINT
        | termios.PARMRK
        | termios.ISTRIP
        | termios.INLCR
        | termios.IGNCR
        | termios.ICRNL
        | termios.IXON
    )
    mode[_OFLAG] &= ~termios.OPOST
    mode[_LFLAG] &= ~(termios.ECHO | termios.ECHONL | termios.ICANON | termios.ISIG | termios.IEXTEN)
    mode[_CFLAG] = mode[_CFLAG] & ~(termios.CSIZE | termios.PARENB) | termios.CS8
    mode[_CC][termios.VMIN] = 1
    mode[_CC][termios.VTIME] = 0
    return mode
