# SPDX-License-Identifier: GPL-2.0-only
"""What a vCPU costs until it first runs: 256 of them in one VM with an interrupt controller, time and memory."""

from __future__ import annotations

import gc
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Final

from . import quiet
from .context import Benchmark, Context
from .kvms import Side, compare, create_gic
from .measure import Row, Target
from .vmms import BenchmarkError

COUNT: Final = 256
_MANY: Final = 1024  # KVM_CAP_MAX_VCPUS of x86
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
        else:
            vm.create_irqchip()
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
    target = {_BOTH: Target("value", 100)} if context.arch == "arm64" else {_CREATE: Target("ratio", 1.0)}
    made = compare(context, _measure, unit="us", targets=target)
    for row in made:
        if row.name == _INIT and row.peer and not any(row.peer):
            row.peer = []  # an architecture without that ioctl
    made = [row for row in made if any(row.ours)]
    return made + (_many(context) if context.arch == "x86" else [])


def _many(context: Context) -> list[Row]:
    """As many as a VM can have: whether the last cost more than the first, and the memory of each."""
    growth: dict[bool, list[float]] = {False: [], True: []}
    memory: list[float] = []
    for _ in range(context.repetitions):
        for irqchip, grown in growth.items():
            quiet.wait()
            gc.collect()
            with ExitStack() as stack:
                vm = stack.enter_context(Side("", "software", context.arch).vm())
                if irqchip:
                    vm.create_irqchip()
                times = [time.perf_counter()]
                for vcpu_id in range(_MANY):
                    stack.enter_context(vm.create_vcpu(vcpu_id))
                    times.append(time.perf_counter())
                each = [end - start for start, end in pairwise(times)]
                # Python's collector stops the world once in a thousand vCPUs; a median does not count in which quarter.
                grown.append(median(each[-_MANY // 4 :]) / median(each[: _MANY // 4]))
        # In a new process: here the memory of earlier ones would be used again, and nothing seem to be needed.
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
            memory.append(process.submit(_memory, context.arch).result(timeout=60))
    note = {False: "no irqchip", True: "irqchip"}
    made = [
        Row(f"a vCPU of {_MANY}'s last quarter over its first, {note[irqchip]}", "x", samples)
        for irqchip, samples in growth.items()
    ]
    return [*made, Row(f"resident memory of each of {_MANY} vCPUs", "KiB", memory, target=Target("value", 64))]


def _memory(arch: str) -> float:
    """KiB that each of as many vCPUs as there can be adds to this process, beside a first one."""
    with ExitStack() as stack:
        vm = stack.enter_context(Side("", "software", arch).vm())
        vm.create_irqchip()
        stack.enter_context(vm.create_vcpu(0))
        resident = _resident()
        for vcpu_id in range(1, _MANY):
            stack.enter_context(vm.create_vcpu(vcpu_id))
        return (_resident() - resident) / (_MANY - 1) / 1024


def _resident() -> int:
    """Bytes of this process in memory (proc_pid_smaps(5))."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise BenchmarkError("/proc/self/smaps_rollup has no Rss")


BENCHMARK: Final = Benchmark("vcpus", f"creating {COUNT} vCPUs in one VM, and a first KVM_RUN", _run)
