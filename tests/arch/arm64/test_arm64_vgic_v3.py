# SPDX-License-Identifier: GPL-2.0-only
"""GICv3 as the guest and userspace see its registers."""

from __future__ import annotations

import errno

import pytest
from arm64_fake import Rig, errno_of

from anykvm.arch.arm64 import sysreg_ids as ids
from anykvm.arch.arm64 import vgic_v3, vgic_v3_cpuif
from anykvm.arch.arm64.vgic import LINE_IRQ, LINE_NONE
from anykvm.engine import Event
from anykvm.uapi import arm64 as A

GICD, GICR = 0x0800_0000, 0x080A_0000
FRAME = 0x20000
SGI = 0x10000
DIST = A.KVM_DEV_ARM_VGIC_GRP_DIST_REGS
REDIST = A.KVM_DEV_ARM_VGIC_GRP_REDIST_REGS
SYSREGS = A.KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS
LEVEL = A.KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO


class V3:
    """vCPUs and a GICv3, with accesses as the run loop makes them."""

    def __init__(self, rig: Rig, cpus: int = 2) -> None:
        self.rig = rig
        for _ in range(cpus):
            rig.create_vcpu()
        self.fd = rig.vgic_v3()
        for index in range(cpus):
            rig.cpu(index).script.append((Event.MMIO_WRITE, 0x0900_0000, 4, 0))
            rig.run(index)

    def read(self, address: int, size: int = 4, cpu: int = 0) -> int:
        value = self.rig.vm.mmio_bus.read(self.rig.vm.vcpu_array[cpu], address, size)
        assert value is not None
        return value

    def write(self, address: int, value: int, size: int = 4, cpu: int = 0) -> None:
        assert self.rig.vm.mmio_bus.write(self.rig.vm.vcpu_array[cpu], address, size, value)

    def mrs(self, register: int, cpu: int = 0) -> int:
        reader = self.rig.arch.traps[register][0]
        assert reader is not None
        return reader(self.rig.vcpu(cpu))

    def msr(self, register: int, value: int, cpu: int = 0) -> None:
        writer = self.rig.arch.traps[register][1]
        assert writer is not None
        writer(self.rig.vcpu(cpu), value)

    def start(self) -> None:
        self.write(GICD, 2)
        for cpu in range(len(self.rig.vcpus)):
            self.msr(ids.ICC_PMR_EL1, 0xF0, cpu)
            self.msr(ids.ICC_IGRPEN1_EL1, 1, cpu)


@pytest.fixture
def v3(rig: Rig) -> V3:
    return V3(rig)


def test_identification(v3: V3) -> None:
    assert v3.read(GICD) == 0x50
    assert v3.read(GICD + vgic_v3.GICD_TYPER) == 7 | 9 << 19
    assert v3.read(GICD + vgic_v3.GICD_IIDR) == 0x4B00343B
    assert v3.read(GICD + vgic_v3.PIDR2) == v3.read(GICR + vgic_v3.PIDR2) == 0x3B
    assert v3.read(GICR + vgic_v3.GICR_IIDR) == 0x4B00043B
    assert v3.read(GICR + 0x14) == 0, "GICR_WAKER: awake"


def test_redistributor_types_name_vcpu_and_the_last(v3: V3) -> None:
    assert v3.read(GICR + 8, 8) == 0
    assert v3.read(GICR + FRAME + 8, 8) == 1 << 32 | 1 << 8 | 1 << 4
    assert v3.read(GICR + FRAME + 8) == 1 << 8 | 1 << 4
    assert v3.read(GICR + FRAME + 12) == 1


def test_private_interrupts_are_in_the_redistributor_only(v3: V3) -> None:
    assert v3.read(GICD + 0x100) == 0
    v3.write(GICD + 0x100, 1 << 27)
    assert v3.read(GICR + SGI + 0x100) == 0xFFFF
    v3.write(GICR + FRAME + SGI + 0x100, 1 << 27, cpu=0)
    assert v3.read(GICR + SGI + 0x100) == 0xFFFF
    assert v3.read(GICR + FRAME + SGI + 0x100) == 0xFFFF | 1 << 27
    assert v3.read(GICR + SGI + 0x104) == 0, "only 32 interrupts here"
    v3.write(GICR + SGI + 0x104, 1)
    assert v3.read(GICD + 0x104) == 0


@pytest.mark.parametrize(("bank", "value"), [(0x80, 0xFFFF_FFFE), (0x300, 0x100), (0x200, 0x20)])
def test_redistributor_banks(v3: V3, bank: int, value: int) -> None:
    v3.write(GICR + SGI + bank, value)
    assert v3.read(GICR + SGI + bank) == value
    assert v3.read(GICR + FRAME + SGI + bank) == (0xFFFF_FFFF if bank == 0x80 else 0)


