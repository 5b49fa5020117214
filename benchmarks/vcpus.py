# SPDX-License-Identifier: GPL-2.0-only
"""What a vCPU costs until it first runs: 256 of them in one VM, on arm64 with a GICv3; microseconds per vCPU."""

from __future__ import annotations

import gc
import time
from contextlib import ExitStack
from typing import Final

from . import quiet
from .context import Benchmark, Context
from .kvms import Side, compare, create_gic
from .measure import Row, Target

COUNT: Final = 256
_CREATE: Final = f"KVM_CREATE_VCPU and mapping, each of {COUNT}"
_INIT: Final = f"KVM_ARM_VCPU_INIT, each of {COUNT}"
_BOTH: Final = f"vCPU creation until first run (create and init), each of {COUNT}"
_CLOSE: Final = f"closing vCPUs and VM, per vCPU of {COUNT}"
_FIRST: Final = "first KVM_RUN of a VM, to its first exit"


def _measure(side: Side) -> dict[str, float]:
    quiet.wait()
    gc.collect()
    clock = time.perf_counter
    with ExitStack() as stack:
        vm = stack.enter_context(side.vm())
        init = 0.0
        if side.arch == "arm64":
            create_gic(vm, COUNT)
        before = clock()
        vcpus = [vm.create_vcpu(vcpu_id) for vcpu_id in range(COUNT)]
        create = clock() - before
        for vcpu in vcpus:
            stack.callback(vcpu.close)
        if side.arch == "arm64":
            before = clock()
            target = vm.preferred_target()
            for vcpu in vcpus:
                vcpu.init(target)
            init = clock() - before
        before = clock()
        stack.close()
        closing = clock() - before
    with side.looping("write") as vcpu:
        before = clock()
        vcpu.run()
        first = clock() - before
    each = 1e6 / COUNT
    return {
        _CREATE: create * each,
        _INIT: init * each,
        _BOTH: (create + init) * each,
        _CLOSE: closing * each,
        _FIRST: first * 1e6,
    }


def _run(context: Context) -> list[Row]:
    made = compare(context.say, context.repetitions, _measure, unit="us", targets={_BOTH: Target("value", 100)})
    for row in made:
        if row.name == _INIT and row.peer and not any(row.peer):
            row.peer = []  # an architecture without that ioctl
    return made


BENCHMARK: Final = Benchmark("vcpus", f"creating {COUNT} vCPUs in one VM, and a first KVM_RUN", _run)
