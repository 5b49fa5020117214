# SPDX-License-Identifier: GPL-2.0-only
"""How long each step of a creation takes, measured."""

from __future__ import annotations

import time
from statistics import median
from typing import Any, Final

from ..flows.backend import find
from ..flows.rig import rig
from ..flows.trace import ACQUIRE, HOOK, PUBLISH, Event

LAST: Final = "map the run page"
"""After the core's last step: KVM_CREATE_VCPU returns, and the typed API maps the run page."""
VMS: Final = 12
VCPUS: Final = 8
"""vCPUs in each VM; the first VM, and the first vCPU of each, only warm up."""


def measure(arch: str) -> dict[str, Any]:
    """Create vCPUs of an architecture and give the median of every step, in microseconds.

    A step is told when it begins, which costs time itself; ``plain`` is a creation, with the mapping of its run page,
    that nobody watches.
    """
    runs: list[list[Event]] = []
    totals: list[int] = []
    plain: list[int] = []
    for vm in range(VMS):
        with rig(arch, find("today")) as made:
            for vcpu_id in range(VCPUS):
                watched = vcpu_id % 2 == 1
                if watched:
                    made.services.watch(made.core)
                start = time.perf_counter_ns()
                made.vm.create_vcpu(vcpu_id)
                took = time.perf_counter_ns() - start
                made.services.stop()
                if not vm or not vcpu_id:
                    continue
                (totals if watched else plain).append(took)
                if watched:
                    runs.append([one for one in made.services.events if one.what not in (ACQUIRE, PUBLISH)])
    return {
        "arch": arch,
        "runs": len(runs),
        "plain_us": _microseconds(plain),
        "watched_us": _microseconds(totals),
        "steps": _steps(runs, totals),
    }


def _microseconds(values: list[int]) -> float:
    return round(median(values) / 1000, 1)


def _steps(runs: list[list[Event]], totals: list[int]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    at = 0.0
    for number, event in enumerate(runs[0]):
        lasts = [
            (run[number + 1].ns if number + 1 < len(run) else total) - run[number].ns
            for run, total in zip(runs, totals, strict=True)
        ]
        took = median(lasts) / 1000
        found.append(
            {
                "name": LAST if number + 1 == len(runs[0]) else event.name,
                "hook": event.hook,
                "calls": event.what == HOOK,
                "locked": event.locked,
                "at_us": round(at, 1),
                "us": round(took, 1),
            }
        )
        at += took
    return found
