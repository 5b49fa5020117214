# SPDX-License-Identifier: GPL-2.0-only
"""KVM_CHECK_EXTENSION: what x86 offers besides what common code answers for. KVM_ENABLE_CAP: what can be turned on."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from anykvm.uapi import caps
from anykvm.uapi import x86 as uapi
from anykvm.virt.irq import KVM_MAX_IRQ_ROUTES

from . import debug, idle, xen
from .vm import KVM_MAX_VCPU_IDS, QUIRKS
from .xsave import XSAVE_SIZE

if TYPE_CHECKING:
    from anykvm.virt.vm import Vm

OFFERED: Final = {
    caps.KVM_CAP_IRQCHIP: 1,
    caps.KVM_CAP_HLT: 1,
    caps.KVM_CAP_MMU_SHADOW_CACHE_CONTROL: 1,
    caps.KVM_CAP_SET_TSS_ADDR: 1,
    caps.KVM_CAP_VAPIC: 1,
    caps.KVM_CAP_EXT_CPUID: 1,
    caps.KVM_CAP_CLOCKSOURCE: 1,
    caps.KVM_CAP_PIT: 1,
    caps.KVM_CAP_NOP_IO_DELAY: 1,
    caps.KVM_CAP_MP_STATE: 1,
    caps.KVM_CAP_USER_NMI: 1,
    caps.KVM_CAP_REINJECT_CONTROL: 1,
    caps.KVM_CAP_IRQ_INJECT_STATUS: 1,
    caps.KVM_CAP_MCE: 32,
    caps.KVM_CAP_PIT2: 1,
    caps.KVM_CAP_PIT_STATE2: 1,
    caps.KVM_CAP_SET_BOOT_CPU_ID: 1,
    caps.KVM_CAP_SET_IDENTITY_MAP_ADDR: 1,
    caps.KVM_CAP_ADJUST_CLOCK: uapi.KVM_CLOCK_TSC_STABLE | uapi.KVM_CLOCK_REALTIME | uapi.KVM_CLOCK_HOST_TSC,
    caps.KVM_CAP_VCPU_EVENTS: 1,
    caps.KVM_CAP_DEBUGREGS: 1,
    caps.KVM_CAP_SET_GUEST_DEBUG: 1,
    caps.KVM_CAP_SET_GUEST_DEBUG2: debug.CONTROL_KNOWN,
    caps.KVM_CAP_X86_ROBUST_SINGLESTEP: 1,
    caps.KVM_CAP_ENABLE_CAP: 1,
    caps.KVM_CAP_XSAVE: 1,
    caps.KVM_CAP_XSAVE2: XSAVE_SIZE,
    caps.KVM_CAP_XCRS: 1,
    caps.KVM_CAP_ASYNC_PF: 1,
    caps.KVM_CAP_TSC_CONTROL: 1,
    caps.KVM_CAP_GET_TSC_KHZ: 1,
    caps.KVM_CAP_TSC_DEADLINE_TIMER: 1,
    caps.KVM_CAP_VM_TSC_CONTROL: 1,
    caps.KVM_CAP_SYNC_REGS: uapi.KVM_SYNC_X86_VALID_FIELDS,
    caps.KVM_CAP_KVMCLOCK_CTRL: 1,
    caps.KVM_CAP_SIGNAL_MSI: 1,
    caps.KVM_CAP_EXT_EMUL_CPUID: 1,
    caps.KVM_CAP_IOAPIC_POLARITY_IGNORED: 1,
    caps.KVM_CAP_VCPU_ATTRIBUTES: 1,
    caps.KVM_CAP_X2APIC_API: uapi.KVM_X2APIC_API_VALID_FLAGS,
    caps.KVM_CAP_X86_DISABLE_EXITS: idle.OFFERED,
    caps.KVM_CAP_SPLIT_IRQCHIP: 1,
    caps.KVM_CAP_DISABLE_QUIRKS: 1,
    caps.KVM_CAP_DISABLE_QUIRKS2: QUIRKS,
    caps.KVM_CAP_GET_MSR_FEATURES: 1,
    caps.KVM_CAP_MSR_PLATFORM_INFO: 1,
    caps.KVM_CAP_EXCEPTION_PAYLOAD: 1,
    caps.KVM_CAP_ASYNC_PF_INT: 1,
    caps.KVM_CAP_STEAL_TIME: 1,
    caps.KVM_CAP_X86_SMM: 1,
    caps.KVM_CAP_X86_USER_SPACE_MSR: 1,
    caps.KVM_CAP_X86_MSR_FILTER: 1,
    caps.KVM_CAP_ENFORCE_PV_FEATURE_CPUID: 1,
    caps.KVM_CAP_SREGS2: 1,
    caps.KVM_CAP_EXIT_HYPERCALL: uapi.KVM_EXIT_HYPERCALL_VALID_MASK,
    caps.KVM_CAP_EXIT_ON_EMULATION_FAILURE: 1,
    caps.KVM_CAP_SYS_ATTRIBUTES: 1,
    caps.KVM_CAP_X86_TRIPLE_FAULT_EVENT: 1,
    caps.KVM_CAP_VM_TYPES: 1,
    caps.KVM_CAP_XEN_HVM: xen.OFFERED,
    caps.KVM_CAP_HYPERV: 1,
    caps.KVM_CAP_HYPERV_VAPIC: 1,
    caps.KVM_CAP_HYPERV_SPIN: 1,
    caps.KVM_CAP_HYPERV_SYNIC: 1,
    caps.KVM_CAP_HYPERV_SYNIC2: 1,
    caps.KVM_CAP_HYPERV_EVENTFD: 1,
    caps.KVM_CAP_HYPERV_TLBFLUSH: 1,
    caps.KVM_CAP_HYPERV_SEND_IPI: 1,
    caps.KVM_CAP_HYPERV_ENFORCE_CPUID: 1,
    caps.KVM_CAP_HYPERV_TIME: 1,
    caps.KVM_CAP_HYPERV_VP_INDEX: 1,
    caps.KVM_CAP_HYPERV_CPUID: 1,
    caps.KVM_CAP_SYS_HYPERV_CPUID: 1,
}


def check_extension(cap: int, vm: Vm | None) -> int:
    """What KVM_CHECK_EXTENSION returns; 0 for everything not listed."""
    return OFFERED.get(cap, 0)


def _max_vcpu_id(vm: Vm, value: int) -> None:
    arch = vm.arch
    if value > KVM_MAX_VCPU_IDS:
        raise OSError(errno.EINVAL, f"vcpu_ids are below {KVM_MAX_VCPU_IDS}")
    with vm.lock:
        if arch.boot_cpu_id > value or (arch.max_vcpu_ids and arch.max_vcpu_ids != value):
            raise OSError(errno.EINVAL, f"this VM's vcpu_ids are below {arch.max_vcpu_ids or KVM_MAX_VCPU_IDS} already")
        arch.max_vcpu_ids = value


def _split_irqchip(vm: Vm, value: int) -> None:
    with vm.lock:
        if vm.created_vcpus and value <= KVM_MAX_IRQ_ROUTES:
            raise OSError(errno.EEXIST, "the irqchip is created before the first vCPU")
        vm.arch.create_split_irqchip(value)


def _user_space_msr(vm: Vm, value: int) -> None:
    if value & ~uapi.KVM_MSR_EXIT_REASON_VALID_MASK:
        raise OSError(errno.EINVAL, f"unknown reasons {value:#x} of KVM_CAP_X86_USER_SPACE_MSR")
    vm.arch.user_space_msr = value


def _disable_quirks(vm: Vm, value: int) -> None:
    vm.arch.disable_quirks(value)


def _disable_quirks2(vm: Vm, value: int) -> None:
    if value & ~QUIRKS:
        raise OSError(errno.EINVAL, f"there are no quirks {value & ~QUIRKS:#x} to disable")
    vm.arch.disable_quirks(value)


def _exception_payload(vm: Vm, value: int) -> None:
    vm.arch.exception_payload = value != 0


def _triple_fault_event(vm: Vm, value: int) -> None:
    vm.arch.triple_fault_event = value != 0


def _platform_info(vm: Vm, value: int) -> None:
    vm.arch.platform_info_readable = value != 0


def _exit_hypercall(vm: Vm, value: int) -> None:
    if value & ~uapi.KVM_EXIT_HYPERCALL_VALID_MASK:
        raise OSError(errno.EINVAL, f"hypercalls {value & ~uapi.KVM_EXIT_HYPERCALL_VALID_MASK:#x} cannot exit")
    vm.arch.hypercall_exits = value


def _exit_on_emulation_failure(vm: Vm, value: int) -> None:
    if value & ~1:
        raise OSError(errno.EINVAL, f"KVM_CAP_EXIT_ON_EMULATION_FAILURE is 0 or 1, not {value}")
    vm.arch.exit_on_emulation_failure = value != 0


def _x2apic_api(vm: Vm, value: int) -> None:
    if value & ~uapi.KVM_X2APIC_API_VALID_FLAGS:
        raise OSError(errno.EINVAL, f"unknown flags {value:#x} of KVM_CAP_X2APIC_API")
    vm.arch.x2apic_ids |= bool(value & uapi.KVM_X2APIC_API_USE_32BIT_IDS)
    vm.arch.x2apic_broadcast_quirk &= not value & uapi.KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK
    vm.arch.tell_chip()


ENABLE: Final[dict[int, Callable[[Vm, int], None]]] = {
    caps.KVM_CAP_MAX_VCPU_ID: _max_vcpu_id,
    caps.KVM_CAP_SPLIT_IRQCHIP: _split_irqchip,
    caps.KVM_CAP_X86_USER_SPACE_MSR: _user_space_msr,
    caps.KVM_CAP_DISABLE_QUIRKS: _disable_quirks,
    caps.KVM_CAP_DISABLE_QUIRKS2: _disable_quirks2,
    caps.KVM_CAP_EXCEPTION_PAYLOAD: _exception_payload,
    caps.KVM_CAP_X86_TRIPLE_FAULT_EVENT: _triple_fault_event,
    caps.KVM_CAP_MSR_PLATFORM_INFO: _platform_info,
    caps.KVM_CAP_EXIT_HYPERCALL: _exit_hypercall,
    caps.KVM_CAP_EXIT_ON_EMULATION_FAILURE: _exit_on_emulation_failure,
    caps.KVM_CAP_X2APIC_API: _x2apic_api,
    caps.KVM_CAP_X86_DISABLE_EXITS: idle.disable_exits,
}


def enable(vm: Vm, cap: int, flags: int, args: tuple[int, int, int, int]) -> int:
    """KVM_ENABLE_CAP on a VM fd; EINVAL for flags, and for what cannot be enabled."""
    turn_on = ENABLE.get(cap)
    if turn_on is None or flags:
        raise OSError(errno.EINVAL, f"capability {cap} cannot be enabled")
    turn_on(vm, args[0])
    return 0
