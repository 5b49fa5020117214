# SPDX-License-Identifier: GPL-2.0-only
"""The GIC's state machine, without register frames."""

from __future__ import annotations

import threading
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from anykvm.arch.arm64.vgic import (
    IDLE_PRIORITY,
    LINE_FIQ,
    LINE_IRQ,
    LINE_NONE,
    VGIC_NR_PRIVATE_IRQS,
    Vgic,
    VgicCpu,
    VgicIrq,
)
from anykvm.uapi.common import KVM_DEV_TYPE_ARM_VGIC_V2, KVM_DEV_TYPE_ARM_VGIC_V3

SPI = 40


class Gic:
    """A GIC with everything let through."""

    def __init__(self, cpus: int = 1, *, v3: bool = False, spis: int = 64) -> None:
        self.lines: list[list[int]] = [[] for _ in range(cpus)]
        self.vgic = Vgic(
            KVM_DEV_TYPE_ARM_VGIC_V3 if v3 else KVM_DEV_TYPE_ARM_VGIC_V2, group=int(v3), lock=threading.Lock()
        )
        self.vgic.nr_spis = spis
        self.cpus = [
            VgicCpu(index, index, lambda old, new, index=index: self.lines[index].append(new)) for index in range(cpus)
        ]
        self.vgic.init(self.cpus)
        self.vgic.enabled = True
        for cpu in self.cpus:
            cpu.pmr = 0xF8
            cpu.grpen0 = cpu.grpen1 = True

    def irq(self, intid: int, cpu: int = 0) -> VgicIrq:
        irq = self.vgic.irq(self.cpus[cpu], intid)
        assert irq is not None
        return irq

    def enable(self, intid: int, priority: int = 0xA0, cpu: int = 0, *, edge: bool | None = None) -> VgicIrq:
        irq = self.irq(intid, cpu)
        irq.enabled = True
        irq.priority = priority
        if edge is not None:
            irq.edge = edge
        self.vgic.refresh(irq)
        return irq

    def drive(self, intid: int, level: bool, cpu: int = 0) -> None:
        assert self.vgic.inject(self.cpus[cpu], intid, level)

    def best(self, cpu: int = 0) -> int | None:
        best = self.cpus[cpu].best
        return best.intid if best is not None else None

    def ack(self, cpu: int = 0) -> int:
        best = self.cpus[cpu].best
        return self.vgic.acknowledge(self.cpus[cpu], best) if best is not None else 1023

    def eoi(self, intid: int, cpu: int = 0) -> bool:
        return self.vgic.end(self.cpus[cpu], intid)


def test_reset_state() -> None:
    gic = Gic()
    for irq in gic.cpus[0].private:
        assert irq.edge == irq.enabled == (irq.intid < 16)
    assert not any(irq.enabled or irq.edge or irq.pending or irq.active for irq in gic.vgic.spis)
    assert len(gic.vgic.spis) == 64
    assert gic.vgic.irq(None, 5) is None
    assert gic.vgic.irq(None, 96) is None


def test_default_number_of_interrupts() -> None:
    gic = Gic(spis=0)
    assert gic.vgic.nr_spis == 256 - VGIC_NR_PRIVATE_IRQS


def test_a_level_interrupt_follows_its_line() -> None:
    gic = Gic()
    gic.enable(SPI)
    gic.drive(SPI, True)
    assert gic.lines[0] == [LINE_IRQ]
    gic.drive(SPI, False)
    assert gic.lines[0] == [LINE_IRQ, LINE_NONE]


def test_a_level_interrupt_comes_again_while_its_line_is_high() -> None:
    gic = Gic()
    gic.enable(SPI)
    gic.drive(SPI, True)
    assert gic.ack() == SPI
    assert gic.best() is None
    assert gic.eoi(SPI)
    assert gic.ack() == SPI
    gic.drive(SPI, False)
    gic.eoi(SPI)
    assert gic.ack() == 1023
    assert gic.lines[0][-1] == LINE_NONE


def test_an_edge_interrupt_is_latched_once() -> None:
    gic = Gic()
    gic.enable(SPI, edge=True)
    gic.drive(SPI, True)
    gic.drive(SPI, False)
    assert gic.ack() == SPI
    assert not gic.eoi(SPI)
    assert gic.ack() == 1023


def test_an_edge_while_active_is_pending_and_active() -> None:
    gic = Gic()
    gic.enable(SPI, edge=True)
    gic.drive(SPI, True)
    gic.ack()
    gic.drive(SPI, True)
    assert gic.irq(SPI).active
    assert gic.irq(SPI).pending
    assert gic.best() is None
    gic.eoi(SPI)
    assert gic.ack() == SPI


