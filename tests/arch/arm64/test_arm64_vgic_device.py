# SPDX-License-Identifier: GPL-2.0-only
"""Putting a VM with a GIC together: every order, and what each wrong step is refused with."""

from __future__ import annotations

import errno

import pytest
from arm64_fake import Rig, errno_of

from anykvm.engine import Event
from anykvm.uapi import arm64 as A
from anykvm.uapi import common as C

V2, V3 = C.KVM_DEV_TYPE_ARM_VGIC_V2, C.KVM_DEV_TYPE_ARM_VGIC_V3
ADDR = A.KVM_DEV_ARM_VGIC_GRP_ADDR
NR_IRQS = A.KVM_DEV_ARM_VGIC_GRP_NR_IRQS
CTRL = A.KVM_DEV_ARM_VGIC_GRP_CTRL
V2_DIST, V2_CPU = A.KVM_VGIC_V2_ADDR_TYPE_DIST, A.KVM_VGIC_V2_ADDR_TYPE_CPU
V3_DIST, V3_REDIST = A.KVM_VGIC_V3_ADDR_TYPE_DIST, A.KVM_VGIC_V3_ADDR_TYPE_REDIST
V3_REGION = A.KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION
EXIT = (Event.MMIO_WRITE, 0x0700_0000, 4, 0)


def region(index: int, base: int, count: int, flags: int = 0) -> int:
    return count << 52 | base | flags << 12 | index


@pytest.mark.parametrize("kind", [V2, V3])
def test_a_vm_has_one_gic(rig: Rig, kind: int) -> None:
    rig.create_device(kind)
    for other in (V2, V3):
        assert errno_of(rig.create_device, other) == errno.EEXIST
    assert errno_of(rig.ioctl, rig.fd, C.KVM_CREATE_IRQCHIP) == errno.EEXIST


def test_testing_makes_nothing(rig: Rig) -> None:
    assert rig.create_device(V3, C.KVM_CREATE_DEVICE_TEST) == 0
    assert rig.arch.vgic is None
    assert errno_of(rig.create_device, C.KVM_DEV_TYPE_ARM_VGIC_ITS) == errno.ENODEV


def test_legacy_irqchip_is_a_gicv2(rig: Rig) -> None:
    rig.create_vcpu()
    rig.ioctl(rig.fd, C.KVM_CREATE_IRQCHIP)
    for kind, base in ((V2_DIST, 0x0800_0000), (V2_CPU, 0x0801_0000)):
        rig.ioctl(rig.fd, A.KVM_ARM_SET_DEVICE_ADDR, A.KvmArmDeviceAddr(kind, base))
        again = A.KvmArmDeviceAddr(kind, base)
        assert errno_of(rig.ioctl, rig.fd, A.KVM_ARM_SET_DEVICE_ADDR, again) == errno.EEXIST
    rig.cpu().script.append(EXIT)
    assert rig.run().exit_reason == C.KVM_EXIT_MMIO


def test_legacy_address_refusals(rig: Rig) -> None:
    request = A.KvmArmDeviceAddr(V2_DIST, 0x0800_0000)
    assert errno_of(rig.ioctl, rig.fd, A.KVM_ARM_SET_DEVICE_ADDR, request) == errno.ENXIO
    other = A.KvmArmDeviceAddr(1 << 16, 0x0800_0000)
    assert errno_of(rig.ioctl, rig.fd, A.KVM_ARM_SET_DEVICE_ADDR, other) == errno.ENODEV
    rig.create_device(V3)
    assert errno_of(rig.ioctl, rig.fd, A.KVM_ARM_SET_DEVICE_ADDR, request) == errno.ENODEV


def test_a_gic_after_a_run_is_too_late(rig: Rig) -> None:
    rig.create_vcpu()
    rig.cpu().script.append(EXIT)
    rig.run()
    assert errno_of(rig.create_device, V2) == errno.EBUSY


def test_gicv2_takes_eight_vcpus(rig: Rig) -> None:
    for _ in range(9):
        rig.create_vcpu(init=False)
    assert errno_of(rig.create_device, V2) == errno.E2BIG
    rig.create_device(V3)


