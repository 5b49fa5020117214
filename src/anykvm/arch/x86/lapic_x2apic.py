# SPDX-License-Identifier: GPL-2.0-only
"""x2APIC mode: the local APIC's registers as MSRs, identifiers of 32 bits.

MSR 0x800 + n is the register at offset 16 * n of the page, with these exceptions: ICR is one register of 64 bits, SELF
IPI is new, DFR and ICR2 are gone, ID and LDR are fixed. Reserved bits fault, where the page ignores them.

Source: Intel SDM volume 3, section "Extended XAPIC (x2APIC)"; ``arch/x86/kvm/lapic.c``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anykvm.uapi.x86_cpuid import CPUID_1_ECX_TSC_DEADLINE, CPUID_1_ECX_X2APIC
from anykvm.uapi.x86_msr import MSR_IA32_APICBASE_ENABLE, MSR_IA32_APICBASE_X2APIC, MSR_X2APIC_FIRST

from .lapic_regs import (
    APIC_DFR,
    APIC_EOI,
    APIC_ESR,
    APIC_ICR,
    APIC_ICR2,
    APIC_ID,
    APIC_IRR,
    APIC_ISR,
    APIC_LDR,
    APIC_LVR,
    APIC_LVTCMCI,
    APIC_PPR,
    APIC_SVR,
    APIC_TDCR,
    APIC_TMCCT,
    APIC_TMICT,
    APIC_TMR,
    APIC_TPR,
    LVT_BITS,
    LVT_TSC_DEADLINE,
    WRITERS,
    read_register,
)

if TYPE_CHECKING:
    from .lapic import Lapic

APIC_SELF_IPI: Final = 0x3F0
ICR_BUSY: Final = 1 << 12
_SELF: Final = 1 << 18
_BASE_RESERVED: Final = 0x2FF

READABLE: Final = frozenset(
    {
        *(APIC_ID, APIC_LVR, APIC_TPR, APIC_PPR, APIC_LDR, APIC_SVR, APIC_ESR, APIC_ICR),
        *(APIC_TMICT, APIC_TMCCT, APIC_TDCR),
        *LVT_BITS,
        *(base + 16 * word for base in (APIC_ISR, APIC_TMR, APIC_IRR) for word in range(8)),
    }
)
_READ_ONLY: Final = frozenset({APIC_ID, APIC_LDR, APIC_DFR, APIC_ICR2})


def logical_id(apic_id: int) -> int:
    """LDR: the cluster is bits 31 to 4 of the ID, one bit of 16 the place in it."""
    return apic_id >> 4 << 16 | 1 << (apic_id & 0xF)


def set_features(lapic: Lapic, leaf1_ecx: int) -> None:
    """Tell which modes the guest's CPUID has (ECX of leaf 1)."""
    lapic.x2apic_bit = MSR_IA32_APICBASE_X2APIC if leaf1_ecx & CPUID_1_ECX_X2APIC else 0
    lapic.deadline_bit = LVT_TSC_DEADLINE if leaf1_ecx & CPUID_1_ECX_TSC_DEADLINE else 0


def change_mode(lapic: Lapic, x2apic: bool, enable: bool) -> None:
    """Before IA32_APIC_BASE is written: the ID that goes with the new mode; the bus's lock is held."""
    if x2apic and not lapic.x2apic:
        lapic.apic_id = lapic.side.vcpu_id
        lapic.ldr = logical_id(lapic.apic_id)
    elif enable and not x2apic and (lapic.x2apic or not lapic.hw_enabled):
        lapic.apic_id = lapic.side.vcpu_id & 0xFF
    lapic.x2apic = x2apic


def write_base(lapic: Lapic, value: int, reserved: int) -> bool:
    """Write IA32_APIC_BASE; False for bits that cannot be, see :meth:`.lapic.Lapic.set_base`."""
    x2apic = value & MSR_IA32_APICBASE_X2APIC != 0
    enable = value & MSR_IA32_APICBASE_ENABLE != 0
    if value & (_BASE_RESERVED | reserved) or (x2apic and not (enable and lapic.x2apic_bit)):
        return False
    with lapic.bus.lock:
        change_mode(lapic, x2apic, enable)
        lapic.base_msr = value
        lapic.base = value & ~0xFFF
        lapic.hw_enabled = enable
        lapic.enables_changed()
    return True


def read_msr(lapic: Lapic, index: int) -> int:
    """RDMSR; KeyError for a register that does not exist, cannot be read, or without x2APIC mode."""
    offset = (index - MSR_X2APIC_FIRST) << 4
    if not lapic.x2apic or offset not in READABLE or (offset == APIC_LVTCMCI and not lapic.cmci):
        raise KeyError(index)
    if offset == APIC_ICR:
        return lapic.icr | lapic.icr2 << 32
    return read_register(lapic, offset)


def write_msr(lapic: Lapic, index: int, value: int) -> None:
    """WRMSR; KeyError as :func:`read_msr`, ValueError for reserved bits."""
    offset = (index - MSR_X2APIC_FIRST) << 4
    if not lapic.x2apic:
        raise KeyError(index)
    if offset == APIC_ICR:
        send(lapic, value)
        return
    if value >> 32:
        raise ValueError(f"x2APIC register {offset:#x} has 32 bits")
    if offset == APIC_EOI:
        lapic.eoi()
    elif offset == APIC_SELF_IPI:
        if value & ~0xFF:
            raise ValueError("SELF IPI is a vector")
        with lapic.bus.lock:
            lapic.bus.send_ipi(lapic, _SELF | value, 0)
    elif offset == APIC_ESR:
        if value:
            raise ValueError("ESR is written with zero")
    elif offset in WRITERS and offset not in _READ_ONLY and (offset != APIC_LVTCMCI or lapic.cmci):
        WRITERS[offset](lapic, value)
    else:
        raise KeyError(index)


def send(lapic: Lapic, value: int, dest: int | None = None) -> None:
    """Write the ICR of 64 bits: the destination is its upper half, unless it is given."""
    with lapic.bus.lock:
        lapic.icr = value & 0xFFFFFFFF & ~ICR_BUSY
        lapic.icr2 = value >> 32
        lapic.bus.send_ipi(lapic, lapic.icr, lapic.icr2 if dest is None else dest)
