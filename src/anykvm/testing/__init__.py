# SPDX-License-Identifier: GPL-2.0-only
"""The test kit: fault plans, the ledger, and a pytest plugin, for programs that use KVM.

"My VMM survives the 3rd KVM_CREATE_VCPU failing with ENOMEM" is a test of a few lines: ``docs/testing.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from .faults import Fault, Plan, PlanError, plan_of

if TYPE_CHECKING:
    from .backend import FaultyBackend, FaultyServices, software
    from .injector import Injector, Point
    from .ledger import Ledger, open_fds
    from .programs import CannotRun, Programs, Ran, TookTooLong, Traced

__all__ = [
    "CannotRun",
    "Fault",
    "FaultyBackend",
    "FaultyServices",
    "Injector",
    "Ledger",
    "Plan",
    "PlanError",
    "Point",
    "Programs",
    "Ran",
    "TookTooLong",
    "Traced",
    "open_fds",
    "plan_of",
    "software",
]

# Loaded when first used: plans alone need nothing of KVM, and pytest loads this package in every run.
_LATE: Final = {
    "FaultyBackend": "backend",
    "FaultyServices": "backend",
    "software": "backend",
    "Injector": "injector",
    "Point": "injector",
    "Ledger": "ledger",
    "open_fds": "ledger",
    "CannotRun": "programs",
    "Programs": "programs",
    "Ran": "programs",
    "TookTooLong": "programs",
    "Traced": "programs",
}


def __getattr__(name: str) -> Any:
    module = _LATE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib  # noqa: PLC0415  (not needed for plans)

    return getattr(importlib.import_module(f"{__name__}.{module}"), name)
