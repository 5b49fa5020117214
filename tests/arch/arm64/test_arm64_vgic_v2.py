# SPDX-License-Identifier: GPL-2.0-only
"""GICv2 as the guest and userspace see its registers."""

from __future__ import annotations

import errno

import pytest
from arm64_fake import Rig, errno_of

from anykvm.arch.arm64 import vgic_v2
from anykvm.engine import Event
from anykvm.uapi import arm64 as A

GICD, GICC = 0x0800_0000, 0x0801_0000
DIST = A.KVM_DEV_ARM_VGIC_GRP_DIST_REGS
CPU = A.KVM_DEV_ARM_VGIC_GRP_CPU_REGS


class V2:
    """Two vCPUs and a GICv2, with accesses as the run loop makes them."""

    def __init__(self, rig: Rig, cpus: int = 2) -> None:
        self.rig = rig
        for _ in range(cpus):
            rig.create_vcpu()
        self.fd = rig.vgic_v2()
        for index in range(cpus):
            # The first run puts the frames on the bus.
            rig.cpu(index).script.append((Event.MMIO_WRITE, 0x0900_0000, 4, 0))
            rig.run(index)

    def read(self, address: int, size: int = 4, cpu: int = 0) -> int:
        value = self.rig.vm.mmio_bus.read(self.rig.vm.vcpu_array[cpu], address, size)
        assert value is not None
        return value

    def write(self, address: int, value: int, size: int = 4, cpu: int = 0) -> None:
        assert self.rig.vm.mmio_bus.write(self.rig.vm.vcpu_array[cpu], address, size, value)

    def start(self) -> None:
        self.write(GICD, 1)
        for cpu in range(len(self.rig.vcpus)):
            self.write(GICC + vgic_v2.GICC_PMR, 0xF0, cpu=cpu)
            self.write(GICC + vgic_v2.GICC_CTLR, 1, cpu=cpu)


@pytest.fixture
def v2(rig: Rig) -> V2:
    return V2(rig)


def test_identification(v2: V2) -> None:
    assert v2.read(GICD + vgic_v2.GICD_TYPER) == 7 | 1 << 5
    assert v2.read(GICD + vgic_v2.GICD_IIDR) == 0x4B00343B
    assert v2.read(GICC + vgic_v2.GICC_IIDR) == 0x04B2_043B
    assert v2.read(GICD + 0xFE8) == 0


def test_enable_bits_set_and_clear(v2: V2) -> None:
    assert v2.read(GICD + 0x100) == 0xFFFF
    v2.write(GICD + 0x104, 0x8000_0001)
    assert v2.read(GICD + 0x104) == v2.read(GICD + 0x184) == 0x8000_0001
    v2.write(GICD + 0x184, 1)
    assert v2.read(GICD + 0x104) == 0x8000_0000


def test_private_registers_are_banked(v2: V2) -> None:
    v2.write(GICD + 0x100, 1 << 27, cpu=1)
    assert v2.read(GICD + 0x100, cpu=0) == 0xFFFF
    assert v2.read(GICD + 0x100, cpu=1) == 0xFFFF | 1 << 27


def test_priorities_have_five_bits(v2: V2) -> None:
    v2.write(GICD + 0x420, 0xFFA7_1203)
    assert v2.read(GICD + 0x420) == 0xF8A0_1000
    v2.write(GICD + 0x421, 0x28, size=1)
    assert v2.read(GICD + 0x421, size=1) == 0x28


def test_configuration_of_spis_only(v2: V2) -> None:
    assert v2.read(GICD + 0xC00) == 0xAAAA_AAAA
    v2.write(GICD + 0xC04, 0xFFFF_FFFF)
    assert v2.read(GICD + 0xC04) == 0
    v2.write(GICD + 0xC08, 0xFFFF_FFFF)
    assert v2.read(GICD + 0xC08) == 0xAAAA_AAAA


def test_targets(v2: V2) -> None:
    assert v2.read(GICD + 0x800, cpu=0) == 0x0101_0101
    assert v2.read(GICD + 0x800, cpu=1) == 0x0202_0202
    v2.write(GICD + 0x800, 0xFFFF_FFFF)
    assert v2.read(GICD + 0x800) == 0x0101_0101
    v2.write(GICD + 0x820, 0xFF02_0100)
    assert v2.read(GICD + 0x820) == 0x0302_0100


