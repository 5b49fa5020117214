# SPDX-License-Identifier: GPL-2.0-only
"""Round trips through the typed API: an ioctl that does next to nothing, and an access of the guest to a device."""

from __future__ import annotations

import time
from typing import Final

from anykvm.api import Kvm, MmioRead, MmioWrite
from anykvm.uapi import common

from . import quiet
from .context import Benchmark, Context
from .kvms import Side, compare
from .measure import Row
from .vmms import BenchmarkError

_ROUNDS: Final = 20_000
_WARM: Final = 200


def _measure(side: Side) -> dict[str, float]:
    quiet.wait()
    clock = time.perf_counter
    numbers = {}
    with Kvm(side.backend, arch=side.arch) as kvm, kvm.create_vm() as vm:
        before = clock()
        for _ in range(_ROUNDS):
            kvm.api_version()
        numbers["ioctl KVM_GET_API_VERSION"] = (clock() - before) / _ROUNDS * 1e6
        before = clock()
        for _ in range(_ROUNDS):
            vm.check_extension(common.KVM_CAP_MAX_VCPUS)
        numbers["ioctl KVM_CHECK_EXTENSION on a VM"] = (clock() - before) / _ROUNDS * 1e6
    with side.looping("write") as vcpu:
        for _ in range(_WARM):
            exit = vcpu.run()
        if not isinstance(exit, MmioWrite):
            raise BenchmarkError(f"{side.name}: the guest was to write to a device: {exit}")
        before = clock()
        for _ in range(_ROUNDS):
            vcpu.run()
        numbers["MMIO write: exit and back"] = (clock() - before) / _ROUNDS * 1e6
    with side.looping("read") as vcpu:
        for _ in range(_WARM):
            exit = vcpu.run()
        if not isinstance(exit, MmioRead):
            raise BenchmarkError(f"{side.name}: the guest was to read from a device: {exit}")
        before = clock()
        for _ in range(_ROUNDS):
            match vcpu.run():
                case MmioRead() as read:
                    read.reply(0)
        numbers["MMIO read: exit, answer and back"] = (clock() - before) / _ROUNDS * 1e6
    return numbers


def _run(context: Context) -> list[Row]:
    return compare(context.say, context.repetitions, _measure, unit="us", targets={})


BENCHMARK: Final = Benchmark("exits", "a trivial ioctl and MMIO exits through the typed API", _run)
