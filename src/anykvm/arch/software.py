# SPDX-License-Identifier: GPL-2.0-only
"""The software backend by the name of an architecture; an architecture is imported when it is first asked for."""

from __future__ import annotations

from anykvm.virt.backend import SoftwareBackend
from anykvm.virt.services import Services

from . import interface


def architectures() -> list[str]:
    """Name the architectures in the tree, in alphabetical order."""
    return interface.packages()


def backend(arch: str, services: Services | None = None) -> SoftwareBackend:
    """Make a backend; ValueError for an architecture that is not in the tree."""
    known = architectures()
    if arch not in known:
        raise ValueError(f"there is no architecture {arch!r}: anykvm has {', '.join(known) or 'none'}")
    return SoftwareBackend(interface.hooks(arch), services)