def test_pending_and_active_bits(v2: V2) -> None:
    v2.write(GICD + 0x204, 0b110)
    assert v2.read(GICD + 0x204) == v2.read(GICD + 0x284) == 0b110
    v2.write(GICD + 0x284, 0b010)
    assert v2.read(GICD + 0x204) == 0b100
    v2.write(GICD + 0x304, 0b1)
    assert v2.read(GICD + 0x304) == v2.read(GICD + 0x384) == 0b1
    v2.write(GICD + 0x384, 0b1)
    assert v2.read(GICD + 0x304) == 0
    v2.write(GICD + 0x200, 1)
    assert v2.read(GICD + 0x200) == 0, "an SGI is made pending by GICD_SGIR"


def test_a_device_interrupt_from_line_to_end(v2: V2) -> None:
    v2.start()
    v2.write(GICD + 0x104, 1 << 8)
    v2.rig.spi(40, 1)
    assert v2.rig.cpu().lines == [True, False]
    assert v2.read(GICC + vgic_v2.GICC_HPPIR) == 40
    assert v2.read(GICC + vgic_v2.GICC_IAR) == 40
    assert v2.read(GICC + vgic_v2.GICC_RPR) == 0
    assert v2.rig.cpu().lines == [False, False]
    v2.rig.spi(40, 0)
    v2.write(GICC + vgic_v2.GICC_EOIR, 40)
    assert v2.read(GICC + vgic_v2.GICC_IAR) == 1023
    assert v2.read(GICC + vgic_v2.GICC_RPR) == 0xFF


@pytest.mark.parametrize(
    ("value", "who"), [(0x0002_0003, [1]), (0x0003_0003, [0, 1]), (0x0100_0003, [1]), (0x0200_0003, [0])]
)
def test_sgi_register(v2: V2, value: int, who: list[int]) -> None:
    v2.start()
    v2.write(GICD + vgic_v2.GICD_SGIR, value, cpu=0)
    for cpu in range(2):
        assert v2.rig.cpu(cpu).lines[0] == (cpu in who)
        assert v2.read(GICC + vgic_v2.GICC_IAR, cpu=cpu) == (3 if cpu in who else 1023)


def test_reserved_sgi_filter_does_nothing(v2: V2) -> None:
    v2.start()
    v2.write(GICD + vgic_v2.GICD_SGIR, 0x0303_0003)
    assert v2.rig.cpu(0).lines == v2.rig.cpu(1).lines == [False, False]


def test_sgi_pending_registers_name_sources(v2: V2) -> None:
    v2.write(GICD + vgic_v2.GICD_SGIR, 0x0001_0004, cpu=1)
    assert v2.read(GICD + vgic_v2.GICD_SPENDSGIR + 4) == 0b10
    assert v2.read(GICD + vgic_v2.GICD_CPENDSGIR + 4) == 0b10
    v2.write(GICD + vgic_v2.GICD_SPENDSGIR + 4, 1, size=1)
    assert v2.read(GICD + vgic_v2.GICD_SPENDSGIR + 4, size=1) == 0b11
    v2.write(GICD + vgic_v2.GICD_CPENDSGIR + 4, 0xFF, size=1)
    assert v2.read(GICD + 0x200) == 0


def test_group_1_needs_ackctl_or_the_alias(v2: V2) -> None:
    v2.start()
    v2.write(GICD + 0x84, 1 << 8)
    v2.write(GICD + 0x104, 1 << 8)
    v2.write(GICC + vgic_v2.GICC_CTLR, 3)
    v2.rig.spi(40, 1)
    assert v2.read(GICC + vgic_v2.GICC_IAR) == 1022
    assert v2.read(GICC + vgic_v2.GICC_HPPIR) == 1022
    assert v2.read(GICC + vgic_v2.GICC_AHPPIR) == 40
    assert v2.read(GICC + vgic_v2.GICC_AIAR) == 40
    v2.rig.spi(40, 0)
    v2.write(GICC + vgic_v2.GICC_AEOIR, 40)
    assert v2.read(GICC + vgic_v2.GICC_RPR) == 0xFF
    v2.rig.spi(40, 1)
    v2.write(GICC + vgic_v2.GICC_CTLR, 7)
    assert v2.read(GICC + vgic_v2.GICC_IAR) == 40


