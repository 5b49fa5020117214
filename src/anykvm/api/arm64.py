# SPDX-License-Identifier: GPL-2.0-only
"""arm64 beside the handles: interrupt lines, debug exits."""

from __future__ import annotations

from anykvm.api.exits import Debug
from anykvm.uapi.arm64 import (
    KVM_ARM_IRQ_CPU_FIQ,
    KVM_ARM_IRQ_CPU_IRQ,
    KVM_ARM_IRQ_NUM_MASK,
    KVM_ARM_IRQ_TYPE_CPU,
    KVM_ARM_IRQ_TYPE_PPI,
    KVM_ARM_IRQ_TYPE_SHIFT,
    KVM_ARM_IRQ_TYPE_SPI,
    KVM_ARM_IRQ_VCPU2_SHIFT,
    KVM_ARM_IRQ_VCPU_MASK,
    KVM_ARM_IRQ_VCPU_SHIFT,
    KvmDebugExitArch,
)


def _line(kind: int, vcpu_index: int, number: int) -> int:
    if not 0 <= vcpu_index < 4096:
        raise ValueError(f"a vCPU index is 0 to 4095, not {vcpu_index}")
    return (
        kind << KVM_ARM_IRQ_TYPE_SHIFT
        | vcpu_index >> 8 << KVM_ARM_IRQ_VCPU2_SHIFT
        | (vcpu_index & KVM_ARM_IRQ_VCPU_MASK) << KVM_ARM_IRQ_VCPU_SHIFT
        | number & KVM_ARM_IRQ_NUM_MASK
    )


def spi(intid: int) -> int:
    """A shared interrupt of the in-kernel GIC, for :meth:`Vm.irq_line`; ``intid`` is 32 to 1019 (api.rst 4.25).

    Errors: ValueError for another number.

    >>> hex(spi(33))
    '0x1000021'
    """
    if not 32 <= intid <= 1019:
        raise ValueError(f"shared interrupts are 32 to 1019, not {intid}")
    return _line(KVM_ARM_IRQ_TYPE_SPI, 0, intid)


def ppi(intid: int, *, vcpu_index: int) -> int:
    """A private interrupt of one vCPU (by creation order), for :meth:`Vm.irq_line`; ``intid`` is 16 to 31.

    Errors: ValueError for another number.

    >>> hex(ppi(27, vcpu_index=1))
    '0x201001b'
    """
    if not 16 <= intid <= 31:
        raise ValueError(f"private interrupts are 16 to 31, not {intid}")
    return _line(KVM_ARM_IRQ_TYPE_PPI, vcpu_index, intid)


def cpu_irq(*, vcpu_index: int, fiq: bool = False) -> int:
    """The IRQ or FIQ input of a vCPU without an in-kernel GIC, for :meth:`Vm.irq_line`.

    >>> hex(cpu_irq(vcpu_index=2))
    '0x20000'
    """
    return _line(KVM_ARM_IRQ_TYPE_CPU, vcpu_index, KVM_ARM_IRQ_CPU_FIQ if fiq else KVM_ARM_IRQ_CPU_IRQ)


def debug_exit(exit: Debug) -> KvmDebugExitArch:
    """What a debug exit says: the syndrome (``hsr``) and a watchpoint's address (``far``).

    >>> debug_exit(Debug(arch=bytes([0xEF]) + bytes(31))).hsr
    239
    """
    return KvmDebugExitArch.from_buffer_copy(exit.arch)
