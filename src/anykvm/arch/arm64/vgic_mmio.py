# SPDX-License-Identifier: GPL-2.0-only
"""The distributor's registers that both GIC models have: banks of one, two or eight bits per interrupt.

Each register bank has functions ``read(vgic, cpu, offset, size)`` and ``write(vgic, cpu, offset, size, value)``;
``offset`` is in bytes from the bank's first register, ``size`` the access' width in bytes. They run with ``vgic.lock``
held. The ``user_`` ones are for KVM_DEV_ARM_VGIC_GRP_*_REGS, where a write means "make it so": no side effect of a
guest's write (``arch/arm64/kvm/vgic/vgic-mmio.c``, the ``uaccess`` functions).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .vgic import VGIC_NR_PRIVATE_IRQS, VGIC_NR_SGIS, VGIC_PRIORITY_MASK, Vgic, VgicCpu, VgicIrq

Read = Callable[[Vgic, VgicCpu, int, int], int]
Write = Callable[[Vgic, VgicCpu, int, int, int], None]
Bank = tuple[Read, Write, Write]
"""A bank: how the guest and userspace read it, how the guest writes it, how userspace does."""

PRODUCT_ID_KVM = 0x4B
IMPLEMENTER_ARM = 0x43B
IMPLEMENTATION_REVISION = 3


def iidr() -> int:
    """GICD_IIDR: KVM's product, revision 3 (groups are the guest's to configure)."""
    return PRODUCT_ID_KVM << 24 | IMPLEMENTATION_REVISION << 12 | IMPLEMENTER_ARM


def raz(vgic: Vgic, cpu: VgicCpu, offset: int, size: int) -> int:
    """Read as zero."""
    return 0


def wi(vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
    """Ignore a write."""


def _irqs(vgic: Vgic, cpu: VgicCpu, first: int, count: int) -> Iterator[tuple[int, VgicIrq]]:
    for position in range(count):
        irq = vgic.irq(cpu, first + position)
        if irq is not None:
            yield position, irq


def _bits(value: int) -> Iterator[int]:
    while value:
        low = value & -value
        value ^= low
        yield low.bit_length() - 1


def _reader(test: Callable[[VgicIrq], bool | int]) -> Read:
    def read(vgic: Vgic, cpu: VgicCpu, offset: int, size: int) -> int:
        value = 0
        for position, irq in _irqs(vgic, cpu, offset * 8, size * 8):
            if test(irq):
                value |= 1 << position
        return value

    return read


def _writer(change: Callable[[Vgic, VgicCpu, VgicIrq], None]) -> Write:
    def write(vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
        for position in _bits(value & (1 << size * 8) - 1):
            irq = vgic.irq(cpu, offset * 8 + position)
            if irq is not None:
                change(vgic, cpu, irq)
                vgic.refresh(irq)

    return write


def _enable(vgic: Vgic, cpu: VgicCpu, irq: VgicIrq) -> None:
    irq.enabled = True


def _disable(vgic: Vgic, cpu: VgicCpu, irq: VgicIrq) -> None:
    irq.enabled = False


def _is_v2_sgi(vgic: Vgic, irq: VgicIrq) -> bool:
    # GICv2's SGIs are made pending by GICD_SGIR and GICD_SPENDSGIR only, which name a source.
    return irq.intid < VGIC_NR_SGIS and not vgic.sgi_pending_writable


def _pend(vgic: Vgic, cpu: VgicCpu, irq: VgicIrq) -> None:
    if not _is_v2_sgi(vgic, irq):
        irq.latch = True


def _unpend(vgic: Vgic, cpu: VgicCpu, irq: VgicIrq) -> None:
    if not _is_v2_sgi(vgic, irq):
        irq.latch = False


def _user_pend(vgic: Vgic, cpu: VgicCpu, irq: VgicIrq) -> None:
    irq.latch = True
    if _is_v2_sgi(vgic, irq):
        # The source is not in this register; userspace restores it through GICD_SPENDSGIR. Until then: itself.
        irq.source |= irq.targets or 1


def _user_unpend(vgic: Vgic, cpu: VgicCpu, irq: VgicIrq) -> None:
    irq.latch = False
    irq.source = 0


def _activate(vgic: Vgic, cpu: VgicCpu, irq: VgicIrq) -> None:
    irq.active = True
    irq.active_source = cpu.vcpu_id & 7 if irq.intid < VGIC_NR_SGIS else 0


def _deactivate(vgic: Vgic, cpu: VgicCpu, irq: VgicIrq) -> None:
    irq.active = False


def _set_group(vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
    for position, irq in _irqs(vgic, cpu, offset * 8, size * 8):
        irq.group = value >> position & 1
        vgic.refresh(irq)


def _priority(vgic: Vgic, cpu: VgicCpu, offset: int, size: int) -> int:
    value = 0
    for position, irq in _irqs(vgic, cpu, offset, size):
        value |= irq.priority << position * 8
    return value


def _set_priority(vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
    for position, irq in _irqs(vgic, cpu, offset, size):
        irq.priority = value >> position * 8 & VGIC_PRIORITY_MASK
        vgic.refresh(irq)


def _config(vgic: Vgic, cpu: VgicCpu, offset: int, size: int) -> int:
    value = 0
    for position, irq in _irqs(vgic, cpu, offset * 4, size * 4):
        if irq.edge:
            value |= 2 << position * 2
    return value


def _set_config(vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
    for position, irq in _irqs(vgic, cpu, offset * 4, size * 4):
        # SGIs are always edge triggered; the kernel keeps PPIs as they are, too.
        if irq.intid >= VGIC_NR_PRIVATE_IRQS:
            irq.edge = value >> position * 2 & 2 != 0
            vgic.refresh(irq)


enabled = _reader(lambda irq: irq.enabled)
pending = _reader(lambda irq: irq.pending)
latched = _reader(lambda irq: irq.latch)
active = _reader(lambda irq: irq.active)

GROUP: Bank = (_reader(lambda irq: irq.group), _set_group, _set_group)
SET_ENABLE: Bank = (enabled, _writer(_enable), _writer(_enable))
CLEAR_ENABLE: Bank = (enabled, _writer(_disable), _writer(_disable))
SET_PENDING: Bank = (pending, _writer(_pend), _writer(_user_pend))
CLEAR_PENDING: Bank = (pending, _writer(_unpend), _writer(_user_unpend))
SET_ACTIVE: Bank = (active, _writer(_activate), _writer(_activate))
CLEAR_ACTIVE: Bank = (active, _writer(_deactivate), _writer(_deactivate))
PRIORITY: Bank = (_priority, _set_priority, _set_priority)
CONFIG: Bank = (_config, _set_config, _set_config)
NOTHING: Bank = (raz, wi, wi)


def user_set_pending_exact(vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
    """GICv3's GICD_ISPENDR and GICR_ISPENDR0 from userspace: the latch becomes exactly ``value``."""
    for position, irq in _irqs(vgic, cpu, offset * 8, size * 8):
        irq.latch = value >> position & 1 != 0
        vgic.refresh(irq)


