# SPDX-License-Identifier: GPL-2.0-only
"""The one error of this package."""

from __future__ import annotations


class VmmError(Exception):
    """A machine cannot be built as asked. The message is one line that says what to do."""
