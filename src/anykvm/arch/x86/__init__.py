# SPDX-License-Identifier: GPL-2.0-only
"""x86: KVM/x86's behaviour over the engine."""

from __future__ import annotations

from anykvm.virt.hooks import ArchHooks

from .hooks import X86Hooks


def hooks() -> ArchHooks:
    """The architecture, for :class:`anykvm.virt.backend.SoftwareBackend`."""
    return X86Hooks()
