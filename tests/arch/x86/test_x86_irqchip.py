# SPDX-License-Identifier: GPL-2.0-only
"""The irqchip as a VM has it: creation, routing, all the chips together, the split irqchip, teardown."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest
from x86_irq_rig import FakeVm, bits, init_pics, put, side_of

from anykvm.arch.x86 import irqchip
from anykvm.arch.x86 import lapic_regs as R
from anykvm.arch.x86.apic_bus import DM_EXTINT
from anykvm.arch.x86.ioapic import RTE_LEVEL, RTE_MASKED
from anykvm.arch.x86.lapic import SPURIOUS
from anykvm.uapi.x86_irqchip import KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE
from anykvm.virt.irq import Route

IOAPIC = 0xFEC00000


def errno_of(call: Callable[..., object], *args: Any) -> int:
    with pytest.raises(OSError) as caught:
        call(*args)
    assert caught.value.errno is not None
    return caught.value.errno


@pytest.fixture
def vm() -> FakeVm:
    vm = FakeVm()
    vm.create()
    return vm


def rte(vm: FakeVm, pin: int, low: int, dest: int = 0) -> None:
    vm.write(IOAPIC, 0x11 + pin * 2)
    vm.write(IOAPIC + 0x10, dest << 24)
    vm.write(IOAPIC, 0x10 + pin * 2)
    vm.write(IOAPIC + 0x10, low)


def take(vm: FakeVm) -> int:
    lapic = vm.lapics[0]
    vector = lapic.ack()
    if vector != SPURIOUS:
        lapic.eoi()
    return vector


# Creation.


def test_there_can_be_one(vm: FakeVm) -> None:
    untyped: Any = vm
    assert errno_of(irqchip.create, untyped) == errno.EEXIST
    assert errno_of(irqchip.create_split, untyped, 24) == errno.EEXIST


def test_it_comes_before_the_vcpus() -> None:
    vm: Any = FakeVm()
    vm.created_vcpus = 1
    assert errno_of(irqchip.create, vm) == errno.EINVAL
    assert errno_of(irqchip.create_split, vm, 24) == errno.EINVAL


def test_a_split_irqchip_has_at_most_4096_pins() -> None:
    vm: Any = FakeVm()
    assert errno_of(irqchip.create_split, vm, 4097) == errno.EINVAL
    assert irqchip.create_split(vm, 4096).reserved_pins == 4096


def test_the_pit_needs_a_full_irqchip_and_is_one(vm: FakeVm) -> None:
    assert errno_of(vm.chip.get_pit) == errno.ENXIO
    assert errno_of(vm.chip.reinject_control, True) == errno.ENXIO
    vm.chip.create_pit(1)
    assert errno_of(vm.chip.create_pit, 1) == errno.EEXIST
    split = FakeVm()
    assert errno_of(split.create_split().create_pit, 1) == errno.ENOENT


def test_without_the_speaker_flag_port_0x61_is_userspaces(vm: FakeVm) -> None:
    vm.chip.create_pit(0)
    assert vm.pio_bus.read(None, 0x61, 1) is None
    assert vm.inb(0x40) is not None


def test_what_is_on_the_buses(vm: FakeVm) -> None:
    vm.chip.create_pit(1)
    for port in (0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x41, 0x42, 0x43, 0x61):
        assert vm.pio_bus.read(None, port, 1) is not None
    for port in (0x1F, 0x22, 0x3F, 0x44, 0x60, 0x62, 0x9F, 0xA2, 0x4CF, 0x4D2):
        assert vm.pio_bus.read(None, port, 1) is None
    assert vm.mmio_bus.read(None, IOAPIC, 4) == 0
    assert vm.mmio_bus.read(None, IOAPIC + 0x100, 4) is None


def test_closing_gives_everything_back(vm: FakeVm) -> None:
    vm.chip.create_pit(1)
    for _ in range(3):
        vm.add_vcpu()
    chips = {"apic bus lock": 1, "irq lines lock": 1, "pic": 1, "ioapic": 1, "pit": 1, "pit lock": 1, "pit timer": 1}
    assert vm.clock.ledger() == {**chips, "lapic": 3, "lapic timer": 3}
    for lapic in vm.lapics:
        vm.chip.free_lapic(lapic)
    assert vm.chip.bus.lapics == []
    vm.chip.close()
    assert vm.clock.ledger() == {}
    assert len(vm.pio_bus) == len(vm.mmio_bus) == 0
    assert vm.clock.timers == []
    assert not vm.irq.has_notifier(KVM_IRQCHIP_IOAPIC, 0)


@pytest.mark.parametrize("fail_at", range(3))
def test_a_failed_creation_leaves_nothing(fail_at: int) -> None:
    vm: Any = FakeVm()
    vm.clock.fail_at = fail_at
    assert errno_of(irqchip.create, vm) == errno.ENOMEM
    assert vm.clock.ledger() == {}
    assert len(vm.pio_bus) == len(vm.mmio_bus) == 0


@pytest.mark.parametrize("fail_at", range(3))
def test_a_failed_pit_leaves_nothing_of_it(vm: FakeVm, fail_at: int) -> None:
    before = vm.clock.ledger()
    ports = len(vm.pio_bus)
    vm.clock.fail_at = vm.clock.acquired + fail_at
    assert errno_of(vm.chip.create_pit, 1) == errno.ENOMEM
    assert vm.clock.ledger() == before and len(vm.pio_bus) == ports
    assert vm.chip.pit is None
    vm.clock.fail_at = -1
    vm.chip.create_pit(1)


@pytest.mark.parametrize("fail_at", range(2))
def test_a_failed_lapic_leaves_nothing(vm: FakeVm, fail_at: int) -> None:
    before = vm.clock.ledger()
    vm.clock.fail_at = vm.clock.acquired + fail_at
    with pytest.raises(OSError):
        vm.add_vcpu()
    assert vm.clock.ledger() == before
    assert vm.chip.bus.lapics == []


def test_a_full_bus_leaves_nothing() -> None:
    vm: Any = FakeVm()

    class Nobody:
        def read(self, vcpu: Any, addr: int, size: int) -> int | None:
            return None

        def write(self, vcpu: Any, addr: int, size: int, value: int) -> bool:
            return False

    for index in range(998):
        vm.pio_bus.register(0x1000 + index, 1, Nobody())
    assert errno_of(irqchip.create, vm) == errno.ENOSPC
    assert vm.clock.ledger() == {} and len(vm.pio_bus) == 998


# Routing.


def test_the_default_routing(vm: FakeVm) -> None:
    for gsi in range(16):
        assert {(route.irqchip, route.pin) for route in vm.irq.routes(gsi)} == {(gsi >> 3, gsi & 7), (2, gsi)}
    for gsi in range(16, 24):
        assert [(route.irqchip, route.pin) for route in vm.irq.routes(gsi)] == [(2, gsi)]
    assert vm.irq.routes(24) == ()


def test_a_gsi_reaches_pic_and_ioapic(vm: FakeVm) -> None:
    vm.add_vcpu()
    init_pics(vm.outb)
    vm.outb(0xA1, 0)
    rte(vm, 10, 0x4A)
    assert vm.irq.set_irq(10, 1) == 2
    assert take(vm) == 0x3A, "the PICs' interrupt comes first"
    assert take(vm) == 0x4A


def test_pins_that_do_not_exist(vm: FakeVm) -> None:
    for chip, pin in ((0, 8), (1, 8), (2, 24), (3, 0)):
        assert errno_of(vm.chip.set_irq, chip, pin, 1) == errno.EINVAL


def test_a_route_to_a_message(vm: FakeVm) -> None:
    lapic = vm.add_vcpu()
    vm.irq.set_entries([Route(40, address=0xFEE00000, data=0x4077)])
    assert vm.irq.set_irq(40, 1) == 1
    assert vm.irq.set_irq(40, 0) == -1
    assert bits(lapic.irr) == [0x77]


def test_a_message_before_the_first_vcpu(vm: FakeVm) -> None:
    assert errno_of(vm.chip.set_msi, 0xFEE00000, 0x40) == errno.EPERM


# From the boot of a PC: PICs, then the IOAPIC.


def test_the_timer_of_an_old_guest_through_the_pics(vm: FakeVm) -> None:
    vm.chip.create_pit(1)
    lapic = vm.add_vcpu(on=False)
    init_pics(vm.outb)
    vm.outb(0x21, 0xFA)
    vm.outb(0x43, 0x34)
    vm.outb(0x40, 0xA9)
    vm.outb(0x40, 0x04)
    ticks = 0
    for _ in range(1000):
        vm.clock.advance(1_000_000)
        if side_of(lapic).line:
            assert lapic.ack() == 0x30
            vm.outb(0x20, 0x60)
            ticks += 1
    assert 999 <= ticks <= 1001


def test_the_timer_through_the_ioapic(vm: FakeVm) -> None:
    vm.chip.create_pit(1)
    lapic = vm.add_vcpu()
    # As firmware tables say it: the PIT is at the IOAPIC's input 2.
    vm.irq.set_entries([Route(0, 0, 0), Route(0, KVM_IRQCHIP_IOAPIC, 2)])
    init_pics(vm.outb)
    vm.outb(0x21, 0xFF)
    put(lapic, R.APIC_LVT0, 0x10000 | DM_EXTINT << 8)
    rte(vm, 2, 0x30)
    vm.outb(0x43, 0x34)
    vm.outb(0x40, 0xA9)
    vm.outb(0x40, 0x04)
    ticks = 0
    for _ in range(500):
        vm.clock.advance(1_000_000)
        while take(vm) == 0x30:
            ticks += 1
    assert 499 <= ticks <= 501


def test_ticks_missed_while_interrupts_were_off_come_after_each_end(vm: FakeVm) -> None:
    vm.chip.create_pit(1)
    vm.add_vcpu()
    vm.outb(0x21, 0xFF)
    rte(vm, 0, 0x30)
    vm.outb(0x43, 0x34)
    vm.outb(0x40, 0xA9)
    vm.outb(0x40, 0x04)
    vm.clock.advance(10_500_000)
    ticks = 0
    while take(vm) == 0x30:
        ticks += 1
    assert ticks == 10


def test_masking_and_unmasking_the_timer_does_not_stop_it(vm: FakeVm) -> None:
    vm.chip.create_pit(1)
    lapic = vm.add_vcpu()
    vm.outb(0x21, 0xFF)
    rte(vm, 0, 0x30)
    vm.outb(0x43, 0x34)
    vm.outb(0x40, 0xA9)
    vm.outb(0x40, 0x04)
    vm.clock.advance(3_000_000)
    assert lapic.ack() == 0x30
    # The entry gets another vector while its interrupt is in service: that end is nobody's.
    rte(vm, 0, 0x31 | RTE_MASKED)
    lapic.eoi()
    vm.clock.advance(3_000_000)
    assert lapic.ack() == SPURIOUS
    rte(vm, 0, 0x31)
    vm.clock.advance(1_000_000)
    assert lapic.ack() == 0x31


def test_unmasking_at_the_pic_starts_the_timer_again(vm: FakeVm) -> None:
    vm.chip.create_pit(1)
    lapic = vm.add_vcpu(on=False)
    init_pics(vm.outb)
    vm.outb(0x21, 0xFA)
    vm.outb(0x43, 0x34)
    vm.outb(0x40, 0xA9)
    vm.outb(0x40, 0x04)
    vm.clock.advance(5_000_000)
    assert lapic.ack() == 0x30
    vm.outb(0x21, 0xFB)
    vm.outb(0x21, 0xFA)
    vm.outb(0x20, 0x60)
    assert not side_of(lapic).line, "missed ticks are forgotten"
    vm.clock.advance(2_000_000)
    assert lapic.ack() == 0x30


def test_the_nmi_watchdog_ticks_with_the_pit(vm: FakeVm) -> None:
    vm.chip.create_pit(1)
    lapic = vm.add_vcpu()
    put(lapic, R.APIC_LVT0, 4 << 8)
    vm.outb(0x21, 0xFF)
    vm.outb(0x43, 0x34)
    vm.outb(0x40, 0xA9)
    vm.outb(0x40, 0x04)
    vm.clock.advance(10_500_000)
    assert side_of(lapic).nmis == 10


# Ends of interrupt reach resamplers, with no lock held.


@pytest.mark.parametrize("through_pic", [False, True])
def test_a_resampled_level(vm: FakeVm, through_pic: bool) -> None:
    lapic = vm.add_vcpu()
    gsi = 10
    if through_pic:
        vm.outb(0x4D1, 0x04)
        init_pics(vm.outb)
        vm.outb(0xA1, 0xFB)
        put(lapic, R.APIC_LVT0, DM_EXTINT << 8)
    else:
        vm.outb(0xA1, 0xFF)
        rte(vm, gsi, 0x5A | RTE_LEVEL)
    left = [2]

    def resample() -> None:
        if left[0]:
            left[0] -= 1
            vm.irq.set_irq(gsi, 1)

    vm.irq.register_ack_notifier(gsi, resample)
    vm.irq.set_irq(gsi, 1)
    seen = 0
    while lapic.ack() in (0x3A, 0x5A):
        seen += 1
        if through_pic:
            vm.outb(0xA0, 0x62)
            vm.outb(0x20, 0x62)
        else:
            lapic.eoi()
        assert seen < 10
    assert seen == 3


# States.


def test_chip_states_by_number(vm: FakeVm) -> None:
    init_pics(vm.outb)
    rte(vm, 3, 0x33)
    other = FakeVm()
    other.create()
    for chip_id in (KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC):
        state = vm.chip.get_chip(chip_id)
        assert len(state) == 512
        other.chip.set_chip(chip_id, state)
        assert other.chip.get_chip(chip_id) == state
    assert errno_of(vm.chip.get_chip, 3) == errno.EINVAL
    assert errno_of(vm.chip.set_chip, 3, bytes(512)) == errno.EINVAL


# The split irqchip.


@pytest.fixture
def split() -> FakeVm:
    vm = FakeVm()
    vm.create_split()
    return vm


def test_a_split_irqchip_has_local_apics_only(split: FakeVm) -> None:
    assert split.chip.pic is None and split.chip.ioapic is None
    assert len(split.pio_bus) == len(split.mmio_bus) == 0
    assert errno_of(split.chip.get_chip, 0) == errno.ENXIO
    assert errno_of(split.chip.set_chip, 2, bytes(512)) == errno.ENXIO
    assert errno_of(split.chip.set_irq, 0, 0, 1) == errno.EINVAL
    lapic = split.add_vcpu()
    assert split.chip.set_msi(0xFEE00000, 0x4044) == 1
    assert bits(lapic.irr) == [0x44]


def test_userspaces_ioapic_is_told_the_ends_of_its_levels(split: FakeVm) -> None:
    lapic = split.add_vcpu()
    split.irq.set_entries(
        [
            Route(9, address=0xFEE00000, data=0x8039),
            Route(10, address=0xFEE00000, data=0x403A),
            Route(30, address=0xFEE00000, data=0x803B),
        ]
    )
    for gsi in (9, 10, 30):
        split.irq.set_irq(gsi, 1)
    for _ in range(3):
        assert lapic.ack() != SPURIOUS
        lapic.eoi()
    assert side_of(lapic).log == [("eoi", 0x39)], "10 is an edge, 30 is not the IOAPIC's"


def test_the_external_interrupt_of_a_split_irqchip(split: FakeVm) -> None:
    lapic = split.add_vcpu(on=False)
    assert lapic.set_user_vector(0x21)
    assert side_of(lapic).line
    assert lapic.ack() == 0x21


# Many.


def test_a_thousand_local_apics(vm: FakeVm) -> None:
    lapics = [vm.add_vcpu(on=False) for _ in range(1024)]
    assert lapics[1023].apic_id == 0xFF
    for lapic in lapics[:3]:
        put(lapic, R.APIC_SVR, 0x1FF)
    assert vm.chip.set_msi(0xFEE02000, 0x4041) == 1
    assert bits(lapics[2].irr) == [0x41]
    assert vm.chip.set_msi(0xFEEFF000, 0x4042) == 3
    for lapic in lapics:
        vm.chip.free_lapic(lapic)
    assert vm.clock.ledger() == {"apic bus lock": 1, "irq lines lock": 1, "pic": 1, "ioapic": 1}
