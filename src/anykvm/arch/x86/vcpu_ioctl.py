# SPDX-License-Identifier: GPL-2.0-only
"""x86's ioctls on a vCPU fd; the vCPU's mutex is held."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from anykvm.uapi import caps, common
from anykvm.uapi import x86 as uapi

from . import (
    cpuid,
    debug,
    events,
    hyperv_cpuid,
    hyperv_vcpu,
    mce,
    mp_state,
    msrs,
    smm,
    sregs,
    timer,
    tpr,
    translate,
    xen_vcpu,
    xsave,
)

if TYPE_CHECKING:
    from .lapic import Lapic
    from .vcpu import X86Vcpu

KVM_NR_INTERRUPTS: Final = uapi.KVM_NR_INTERRUPTS
_REGS_SIZE: Final = 144


def get_regs(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_GET_REGS."""
    vcpu.vcpu.services.copy_to_user(arg, vcpu.get_regs())
    return 0


def set_regs(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_SET_REGS; what was pending as an exception is forgotten."""
    data = vcpu.vcpu.services.copy_from_user(arg, _REGS_SIZE)
    vcpu.set_regs(data)
    vcpu.exception = vcpu.exception_payload = None
    return 0


def get_sregs(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_GET_SREGS."""
    vcpu.vcpu.services.write_struct(arg, sregs.get(vcpu))
    return 0


def set_sregs(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_SET_SREGS; EINVAL."""
    sregs.set_(vcpu, vcpu.vcpu.services.read_struct(arg, uapi.KvmSregs))
    return 0


def get_sregs2(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_GET_SREGS2."""
    vcpu.vcpu.services.write_struct(arg, sregs.get2(vcpu))
    return 0


def set_sregs2(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_SET_SREGS2; EINVAL."""
    sregs.set2(vcpu, vcpu.vcpu.services.read_struct(arg, uapi.KvmSregs2))
    return 0


def get_fpu(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_GET_FPU."""
    vcpu.vcpu.services.write_struct(arg, xsave.get_fpu(vcpu.load()))
    return 0


def set_fpu(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_SET_FPU."""
    fpu = vcpu.vcpu.services.read_struct(arg, uapi.KvmFpu)
    xsave.set_fpu(vcpu.load(), fpu)
    return 0


def get_xsave(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_GET_XSAVE and KVM_GET_XSAVE2."""
    vcpu.vcpu.services.copy_to_user(arg, xsave.get_xsave(vcpu.load()))
    return 0


def set_xsave(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_SET_XSAVE; EINVAL."""
    area = vcpu.vcpu.services.copy_from_user(arg, xsave.XSAVE_SIZE)
    xsave.set_xsave(vcpu.load(), area)
    return 0


def get_xcrs(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_GET_XCRS."""
    vcpu.vcpu.services.write_struct(arg, xsave.get_xcrs(vcpu.load()))
    return 0


def set_xcrs(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_SET_XCRS; EINVAL."""
    xcrs = vcpu.vcpu.services.read_struct(arg, uapi.KvmXcrs)
    leaf = vcpu.cpuid_leaf(0xD)
    xsave.set_xcrs(vcpu.load(), xcrs, offered=leaf[3] if leaf is not None else 0)
    return 0


def get_debugregs(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_GET_DEBUGREGS."""
    vcpu.vcpu.services.write_struct(arg, debug.get(vcpu.load()))
    return 0


def set_debugregs(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_SET_DEBUGREGS; EINVAL."""
    debug.set_(vcpu, vcpu.vcpu.services.read_struct(arg, uapi.KvmDebugregs))
    return 0


def set_guest_debug(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_SET_GUEST_DEBUG; EINVAL, EBUSY."""
    debug.set_guest_debug(vcpu, vcpu.vcpu.services.read_struct(arg, uapi.KvmGuestDebug))
    return 0


def get_vcpu_events(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_GET_VCPU_EVENTS."""
    vcpu.vcpu.services.write_struct(arg, events.get(vcpu))
    return 0


def set_vcpu_events(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_SET_VCPU_EVENTS; EINVAL."""
    events.set_(vcpu, vcpu.vcpu.services.read_struct(arg, uapi.KvmVcpuEvents))
    return 0


def get_mp_state(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_GET_MP_STATE."""
    vcpu.vcpu.services.write_struct(arg, common.KvmMpState(mp_state.get(vcpu)))
    return 0


def set_mp_state(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_SET_MP_STATE; EINVAL."""
    mp_state.set_(vcpu, vcpu.vcpu.services.read_struct(arg, common.KvmMpState).mp_state)
    return 0


def set_cpuid(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_SET_CPUID; E2BIG, EINVAL for a change once the vCPU has run."""
    vcpu.set_cpuid(cpuid.read(vcpu.vcpu.services, arg, old=True))
    return 0


def set_cpuid2(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_SET_CPUID2; E2BIG, EINVAL for a change once the vCPU has run."""
    vcpu.set_cpuid(cpuid.read(vcpu.vcpu.services, arg))
    return 0


def get_cpuid2(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_GET_CPUID2; E2BIG."""
    return cpuid.write(vcpu.vcpu.services, arg, vcpu.cpuid)


def interrupt(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_INTERRUPT: an external interrupt; EINVAL, ENXIO with the PICs in the kernel, EEXIST (split irqchip)."""
    vector = vcpu.vcpu.services.read_struct(arg, common.KvmInterrupt).irq
    if vector >= KVM_NR_INTERRUPTS:
        raise OSError(errno.EINVAL, f"there is no interrupt {vector}")
    if vcpu.lapic is None:
        vcpu.load()
        vcpu.queue_interrupt(vector)
        return 0
    if not vcpu.vm.chip().split:
        raise OSError(errno.ENXIO, "the in-kernel PICs raise the interrupts")
    if not vcpu.lapic.set_user_vector(vector):
        raise OSError(errno.EEXIST, "the guest has not taken the interrupt before yet")
    return 0


def nmi(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_NMI."""
    vcpu.nmi()
    return 0


def smi(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_SMI."""
    smm.request(vcpu)
    return 0


def _lapic(vcpu: X86Vcpu) -> Lapic:
    if vcpu.lapic is None:
        raise OSError(errno.EINVAL, "the vCPU has no in-kernel local APIC")
    return vcpu.lapic


def get_lapic(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_GET_LAPIC; EINVAL without."""
    vcpu.vcpu.services.copy_to_user(arg, _lapic(vcpu).get_state(wide_id=vcpu.vm.x2apic_ids))
    return 0


def set_lapic(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_SET_LAPIC; EINVAL without, and for another ID in x2APIC mode with KVM_X2APIC_API_USE_32BIT_IDS."""
    lapic = _lapic(vcpu)
    page = vcpu.vcpu.services.copy_from_user(arg, uapi.KVM_APIC_REG_SIZE)
    vcpu.load()
    if not lapic.set_state(page, wide_id=vcpu.vm.x2apic_ids):
        raise OSError(errno.EINVAL, f"the local APIC of vcpu_id {vcpu.vcpu_id} cannot have another ID in x2APIC mode")
    return 0


def setup_mce(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_X86_SETUP_MCE; EINVAL."""
    mce.setup(vcpu, int.from_bytes(vcpu.vcpu.services.copy_from_user(arg, 8), "little"))
    return 0


def set_mce(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_X86_SET_MCE; EINVAL."""
    mce.inject(vcpu, vcpu.vcpu.services.read_struct(arg, uapi.KvmX86Mce))
    return 0


def set_tsc_khz(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_SET_TSC_KHZ; EINVAL."""
    timer.set_khz(vcpu, arg)
    return 0


def get_tsc_khz(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_GET_TSC_KHZ: the rate in kHz."""
    return vcpu.tsc_khz or timer.own_khz()


def kvmclock_ctrl(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_KVMCLOCK_CTRL: tell the guest that it was stopped; EINVAL while it has no kvmclock."""
    if not vcpu.system_time & uapi.KVM_MSR_ENABLED:
        raise OSError(errno.EINVAL, "the guest does not use kvmclock")
    vcpu.guest_stopped = vcpu.clock_stale = vcpu.attention = True
    return 0


def enable_cap(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_ENABLE_CAP on a vCPU: whether CPUID says what the guest may use, and Hyper-V's interrupts; EINVAL, ENOMEM."""
    request = vcpu.vcpu.services.read_struct(arg, common.KvmEnableCap)
    cap, value = request.cap, request.args[0]
    keep_pages = cap == caps.KVM_CAP_HYPERV_SYNIC2
    if request.flags or cap not in _ENABLED or (keep_pages and value):
        raise OSError(errno.EINVAL, f"capability {cap} cannot be enabled on a vCPU, or not as {value}")
    if cap == caps.KVM_CAP_ENFORCE_PV_FEATURE_CPUID:
        vcpu.pv_enforced = value != 0
    elif cap == caps.KVM_CAP_HYPERV_ENFORCE_CPUID:
        hyperv_vcpu.enforce_cpuid(vcpu, value != 0)
    else:
        hyperv_vcpu.enable_synic(vcpu, keep_pages=keep_pages)
    return 0


_ENABLED: Final = frozenset(
    {
        caps.KVM_CAP_ENFORCE_PV_FEATURE_CPUID,
        caps.KVM_CAP_HYPERV_ENFORCE_CPUID,
        caps.KVM_CAP_HYPERV_SYNIC,
        caps.KVM_CAP_HYPERV_SYNIC2,
    }
)


def get_supported_hv_cpuid(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_GET_SUPPORTED_HV_CPUID on a vCPU; E2BIG, EFAULT."""
    return cpuid.write(vcpu.vcpu.services, arg, hyperv_cpuid.supported(lapic=vcpu.lapic is not None))


# Device attributes of a vCPU: its TSC's offset.


def _attr(vcpu: X86Vcpu, arg: int) -> int:
    request = vcpu.vcpu.services.read_struct(arg, common.KvmDeviceAttr)
    if request.group != uapi.KVM_VCPU_TSC_CTRL or request.attr != uapi.KVM_VCPU_TSC_OFFSET:
        raise OSError(errno.ENXIO, f"a vCPU has no attribute {request.attr} in group {request.group}")
    return int(request.addr)


def has_device_attr(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_HAS_DEVICE_ATTR; ENXIO."""
    _attr(vcpu, arg)
    return 0


def get_device_attr(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_GET_DEVICE_ATTR: the offset, from the host's monotonic clock scaled, in ticks; ENXIO."""
    address = _attr(vcpu, arg)
    offset = vcpu.load().tsc_offset & timer.U64
    vcpu.vcpu.services.copy_to_user(address, offset.to_bytes(8, "little"))
    return 0


def set_device_attr(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_SET_DEVICE_ATTR: set the offset; ENXIO."""
    offset = int.from_bytes(vcpu.vcpu.services.copy_from_user(_attr(vcpu, arg), 8), "little")
    vcpu.load().tsc_offset = vcpu.vm.tsc_offset = timer.signed(offset)
    vcpu.clock_stale = vcpu.attention = True
    return 0


IOCTLS: Final[dict[int, Callable[[X86Vcpu, int], int]]] = {
    uapi.KVM_GET_REGS: get_regs,
    uapi.KVM_SET_REGS: set_regs,
    uapi.KVM_GET_SREGS: get_sregs,
    uapi.KVM_SET_SREGS: set_sregs,
    uapi.KVM_GET_SREGS2: get_sregs2,
    uapi.KVM_SET_SREGS2: set_sregs2,
    uapi.KVM_GET_FPU: get_fpu,
    uapi.KVM_SET_FPU: set_fpu,
    uapi.KVM_GET_XSAVE: get_xsave,
    uapi.KVM_GET_XSAVE2: get_xsave,
    uapi.KVM_SET_XSAVE: set_xsave,
    uapi.KVM_GET_XCRS: get_xcrs,
    uapi.KVM_SET_XCRS: set_xcrs,
    uapi.KVM_GET_DEBUGREGS: get_debugregs,
    uapi.KVM_SET_DEBUGREGS: set_debugregs,
    uapi.KVM_SET_GUEST_DEBUG: set_guest_debug,
    uapi.KVM_GET_VCPU_EVENTS: get_vcpu_events,
    uapi.KVM_SET_VCPU_EVENTS: set_vcpu_events,
    common.KVM_GET_MP_STATE: get_mp_state,
    common.KVM_SET_MP_STATE: set_mp_state,
    uapi.KVM_SET_CPUID: set_cpuid,
    uapi.KVM_SET_CPUID2: set_cpuid2,
    uapi.KVM_GET_CPUID2: get_cpuid2,
    uapi.KVM_GET_SUPPORTED_HV_CPUID: get_supported_hv_cpuid,
    uapi.KVM_XEN_VCPU_SET_ATTR: xen_vcpu.set_attr,
    uapi.KVM_XEN_VCPU_GET_ATTR: xen_vcpu.get_attr,
    uapi.KVM_GET_MSRS: msrs.get_msrs,
    uapi.KVM_SET_MSRS: msrs.set_msrs,
    common.KVM_INTERRUPT: interrupt,
    common.KVM_NMI: nmi,
    uapi.KVM_SMI: smi,
    uapi.KVM_GET_LAPIC: get_lapic,
    uapi.KVM_SET_LAPIC: set_lapic,
    uapi.KVM_X86_SETUP_MCE: setup_mce,
    uapi.KVM_X86_SET_MCE: set_mce,
    uapi.KVM_SET_TSC_KHZ: set_tsc_khz,
    uapi.KVM_GET_TSC_KHZ: get_tsc_khz,
    uapi.KVM_KVMCLOCK_CTRL: kvmclock_ctrl,
    uapi.KVM_TPR_ACCESS_REPORTING: tpr.set_reporting,
    uapi.KVM_SET_VAPIC_ADDR: tpr.set_vapic_addr,
    common.KVM_TRANSLATE: translate.translate,
    common.KVM_ENABLE_CAP: enable_cap,
    common.KVM_HAS_DEVICE_ATTR: has_device_attr,
    common.KVM_GET_DEVICE_ATTR: get_device_attr,
    common.KVM_SET_DEVICE_ATTR: set_device_attr,
}
