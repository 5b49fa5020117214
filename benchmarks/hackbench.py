# SPDX-License-Identifier: GPL-2.0-only
"""hackbench in the guest, with processes and with threads; the time is what hackbench itself prints."""

from __future__ import annotations

from typing import Final

from .context import Benchmark, Context
from .measure import Row, Target
from .vmms import BenchmarkError, Vmm

ARGS: Final = ("-g1", "-l100")
_TARGETS: Final = {("arm64", 1): 1.2, ("arm64", 2): 1.1, ("x86", 1): 1.1, ("x86", 2): 1.1}


def _runner(vcpus: int) -> Benchmark:
    plural = "s" if vcpus > 1 else ""

    def run(context: Context) -> list[Row]:
        load = context.load("hackbench", vcpus=vcpus, args=ARGS)

        def measure(vmm: Vmm) -> dict[str, float]:
            numbers = {}
            for result in context.boot(vmm, load).transcript.results:
                if result.seconds is None:
                    raise BenchmarkError(f"{vmm.name}: {result.name} printed no time: {result.output.strip()}")
                kind = result.name.removeprefix("hackbench-")
                numbers[f"hackbench {' '.join(ARGS)}, {kind} mode, {vcpus} vCPU{plural}"] = result.seconds
            return numbers

        samples = context.alternate(f"hackbench{vcpus}", measure)
        target = Target("ratio", _TARGETS[context.arch, vcpus])
        return context.rows(samples, unit="s", targets=dict.fromkeys(samples, target))

    return Benchmark(f"hackbench{vcpus}", f"hackbench, process and thread mode, {vcpus} vCPU{plural}", run)


ONE: Final = _runner(1)
TWO: Final = _runner(2)
