# SPDX-License-Identifier: GPL-2.0-only
"""Machine checks userspace sets up and injects: KVM_X86_SETUP_MCE, KVM_X86_SET_MCE (api.rst 4.105, 4.106).

Source: ``kvm_vcpu_ioctl_x86_set_mce`` in ``arch/x86/kvm/x86.c``; Intel SDM volume 3, chapter "Machine-Check
Architecture".
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from anykvm.uapi import x86 as uapi

from . import sysregs
from .lapic_regs import APIC_LVTCMCI

if TYPE_CHECKING:
    from .vcpu import X86Vcpu

STATUS_VAL: Final = 1 << 63
STATUS_OVER: Final = 1 << 62
STATUS_UC: Final = 1 << 61
STATUS_PCC: Final = 1 << 57
STATUS_S: Final = 1 << 56
STATUS_AR: Final = 1 << 55
MCG_STATUS_MCIP: Final = 1 << 2
_CAP_KNOWN: Final = sysregs.MCE_CAP_SUPPORTED | 0xFF | 0xFF0000


def setup(vcpu: X86Vcpu, cap: int) -> None:
    """KVM_X86_SETUP_MCE: how many banks, and what they can do; EINVAL."""
    banks = cap & 0xFF
    if not 0 < banks <= sysregs.KVM_MAX_MCE_BANKS or cap & ~_CAP_KNOWN:
        raise OSError(errno.EINVAL, f"the machine-check capabilities cannot be {cap:#x}")
    vcpu.mcg_cap = cap
    if vcpu.lapic is not None:
        vcpu.lapic.cmci = bool(cap & sysregs.MCG_CMCI_P)
    if cap & sysregs.MCG_CTL_P:
        vcpu.mcg_ctl = sysregs.U64
    for bank in range(banks):
        vcpu.mce_banks[4 * bank] = sysregs.U64


def inject(vcpu: X86Vcpu, mce: uapi.KvmX86Mce) -> None:
    """KVM_X86_SET_MCE: log an error, and for an uncorrected one raise #MC; EINVAL.

    One that needs no action (UCNA) is logged, and signalled with an interrupt if its bank is to (CMCI).

    An uncorrected error while another is being handled, or with CR4.MCE clear, shuts the guest down.
    """
    if mce.bank >= vcpu.mcg_cap & 0xFF or not mce.status & STATUS_VAL:
        raise OSError(errno.EINVAL, f"bank {mce.bank} cannot have an error of status {mce.status:#x}")
    banks = vcpu.mce_banks
    ctl, status, addr, misc = range(4 * mce.bank, 4 * mce.bank + 4)
    if not mce.mcg_status and not mce.status & (STATUS_PCC | STATUS_S | STATUS_AR):
        banks[status], banks[addr], banks[misc] = mce.status, mce.addr, mce.misc
        vcpu.msrs[uapi.MSR_IA32_MCG_STATUS] = 0
        _signal(vcpu, mce.bank)
        return
    uncorrected = mce.status & STATUS_UC
    if uncorrected and (
        (vcpu.mcg_cap & sysregs.MCG_CTL_P and vcpu.mcg_ctl != sysregs.U64) or banks[ctl] != sysregs.U64
    ):
        return  # reporting is turned off
    new = mce.status
    if uncorrected:
        cpu = vcpu.coherent()
        if vcpu.msrs.get(uapi.MSR_IA32_MCG_STATUS, 0) & MCG_STATUS_MCIP or not cpu.cr4 & uapi.X86_CR4_MCE:
            vcpu.triple_fault = vcpu.attention = True
            return
        vcpu.msrs[uapi.MSR_IA32_MCG_STATUS] = mce.mcg_status
        vcpu.exception = (uapi.MC_VECTOR, None)
        vcpu.attention = True
    elif banks[status] & STATUS_VAL and banks[status] & STATUS_UC:
        banks[status] |= STATUS_OVER
        return
    if banks[status] & STATUS_VAL:
        new |= STATUS_OVER
    banks[status], banks[addr], banks[misc] = new, mce.addr, mce.misc


def _signal(vcpu: X86Vcpu, bank: int) -> None:
    """Send the corrected machine-check interrupt, if the guest has it and wants it for this bank."""
    wanted = vcpu.msrs.get(uapi.MSR_IA32_MC0_CTL2 + bank, 0) & sysregs.CTL2_ENABLE
    lapic = vcpu.lapic
    if lapic is not None and vcpu.mcg_cap & sysregs.MCG_CMCI_P and wanted:
        with lapic.bus.lock:
            lapic.local_deliver(APIC_LVTCMCI)
