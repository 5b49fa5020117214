# SPDX-License-Identifier: GPL-2.0-only
"""How busy the machine is with other things: to wait for a quiet moment, and to say how noisy a measurement was."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

PATIENCE: Final = 6.0
"""How long to wait for a quiet moment before each measurement, in seconds."""
QUIET: Final = 0.25
"""In cores: what others may use."""
_LOOK: Final = 0.4  # seconds; /proc/stat counts in steps of 10 ms


def busy_seconds() -> float:
    """CPU seconds all cores were not idle since the machine started, those stolen by its host included (proc(5))."""
    fields = [int(field) for field in Path("/proc/stat").read_text().partition("\n")[0].split()[1:]]
    # user nice system idle iowait irq softirq steal; guest times are in user and nice already.
    return sum(fields[:3] + fields[5:8]) / os.sysconf("SC_CLK_TCK")


def wait(patience: float = PATIENCE) -> None:
    """Return once others use little, or when `patience` seconds are over."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        busy, now = busy_seconds(), time.monotonic()
        time.sleep(_LOOK)
        if (busy_seconds() - busy) / (time.monotonic() - now) <= QUIET:
            return


class Others:
    """What others use of the machine from now on."""

    def __init__(self) -> None:
        self._busy, self._since = busy_seconds(), time.monotonic()

    def cores(self, own_cpu_seconds: float) -> float:
        """Their share so far, in cores; what was measured used `own_cpu_seconds`."""
        elapsed = time.monotonic() - self._since
        return max(0.0, busy_seconds() - self._busy - own_cpu_seconds) / elapsed if elapsed > 0 else 0.0