def test_the_model_limits_ids(rig: Rig) -> None:
    rig.create_device(V2)
    assert errno_of(rig.create_vcpu, 8) == errno.EINVAL
    rig.create_vcpu(7)
    assert rig.ioctl(rig.fd, C.KVM_CHECK_EXTENSION, C.KVM_CAP_MAX_VCPUS) == 8


@pytest.mark.parametrize("kind", [V2, V3])
def test_no_vcpu_after_init(rig: Rig, kind: int) -> None:
    rig.create_vcpu()
    (rig.vgic_v2 if kind == V2 else rig.vgic_v3)()
    assert errno_of(rig.create_vcpu, 1) == errno.EBUSY


@pytest.mark.parametrize(("number", "expected"), [(0, 22), (32, 22), (72, 22), (1056, 22), (64, 0), (1024, 0)])
def test_number_of_interrupts(rig: Rig, number: int, expected: int) -> None:
    fd = rig.create_device(V2)
    if expected:
        assert errno_of(rig.set_attr, fd, NR_IRQS, 0, number, 4) == expected
        return
    rig.set_attr(fd, NR_IRQS, 0, number, 4)
    assert rig.get_attr(fd, NR_IRQS, 0, 4) == number
    assert errno_of(rig.set_attr, fd, NR_IRQS, 0, number, 4) == errno.EBUSY


def test_the_last_interrupt(rig: Rig) -> None:
    rig.create_vcpu()
    fd = rig.create_device(V3)
    rig.set_attr(fd, NR_IRQS, 0, 96, 4)
    rig.set_attr(fd, CTRL, A.KVM_DEV_ARM_VGIC_CTRL_INIT, 0)
    rig.spi(95, 1)
    assert errno_of(rig.spi, 96, 1) == errno.EINVAL
    assert errno_of(rig.spi, 31, 1) == errno.EINVAL
    assert len(rig.vm.hooks.default_routing(rig.vm)) == 64
    assert rig.vm.irq.set_irq(63, 0) == 1
    assert rig.vm.irq.set_irq(64, 0) == -1


def test_init_fixes_the_default_number(rig: Rig) -> None:
    rig.create_vcpu()
    fd = rig.create_device(V2)
    assert rig.get_attr(fd, NR_IRQS, 0, 4) == 32
    rig.set_attr(fd, CTRL, A.KVM_DEV_ARM_VGIC_CTRL_INIT, 0)
    assert rig.get_attr(fd, NR_IRQS, 0, 4) == 256
    rig.set_attr(fd, CTRL, A.KVM_DEV_ARM_VGIC_CTRL_INIT, 0)
    assert errno_of(rig.set_attr, fd, NR_IRQS, 0, 64, 4) == errno.EBUSY


@pytest.mark.parametrize(
    ("kind", "attr", "base", "expected"),
    [
        (V2, V2_DIST, 0x800, errno.EINVAL),
        (V2, V2_CPU, 0x1001, errno.EINVAL),
        (V2, V2_DIST, 1 << 40, errno.E2BIG),
        (V2, V2_CPU, (1 << 40) - 0x1000, errno.E2BIG),
        (V2, V3_DIST, 0x0800_0000, errno.ENXIO),
        (V2, V3_REDIST, 0x0800_0000, errno.ENXIO),
        (V2, 77, 0, errno.ENXIO),
        (V3, V3_DIST, 0x1000, errno.EINVAL),
        (V3, V3_DIST, 1 << 40, errno.E2BIG),
        (V3, V2_CPU, 0x0800_0000, errno.ENXIO),
        (V3, V3_REDIST, 0x1000, errno.EINVAL),
        (V3, V3_REGION, region(0, 0x1_0000, 0), errno.EINVAL),
        (V3, V3_REGION, region(0, 0x1_0000, 1, flags=1), errno.EINVAL),
        (V3, V3_REGION, region(1, 0x1_0000, 1), errno.EINVAL),
        (V3, V3_REGION, region(0, (1 << 40) - 0x10000, 4), errno.E2BIG),
    ],
)
def test_wrong_addresses(rig: Rig, kind: int, attr: int, base: int, expected: int) -> None:
    fd = rig.create_device(kind)
    assert errno_of(rig.set_attr, fd, ADDR, attr, base) == expected


