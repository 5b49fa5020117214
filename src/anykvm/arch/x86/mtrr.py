# SPDX-License-Identifier: GPL-2.0-only
"""Memory type range registers: kept for the guest; memory here has one type.

Source: Intel SDM volume 3, section 12.11; what KVM accepts is in ``arch/x86/kvm/mtrr.c``.
"""

from __future__ import annotations

from typing import Final

from anykvm.uapi import x86 as uapi

NR_VARIABLE: Final = 8
MTRRCAP: Final = 0x500 | NR_VARIABLE
"""Write-combining, fixed ranges, eight variable ranges."""

TYPES: Final = frozenset({0, 1, 4, 5, 6})
PAT_TYPES: Final = TYPES | {7}

_FIRST: Final = uapi.MSR_MTRRphysBase0
_END: Final = _FIRST + 2 * NR_VARIABLE
_FIXED: Final = (
    uapi.MSR_MTRRfix64K_00000,
    uapi.MSR_MTRRfix16K_80000,
    uapi.MSR_MTRRfix16K_A0000,
    *range(uapi.MSR_MTRRfix4K_C0000, uapi.MSR_MTRRfix4K_C0000 + 8),
)
_DEF_TYPE_BITS: Final = 0xCFF
_MASK_VALID: Final = 1 << 11

INDICES: Final = (*range(_FIRST, _END), *_FIXED, uapi.MSR_MTRRdefType)
"""Those with a state, for KVM_GET_MSR_INDEX_LIST."""
_ALL: Final = frozenset({*INDICES, uapi.MSR_MTRRcap})


def is_mtrr(index: int) -> bool:
    """Whether an MSR is one of these."""
    return index in _ALL


def get(msrs: dict[int, int], index: int) -> int:
    """Read one; they are zero after reset: everything uncached, and disabled."""
    return MTRRCAP if index == uapi.MSR_MTRRcap else msrs.get(index, 0)


def set_(msrs: dict[int, int], index: int, value: int, maxphyaddr: int) -> None:
    """Write one; ValueError for a memory type there is not, reserved bits, or the capability register."""
    if index == uapi.MSR_MTRRcap:
        valid = False
    elif index == uapi.MSR_MTRRdefType:
        valid = not value & ~_DEF_TYPE_BITS and value & 0xFF in TYPES
    elif index in _FIXED:
        valid = all(value >> shift & 0xFF in TYPES for shift in range(0, 64, 8))
    elif (index - _FIRST) & 1:
        valid = not value >> maxphyaddr and not value & (_MASK_VALID - 1)
    else:
        valid = not value >> maxphyaddr and not value & 0xF00 and value & 0xFF in TYPES
    if not valid:
        raise ValueError(f"MTRR {index:#x} cannot be {value:#x}")
    msrs[index] = value
