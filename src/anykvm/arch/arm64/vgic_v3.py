# SPDX-License-Identifier: GPL-2.0-only
"""GICv3: the distributor (GICD, 64 KB) and a redistributor's two frames (GICR, 2 x 64 KB) as the guest sees them.

Affinity routing is always on, there is one security state, no LPIs and no ITS. Private interrupts are in the
redistributors only. Functions run with ``vgic.lock`` taken here. Source: Arm IHI 0069, chapter 12.
"""

from __future__ import annotations

from typing import Final

from anykvm.uapi.arm64 import KVM_VGIC_V3_DIST_SIZE, KVM_VGIC_V3_REDIST_SIZE

from . import vgic_mmio as mmio
from .vgic import AFFINITY_MASK, VGIC_NR_PRIVATE_IRQS, Vgic, VgicCpu

GICD_CTLR: Final = 0x0000
GICD_TYPER: Final = 0x0004
GICD_IIDR: Final = 0x0008
GICD_TYPER2: Final = 0x000C
GICD_IROUTER: Final = 0x6000
GICD_IDREGS: Final = 0xFFD0
PIDR2: Final = 0xFFE8
PIDR2_GICV3: Final = 0x3B

CTLR_ENABLE_G1: Final = 1 << 1
CTLR_ARE: Final = 1 << 4
CTLR_DS: Final = 1 << 6

GICR_CTLR: Final = 0x0000
GICR_IIDR: Final = 0x0004
GICR_TYPER: Final = 0x0008
GICR_CTLR_VALUE: Final = 1 << 1 | 1 << 2  # CES, IR
GICR_TYPER_LAST: Final = 1 << 4
SGI_FRAME: Final = 0x10000

_INTID_BITS: Final = 10


def _read_misc(vgic: Vgic, cpu: VgicCpu, offset: int, size: int) -> int:
    if offset == GICD_CTLR:
        return CTLR_ARE | CTLR_DS | (CTLR_ENABLE_G1 if vgic.enabled else 0)
    if offset == GICD_TYPER:
        return (vgic.nr_spis + VGIC_NR_PRIVATE_IRQS >> 5) - 1 | _INTID_BITS - 1 << 19
    return mmio.iidr() if offset == GICD_IIDR else 0