def test_priorities_of_private_interrupts(v3: V3) -> None:
    v3.write(GICR + SGI + 0x41C, 0xA0A0_A0A0)
    assert v3.read(GICR + SGI + 0x41B, size=1) == 0
    assert v3.read(GICR + SGI + 0x41C) == 0xA0A0_A0A0


def test_routing_by_affinity(v3: V3) -> None:
    v3.start()
    v3.write(GICD + 0x104, 1 << 8)
    v3.write(GICD + vgic_v3.GICD_IROUTER + 40 * 8, 1, size=8)
    assert v3.read(GICD + vgic_v3.GICD_IROUTER + 40 * 8, size=8) == 1
    v3.rig.spi(40, 1)
    assert v3.mrs(ids.ICC_IAR1_EL1, 0) == 1023
    assert v3.mrs(ids.ICC_IAR1_EL1, 1) == 40
    v3.write(GICD + vgic_v3.GICD_IROUTER + 40 * 8, 0x0007_0000, size=4)
    v3.msr(ids.ICC_EOIR1_EL1, 40, 1)
    assert v3.mrs(ids.ICC_IAR1_EL1, 1) == 1023, "routed to a CPU that is not there"
    v3.write(GICD + vgic_v3.GICD_IROUTER + 40 * 8 + 4, 0xFF)
    v3.write(GICD + vgic_v3.GICD_IROUTER + 40 * 8, 0)
    assert v3.mrs(ids.ICC_IAR1_EL1, 0) == 40


def test_an_interrupt_from_line_to_end(v3: V3) -> None:
    v3.start()
    v3.write(GICD + 0x104, 1 << 8)
    v3.write(GICD + 0x428, 0xA0)
    v3.rig.spi(40, 1)
    assert v3.rig.cpu().lines == [True, False]
    assert v3.mrs(ids.ICC_HPPIR1_EL1) == 40
    assert v3.mrs(ids.ICC_IAR1_EL1) == 40
    assert v3.mrs(ids.ICC_RPR_EL1) == 0xA0
    assert v3.mrs(ids.ICC_AP1R0_EL1) == 1 << 20
    v3.rig.spi(40, 0)
    v3.msr(ids.ICC_EOIR1_EL1, 40)
    assert v3.mrs(ids.ICC_IAR1_EL1) == 1023
    assert v3.mrs(ids.ICC_RPR_EL1) == 0xFF


def test_split_end_of_interrupt(v3: V3) -> None:
    v3.start()
    v3.msr(ids.ICC_DIR_EL1, 40)
    v3.msr(ids.ICC_CTLR_EL1, vgic_v3_cpuif.CTLR_EOIMODE)
    v3.write(GICD + 0x104, 1 << 8)
    v3.rig.spi(40, 1)
    v3.mrs(ids.ICC_IAR1_EL1)
    v3.msr(ids.ICC_EOIR1_EL1, 40)
    assert v3.read(GICD + 0x304) == 1 << 8
    v3.rig.spi(40, 0)
    v3.msr(ids.ICC_DIR_EL1, 40)
    assert v3.read(GICD + 0x304) == 0


def test_group_0_has_registers_of_its_own(v3: V3) -> None:
    v3.start()
    v3.msr(ids.ICC_IGRPEN0_EL1, 1)
    v3.write(GICR + SGI + 0x80, 0xFFFF_FFFF & ~(1 << 3))
    v3.msr(ids.ICC_SGI0R_EL1, 3 << 24 | 1)
    assert v3.rig.cpu().lines == [False, True]
    assert v3.mrs(ids.ICC_IAR1_EL1) == 1023
    assert v3.mrs(ids.ICC_HPPIR0_EL1) == 3
    assert v3.mrs(ids.ICC_IAR0_EL1) == 3
    v3.msr(ids.ICC_EOIR0_EL1, 3)
    assert v3.mrs(ids.ICC_RPR_EL1) == 0xFF


def test_sgi_to_a_list(v3: V3) -> None:
    v3.start()
    v3.msr(ids.ICC_SGI1R_EL1, 7 << 24 | 0b10)
    assert v3.mrs(ids.ICC_IAR1_EL1, 0) == 1023
    assert v3.mrs(ids.ICC_IAR1_EL1, 1) == 7


def test_sgi_to_all_but_oneself(v3: V3) -> None:
    v3.start()
    v3.msr(ids.ICC_SGI1R_EL1, 1 << 40 | 2 << 24, 1)
    assert v3.mrs(ids.ICC_IAR1_EL1, 0) == 2
    assert v3.mrs(ids.ICC_IAR1_EL1, 1) == 1023


