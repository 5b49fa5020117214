# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of the local APIC share."""

from __future__ import annotations

from hypothesis import strategies as st
from x86_irq_rig import make_lapics, put

from anykvm.arch.x86 import lapic_regs as R
from anykvm.arch.x86.apic_bus import (
    DM_FIXED,
)
from anykvm.arch.x86.lapic import Lapic

MASKED = 0x10000
LOGICAL = 0x800
ASSERT = 0x4000
LEVEL = 0x8000
SELF, ALL, OTHERS = 1 << 18, 2 << 18, 3 << 18
FLAT = 0xFFFFFFFF
CLUSTER = 0x0FFFFFFF


def one(*, on: bool = True) -> Lapic:
    return make_lapics(1, on=on)[2][0]


def inject(lapic: Lapic, vector: int, *, level: bool = False) -> int:
    with lapic.bus.lock:
        return lapic.accept(DM_FIXED, vector, level)


def ipi(lapic: Lapic, low: int, dest: int = 0) -> None:
    put(lapic, R.APIC_ICR2, dest << 24)
    put(lapic, R.APIC_ICR, low)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("inject"), st.integers(16, 255)),
        st.tuples(st.just("ack"), st.just(0)),
        st.tuples(st.just("eoi"), st.just(0)),
        st.tuples(st.just("tpr"), st.integers(0, 255)),
    ),
    max_size=60,
)
