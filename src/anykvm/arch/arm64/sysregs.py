# SPDX-License-Identifier: GPL-2.0-only
"""The table of system registers: which ones userspace sees, what they hold after reset, which ones trap.

A row is a register of the engine unless it says otherwise. ``user`` rows are in KVM_GET_REG_LIST. A register the engine
does not model is kept in ``vcpu.shadow``, for userspace to save and restore. ``trap`` rows come out of the engine as
events; :data:`TRAPS` says what serves them. A trapped register without a handler is undefined for the guest.

Source: ``arch/arm64/kvm/sys_regs.c`` (which registers userspace sees); Arm DDI 0487, D24.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from . import idregs
from . import sysreg_ids as ids
from .sysreg_ids import enc

if TYPE_CHECKING:
    from .vcpu import Arm64Vcpu


class SysReg(NamedTuple):
    """One register that userspace sees; ``reset`` None keeps what the engine's reset gives."""

    encoding: int
    name: str
    reset: int | None = None


REGISTERS: Final = (
    SysReg(enc(2, 0, 0, 2, 0), "MDCCINT_EL1", 0),
    SysReg(enc(2, 0, 0, 2, 2), "MDSCR_EL1", 0),
    *(
        SysReg(enc(2, 0, 0, number, op2), f"{name}{number}_EL1", 0)
        for number in range(16)
        for op2, name in ((4, "DBGBVR"), (5, "DBGBCR"), (6, "DBGWVR"), (7, "DBGWCR"))
    ),
    SysReg(enc(2, 4, 0, 7, 0), "DBGVCR32_EL2", 0),
    SysReg(ids.MPIDR_EL1, "MPIDR_EL1"),
    SysReg(ids.SCTLR_EL1, "SCTLR_EL1", 0x00C50078),
    SysReg(enc(3, 0, 1, 0, 1), "ACTLR_EL1"),
    SysReg(enc(3, 0, 1, 0, 2), "CPACR_EL1", 0),
    SysReg(ids.TTBR0_EL1, "TTBR0_EL1"),
    SysReg(enc(3, 0, 2, 0, 1), "TTBR1_EL1"),
    SysReg(ids.TCR_EL1, "TCR_EL1", 0),
    SysReg(enc(3, 0, 5, 1, 0), "AFSR0_EL1"),
    SysReg(enc(3, 0, 5, 1, 1), "AFSR1_EL1"),
    SysReg(ids.ESR_EL1, "ESR_EL1"),
    SysReg(ids.FAR_EL1, "FAR_EL1"),
    SysReg(enc(3, 0, 7, 4, 0), "PAR_EL1"),
    SysReg(enc(3, 0, 10, 2, 0), "MAIR_EL1"),
    SysReg(enc(3, 0, 10, 3, 0), "AMAIR_EL1"),
    SysReg(ids.VBAR_EL1, "VBAR_EL1", 0),
    SysReg(enc(3, 0, 13, 0, 1), "CONTEXTIDR_EL1", 0),
    SysReg(enc(3, 0, 13, 0, 4), "TPIDR_EL1"),
    SysReg(enc(3, 0, 14, 1, 0), "CNTKCTL_EL1", 0),
    SysReg(ids.CSSELR_EL1, "CSSELR_EL1"),
    SysReg(enc(3, 3, 13, 0, 2), "TPIDR_EL0"),
    SysReg(enc(3, 3, 13, 0, 3), "TPIDRRO_EL0"),
)

BY_ENCODING: Final = {register.encoding: register for register in REGISTERS}

INVARIANT: Final = (ids.MIDR_EL1, ids.REVIDR_EL1, ids.CLIDR_EL1, ids.AIDR_EL1, ids.CTR_EL0)
"""Seen by userspace, the same in every VM."""

Reader = Callable[["Arm64Vcpu"], int]
Writer = Callable[["Arm64Vcpu", int], None]


def _id_reader(encoding: int) -> Reader:
    if encoding == ids.ID_AA64PFR0_EL1:
        return lambda vcpu: vcpu.vm.read_pfr0()
    return lambda vcpu: vcpu.vm.id_regs[encoding]


TRAPS: Final[dict[int, tuple[Reader | None, Writer | None]]] = {
    ids.CNTV_CTL_EL0: (
        lambda vcpu: vcpu.timers.vtimer.read_ctl(),
        lambda vcpu, value: vcpu.timers.vtimer.write_ctl(value),
    ),
    ids.CNTV_CVAL_EL0: (
        lambda vcpu: vcpu.timers.vtimer.cval,
        lambda vcpu, value: vcpu.timers.vtimer.write_cval(value),
    ),
    ids.CNTV_TVAL_EL0: (
        lambda vcpu: vcpu.timers.vtimer.read_tval(),
        lambda vcpu, value: vcpu.timers.vtimer.write_tval(value),
    ),
    ids.CNTP_CTL_EL0: (
        lambda vcpu: vcpu.timers.ptimer.read_ctl(),
        lambda vcpu, value: vcpu.timers.ptimer.write_ctl(value),
    ),
    ids.CNTP_CVAL_EL0: (
        lambda vcpu: vcpu.timers.ptimer.cval,
        lambda vcpu, value: vcpu.timers.ptimer.write_cval(value),
    ),
    ids.CNTP_TVAL_EL0: (
        lambda vcpu: vcpu.timers.ptimer.read_tval(),
        lambda vcpu, value: vcpu.timers.ptimer.write_tval(value),
    ),
    **{encoding: (_id_reader(encoding), None) for encoding in idregs.VM_ID_REGS},
}
"""Served for every guest; a GICv3's CPU interface (``vgic_v3_cpuif``) is looked up in the VM's interrupt controller."""


def user_encodings() -> list[int]:
    """What KVM_GET_REG_LIST names, in the order of the encoding; timers and firmware registers are not among them."""
    return sorted({*BY_ENCODING, *INVARIANT, *idregs.ID_SPACE})