def test_addresses_are_set_once_and_read_back(rig: Rig) -> None:
    fd = rig.create_device(V2)
    for attr, base in ((V2_DIST, 0x0800_0000), (V2_CPU, 0x0801_0000)):
        assert rig.get_attr(fd, ADDR, attr) == (1 << 64) - 1
        rig.set_attr(fd, ADDR, attr, base)
        assert rig.get_attr(fd, ADDR, attr) == base
        assert errno_of(rig.set_attr, fd, ADDR, attr, base) == errno.EEXIST
        assert rig.has_attr(fd, ADDR, attr)
    assert not rig.has_attr(fd, ADDR, V3_DIST)


def test_a_bad_pointer_is_efault(rig: Rig) -> None:
    fd = rig.create_device(V2)
    for group, attr in ((ADDR, V2_DIST), (NR_IRQS, 0)):
        assert errno_of(rig.ioctl, fd, C.KVM_SET_DEVICE_ATTR, C.KvmDeviceAttr(0, group, attr, 8)) == errno.EFAULT


@pytest.mark.parametrize("setup", ["none", "dist"])
@pytest.mark.parametrize("kind", [V2, V3])
def test_running_without_addresses_is_enxio(rig: Rig, kind: int, setup: str) -> None:
    rig.create_vcpu()
    fd = rig.create_device(kind)
    if setup == "dist":
        rig.set_attr(fd, ADDR, V2_DIST if kind == V2 else V3_DIST, 0x0800_0000)
    assert errno_of(rig.run) == errno.ENXIO


def test_overlapping_frames_are_einval(rig: Rig) -> None:
    rig.create_vcpu()
    rig.vgic_v2(dist=0x0800_1000, cpu=0x0800_0000)
    assert errno_of(rig.run) == errno.EINVAL


def test_gicv2_initialises_itself(rig: Rig) -> None:
    rig.create_vcpu()
    rig.vgic_v2(init=False)
    rig.cpu().script.append(EXIT)
    rig.run()
    assert rig.arch.vgic.vgic.initialized


def test_gicv3_must_be_initialised(rig: Rig) -> None:
    rig.create_vcpu()
    rig.vgic_v3(init=False)
    assert errno_of(rig.run) == errno.EBUSY


# Redistributors.


@pytest.mark.parametrize("order", ["region first", "vcpus first"])
def test_redistributors_whatever_the_order(rig: Rig, order: str) -> None:
    fd = rig.create_device(V3)
    if order == "vcpus first":
        rig.create_vcpu()
        rig.create_vcpu()
    rig.set_attr(fd, ADDR, V3_REDIST, 0x080A_0000)
    if order == "region first":
        rig.create_vcpu()
        rig.create_vcpu()
    assert len(rig.vm.mmio_bus) == 2
    assert rig.get_attr(fd, ADDR, V3_REDIST) == 0x080A_0000
    rig.set_attr(fd, ADDR, V3_DIST, 0x0800_0000)
    rig.set_attr(fd, CTRL, A.KVM_DEV_ARM_VGIC_CTRL_INIT, 0)
    rig.cpu().script.append(EXIT)
    rig.run()
    assert len(rig.vm.mmio_bus) == 3


def test_several_regions(rig: Rig) -> None:
    fd = rig.create_device(V3)
    for _ in range(3):
        rig.create_vcpu()
    rig.set_attr(fd, ADDR, V3_REGION, region(0, 0x0900_0000, 2))
    rig.set_attr(fd, ADDR, V3_DIST, 0x0800_0000)
    rig.set_attr(fd, CTRL, A.KVM_DEV_ARM_VGIC_CTRL_INIT, 0)
    assert errno_of(rig.run) == errno.ENXIO
    rig.set_attr(fd, ADDR, V3_REGION, region(1, 0x0A00_0000, 4))
    rig.cpu().script.append(EXIT)
    rig.run()
    vcpus = rig.vm.vcpu_array
    last = [rig.vm.mmio_bus.read(vcpus[0], base + 8, 4) >> 4 & 1 for base in (0x0900_0000, 0x0902_0000, 0x0A00_0000)]
    assert last == [0, 1, 1]
    assert rig.get_attr(fd, ADDR, V3_REGION, value=1) == region(1, 0x0A00_0000, 4)
    assert errno_of(rig.get_attr, fd, ADDR, V3_REGION, value=7) == errno.ENOENT


