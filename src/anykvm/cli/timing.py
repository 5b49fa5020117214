# SPDX-License-Identifier: GPL-2.0-only
"""When this process was started, on the clock that everything else is measured with."""

from __future__ import annotations

import os
import time
from pathlib import Path


def process_start() -> float:
    """The start of this process on the ``time.monotonic`` clock, to 10 ms (proc(5), /proc/pid/stat, field 22).

    Where /proc does not say, the time of the call.
    """
    try:
        # The second field, a name in parentheses, may have spaces.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.monotonic()
    return time.monotonic() - age
