# SPDX-License-Identifier: GPL-2.0-only
"""What a memory slot costs when there are many: 8,192 of them made, and deleted again."""

from __future__ import annotations

import gc
import time
from typing import Final

from anykvm.api import GuestMemory
from anykvm.uapi.common import KVM_SET_USER_MEMORY_REGION, KvmUserspaceMemoryRegion

from . import quiet
from .context import Benchmark, Context
from .kvms import Side, compare
from .measure import Row

COUNT: Final = 8192
_PAGE: Final = 4096
_MAKE: Final = f"a memory slot made, each of {COUNT}"
_DELETE: Final = f"a memory slot deleted, each of {COUNT}"


def _measure(side: Side) -> dict[str, float]:
    quiet.wait()
    gc.collect()
    with GuestMemory(_PAGE) as memory, side.vm() as vm:
        made = [
            KvmUserspaceMemoryRegion(
                slot=slot, guest_phys_addr=slot * 2 * _PAGE, memory_size=_PAGE, userspace_addr=memory.address
            )
            for slot in range(COUNT)
        ]
        gone = [KvmUserspaceMemoryRegion(slot=slot) for slot in range(COUNT)]
        times = []
        for regions in (made, gone):
            before = time.perf_counter()
            for region in regions:
                vm.ioctl(KVM_SET_USER_MEMORY_REGION, region)
            times.append((time.perf_counter() - before) / COUNT * 1e6)
    return dict(zip((_MAKE, _DELETE), times, strict=True))


def _run(context: Context) -> list[Row]:
    return compare(context, _measure, unit="us", targets={})


BENCHMARK: Final = Benchmark("slots", f"making and deleting {COUNT} memory slots", _run)
