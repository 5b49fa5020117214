# SPDX-License-Identifier: GPL-2.0-only
"""The contract of an architecture's hooks (``anykvm.virt.hooks``), and where an implementation breaks it."""

from __future__ import annotations

import inspect

from anykvm.virt.hooks import ArchHooks


def contract() -> dict[str, inspect.Signature]:
    """Give the functions of the contract and their signatures."""
    return {
        name: inspect.signature(function)
        for name, function in vars(ArchHooks).items()
        if inspect.isfunction(function) and not name.startswith("_")
    }


def breaches(implementation: ArchHooks) -> list[str]:
    """Say, a line for each, where an architecture's hooks do not keep the contract."""
    found = []
    for name, wanted in contract().items():
        # As a caller sees it: without self, which a static method has not.
        function = getattr(implementation, name, None)
        if not callable(function):
            found.append(f"{implementation.name}: {name} is missing")
        elif ["self", *inspect.signature(function).parameters] != list(wanted.parameters):
            found.append(f"{implementation.name}: {name} takes {inspect.signature(function)}, the contract {wanted}")
    return found
