# SPDX-License-Identifier: GPL-2.0-only
"""Encodings of the system registers: op0, op1, CRn, CRm, op2 as in the low 16 bits of a ONE_REG id.

Source: Arm DDI 0487, chapter D24 (AArch64 System register encoding).
"""

from __future__ import annotations

from typing import Final


def enc(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    """The encoding of a register.

    >>> hex(enc(3, 0, 12, 0, 0))
    '0xc600'
    """
    return op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


MIDR_EL1: Final = enc(3, 0, 0, 0, 0)
MPIDR_EL1: Final = enc(3, 0, 0, 0, 5)
REVIDR_EL1: Final = enc(3, 0, 0, 0, 6)
CLIDR_EL1: Final = enc(3, 1, 0, 0, 1)
AIDR_EL1: Final = enc(3, 1, 0, 0, 7)
CSSELR_EL1: Final = enc(3, 2, 0, 0, 0)
CTR_EL0: Final = enc(3, 3, 0, 0, 1)

ID_AA64PFR0_EL1: Final = enc(3, 0, 0, 4, 0)
ID_AA64PFR1_EL1: Final = enc(3, 0, 0, 4, 1)
ID_AA64DFR0_EL1: Final = enc(3, 0, 0, 5, 0)
ID_AA64ISAR0_EL1: Final = enc(3, 0, 0, 6, 0)
ID_AA64ISAR1_EL1: Final = enc(3, 0, 0, 6, 1)
ID_AA64MMFR0_EL1: Final = enc(3, 0, 0, 7, 0)
ID_AA64MMFR1_EL1: Final = enc(3, 0, 0, 7, 1)

SCTLR_EL1: Final = enc(3, 0, 1, 0, 0)
TTBR0_EL1: Final = enc(3, 0, 2, 0, 0)
TCR_EL1: Final = enc(3, 0, 2, 0, 2)
ESR_EL1: Final = enc(3, 0, 5, 2, 0)
FAR_EL1: Final = enc(3, 0, 6, 0, 0)
VBAR_EL1: Final = enc(3, 0, 12, 0, 0)
OSLSR_EL1: Final = enc(2, 0, 1, 1, 4)

CNTP_TVAL_EL0: Final = enc(3, 3, 14, 2, 0)
CNTP_CTL_EL0: Final = enc(3, 3, 14, 2, 1)
CNTP_CVAL_EL0: Final = enc(3, 3, 14, 2, 2)
CNTV_TVAL_EL0: Final = enc(3, 3, 14, 3, 0)
CNTV_CTL_EL0: Final = enc(3, 3, 14, 3, 1)
CNTV_CVAL_EL0: Final = enc(3, 3, 14, 3, 2)

ICC_PMR_EL1: Final = enc(3, 0, 4, 6, 0)
ICC_IAR0_EL1: Final = enc(3, 0, 12, 8, 0)
ICC_EOIR0_EL1: Final = enc(3, 0, 12, 8, 1)
ICC_HPPIR0_EL1: Final = enc(3, 0, 12, 8, 2)
ICC_BPR0_EL1: Final = enc(3, 0, 12, 8, 3)
ICC_AP0R0_EL1: Final = enc(3, 0, 12, 8, 4)
ICC_AP0R1_EL1: Final = enc(3, 0, 12, 8, 5)
ICC_AP0R2_EL1: Final = enc(3, 0, 12, 8, 6)
ICC_AP0R3_EL1: Final = enc(3, 0, 12, 8, 7)
ICC_AP1R0_EL1: Final = enc(3, 0, 12, 9, 0)
ICC_AP1R1_EL1: Final = enc(3, 0, 12, 9, 1)
ICC_AP1R2_EL1: Final = enc(3, 0, 12, 9, 2)
ICC_AP1R3_EL1: Final = enc(3, 0, 12, 9, 3)
ICC_DIR_EL1: Final = enc(3, 0, 12, 11, 1)
ICC_RPR_EL1: Final = enc(3, 0, 12, 11, 3)
ICC_SGI1R_EL1: Final = enc(3, 0, 12, 11, 5)
ICC_ASGI1R_EL1: Final = enc(3, 0, 12, 11, 6)
ICC_SGI0R_EL1: Final = enc(3, 0, 12, 11, 7)
ICC_IAR1_EL1: Final = enc(3, 0, 12, 12, 0)
ICC_EOIR1_EL1: Final = enc(3, 0, 12, 12, 1)
ICC_HPPIR1_EL1: Final = enc(3, 0, 12, 12, 2)
ICC_BPR1_EL1: Final = enc(3, 0, 12, 12, 3)
ICC_CTLR_EL1: Final = enc(3, 0, 12, 12, 4)
ICC_SRE_EL1: Final = enc(3, 0, 12, 12, 5)
ICC_IGRPEN0_EL1: Final = enc(3, 0, 12, 12, 6)
ICC_IGRPEN1_EL1: Final = enc(3, 0, 12, 12, 7)
