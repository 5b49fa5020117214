# SPDX-License-Identifier: GPL-2.0-only
"""anykvm: KVM in user space, for every architecture.

The names of the typed API (:mod:`anykvm.api`) can be imported from here. They are loaded when first used: the layers
below the API must not load it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anykvm.api import *  # noqa: F403 - one list of names, in anykvm.api


def __getattr__(name: str) -> object:
    if name == "__all__" or not name.startswith("_"):
        api = importlib.import_module("anykvm.api")
        if name in api.__all__ or name == "__all__":
            return getattr(api, name)
    raise AttributeError(f"module 'anykvm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *importlib.import_module("anykvm.api").__all__})