@pytest.mark.parametrize("value", [1 << 48 | 1, 1 << 32 | 1, 1 << 16 | 1, 0b100])
def test_sgi_to_nobody(v3: V3, value: int) -> None:
    v3.start()
    v3.msr(ids.ICC_SGI1R_EL1, value)
    assert v3.rig.cpu(0).lines == v3.rig.cpu(1).lines == [False, False]


def test_group_0_sgi_register_does_not_make_group_1_pending(v3: V3) -> None:
    v3.start()
    v3.msr(ids.ICC_ASGI1R_EL1, 4 << 24 | 1)
    assert v3.mrs(ids.ICC_IAR1_EL1) == 1023


def test_sgi_across_clusters(rig: Rig) -> None:
    for vcpu_id in (0, 16, 17):
        rig.create_vcpu(vcpu_id)
    rig.vgic_v3()
    v3 = V3.__new__(V3)
    v3.rig = rig
    rig.cpu().script.append((Event.MMIO_WRITE, 0x0900_0000, 4, 0))
    rig.run()
    v3.start()
    v3.msr(ids.ICC_SGI1R_EL1, 1 << 16 | 1 << 24 | 0b11)
    assert [rig.vcpu(index).vgic.line for index in range(3)] == [LINE_NONE, LINE_IRQ, LINE_IRQ]


def test_cpu_interface_registers_keep_what_they_can(v3: V3) -> None:
    assert v3.mrs(ids.ICC_SRE_EL1) == 7
    v3.msr(ids.ICC_SRE_EL1, 0)
    assert v3.mrs(ids.ICC_SRE_EL1) == 7
    assert v3.mrs(ids.ICC_CTLR_EL1) == 4 << 8
    for register, written, kept in (
        (ids.ICC_PMR_EL1, 0xFF, 0xF8),
        (ids.ICC_BPR0_EL1, 0, 2),
        (ids.ICC_BPR1_EL1, 0, 3),
        (ids.ICC_BPR1_EL1, 5, 5),
        (ids.ICC_IGRPEN1_EL1, 3, 1),
        (ids.ICC_IGRPEN0_EL1, 1, 1),
        (ids.ICC_AP0R0_EL1, 2, 2),
        (ids.ICC_AP1R0_EL1, 4, 4),
        (ids.ICC_CTLR_EL1, 3, 4 << 8 | 3),
    ):
        v3.msr(register, written)
        assert v3.mrs(register) == kept
    assert v3.mrs(ids.ICC_BPR1_EL1) == 3, "with CBPR it follows BPR0"
    v3.msr(ids.ICC_BPR1_EL1, 7)
    assert v3.rig.vcpu().vgic.bpr1 == 5


def test_write_only_and_read_only_registers(v3: V3) -> None:
    for register in (ids.ICC_IAR1_EL1, ids.ICC_HPPIR1_EL1, ids.ICC_RPR_EL1):
        assert v3.rig.arch.traps[register][1] is None
    for register in (ids.ICC_EOIR1_EL1, ids.ICC_DIR_EL1, ids.ICC_SGI1R_EL1):
        assert v3.rig.arch.traps[register][0] is None
    assert ids.ICC_AP1R1_EL1 not in v3.rig.arch.traps
    assert ids.ICC_AP1R1_EL1 in v3.rig.arch.machine.traps


def test_only_a_vm_with_gicv3_has_the_registers(rig: Rig) -> None:
    rig.create_vcpu()
    assert ids.ICC_IAR1_EL1 not in rig.arch.traps
    assert rig.get_reg(A.sys_reg(3, 0, 0, 4, 0)) >> 24 & 0xF == 0
    rig.vgic_v3()
    assert ids.ICC_IAR1_EL1 in rig.arch.traps
    assert rig.get_reg(A.sys_reg(3, 0, 0, 4, 0)) >> 24 & 0xF == 1


# Userspace.


