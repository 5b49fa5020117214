# SPDX-License-Identifier: GPL-2.0-only
"""Exceptions KVM injects into the guest: the architectural exception entry, done on the registers.

The CPU must be coherent (not parked inside an instruction). Source: Arm DDI 0487, D1.3 (exception entry), D24.2
(ESR_EL1); what KVM puts into the syndrome is in ``arch/arm64/kvm/inject_fault.c``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from .sysreg_ids import ESR_EL1, FAR_EL1, VBAR_EL1

if TYPE_CHECKING:
    from .engine import CpuLike

PSTATE_NZCV: Final = 0xF0000000
PSTATE_EL1H_DAIF: Final = 0x3C5
PSTATE_A: Final = 1 << 8
PSTATE_MODE32: Final = 1 << 4

ESR_IL: Final = 1 << 25
EC_UNKNOWN: Final = 0x00
EC_IABT_LOWER: Final = 0x20
EC_IABT_CURRENT: Final = 0x21
EC_DABT_LOWER: Final = 0x24
EC_DABT_CURRENT: Final = 0x25
EC_SERROR: Final = 0x2F
FSC_EXTABT: Final = 0x10

VECTOR_SYNC: Final = 0x000
VECTOR_SERROR: Final = 0x180

U64: Final = 0xFFFFFFFFFFFFFFFF


def vector(cpu: CpuLike, offset: int = VECTOR_SYNC) -> int:
    """The address an exception taken now would go to."""
    pstate = cpu.pstate
    if pstate & 0xC == 0:
        offset += 0x600 if pstate & PSTATE_MODE32 else 0x400
    elif pstate & 1:
        offset += 0x200
    return (cpu.get_sysreg(VBAR_EL1) & ~0x7FF) + offset & U64


def enter_exception(cpu: CpuLike, esr: int, offset: int = VECTOR_SYNC) -> None:
    """Take an exception to EL1 with this syndrome."""
    pstate = cpu.pstate
    target = vector(cpu, offset)
    cpu.elr_el1 = cpu.pc
    cpu.set_spsr(0, pstate)
    cpu.set_sysreg(ESR_EL1, esr)
    cpu.pstate = pstate & PSTATE_NZCV | PSTATE_EL1H_DAIF
    cpu.pc = target


def inject_undef(cpu: CpuLike) -> None:
    """The instruction at PC is undefined."""
    enter_exception(cpu, EC_UNKNOWN << 26 | ESR_IL)


def _inject_abort(cpu: CpuLike, lower: int, current: int, address: int) -> None:
    from_el0 = cpu.pstate & 0xC == 0
    cpu.set_sysreg(FAR_EL1, address & U64)
    enter_exception(cpu, (lower if from_el0 else current) << 26 | ESR_IL | FSC_EXTABT)


def inject_dabt(cpu: CpuLike, address: int) -> None:
    """An external abort of a data access to this virtual address."""
    _inject_abort(cpu, EC_DABT_LOWER, EC_DABT_CURRENT, address)


def inject_pabt(cpu: CpuLike, address: int) -> None:
    """An external abort of an instruction fetch from this virtual address."""
    _inject_abort(cpu, EC_IABT_LOWER, EC_IABT_CURRENT, address)


def inject_serror(cpu: CpuLike) -> bool:
    """A pending SError; returns False, and does nothing, while the guest masks them."""
    if cpu.pstate & PSTATE_A:
        return False
    enter_exception(cpu, EC_SERROR << 26 | ESR_IL, VECTOR_SERROR)
    return True
