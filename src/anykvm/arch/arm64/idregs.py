# SPDX-License-Identifier: GPL-2.0-only
"""The identification registers: what CPU the guest sees, and what userspace may change of it.

The CPU looks like a Cortex-A57 without EL2, EL3, AArch32 and PMU. Two things differ from the silicon, both allowed by
the architecture. CTR_EL0 gives cache lines of 4096 bytes, so that maintenance by line costs one instruction per page.
ID_AA64PFR0_EL1 says that no branch prediction or speculative load leaks across contexts (CSV2 3, CSV3 1), which is
true of a software CPU, so the guest needs no workaround on every exception.

The AArch64 registers trap, because userspace may lower some of their fields before the first KVM_RUN; the others
are constants of the engine. AArch32 ones read as zero, as they must on a CPU without AArch32.

Source: Arm DDI 0487, D24.2; Arm DDI 0488 (Cortex-A57 TRM), chapter 4; ``arch/arm64/kvm/sys_regs.c`` for writability.
"""

from __future__ import annotations

from typing import Final

from . import sysreg_ids as ids
from .sysreg_ids import enc

MIDR_CORTEX_A57: Final = 0x411FD070
CTR_4K_LINES: Final = 0x844AC00A
CLIDR_A57: Final = 0x0A200023
CCSIDR_A57: Final = (0x701FE00A, 0x201FE012, 0x70FFE07A)

PFR0_GIC_SHIFT: Final = 24
PFR0_GIC_MASK: Final = 0xF << PFR0_GIC_SHIFT

# Fields userspace may lower, as a mask; everything else is fixed.
_PFR0_WRITABLE: Final = 0xFF << 56
_FIELDS: Final = 0xFFFFFFFFFFFFFFFF

VM_ID_REGS: Final[dict[int, tuple[int, int]]] = {
    # Encoding: reset value, writable fields.
    ids.ID_AA64PFR0_EL1: (1 << 60 | 3 << 56 | 0x0011, _PFR0_WRITABLE),
    ids.ID_AA64PFR1_EL1: (0, 0),
    ids.ID_AA64DFR0_EL1: (0x10305006, 0xF),
    ids.ID_AA64ISAR0_EL1: (0x00011120, _FIELDS),
    ids.ID_AA64ISAR1_EL1: (0, 0),
    ids.ID_AA64MMFR0_EL1: (0x00001124, 0xFF0),
    ids.ID_AA64MMFR1_EL1: (0, 0),
}
"""The AArch64 identification registers that are not all zero, or could be."""

ID_SPACE: Final = tuple(enc(3, 0, 0, crm, op2) for crm in range(1, 8) for op2 in range(8))
"""Every encoding of the identification space; those not in VM_ID_REGS read as zero."""

CONSTANTS: Final[dict[int, int]] = {
    **{encoding: 0 for encoding in ID_SPACE if encoding not in VM_ID_REGS},
    ids.MIDR_EL1: MIDR_CORTEX_A57,
    ids.REVIDR_EL1: 0,
    ids.AIDR_EL1: 0,
    ids.CLIDR_EL1: CLIDR_A57,
    ids.CTR_EL0: CTR_4K_LINES,
}
"""What the engine answers by itself."""


def defaults() -> dict[int, int]:
    """What a VM's registers hold before userspace changes them."""
    return {encoding: reset for encoding, (reset, _) in VM_ID_REGS.items()}


def writable_mask(encoding: int) -> int:
    """Which bits userspace may change (KVM_ARM_GET_REG_WRITABLE_MASKS)."""
    return VM_ID_REGS[encoding][1] if encoding in VM_ID_REGS else 0


def acceptable(encoding: int, value: int) -> bool:
    """Tell whether a VM may have this value: each writable field at most what the CPU has, the others as they are."""
    reset, mask = VM_ID_REGS.get(encoding, (0, 0))
    for shift in range(0, 64, 4):
        field = 0xF << shift
        new, limit = value & field, reset & field
        if new > limit or (new != limit and field & mask != field):
            return False
    return True


def mpidr(vcpu_id: int) -> int:
    """MPIDR_EL1 from vcpu_id: 16 CPUs per cluster (a GIC's SGI list), 256 clusters per level, as in the kernel."""
    return 1 << 31 | vcpu_id & 0xF | (vcpu_id >> 4 & 0xFF) << 8 | (vcpu_id >> 12 & 0xFF) << 16