def test_the_highest_priority_goes_first_and_the_lowest_number_among_equals() -> None:
    gic = Gic()
    for intid, priority in ((50, 0x80), (40, 0xA0), (45, 0x80), (33, 0xF0)):
        gic.enable(intid, priority)
        gic.drive(intid, True)
    order = []
    while (intid := gic.ack()) != 1023:
        order.append(intid)
        gic.drive(intid, False)
        gic.eoi(intid)
    assert order == [45, 50, 40, 33]


def test_the_priority_mask_lets_only_higher_ones_through() -> None:
    gic = Gic()
    gic.enable(SPI, 0xA0)
    gic.drive(SPI, True)
    for mask, passes in ((0xA0, False), (0xA8, True), (0x00, False), (0xF8, True)):
        gic.cpus[0].pmr = mask
        gic.vgic.update(gic.cpus[0])
        assert (gic.best() == SPI) == passes


def test_preemption_needs_a_higher_group_priority() -> None:
    gic = Gic()
    gic.enable(40, 0xA0)
    gic.enable(41, 0xA0)
    gic.enable(42, 0x80)
    gic.drive(40, True)
    assert gic.ack() == 40
    gic.drive(41, True)
    assert gic.best() is None
    gic.drive(42, True)
    assert gic.ack() == 42
    assert gic.cpus[0].running_priority() == 0x80
    gic.drive(42, False)
    gic.eoi(42)
    assert gic.cpus[0].running_priority() == 0xA0
    assert gic.best() is None
    gic.drive(40, False)
    gic.eoi(40)
    assert gic.cpus[0].running_priority() == IDLE_PRIORITY
    assert gic.ack() == 41


def test_the_binary_point_makes_neighbours_equal() -> None:
    gic = Gic()
    gic.cpus[0].bpr0 = 6
    gic.enable(40, 0xC0)
    gic.enable(41, 0x80)
    gic.drive(40, True)
    assert gic.ack() == 40
    assert gic.cpus[0].running_priority() == 0x80
    gic.drive(41, True)
    assert gic.best() is None


def test_separate_deactivation() -> None:
    gic = Gic()
    gic.cpus[0].eoimode = True
    gic.enable(SPI)
    gic.drive(SPI, True)
    gic.ack()
    assert not gic.eoi(SPI)
    assert gic.irq(SPI).active
    assert gic.cpus[0].running_priority() == IDLE_PRIORITY
    assert gic.best() is None
    assert gic.vgic.deactivate(gic.cpus[0], SPI)
    assert gic.best() == SPI


def test_another_cpu_may_deactivate() -> None:
    gic = Gic(2)
    gic.enable(SPI)
    gic.drive(SPI, True)
    gic.ack(0)
    gic.vgic.deactivate(gic.cpus[1], SPI)
    assert not gic.irq(SPI).active


def test_disabled_interrupts_stay_pending() -> None:
    gic = Gic()
    gic.drive(SPI, True)
    assert gic.irq(SPI).pending
    assert gic.best() is None
    gic.enable(SPI)
    assert gic.best() == SPI


def test_a_switched_off_distributor_signals_nothing() -> None:
    gic = Gic()
    gic.enable(SPI)
    gic.vgic.enabled = False
    gic.drive(SPI, True)
    assert gic.lines[0] == []
    gic.vgic.enabled = True
    gic.vgic.update_all()
    assert gic.lines[0] == [LINE_IRQ]


def test_a_switched_off_group_does_not_hide_the_other() -> None:
    gic = Gic()
    gic.enable(40, 0x20)
    gic.enable(41, 0xA0).group = 1
    gic.cpus[0].grpen0 = False
    gic.drive(40, True)
    gic.drive(41, True)
    assert gic.best() == 41


def test_group_0_is_fiq_where_it_should_be() -> None:
    gic = Gic()
    gic.cpus[0].group0_is_fiq = True
    gic.enable(40)
    gic.drive(40, True)
    assert gic.lines[0] == [LINE_FIQ]
    gic.irq(40).group = 1
    gic.vgic.refresh(gic.irq(40))
    assert gic.lines[0] == [LINE_FIQ, LINE_IRQ]


def test_sgis_come_once_per_source() -> None:
    gic = Gic(4)
    for source in (3, 1):
        gic.vgic.send_sgi(gic.cpus[source], gic.cpus[0], 5)
    assert gic.ack() == 5 | 1 << 10
    assert gic.irq(5).pending
    assert gic.best() is None
    gic.eoi(5)
    assert gic.ack() == 5 | 3 << 10
    gic.eoi(5)
    assert gic.ack() == 1023


def test_sgis_without_source() -> None:
    gic = Gic(2, v3=True)
    gic.vgic.send_sgi(None, gic.cpus[1], 9)
    assert gic.lines == [[], [LINE_IRQ]]
    assert gic.ack(1) == 9