def line_level(vgic: Vgic, cpu: VgicCpu, first: int) -> int:
    """The input lines' levels of 32 interrupts (KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO)."""
    value = 0
    for position, irq in _irqs(vgic, cpu, first, 32):
        if irq.level and not irq.edge:
            value |= 1 << position
    return value


def set_line_level(vgic: Vgic, cpu: VgicCpu, first: int, value: int) -> None:
    """Set the input lines' levels of 32 interrupts; SGIs have none."""
    for position, irq in _irqs(vgic, cpu, first, 32):
        if irq.intid >= VGIC_NR_SGIS and not irq.edge:
            irq.level = value >> position & 1 != 0
            vgic.refresh(irq)


class Frame:
    """A register frame: 128-byte banks found by ``offset >> 7``; what no bank covers reads zero and ignores writes.

    ``banks`` maps the first byte of a range (128-byte aligned) to its length in bytes and its bank.
    """

    def __init__(self, size: int, banks: dict[int, tuple[int, Bank]]) -> None:
        self.size = size
        self.table: list[tuple[int, Bank]] = [(0, NOTHING)] * (size >> 7)
        for first, (length, bank) in banks.items():
            for offset in range(first, first + max(length, 0x80), 0x80):
                self.table[offset >> 7] = (first, bank)

    def read(self, vgic: Vgic, cpu: VgicCpu, offset: int, size: int) -> int:
        """A guest's or userspace's read."""
        first, bank = self.table[offset >> 7]
        return bank[0](vgic, cpu, offset - first, size) & (1 << size * 8) - 1

    def write(self, vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
        """A guest's write."""
        first, bank = self.table[offset >> 7]
        bank[1](vgic, cpu, offset - first, size, value)

    def user_write(self, vgic: Vgic, cpu: VgicCpu, offset: int, size: int, value: int) -> None:
        """A write through the device's attributes."""
        first, bank = self.table[offset >> 7]
        bank[2](vgic, cpu, offset - first, size, value)

    def has(self, offset: int) -> bool:
        """Tell whether a register is there (KVM_HAS_DEVICE_ATTR)."""
        return 0 <= offset < self.size and offset & 3 == 0 and self.table[offset >> 7][1] is not NOTHING
