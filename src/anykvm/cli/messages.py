# SPDX-License-Identifier: GPL-2.0-only
"""What the command says of itself, on standard error: lines that begin with ``anykvm:``."""

from __future__ import annotations

import sys
import traceback
from contextlib import suppress

verbose = False
"""Set by -v: also show progress in detail, and where errors come from."""


def line(text: str) -> None:
    """One line of news."""
    # Where standard error is closed nobody is there to tell.
    with suppress(OSError, ValueError, AttributeError):
        print(f"anykvm: {text}", file=sys.stderr, flush=True)


def error(text: str) -> None:
    """One line that says what went wrong and what to do."""
    line(" ".join(text.split()))


def detail(text: str) -> None:
    """A line for -v."""
    if verbose:
        line(text)


def trace(failure: BaseException) -> None:
    """Where an error came from, for -v."""
    if verbose and sys.stderr is not None:
        traceback.print_exception(failure, file=sys.stderr)
