# SPDX-License-Identifier: GPL-2.0-only
"""arm64's ioctls on a vCPU fd; the vCPU's mutex is held."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from anykvm.uapi import arm64 as uapi
from anykvm.uapi import common

from . import inject, regs

if TYPE_CHECKING:
    from .vcpu import Arm64Vcpu


def _initialised(vcpu: Arm64Vcpu) -> None:
    if vcpu.features is None:
        raise OSError(errno.ENOEXEC, "the vCPU has not been initialised with KVM_ARM_VCPU_INIT")


def vcpu_init(vcpu: Arm64Vcpu, arg: int) -> int:
    """KVM_ARM_VCPU_INIT."""
    request = vcpu.vcpu.services.read_struct(arg, uapi.KvmVcpuInit)
    vcpu.init(request.target, tuple(request.features))
    return 0


def get_regs(vcpu: Arm64Vcpu, arg: int) -> int:
    """KVM_GET_ONE_REG."""
    _initialised(vcpu)
    services = vcpu.vcpu.services
    request = services.read_struct(arg, common.KvmOneReg)
    services.copy_to_user(request.addr, regs.get(vcpu, request.id))
    return 0


def set_regs(vcpu: Arm64Vcpu, arg: int) -> int:
    """KVM_SET_ONE_REG."""
    _initialised(vcpu)
    services = vcpu.vcpu.services
    request = services.read_struct(arg, common.KvmOneReg)
    size = common.reg_size(request.id)
    regs.set_(vcpu, request.id, services.copy_from_user(request.addr, size))
    return 0


def get_reg_list(vcpu: Arm64Vcpu, arg: int) -> int:
    """KVM_GET_REG_LIST: always writes how many there are; E2BIG if userspace has less room."""
    _initialised(vcpu)
    services = vcpu.vcpu.services
    room = services.read_struct(arg, common.KvmRegList).n
    found = regs.reg_list(vcpu)
    services.copy_to_user(arg, len(found).to_bytes(8, "little"))
    if room < len(found):
        raise OSError(errno.E2BIG, f"the register list has {len(found)} entries, there is room for {room}")
    services.copy_to_user(arg + 8, b"".join(register.to_bytes(8, "little") for register in found))
    return 0


def get_mp_state(vcpu: Arm64Vcpu, arg: int) -> int:
    """KVM_GET_MP_STATE."""
    state = common.KVM_MP_STATE_STOPPED if vcpu.power.stopped else common.KVM_MP_STATE_RUNNABLE
    vcpu.vcpu.services.write_struct(arg, common.KvmMpState(state))
    return 0


def set_mp_state(vcpu: Arm64Vcpu, arg: int) -> int:
    """KVM_SET_MP_STATE: runnable or stopped; EINVAL for another."""
    state = vcpu.vcpu.services.read_struct(arg, common.KvmMpState).mp_state
    if state == common.KVM_MP_STATE_RUNNABLE:
        vcpu.power.on(None)
    elif state == common.KVM_MP_STATE_STOPPED:
        vcpu.power.off()
        vcpu.attention = True
    else:
        raise OSError(errno.EINVAL, f"a vCPU's state is runnable or stopped, not {state}")
    return 0


def get_vcpu_events(vcpu: Arm64Vcpu, arg: int) -> int:
    """KVM_GET_VCPU_EVENTS."""
    events = uapi.KvmVcpuEvents()
    events.exception.serror_pending = vcpu.serror_pending
    vcpu.vcpu.services.write_struct(arg, events)
    return 0


def set_vcpu_events(vcpu: Arm64Vcpu, arg: int) -> int:
    """KVM_SET_VCPU_EVENTS: inject an external data abort or an SError; EINVAL for a syndrome (needs RAS)."""
    events = vcpu.vcpu.services.read_struct(arg, uapi.KvmVcpuEvents)
    exception = events.exception
    if any(exception.pad) or any(events.reserved):
        raise OSError(errno.EINVAL, "reserved fields of KVM_SET_VCPU_EVENTS are not zero")
    if exception.serror_pending and exception.serror_has_esr:
        raise OSError(errno.EINVAL, "this CPU has no RAS: an SError has no syndrome")
    if exception.ext_dabt_pending:
        cpu = vcpu.load()
        address = 0
        if vcpu.mmio:
            address = cpu.fault_va
            cpu.abandon()
            vcpu.mmio = 0
        else:
            cpu = vcpu.coherent()
        inject.inject_dabt(cpu, address)
    vcpu.serror_pending = exception.serror_pending != 0
    vcpu.attention = True
    return 0


# Device attributes of a vCPU: the timers' interrupts.


def _timer_attr(group: int, attr: int) -> int:
    if group != uapi.KVM_ARM_VCPU_TIMER_CTRL or attr not in (
        uapi.KVM_ARM_VCPU_TIMER_IRQ_VTIMER,
        uapi.KVM_ARM_VCPU_TIMER_IRQ_PTIMER,
    ):
        raise OSError(errno.ENXIO, f"a vCPU has no attribute {attr} in group {group}")
    return 0 if attr == uapi.KVM_ARM_VCPU_TIMER_IRQ_VTIMER else 1


def set_device_attr(vcpu: Arm64Vcpu, arg: int) -> int:
    """KVM_SET_DEVICE_ATTR: the PPI of a timer, for all vCPUs; EINVAL for no PPI or no GIC, EBUSY once one has run."""
    services = vcpu.vcpu.services
    request = services.read_struct(arg, common.KvmDeviceAttr)
    which = _timer_attr(request.group, request.attr)
    vm = vcpu.vm
    if vm.vgic is None:
        raise OSError(errno.EINVAL, "the VM has no in-kernel GIC")
    ppi = int.from_bytes(services.copy_from_user(request.addr, 4), "little", signed=True)
    if not 16 <= ppi < 32:
        raise OSError(errno.EINVAL, f"PPIs are 16 to 31, not {ppi}")
    if vm.has_run:
        raise OSError(errno.EBUSY, "a vCPU has run: its timers are connected")
    ppis = list(vm.timer_ppis)
    ppis[which] = ppi
    vm.timer_ppis = (ppis[0], ppis[1])
    for other in vm.vcpus:
        other.timers.vtimer.ppi, other.timers.ptimer.ppi = vm.timer_ppis
    return 0


def get_device_attr(vcpu: Arm64Vcpu, arg: int) -> int:
    """KVM_GET_DEVICE_ATTR."""
    services = vcpu.vcpu.services
    request = services.read_struct(arg, common.KvmDeviceAttr)
    ppi = vcpu.vm.timer_ppis[_timer_attr(request.group, request.attr)]
    services.copy_to_user(request.addr, ppi.to_bytes(4, "little"))
    return 0


def has_device_attr(vcpu: Arm64Vcpu, arg: int) -> int:
    """KVM_HAS_DEVICE_ATTR."""
    request = vcpu.vcpu.services.read_struct(arg, common.KvmDeviceAttr)
    _timer_attr(request.group, request.attr)
    return 0


IOCTLS: Final[dict[int, Callable[[Arm64Vcpu, int], int]]] = {
    uapi.KVM_ARM_VCPU_INIT: vcpu_init,
    common.KVM_GET_ONE_REG: get_regs,
    common.KVM_SET_ONE_REG: set_regs,
    common.KVM_GET_REG_LIST: get_reg_list,
    common.KVM_GET_MP_STATE: get_mp_state,
    common.KVM_SET_MP_STATE: set_mp_state,
    uapi.KVM_GET_VCPU_EVENTS: get_vcpu_events,
    uapi.KVM_SET_VCPU_EVENTS: set_vcpu_events,
    common.KVM_SET_DEVICE_ATTR: set_device_attr,
    common.KVM_GET_DEVICE_ATTR: get_device_attr,
    common.KVM_HAS_DEVICE_ATTR: has_device_attr,
}