def test_userspace_saves_and_restores(v3: V3) -> None:
    rig, fd = v3.rig, v3.fd
    for group, where, value in (
        (DIST, 0x104, 0xF0),
        (DIST, 0x204, 0x30),
        (DIST, 0x304, 0x40),
        (DIST, 0x84, 0xFF),
        (DIST, vgic_v3.GICD_IROUTER + 40 * 8, 1),
        (REDIST, SGI + 0x100, 1 << 27 | 0xFFFF),
        (REDIST, SGI + 0x200, 1 << 27),
        (REDIST, SGI + 0x400, 0xA0A0_A0A0),
    ):
        attr = 1 << 32 | where
        rig.set_attr(fd, group, attr, value, 4)
        assert rig.get_attr(fd, group, attr, 4) == value
    for register, value in (
        (ids.ICC_PMR_EL1, 0xF0),
        (ids.ICC_IGRPEN1_EL1, 1),
        (ids.ICC_BPR1_EL1, 4),
        (ids.ICC_AP1R0_EL1, 0x10),
        (ids.ICC_CTLR_EL1, 4 << 8 | 2),
        (ids.ICC_SRE_EL1, 7),
    ):
        rig.set_attr(fd, SYSREGS, 1 << 32 | register, value)
        assert rig.get_attr(fd, SYSREGS, 1 << 32 | register) == value
    assert rig.vcpu(1).vgic.pmr == 0xF0
    assert rig.vcpu(0).vgic.pmr == 0


def test_the_pending_latch_is_apart_from_the_line(v3: V3) -> None:
    rig, fd = v3.rig, v3.fd
    rig.spi(40, 1)
    assert rig.get_attr(fd, DIST, 0x204, 4) == 0
    assert rig.get_attr(fd, LEVEL, 32, 4) == 1 << 8
    rig.set_attr(fd, LEVEL, 32, 0, 4)
    assert v3.read(GICD + 0x204) == 0
    rig.set_attr(fd, DIST, 0x204, 0b11, 4)
    rig.set_attr(fd, DIST, 0x204, 0b10, 4)
    assert rig.get_attr(fd, DIST, 0x204, 4) == 0b10
    rig.set_attr(fd, DIST, 0x284, 0xFFFF_FFFF, 4)
    assert rig.get_attr(fd, DIST, 0x204, 4) == 0b10
    assert rig.get_attr(fd, DIST, 0x284, 4) == 0


@pytest.mark.parametrize(
    ("group", "attr"),
    [
        (DIST, 0x4000),
        (DIST, 0x102),
        (REDIST, 0x5000),
        (SYSREGS, ids.ICC_IAR1_EL1),
        (SYSREGS, ids.ICC_AP1R2_EL1),
        (SYSREGS, 0x1234),
        (99, 0),
        (A.KVM_DEV_ARM_VGIC_GRP_CPU_REGS, 0),
    ],
)
def test_unknown_attributes_are_enxio(v3: V3, group: int, attr: int) -> None:
    size = 8 if group == SYSREGS else 4
    assert errno_of(v3.rig.get_attr, v3.fd, group, attr, size) == errno.ENXIO
    assert errno_of(v3.rig.set_attr, v3.fd, group, attr, 0, size) == errno.ENXIO
    assert not v3.rig.has_attr(v3.fd, group, attr)


def test_a_vcpu_that_is_not_there_is_einval(v3: V3) -> None:
    for group, attr in ((REDIST, SGI + 0x100), (SYSREGS, ids.ICC_PMR_EL1)):
        assert errno_of(v3.rig.get_attr, v3.fd, group, 9 << 32 | attr) == errno.EINVAL


@pytest.mark.parametrize(
    ("register", "value"), [(ids.ICC_CTLR_EL1, 7 << 8), (ids.ICC_CTLR_EL1, 1 << 11), (ids.ICC_SRE_EL1, 6)]
)
def test_values_this_gic_cannot_have(v3: V3, register: int, value: int) -> None:
    assert errno_of(v3.rig.set_attr, v3.fd, SYSREGS, register, value) == errno.EINVAL


def test_line_levels_are_had_32_at_a_time(v3: V3) -> None:
    assert errno_of(v3.rig.get_attr, v3.fd, LEVEL, 33, 4) == errno.EINVAL
    assert errno_of(v3.rig.get_attr, v3.fd, LEVEL, 1 << 10 | 32, 4) == errno.EINVAL
    assert v3.rig.has_attr(v3.fd, LEVEL, 32)
    assert not v3.rig.has_attr(v3.fd, LEVEL, 1 << 10)


def test_registers_before_init_are_ebusy(rig: Rig) -> None:
    rig.create_vcpu()
    fd = rig.vgic_v3(init=False)
    assert errno_of(rig.get_attr, fd, DIST, 0, 4) == errno.EBUSY
    assert errno_of(rig.spi, 40, 1) == errno.EBUSY


def test_pending_tables_are_empty(v3: V3) -> None:
    v3.rig.set_attr(v3.fd, A.KVM_DEV_ARM_VGIC_GRP_CTRL, A.KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES, 0)
    assert v3.rig.has_attr(v3.fd, A.KVM_DEV_ARM_VGIC_GRP_CTRL, A.KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES)
