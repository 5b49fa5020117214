# SPDX-License-Identifier: GPL-2.0-only
"""What single things cost in the guest: one boot, busybox's applets, microseconds each by the guest's clock."""

from __future__ import annotations

from typing import Final

from .context import Benchmark, Context
from .measure import Row
from .vmms import BenchmarkError, Vmm

_SCRIPT: Final = r"""
now() { read -r now rest < /proc/uptime; }
calls() { dd if=/dev/zero of=/dev/null bs=1 count=150000; }
faults() { dd if=/dev/zero of=/dev/null bs=128M count=1; }
forks() { i=0; while [ $i -lt 300 ]; do (:); i=$((i+1)); done; }
execs() { i=0; while [ $i -lt 200 ]; do /bin/true; i=$((i+1)); done; }
pipes() {
    while read -r line <&3; do echo "$line" >&4; done &
    i=0; while [ $i -lt 2000 ]; do echo >&3; read -r line <&4; i=$((i+1)); done
    kill $!
}
echo never > /sys/kernel/mm/transparent_hugepage/enabled
mkfifo /tmp/there /tmp/back
exec 3<>/tmp/there 4<>/tmp/back
for what in calls faults forks execs pipes; do
    now; began=$now
    $what > /dev/null 2>&1
    now
    echo "$what $began $now"
done
"""
# How often each thing is done above. A dd of one byte is a read and a write; 128 MiB are 32768 pages.
_THINGS: Final = {
    "calls": ("system call (dd, read and write of one byte)", 300_000),
    "faults": ("page fault, with filling the page", 32_768),
    "forks": ("fork and exit of a shell", 300),
    "execs": ("fork, exec and exit of busybox", 200),
    "pipes": ("FIFO round trip between two shells", 2_000),
}


def _run(context: Context) -> list[Row]:
    load = context.load("exec", script=_SCRIPT)

    def measure(vmm: Vmm) -> dict[str, float]:
        output = context.boot(vmm, load).transcript.results[0].output
        numbers = {}
        for line in output.splitlines():
            match line.split():
                case [name, began, ended] if name in _THINGS:
                    text, count = _THINGS[name]
                    numbers[text] = (float(ended) - float(began)) / count * 1e6
        if len(numbers) != len(_THINGS):
            raise BenchmarkError(f"{vmm.name}: the guest did not print its times: {output.strip()!r}")
        return numbers

    return context.rows(context.alternate("micro", measure), unit="us")


BENCHMARK: Final = Benchmark("micro", "system call, page fault, fork, exec and FIFO in the guest", _run)