def test_retargeting_moves_a_pending_interrupt() -> None:
    gic = Gic(2)
    gic.enable(SPI)
    gic.drive(SPI, True)
    assert gic.lines == [[LINE_IRQ], []]
    gic.vgic.retarget(gic.irq(SPI), gic.cpus[1])
    assert gic.lines == [[LINE_IRQ, LINE_NONE], [LINE_IRQ]]
    gic.vgic.retarget(gic.irq(SPI), None)
    assert gic.lines[1] == [LINE_IRQ, LINE_NONE]
    gic.vgic.retarget(gic.irq(SPI), gic.cpus[0])
    assert gic.best(0) == SPI


def test_private_interrupts_are_private() -> None:
    gic = Gic(2)
    gic.enable(27, cpu=0)
    gic.enable(27, cpu=1)
    gic.drive(27, True, cpu=1)
    assert gic.best(0) is None
    assert gic.best(1) == 27


def test_injecting_what_is_not_there() -> None:
    gic = Gic()
    assert not gic.vgic.inject(None, 5, True)
    assert not gic.vgic.inject(None, 96, True)


def test_ending_what_is_not_there_drops_the_priority() -> None:
    gic = Gic()
    gic.enable(SPI)
    gic.drive(SPI, True)
    gic.ack()
    assert not gic.eoi(900)
    assert gic.cpus[0].running_priority() == IDLE_PRIORITY
    assert not gic.vgic.deactivate(gic.cpus[0], 900)


def test_a_vcpu_that_goes_leaves_no_target_behind() -> None:
    gic = Gic(2)
    gic.vgic.retarget(gic.irq(SPI), gic.cpus[1])
    gic.vgic.remove_vcpu(gic.cpus[1])
    gic.vgic.remove_vcpu(gic.cpus[1])
    assert gic.irq(SPI).target is None
    assert gic.vgic.vcpus == [gic.cpus[0]]


# Any sequence: the shortcuts agree with the definition.

_INTIDS = (0, 5, 15, 27, 30, 33, 40, 95)
_STEP = st.tuples(
    st.sampled_from(
        (
            "raise",
            "lower",
            "enable",
            "disable",
            "ack",
            "eoi",
            "priority",
            "mask",
            "target",
            "edge",
            "sgi",
            "group",
            "dist",
        )
    ),
    st.sampled_from(_INTIDS),
    st.integers(0, 1),
    st.integers(0, 255),
)


def _definition(gic: Gic, cpu: VgicCpu) -> tuple[int, int | None]:
    """The ready bits and the signalled interrupt, from scratch."""
    ready = 0
    best: VgicIrq | None = None
    for irq in (*cpu.private, *gic.vgic.spis):
        if irq.target is not cpu or not irq.enabled or irq.active or not irq.pending:
            continue
        ready |= 1 << irq.intid
        group = cpu.grpen1 if irq.group else cpu.grpen0
        passes = group and gic.vgic.enabled and irq.priority < min(cpu.pmr, cpu.running_priority())
        if passes and (best is None or irq.priority < best.priority):
            best = irq
    return ready, best.intid if best is not None else None


@settings(max_examples=150, deadline=None)
@given(st.booleans(), st.lists(_STEP, max_size=60))
def test_any_sequence_keeps_the_invariant(v3: bool, steps: list[tuple[str, int, int, int]]) -> None:
    gic = Gic(2, v3=v3)
    active: list[list[int]] = [[], []]
    for what, intid, number, value in steps:
        cpu = gic.cpus[number]
        irq = gic.irq(intid, number)
        if what in ("raise", "lower"):
            gic.drive(intid, what == "raise", number)
        elif what in ("enable", "disable"):
            irq.enabled = what == "enable"
            gic.vgic.refresh(irq)
        elif what == "ack":
            got = gic.ack(number) & 0x3FF
            if got != 1023:
                active[number].append(got)
        elif what == "eoi" and active[number]:
            gic.eoi(active[number].pop(), number)
        elif what == "priority":
            irq.priority = value & 0xF8
            gic.vgic.refresh(irq)
        elif what == "mask":
            cpu.pmr = value & 0xF8
            gic.vgic.update(cpu)
        elif what == "target" and intid >= 32:
            gic.vgic.retarget(irq, cpu)
        elif what == "edge" and intid >= 32:
            irq.edge = bool(value & 1)
            gic.vgic.refresh(irq)
        elif what == "sgi" and intid < 16:
            gic.vgic.send_sgi(None if v3 else gic.cpus[value & 1], cpu, intid)
        elif what == "group":
            irq.group = value & 1
            gic.vgic.refresh(irq)
        elif what == "dist":
            gic.vgic.enabled = bool(value & 1)
            gic.vgic.update_all()
        for each in gic.cpus:
            assert (each.ready, each.best.intid if each.best else None) == _definition(gic, each)
            assert each.line == (LINE_NONE if each.best is None else LINE_IRQ)
            lines = gic.lines[each.index]
            assert (lines[-1] if lines else LINE_NONE) == each.line
            assert all(a != b for a, b in pairwise(lines))