def test_adjacent_regions_are_one_to_the_guest(rig: Rig) -> None:
    fd = rig.create_device(V3)
    rig.create_vcpu()
    rig.create_vcpu()
    rig.set_attr(fd, ADDR, V3_REGION, region(0, 0x0900_0000, 1))
    rig.set_attr(fd, ADDR, V3_REGION, region(1, 0x0902_0000, 1))
    read = rig.vm.mmio_bus.read
    vcpu = rig.vm.vcpu_array[0]
    assert read(vcpu, 0x0900_0008, 4) >> 4 & 1 == 0
    assert read(vcpu, 0x0902_0008, 4) >> 4 & 1 == 1


@pytest.mark.parametrize(
    ("first", "attr", "second", "expected"),
    [
        (region(0, 0x0900_0000, 2), V3_REGION, region(1, 0x0902_0000, 2), errno.EINVAL),
        (region(0, 0x0900_0000, 2), V3_REGION, region(2, 0x0A00_0000, 2), errno.EINVAL),
        (region(0, 0x0900_0000, 2), V3_REDIST, 0x0A00_0000, errno.EINVAL),
        (0, V3_REDIST, 0x0A00_0000, errno.EEXIST),
        (0, V3_REGION, region(1, 0x0A00_0000, 2), errno.EINVAL),
    ],
)
def test_regions_that_do_not_fit_together(rig: Rig, first: int, attr: int, second: int, expected: int) -> None:
    fd = rig.create_device(V3)
    if first:
        rig.set_attr(fd, ADDR, V3_REGION, first)
    else:
        rig.set_attr(fd, ADDR, V3_REDIST, 0x0900_0000)
    assert errno_of(rig.set_attr, fd, ADDR, attr, second) == expected


def test_redistributors_over_the_distributor(rig: Rig) -> None:
    rig.create_vcpu()
    fd = rig.create_device(V3)
    rig.set_attr(fd, ADDR, V3_DIST, 0x0801_0000)
    assert errno_of(rig.set_attr, fd, ADDR, V3_REDIST, 0x0800_0000) == errno.EINVAL
    rig.set_attr(fd, ADDR, V3_REDIST, 0x0802_0000)


def test_a_vcpu_whose_redistributor_does_not_fit_leaves_nothing(rig: Rig) -> None:
    fd = rig.create_device(V3)
    rig.set_attr(fd, ADDR, V3_DIST, 0x0802_0000)
    rig.set_attr(fd, ADDR, V3_REDIST, 0x0800_0000)
    rig.create_vcpu()
    before = rig.backend.services.ledger()
    assert errno_of(rig.create_vcpu, 1) == errno.EINVAL
    assert rig.backend.services.ledger() == before
    assert len(rig.vm.mmio_bus) == 1
    assert rig.vm.created_vcpus == 1


def test_a_duplicate_vcpu_gives_its_redistributor_back(rig: Rig) -> None:
    fd = rig.create_device(V3)
    rig.set_attr(fd, ADDR, V3_REDIST, 0x080A_0000)
    rig.create_vcpu(0)
    assert errno_of(rig.create_vcpu, 0) == errno.EEXIST
    assert len(rig.vm.mmio_bus) == 1
    rig.create_vcpu(1)
    assert rig.vm.mmio_bus.read(rig.vm.vcpu_array[0], 0x080C_0008, 4) >> 8 & 0xFFFF == 1


# KVM_IRQ_LINE.


def line(kind: int, number: int, vcpu: int = 0) -> int:
    return kind << A.KVM_ARM_IRQ_TYPE_SHIFT | vcpu << A.KVM_ARM_IRQ_VCPU_SHIFT | number


