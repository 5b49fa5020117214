# SPDX-License-Identifier: GPL-2.0-only
"""A piece of work: an importable function by its name, called with JSON and giving JSON.

A name and two texts are all that has to cross to another process or machine, so nothing is pickled here, and a result
is the same text wherever it was made.
"""

from __future__ import annotations

import functools
import hashlib
import json
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from .errors import LabError

_PACKAGE: Final = Path(__file__).resolve().parents[1]


def name_of(work: Callable[..., Any] | str) -> str:
    """Give the name, ``module:function``, of a function that another process can import; LabError for another."""
    if isinstance(work, str):
        return work
    name = f"{work.__module__}:{work.__qualname__}"
    if work.__module__ == "__main__" or "<" in work.__qualname__ or "." in work.__qualname__:
        raise LabError(f"{name} cannot be imported by another process: put it at the top level of a module")
    return name


@functools.cache
def find(name: str) -> Callable[[Any], Any]:
    """Import the function that a name means; LabError if there is none."""
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise LabError(f"{name} cannot be imported here: {error}", traceback.format_exc()) from None
    if not callable(found):
        raise LabError(f"{name} is not a function")
    return found  # type: ignore[no-any-return]


def call(name: str, item: str) -> str:
    """Do one piece of work, from JSON to JSON; LabError, with the traceback, if it raises."""
    work = find(name)
    try:
        return to_json(work(json.loads(item)))
    except LabError:
        raise
    except Exception as error:
        what = f"{name} failed on {shortened(item)}: {type(error).__name__}: {error}"
        raise LabError(" ".join(what.split()), traceback.format_exc()) from None


def to_json(value: Any) -> str:
    """Write a value as JSON, the same text for the same value; LabError for what JSON does not have."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise LabError(f"an item and a result are JSON, and this is not: {error}") from None


def shortened(item: str, length: int = 60) -> str:
    """An item for a message of one line."""
    return item if len(item) <= length else item[: length - 3] + "..."


@functools.cache
def fingerprint(name: str) -> str:
    """Tell the code that does this work from other code: a hash of anykvm's files and of the function's module."""
    found = find(name)
    sources = sorted(path for path in _PACKAGE.rglob("*") if path.suffix in (".py", ".so"))
    own = Path(import_module(found.__module__).__file__ or "").resolve()
    if own.is_file() and not own.is_relative_to(_PACKAGE):
        sources.append(own)
    total = hashlib.sha256()
    for path in sources:
        label = path.relative_to(_PACKAGE).as_posix() if path.is_relative_to(_PACKAGE) else path.name
        total.update(label.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()[:16]
