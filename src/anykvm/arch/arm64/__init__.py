# SPDX-License-Identifier: GPL-2.0-only
"""arm64: KVM/arm64's behaviour over the engine."""

from __future__ import annotations

from anykvm.virt.hooks import ArchHooks

from .hooks import Arm64Hooks


def hooks() -> ArchHooks:
    """The architecture, for :class:`anykvm.virt.backend.SoftwareBackend`."""
    return Arm64Hooks()