@pytest.mark.parametrize(
    ("gic", "irq", "expected"),
    [
        (False, line(A.KVM_ARM_IRQ_TYPE_SPI, 40), errno.ENXIO),
        (False, line(A.KVM_ARM_IRQ_TYPE_PPI, 20), errno.ENXIO),
        (False, line(A.KVM_ARM_IRQ_TYPE_CPU, 2), errno.EINVAL),
        (False, line(A.KVM_ARM_IRQ_TYPE_CPU, 0, 5), errno.EINVAL),
        (False, line(7, 0), errno.EINVAL),
        (True, line(A.KVM_ARM_IRQ_TYPE_CPU, 0), errno.ENXIO),
        (True, line(A.KVM_ARM_IRQ_TYPE_PPI, 15), errno.EINVAL),
        (True, line(A.KVM_ARM_IRQ_TYPE_PPI, 32), errno.EINVAL),
        (True, line(A.KVM_ARM_IRQ_TYPE_PPI, 20, 1), errno.EINVAL),
        (True, line(A.KVM_ARM_IRQ_TYPE_SPI, 1000), errno.EINVAL),
    ],
)
def test_lines_that_are_not_there(rig: Rig, gic: bool, irq: int, expected: int) -> None:
    rig.create_vcpu()
    if gic:
        rig.vgic_v2()
    assert errno_of(rig.irq_line, irq, 1) == expected


def test_a_ppi_reaches_its_vcpu(rig: Rig) -> None:
    rig.create_vcpu()
    rig.create_vcpu()
    rig.vgic_v2(init=False)
    rig.irq_line(line(A.KVM_ARM_IRQ_TYPE_PPI, 20, 1), 1)
    assert rig.vcpu(1).vgic.private[20].pending
    assert not rig.vcpu(0).vgic.private[20].pending


def test_messages_are_not_interrupts_here(rig: Rig) -> None:
    rig.create_vcpu()
    assert errno_of(rig.ioctl, rig.fd, C.KVM_SIGNAL_MSI, C.KvmMsi(0x1000)) == errno.EINVAL
    rig.vgic_v2()
    assert errno_of(rig.ioctl, rig.fd, C.KVM_SIGNAL_MSI, C.KvmMsi(0x1000)) == errno.ENODEV


# The timers' interrupts.


def test_timer_interrupts_can_be_chosen(rig: Rig) -> None:
    first, second = rig.create_vcpu(), rig.create_vcpu()
    group, vtimer, ptimer = A.KVM_ARM_VCPU_TIMER_CTRL, A.KVM_ARM_VCPU_TIMER_IRQ_VTIMER, A.KVM_ARM_VCPU_TIMER_IRQ_PTIMER
    assert errno_of(rig.set_attr, first, group, vtimer, 20, 4) == errno.EINVAL
    rig.vgic_v2()
    assert rig.get_attr(first, group, vtimer, 4) == 27
    assert rig.get_attr(first, group, ptimer, 4) == 30
    rig.set_attr(first, group, vtimer, 20, 4)
    assert rig.get_attr(second, group, vtimer, 4) == 20
    assert rig.vcpu(1).timers.vtimer.ppi == 20
    for bad in (15, 32):
        assert errno_of(rig.set_attr, first, group, vtimer, bad, 4) == errno.EINVAL
    assert errno_of(rig.set_attr, first, group, 9, 20, 4) == errno.ENXIO
    assert errno_of(rig.get_attr, first, 0, 0, 4) == errno.ENXIO
    assert rig.has_attr(first, group, ptimer)
    assert not rig.has_attr(first, A.KVM_ARM_VCPU_PVTIME_CTRL, 0)
    rig.set_attr(first, group, ptimer, 20, 4)
    assert errno_of(rig.run) == errno.EINVAL
    rig.set_attr(first, group, ptimer, 30, 4)
    rig.cpu().script.append(EXIT)
    rig.run()
    assert errno_of(rig.set_attr, first, group, vtimer, 21, 4) == errno.EBUSY


def test_a_timer_that_fired_before_the_gic_was_there(rig: Rig) -> None:
    rig.create_vcpu()
    rig.set_reg(A.KVM_REG_ARM_TIMER_CVAL, 0)
    rig.set_reg(A.KVM_REG_ARM_TIMER_CTL, 1)
    rig.vgic_v2()
    assert rig.vcpu().vgic.private[27].pending
