# SPDX-License-Identifier: GPL-2.0-only
"""Two processes that only compute, on one vCPU and on two: how much more is done in the same time."""

from __future__ import annotations

import dataclasses
from typing import Final

from .context import Benchmark, Context
from .measure import Row, Target
from .vmms import BenchmarkError, Vmm

# Each load is started twice at once, and its time is that until both are done.
_SCRIPT: Final = r"""
now() { read -r now rest < /proc/uptime; }
hash() { i=0; while [ $i -lt 8 ]; do sha256sum /tmp/data; i=$((i+1)); done > /dev/null; }
shell() { i=0; while [ $i -lt 80000 ]; do i=$((i+1)); done; }
dd if=/dev/zero of=/tmp/data bs=1M count=8 2> /dev/null
for load in hash shell; do
    now; began=$now
    $load & $load & wait
    now
    echo "$load $began $now"
done
"""
_TARGET: Final = Target("value", 1.6, at_least=True)
_LOADS: Final = {"hash": "sha256sum", "shell": "shell loop"}


def _times(vmm: Vmm, output: str) -> dict[str, float]:
    times = {}
    for line in output.splitlines():
        match line.split():
            case [name, began, ended] if name in _LOADS:
                times[name] = float(ended) - float(began)
    if times.keys() != _LOADS.keys() or min(times.values()) <= 0:
        raise BenchmarkError(f"{vmm.name}: the guest did not print its times: {output.strip()!r}")
    return times


def _run(context: Context) -> list[Row]:
    one = context.load("exec", script=_SCRIPT)
    two = dataclasses.replace(one, vcpus=2)

    def measure(vmm: Vmm) -> dict[str, float]:
        alone, both = (_times(vmm, context.boot(vmm, load).transcript.results[0].output) for load in (one, two))
        numbers = {}
        for name, text in _LOADS.items():
            numbers[f"2 x {text}, 1 vCPU"] = alone[name]
            numbers[f"2 x {text}, 2 vCPUs"] = both[name]
        return numbers

    samples = context.alternate("parallel", measure)
    made = context.rows(samples, unit="s")
    for text in _LOADS.values():
        # One number of the least times: anybody else on the machine takes the second core first, so that quotients of
        # single rounds say little.
        pairs = zip(samples[f"2 x {text}, 1 vCPU"], samples[f"2 x {text}, 2 vCPUs"], strict=True)
        ours, *peer = ([min(alone) / min(both)] for alone, both in pairs)
        row = Row(f"2 x {text}: throughput of 2 vCPUs over that of 1", "x", ours, target=_TARGET, note="of least times")
        if peer:
            row.peer, row.peer_name = peer[0], context.names[1]
        made.append(row)
    return made


BENCHMARK: Final = Benchmark("parallel", "a parallel compute load, 2 vCPUs against 1", _run)
