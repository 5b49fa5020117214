# SPDX-License-Identifier: GPL-2.0-only
"""What a guest that sleeps costs: CPU time of the whole VMM, in percent of one core."""

from __future__ import annotations

import time
from typing import Final

from .context import Benchmark, Context
from .measure import Row, Target
from .vmms import Vmm, cpu_seconds, running

_SETTLE: Final = 3.0  # seconds, for the guest's last work after boot
_WATCH: Final = 10.0
_SCRIPT: Final = "sleep 1000\n"
_IDLE: Final = {1: "idle guest, 1 vCPU", 2: "idle guest, 2 vCPUs"}


def _run(context: Context) -> list[Row]:
    def measure(vmm: Vmm) -> dict[str, float]:
        numbers = {}
        for vcpus, name in _IDLE.items():
            load = context.load("exec", vcpus=vcpus, script=_SCRIPT)
            with running(vmm.command(load), b"anykvm-begin exec") as pid:
                time.sleep(_SETTLE)
                before, since = cpu_seconds(pid), time.monotonic()
                time.sleep(_WATCH)
                numbers[name] = 100 * (cpu_seconds(pid) - before) / (time.monotonic() - since)
        return numbers

    samples = context.alternate("idle", measure)
    return context.rows(samples, unit="% of a core", targets=dict.fromkeys(samples, Target("value", 2.0)))


BENCHMARK: Final = Benchmark("idle", "CPU time of the VMM while the guest sleeps", _run)
