# SPDX-License-Identifier: GPL-2.0-only
"""Notices on the console that the guest's kernel has panicked.

Sources: ``kernel/panic.c`` (what is printed and when it resets), ``kernel/printk/printk.c`` (the time stamp of a line).
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Final

# As the kernel prints it: at the start of a line, behind a time stamp or a caller id at most.
_STAMP: Final = rb"^(?:\[ *\d+\.\d+\])?(?:\[ *[CT]\d+\])? ?"
_PANIC: Final = re.compile(_STAMP + rb"Kernel panic - not syncing(?:: *(.*))?")
_END: Final = re.compile(_STAMP + rb"---\[ end Kernel panic - not syncing")
_LONGEST_LINE: Final = 1024

END_SECONDS: Final = 1.0
"""Silence after the last line of a panic before the guest counts as stuck."""
SILENT_SECONDS: Final = 30.0
"""The same, when that last line never came."""


class PanicWatch:
    """Reads along. A line that looks like a panic counts once nothing follows it: what a person lists does not."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._line = b""
        self._ended = False
        self._last = 0.0
        self.reason: str | None = None
        """What the kernel said of its last panic."""

    def feed(self, output: bytes) -> None:
        """What the guest has just printed."""
        self._last = self._clock()
        # Few chunks hold one; the rest is passed over without looking at lines.
        if self.reason is None and b"panic" not in self._line + output:
            self._line = (self._line + output)[-_LONGEST_LINE:].rpartition(b"\n")[2]
            return
        *lines, self._line = (self._line + output).split(b"\n")
        for line in lines:
            self._look(line.strip(b"\r"))

    def _look(self, line: bytes) -> None:
        if (found := _PANIC.match(line)) is not None:
            self.reason = (found[1] or b"").decode("ascii", "replace").strip()
            self._ended = False
        elif _END.match(line):
            self._ended = True
        elif self._ended and line:
            # Life goes on: it was only text.
            self.reason = None
            self._ended = False

    def wait(self) -> float | None:
        """Seconds until the guest counts as stuck (0: it does); ``None`` if it has not panicked."""
        if self.reason is None:
            return None
        silence = self._clock() - self._last
        return max((END_SECONDS if self._ended else SILENT_SECONDS) - silence, 0.0)
