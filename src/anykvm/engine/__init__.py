# SPDX-License-Identifier: GPL-2.0-only
"""The engine: runs guest instructions, and knows nothing of KVM.

A :class:`Machine` is guest-physical memory and the cpus that share it; a cpu (:func:`Cpu`) runs a guest until something
needs policy and comes back with an :class:`Event`.
"""

from anykvm.engine._engine import Sleeper, host_has_tsc, host_tick_khz, host_ticks, watch
from anykvm.engine.arm64 import Arm64Cpu
from anykvm.engine.events import COUNTER_HZ, Event
from anykvm.engine.machine import Cpu, Machine
from anykvm.engine.x86 import X86Cpu

__all__ = [
    "COUNTER_HZ",
    "Arm64Cpu",
    "Cpu",
    "Event",
    "Machine",
    "Sleeper",
    "X86Cpu",
    "host_has_tsc",
    "host_tick_khz",
    "host_ticks",
    "watch",
]
