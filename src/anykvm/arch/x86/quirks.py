# SPDX-License-Identifier: GPL-2.0-only
"""Which instructions the engine leaves to us or ignores: it depends on the MSR filter, on quirks and on CPUID.

Source: api.rst 7.31 (KVM_CAP_DISABLE_QUIRKS2); ``kvm_emulate_monitor_mwait`` and MSR_IA32_MISC_ENABLE in
``arch/x86/kvm/x86.c``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from anykvm.uapi import x86 as uapi

from . import cpuid
from .msr_filter import ALLOW_ALL

if TYPE_CHECKING:
    from .vcpu import X86Vcpu


def tell_engine(vcpu: X86Vcpu) -> None:
    """Tell it whether its own MSRs are filtered, and whether MONITOR and MWAIT do nothing; on the vCPU's thread."""
    vcpu.filter_stale = False
    vcpu.cpu.park_msrs = vcpu.vm.msr_filter is not ALLOW_ALL
    leaf = vcpu.cpuid_leaf(1)
    has_mwait = leaf is not None and leaf[5] & uapi.CPUID_1_ECX_MWAIT != 0
    never_faults = not vcpu.vm.disabled_quirks & uapi.KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS
    vcpu.cpu.idle_hints = never_faults or has_mwait


def set_misc_enable(vcpu: X86Vcpu, value: int, changed: int) -> None:
    """IA32_MISC_ENABLE: CPUID follows its bit for MONITOR and MWAIT, once the quirk that it does not is disabled."""
    follows = vcpu.vm.disabled_quirks & uapi.KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT
    if changed & uapi.MSR_IA32_MISC_ENABLE_MWAIT and follows:
        vcpu.cpuid = cpuid.with_mwait(vcpu.cpuid, value & uapi.MSR_IA32_MISC_ENABLE_MWAIT != 0)
        vcpu.tell_cpuid()
        vcpu.filter_stale = vcpu.attention = True
    vcpu.msrs[uapi.MSR_IA32_MISC_ENABLE] = value
