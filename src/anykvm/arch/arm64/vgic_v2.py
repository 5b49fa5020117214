# SPDX-License-Identifier: GPL-2.0-only
"""GICv2: the distributor (GICD, 4096 bytes) and the CPU interface (GICC, 8192 bytes) as the guest sees them.

The CPU interface is the view the kernel's guests have of GICV (Arm IHI 0048, section 5.5): without security
extensions, all interrupts in group 0 unless the guest says otherwise. Functions run with ``vgic.lock`` taken here.
"""

from __future__ import annotations

from typing import Final

from anykvm.uapi.arm64 import KVM_VGIC_V2_CPU_SIZE, KVM_VGIC_V2_DIST_SIZE

from . import vgic_mmio as mmio
from .vgic import INTID_SPURIOUS, VGIC_NR_PRIVATE_IRQS, VGIC_NR_SGIS, Vgic, VgicCpu

GICD_CTLR: Final = 0x000
GICD_TYPER: Final = 0x004
GICD_IIDR: Final = 0x008
GICD_SGIR: Final = 0xF00
GICD_CPENDSGIR: Final = 0xF10
GICD_SPENDSGIR: Final = 0xF20

GICC_CTLR: Final = 0x00
GICC_PMR: Final = 0x04
GICC_BPR: Final = 0x08
GICC_IAR: Final = 0x0C
GICC_EOIR: Final = 0x10
GICC_RPR: Final = 0x14
GICC_HPPIR: Final = 0x18
GICC_ABPR: Final = 0x1C
GICC_AIAR: Final = 0x20
GICC_AEOIR: Final = 0x24
GICC_AHPPIR: Final = 0x28
GICC_APR0: Final = 0xD0
GICC_IIDR: Final = 0xFC
GICC_DIR: Final = 0x1000

GICC_IIDR_VALUE: Final = mmio.PRODUCT_ID_KVM << 20 | 2 << 16 | mmio.IMPLEMENTER_ARM
INTID_GROUP1_SPURIOUS: Final = 1022


# The distributor.


def _read_misc(vgic: Vgic, cpu: VgicCpu, offset: int, size: int) -> int:
    if offset == GICD_CTLR:
        return int(vgic.enabled)
    if offset == GICD_TYPER:
        lines = (vgic.nr_spis + VGIC_NR_PRIVATE_IRQS >> 5) - 1
        return lines | len(vgic.vcpus) - 1 << 5
    return mmio.iidr() if offset == GICD_IIDR else 0


