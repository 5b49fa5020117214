# SPDX-License-Identifier: GPL-2.0-only
"""What the lab refuses, in one line that says what to do."""

from __future__ import annotations


class LabError(Exception):
    """The lab cannot go on: bad input, a worker that died, a full disk. ``detail`` may have a traceback for -v."""

    def __init__(self, message: str, detail: str = "") -> None:
        super().__init__(message)
        self.detail = detail

    def __reduce__(self) -> tuple[type[LabError], tuple[str, str]]:
        return type(self), (str(self), self.detail)
