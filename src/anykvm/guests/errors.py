# SPDX-License-Identifier: GPL-2.0-only
"""The one error of this package."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from pathlib import Path

_TAIL_LENGTH = 300


class GuestError(Exception):
    """A guest cannot be fetched or built. The message is one line that says what to do."""


@contextmanager
def cache_errors(where: Path) -> Iterator[None]:
    """Turns an ``OSError`` of work in the cache at `where` into a ``GuestError`` of one line."""
    try:
        yield
    except OSError as error:
        raise cache_error(where, error) from error


def cache_error(where: Path, error: OSError) -> GuestError:
    """The ``GuestError`` that says what to do about `error`, which came up in the cache at `where`."""
    match error.errno:
        case e if e in (ENOSPC, EDQUOT):
            return no_space(where)
        case e if e in (EACCES, EPERM, EROFS):
            return GuestError(
                f"the cache {where} is not writable ({error.strerror}): set ANYKVM_CACHE to a directory that is"
            )
        case _:
            named = f" at {error.filename}" if error.filename else ""
            return GuestError(
                f"the cache {where} failed ({error.strerror or error}{named}): set ANYKVM_CACHE to another"
            )


def no_space(where: Path) -> GuestError:
    """The ``GuestError`` of a full file system."""
    return GuestError(f"no space left in the cache {where}: free about 300 MB there or set ANYKVM_CACHE elsewhere")


def tail(text: str) -> str:
    """What a failed program said, in one line: its errors, or its last lines; no passwords in addresses."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("E:") or "error" in line.lower()] or lines[-2:]
    joined = re.sub(r"//[^/@\s]*@", "//", "; ".join(dict.fromkeys(telling)))
    return joined if len(joined) <= _TAIL_LENGTH else joined[:_TAIL_LENGTH] + "..."