def _write_misc(vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
    if offset == GICD_CTLR:
        vgic.enabled = value & CTLR_ENABLE_G1 != 0
        vgic.update_all()


def _user_write_misc(vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
    if offset in (GICD_IIDR, GICD_TYPER2):
        if value != _read_misc(vgic, cpu, offset, size):
            raise ValueError("GICD_IIDR and GICD_TYPER2 cannot be changed")
        return
    _write_misc(vgic, cpu, offset, size, value)


def _shared(bank: mmio.Bank, bits: int) -> mmio.Bank:
    """A bank of the distributor, in which the private interrupts' part does nothing."""
    read, write, user_write = bank
    first = bits * VGIC_NR_PRIVATE_IRQS // 8

    def read_shared(vgic: Vgic, cpu: VgicCpu, offset: int, size: int) -> int:
        return 0 if offset < first else read(vgic, cpu, offset, size)

    def write_shared(vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
        if offset >= first:
            write(vgic, cpu, offset, size, value)

    def user_write_shared(vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
        if offset >= first:
            user_write(vgic, cpu, offset, size, value)

    return read_shared, write_shared, user_write_shared


def _read_irouter(vgic: Vgic, cpu: VgicCpu, offset: int, size: int) -> int:
    irq = vgic.irq(None, offset >> 3)
    if irq is None or offset & 4:
        return 0
    return irq.mpidr >> (offset & 3) * 8 & (1 << size * 8) - 1


def _write_irouter(vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
    irq = vgic.irq(None, offset >> 3)
    # The upper word is Aff3, which no vCPU has.
    if irq is None or offset & 7:
        return
    irq.mpidr = value & AFFINITY_MASK
    vgic.retarget(irq, vgic.by_affinity.get(irq.mpidr))


def _read_id(vgic: Vgic, cpu: VgicCpu, offset: int, size: int) -> int:
    return PIDR2_GICV3 if offset + 0xFF80 == PIDR2 else 0


_ID_BANK: Final[mmio.Bank] = (_read_id, mmio.wi, mmio.wi)
_SET_PENDING: Final[mmio.Bank] = (*mmio.SET_PENDING[:2], mmio.user_set_pending_exact)
_CLEAR_PENDING: Final[mmio.Bank] = (*mmio.CLEAR_PENDING[:2], mmio.wi)
_IGNORED: Final[mmio.Bank] = (lambda vgic, cpu, offset, size: 0, mmio.wi, mmio.wi)

DIST: Final = mmio.Frame(
    KVM_VGIC_V3_DIST_SIZE,
    {
        0x0000: (0x80, (_read_misc, _write_misc, _user_write_misc)),
        0x0080: (0x80, _shared(mmio.GROUP, 1)),
        0x0100: (0x80, _shared(mmio.SET_ENABLE, 1)),
        0x0180: (0x80, _shared(mmio.CLEAR_ENABLE, 1)),
        0x0200: (0x80, _shared(_SET_PENDING, 1)),
        0x0280: (0x80, _shared(_CLEAR_PENDING, 1)),
        0x0300: (0x80, _shared(mmio.SET_ACTIVE, 1)),
        0x0380: (0x80, _shared(mmio.CLEAR_ACTIVE, 1)),
        0x0400: (0x400, _shared(mmio.PRIORITY, 8)),
        0x0800: (0x400, _IGNORED),
        0x0C00: (0x100, _shared(mmio.CONFIG, 2)),
        0x0D00: (0x80, _IGNORED),
        GICD_IROUTER: (0x2000, (_read_irouter, _write_irouter, _write_irouter)),
        0xFF80: (0x80, _ID_BANK),
    },
)


def _read_rd(vgic: Vgic, cpu: VgicCpu, offset: int, size: int) -> int:
    if offset == GICR_CTLR:
        return GICR_CTLR_VALUE
    if offset == GICR_IIDR:
        return mmio.PRODUCT_ID_KVM << 24 | mmio.IMPLEMENTER_ARM
    if offset & ~7 == GICR_TYPER:
        value = (cpu.mpidr & AFFINITY_MASK) << 32 | (cpu.vcpu_id & 0xFFFF) << 8
        if cpu.rd_last:
            value |= GICR_TYPER_LAST
        return value >> (offset & 7) * 8 & (1 << size * 8) - 1
    # GICR_WAKER too: a redistributor is always awake.
    return 0


REDIST: Final = mmio.Frame(
    KVM_VGIC_V3_REDIST_SIZE,
    {
        0x0000: (0x80, (_read_rd, mmio.wi, mmio.wi)),
        0x0080: (0x80, _IGNORED),
        0xFF80: (0x80, _ID_BANK),
        SGI_FRAME + 0x0080: (0x80, mmio.GROUP),
        SGI_FRAME + 0x0100: (0x80, mmio.SET_ENABLE),
        SGI_FRAME + 0x0180: (0x80, mmio.CLEAR_ENABLE),
        SGI_FRAME + 0x0200: (0x80, _SET_PENDING),
        SGI_FRAME + 0x0280: (0x80, _CLEAR_PENDING),
        SGI_FRAME + 0x0300: (0x80, mmio.SET_ACTIVE),
        SGI_FRAME + 0x0380: (0x80, mmio.CLEAR_ACTIVE),
        SGI_FRAME + 0x0400: (0x80, mmio.PRIORITY),
        SGI_FRAME + 0x0C00: (0x80, mmio.CONFIG),
        SGI_FRAME + 0x0D00: (0x80, _IGNORED),
        SGI_FRAME + 0x0E00: (0x80, _IGNORED),
    },
)


def _private_only(offset: int) -> bool:
    # Each bank of the SGI frame has 32 interrupts' worth of registers; its 128 bytes have room for more.
    bank = offset & 0xFF80
    length = 0x20 if bank == 0x400 else 8 if bank == 0xC00 else 4
    return bank < 0x80 or bank >= 0xD00 or offset & 0x7F < length


def dist_read(vgic: Vgic, cpu: VgicCpu, offset: int, size: int) -> int:
    """A guest's read of the distributor."""
    with vgic.lock:
        return DIST.read(vgic, cpu, offset, size)


def dist_write(vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
    """A guest's write to the distributor."""
    with vgic.lock:
        DIST.write(vgic, cpu, offset, size, value)


def redist_read(vgic: Vgic, cpu: VgicCpu, offset: int, size: int) -> int:
    """A read of a vCPU's redistributor, by any vCPU."""
    with vgic.lock:
        return REDIST.read(vgic, cpu, offset, size) if offset < SGI_FRAME or _private_only(offset) else 0


def redist_write(vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
    """A write to a vCPU's redistributor, by any vCPU."""
    with vgic.lock:
        if offset < SGI_FRAME or _private_only(offset):
            REDIST.write(vgic, cpu, offset, size, value)
