# SPDX-License-Identifier: GPL-2.0-only
"""From spawning the VMM to its exit, with a guest that powers off as soon as user space is up."""

from __future__ import annotations

from .context import Benchmark, Context
from .measure import Row, Target
from .vmms import Vmm

_TARGETS = {"arm64": 1.2, "x86": 1.1}
_WALL = "boot to power-off, 1 vCPU"
_CPU = "boot to power-off, 1 vCPU: CPU time of the VMM"


def _run(context: Context) -> list[Row]:
    load = context.load("poweroff")

    def measure(vmm: Vmm) -> dict[str, float]:
        ran = context.boot(vmm, load)
        return {_WALL: ran.seconds, _CPU: ran.cpu_seconds}

    samples = context.alternate("boot", measure)
    return context.rows(samples, unit="s", targets={_WALL: Target("ratio", _TARGETS[context.arch])})


BENCHMARK = Benchmark("boot", "boot to power-off, wall time of the whole process", _run)
