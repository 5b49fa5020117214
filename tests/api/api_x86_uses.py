# SPDX-License-Identifier: GPL-2.0-only
"""One harmless use of each method the handles have on x86."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from anykvm.uapi import x86

Use = Callable[[Any], Any]

KVM: dict[str, Use] = {
    "get_supported_cpuid": lambda h: h.get_supported_cpuid(),
    "get_supported_hv_cpuid": lambda h: h.get_supported_hv_cpuid(),
    "get_msr_index_list": lambda h: h.get_msr_index_list(),
    "get_msr_feature_index_list": lambda h: h.get_msr_feature_index_list(),
    "get_feature_msrs": lambda h: h.get_feature_msrs([x86.MSR_IA32_UCODE_REV]),
    "get_mce_cap_supported": lambda h: h.get_mce_cap_supported(),
}

VM: dict[str, Use] = {
    "set_tss_addr": lambda h: h.set_tss_addr(0xFFFB_D000),
    "set_identity_map_addr": lambda h: h.set_identity_map_addr(0xFFFB_C000),
    "set_boot_cpu_id": lambda h: h.set_boot_cpu_id(0),
    "get_irqchip": lambda h: h.get_irqchip(x86.KVM_IRQCHIP_IOAPIC),
    "set_irqchip": lambda h: h.set_irqchip(x86.KVM_IRQCHIP_IOAPIC, bytes(512)),
    "create_pit2": lambda h: h.create_pit2(),
    "get_pit2": lambda h: h.get_pit2(),
    "set_pit2": lambda h: h.set_pit2(x86.KvmPitState2()),
    "reinject_control": lambda h: h.reinject_control(True),
    "get_clock": lambda h: h.get_clock(),
    "set_clock": lambda h: h.set_clock(0),
    "set_msr_filter": lambda h: h.set_msr_filter(),
}

VCPU: dict[str, Use] = {
    "get_regs": lambda h: h.get_regs(),
    "set_regs": lambda h: h.set_regs(x86.KvmRegs()),
    "get_sregs": lambda h: h.get_sregs(),
    "set_sregs": lambda h: h.set_sregs(x86.KvmSregs()),
    "get_sregs2": lambda h: h.get_sregs2(),
    "set_sregs2": lambda h: h.set_sregs2(x86.KvmSregs2()),
    "get_fpu": lambda h: h.get_fpu(),
    "set_fpu": lambda h: h.set_fpu(x86.KvmFpu()),
    "get_xsave": lambda h: h.get_xsave(),
    "set_xsave": lambda h: h.set_xsave(x86.KvmXsave()),
    "get_xcrs": lambda h: h.get_xcrs(),
    "set_xcrs": lambda h: h.set_xcrs(x86.KvmXcrs()),
    "get_debugregs": lambda h: h.get_debugregs(),
    "set_debugregs": lambda h: h.set_debugregs(x86.KvmDebugregs()),
    "set_guest_debug": lambda h: h.set_guest_debug(0),
    "get_vcpu_events": lambda h: h.get_vcpu_events(),
    "set_vcpu_events": lambda h: h.set_vcpu_events(x86.KvmVcpuEvents()),
    "set_cpuid2": lambda h: h.set_cpuid2([]),
    "get_cpuid2": lambda h: h.get_cpuid2(),
    "get_msrs": lambda h: h.get_msrs([x86.MSR_EFER]),
    "set_msrs": lambda h: h.set_msrs({x86.MSR_EFER: 0}),
    "get_lapic": lambda h: h.get_lapic(),
    "set_lapic": lambda h: h.set_lapic(x86.KvmLapicState()),
    "interrupt": lambda h: h.interrupt(0x20),
    "nmi": lambda h: h.nmi(),
    "smi": lambda h: h.smi(),
    "setup_mce": lambda h: h.setup_mce(1),
    "get_tsc_khz": lambda h: h.get_tsc_khz(),
    "set_tsc_khz": lambda h: h.set_tsc_khz(0),
    "kvmclock_ctrl": lambda h: h.kvmclock_ctrl(),
}