def test_split_end_of_interrupt(v2: V2) -> None:
    v2.start()
    v2.write(GICC + vgic_v2.GICC_CTLR, 0x201)
    v2.write(GICD + 0x104, 1 << 8)
    v2.rig.spi(40, 1)
    v2.read(GICC + vgic_v2.GICC_IAR)
    v2.write(GICC + vgic_v2.GICC_EOIR, 40)
    assert v2.read(GICD + 0x304) == 1 << 8
    v2.write(GICC + vgic_v2.GICC_DIR, 40)
    assert v2.read(GICD + 0x304) == 0


def test_cpu_interface_registers_keep_what_they_can(v2: V2) -> None:
    for offset, written, kept in (
        (vgic_v2.GICC_PMR, 0xFF, 0xF8),
        (vgic_v2.GICC_BPR, 0, 2),
        (vgic_v2.GICC_BPR, 7, 7),
        (vgic_v2.GICC_ABPR, 0, 3),
        (vgic_v2.GICC_CTLR, 0xFFFF_FFFF, 0x21F),
        (vgic_v2.GICC_APR0, 0x10, 0x10),
    ):
        v2.write(GICC + offset, written)
        assert v2.read(GICC + offset) == kept


def test_userspace_saves_and_restores(v2: V2) -> None:
    rig, fd = v2.rig, v2.fd
    for group, offset, value in (
        (DIST, 0x000, 1),
        (DIST, 0x104, 0xF0),
        (DIST, 0x204, 0x30),
        (DIST, 0x304, 0x40),
        (DIST, 0x420, 0xA0A0_A0A0),
        (DIST, 0x820, 0x0202_0202),
        (DIST, 0xC08, 0xAAAA_AAAA),
        (CPU, vgic_v2.GICC_CTLR, 1),
        (CPU, vgic_v2.GICC_PMR, 0x1E),
        (CPU, vgic_v2.GICC_BPR, 3),
        (CPU, vgic_v2.GICC_APR0, 0x100),
    ):
        attr = 1 << 32 | offset
        rig.set_attr(fd, group, attr, value, 4)
        assert rig.get_attr(fd, group, attr, 4) == value
    assert v2.read(GICC + vgic_v2.GICC_PMR, cpu=1) == 0xF0
    assert rig.get_attr(fd, CPU, 1 << 32 | vgic_v2.GICC_APR0 + 4, 4) == 0


def test_userspace_cannot_change_the_identification(v2: V2) -> None:
    v2.rig.set_attr(v2.fd, DIST, vgic_v2.GICD_IIDR, 0x4B00343B, 4)
    assert errno_of(v2.rig.set_attr, v2.fd, DIST, vgic_v2.GICD_IIDR, 1, 4) == errno.EINVAL


@pytest.mark.parametrize("group", [DIST, CPU])
def test_unknown_registers_and_vcpus(v2: V2, group: int) -> None:
    assert errno_of(v2.rig.get_attr, v2.fd, group, 0xFF4 if group == CPU else 0xE00, 4) == errno.ENXIO
    assert errno_of(v2.rig.get_attr, v2.fd, group, 7 << 32, 4) == errno.EINVAL
    assert not v2.rig.has_attr(v2.fd, group, 2)
    assert v2.rig.has_attr(v2.fd, group, 0)


def test_registers_are_busy_while_a_vcpu_runs(v2: V2) -> None:
    thread = v2.rig.in_thread()
    while not v2.rig.vm.vcpu_array[0].running:
        pass
    assert errno_of(v2.rig.get_attr, v2.fd, DIST, 0, 4) == errno.EBUSY
    v2.rig.backend.interrupt(v2.rig.vcpus[0])
    assert errno_of(thread.join) == errno.EINTR


def test_resampling_is_told_of_the_end(v2: V2) -> None:
    v2.start()
    v2.write(GICD + 0x104, 1 << 8)
    acked: list[int] = []
    v2.rig.vm.irq.register_ack_notifier(8, lambda: acked.append(8))
    v2.rig.vm.irq.set_irq(8, 1)
    assert v2.read(GICC + vgic_v2.GICC_IAR) == 40
    v2.rig.vm.irq.set_irq(8, 0)
    v2.write(GICC + vgic_v2.GICC_EOIR, 40)
    assert acked == [8]