def _write_misc(vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
    if offset == GICD_CTLR:
        vgic.enabled = value & 1 != 0
        vgic.update_all()


def _user_write_misc(vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
    if offset == GICD_IIDR:
        if value != mmio.iidr():
            raise ValueError("GICD_IIDR cannot be changed")
        return
    _write_misc(vgic, cpu, offset, size, value)


def _read_targets(vgic: Vgic, cpu: VgicCpu, offset: int, size: int) -> int:
    value = 0
    for position in range(size):
        irq = vgic.irq(cpu, offset + position)
        if irq is not None:
            value |= irq.targets << position * 8
    return value


def _write_targets(vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
    present = (1 << len(vgic.vcpus)) - 1
    for position in range(size):
        intid = offset + position
        irq = vgic.irq(cpu, intid)
        if irq is None or intid < VGIC_NR_PRIVATE_IRQS:
            continue
        irq.targets = value >> position * 8 & 0xFF & present
        first = (irq.targets & -irq.targets).bit_length() - 1 if irq.targets else 0
        vgic.retarget(irq, vgic.vcpus[first])


def _read_sgi(vgic: Vgic, cpu: VgicCpu, offset: int, size: int) -> int:
    if not 0x10 <= offset < 0x30:
        return 0
    value = 0
    for position in range(size):
        value |= cpu.private[(offset + position) % VGIC_NR_SGIS].source << position * 8
    return value


def _write_sgi(vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
    if offset == 0:
        send_sgir(vgic, cpu, value)
        return
    if not 0x10 <= offset < 0x30:
        return
    for position in range(size):
        sources = value >> position * 8 & 0xFF
        irq = cpu.private[(offset + position) % VGIC_NR_SGIS]
        if offset < 0x20:
            irq.source &= ~sources
            irq.latch = irq.latch and irq.source != 0
        else:
            irq.source |= sources
            irq.latch = irq.latch or irq.source != 0
        vgic.refresh(irq)


def send_sgir(vgic: Vgic, cpu: VgicCpu, value: int) -> None:
    """GICD_SGIR: send SGI ``value[3:0]`` to the listed CPUs, all others, or the writer."""
    intid = value & 0xF
    mode = value >> 24 & 3
    if mode == 0:
        targets = value >> 16 & 0xFF
    elif mode == 1:
        targets = ((1 << len(vgic.vcpus)) - 1) & ~(1 << cpu.index)
    elif mode == 2:
        targets = 1 << cpu.index
    else:
        return
    for target in vgic.vcpus:
        if targets >> target.index & 1:
            vgic.send_sgi(cpu, target, intid)


DIST: Final = mmio.Frame(
    KVM_VGIC_V2_DIST_SIZE,
    {
        0x000: (0x80, (_read_misc, _write_misc, _user_write_misc)),
        0x080: (0x80, mmio.GROUP),
        0x100: (0x80, mmio.SET_ENABLE),
        0x180: (0x80, mmio.CLEAR_ENABLE),
        0x200: (0x80, mmio.SET_PENDING),
        0x280: (0x80, mmio.CLEAR_PENDING),
        0x300: (0x80, mmio.SET_ACTIVE),
        0x380: (0x80, mmio.CLEAR_ACTIVE),
        0x400: (0x400, mmio.PRIORITY),
        0x800: (0x400, (_read_targets, _write_targets, _write_targets)),
        0xC00: (0x100, mmio.CONFIG),
        0xF00: (0x80, (_read_sgi, _write_sgi, _write_sgi)),
    },
)


def dist_read(vgic: Vgic, cpu: VgicCpu, offset: int, size: int) -> int:
    """A guest's read of the distributor."""
    with vgic.lock:
        return DIST.read(vgic, cpu, offset, size)


def dist_write(vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
    """A guest's write to the distributor."""
    with vgic.lock:
        if offset == GICD_SGIR:
            send_sgir(vgic, cpu, value)
        else:
            DIST.write(vgic, cpu, offset, size, value)


# The CPU interface.


def _ctlr(cpu: VgicCpu) -> int:
    return cpu.grpen0 | cpu.grpen1 << 1 | cpu.ackctl << 2 | cpu.group0_is_fiq << 3 | cpu.cbpr << 4 | cpu.eoimode << 9


def _set_ctlr(cpu: VgicCpu, value: int) -> None:
    cpu.grpen0 = value & 1 != 0
    cpu.grpen1 = value & 2 != 0
    cpu.ackctl = value & 4 != 0
    cpu.group0_is_fiq = value & 8 != 0
    cpu.cbpr = value & 0x10 != 0
    cpu.eoimode = value & 0x200 != 0


def cpu_read(vgic: Vgic, cpu: VgicCpu, offset: int, size: int) -> int:
    """A guest's read of its CPU interface; reading GICC_IAR acknowledges."""
    with vgic.lock:
        if offset == GICC_IAR:
            irq = cpu.best
            if irq is None:
                return INTID_SPURIOUS
            if irq.group and not cpu.ackctl:
                return INTID_GROUP1_SPURIOUS
            return vgic.acknowledge(cpu, irq)
        return _cpu_read_other(vgic, cpu, offset)


def _cpu_read_other(vgic: Vgic, cpu: VgicCpu, offset: int) -> int:
    irq = cpu.best
    match offset:
        case 0x20:  # GICC_AIAR
            return vgic.acknowledge(cpu, irq) if irq is not None and irq.group else INTID_SPURIOUS
        case 0x18:  # GICC_HPPIR
            if irq is not None and irq.group and not cpu.ackctl:
                return INTID_GROUP1_SPURIOUS
            return _source(cpu) if irq is not None else INTID_SPURIOUS
        case 0x28:  # GICC_AHPPIR
            return _source(cpu) if irq is not None and irq.group else INTID_SPURIOUS
        case 0x00:
            return _ctlr(cpu)
        case 0x04:
            return cpu.pmr
        case 0x08:
            return cpu.bpr0
        case 0x14:  # GICC_RPR
            return min(cpu.running_priority(), 0xFF)
        case 0x1C:
            return cpu.bpr1
        case 0xD0:
            return cpu.apr | cpu.ap0r
        case 0xFC:
            return GICC_IIDR_VALUE
        case _:
            return 0


def _source(cpu: VgicCpu) -> int:
    irq = cpu.best
    if irq is None:
        return INTID_SPURIOUS
    return irq.intid | ((irq.source & -irq.source).bit_length() - 1 << 10 if irq.source else 0)


def cpu_write(vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
    """A guest's write to its CPU interface; writing GICC_EOIR ends the running interrupt."""
    intid = value & 0x3FF
    with vgic.lock:
        if offset == GICC_EOIR:
            acked = intid < INTID_GROUP1_SPURIOUS and vgic.end(cpu, intid)
        else:
            acked = _cpu_write_other(vgic, cpu, offset, value)
    if acked and vgic.on_ack is not None:
        vgic.on_ack(intid)


def _cpu_write_other(vgic: Vgic, cpu: VgicCpu, offset: int, value: int) -> bool:
    match offset:
        case 0x24:  # GICC_AEOIR
            return value & 0x3FF < INTID_GROUP1_SPURIOUS and vgic.end(cpu, value & 0x3FF)
        case 0x1000:  # GICC_DIR
            return cpu.eoimode and vgic.deactivate(cpu, value & 0x3FF)
        case 0x00:
            _set_ctlr(cpu, value)
        case 0x04:
            cpu.pmr = value & 0xF8
        case 0x08:
            cpu.bpr0 = max(value & 7, 2)
        case 0x1C:
            cpu.bpr1 = max(value & 7, 3)
        case 0xD0:
            cpu.apr, cpu.ap0r = value & 0xFFFFFFFF, 0
        case _:
            return False
    vgic.update(cpu)
    return False


# Userspace: KVM_DEV_ARM_VGIC_GRP_CPU_REGS.

_USER_CPU: Final = frozenset(
    (GICC_CTLR, GICC_PMR, GICC_BPR, GICC_ABPR, GICC_IIDR, *range(GICC_APR0, GICC_APR0 + 16, 4))
)


def user_cpu_has(offset: int) -> bool:
    """Tell whether userspace may access a register of the CPU interface."""
    return offset in _USER_CPU and offset < KVM_VGIC_V2_CPU_SIZE


def user_cpu_read(vgic: Vgic, cpu: VgicCpu, offset: int) -> int:
    """Userspace's read; the priority mask is GICH_VMCR's five bits, which is the ABI."""
    if offset == GICC_PMR:
        return cpu.pmr >> 3
    if offset in (GICC_APR0 + 4, GICC_APR0 + 8, GICC_APR0 + 12):
        return 0
    return _cpu_read_other(vgic, cpu, offset)


def user_cpu_write(vgic: Vgic, cpu: VgicCpu, offset: int, value: int) -> None:
    """Userspace's write."""
    if offset == GICC_PMR:
        value = (value & 0x1F) << 3
    _cpu_write_other(vgic, cpu, offset, value)
