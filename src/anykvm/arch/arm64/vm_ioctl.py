# SPDX-License-Identifier: GPL-2.0-only
"""arm64's ioctls on a VM fd."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from anykvm.uapi import arm64 as uapi
from anykvm.uapi import common

from . import vm as arm64_vm
from .vgic_device import set_frame_address

if TYPE_CHECKING:
    from anykvm.virt.vm import Vm


def create_irqchip(vm: Vm, arg: int) -> int:
    """KVM_CREATE_IRQCHIP: a GICv2; EEXIST, EBUSY, E2BIG."""
    with vm.lock:
        vm.arch.create_vgic(common.KVM_DEV_TYPE_ARM_VGIC_V2)
    return 0


def set_device_addr(vm: Vm, arg: int) -> int:
    """KVM_ARM_SET_DEVICE_ADDR: a GICv2's addresses; ENODEV, ENXIO without a GIC, EEXIST, EINVAL, E2BIG."""
    request = vm.services.read_struct(arg, uapi.KvmArmDeviceAddr)
    device = (request.id & uapi.KVM_ARM_DEVICE_ID_MASK) >> uapi.KVM_ARM_DEVICE_ID_SHIFT
    kind = (request.id & uapi.KVM_ARM_DEVICE_TYPE_MASK) >> uapi.KVM_ARM_DEVICE_TYPE_SHIFT
    if device != uapi.KVM_ARM_DEVICE_VGIC_V2:
        raise OSError(errno.ENODEV, f"KVM_ARM_SET_DEVICE_ADDR knows no device {device}")
    chip = vm.arch.vgic
    if chip is None:
        raise OSError(errno.ENXIO, "the VM has no in-kernel GIC")
    if chip.v3 or kind not in (uapi.KVM_VGIC_V2_ADDR_TYPE_DIST, uapi.KVM_VGIC_V2_ADDR_TYPE_CPU):
        raise OSError(errno.ENODEV, "the address is not one of a GICv2")
    with chip.arch.config_lock:
        set_frame_address(chip, kind, request.addr)
    return 0


def preferred_target(vm: Vm, arg: int) -> int:
    """KVM_ARM_PREFERRED_TARGET."""
    vm.services.write_struct(arg, uapi.KvmVcpuInit(uapi.KVM_ARM_TARGET_GENERIC_V8))
    return 0


def set_counter_offset(vm: Vm, arg: int) -> int:
    """KVM_ARM_SET_COUNTER_OFFSET: move the virtual counter; EINVAL for reserved bits, EBUSY while a vCPU runs."""
    request = vm.services.read_struct(arg, uapi.KvmArmCounterOffset)
    if request.reserved:
        raise OSError(errno.EINVAL, "the reserved field of KVM_ARM_SET_COUNTER_OFFSET is not zero")
    if any(vcpu.running for vcpu in vm.vcpus()):
        raise OSError(errno.EBUSY, "a vCPU is running")
    vm.arch.set_cntvoff(request.counter_offset)
    return 0


def get_reg_writable_masks(vm: Vm, arg: int) -> int:
    """KVM_ARM_GET_REG_WRITABLE_MASKS: which bits of the identification registers userspace may change; EINVAL."""
    request = vm.services.read_struct(arg, uapi.RegMaskRange)
    if request.range != arm64_vm.FEATURE_ID_RANGE or any(request.reserved):
        raise OSError(errno.EINVAL, "only the range of identification registers is known")
    vm.services.copy_to_user(request.addr, arm64_vm.writable_masks())
    return 0


def _no_attr(vm: Vm, arg: int) -> int:
    request = vm.services.read_struct(arg, common.KvmDeviceAttr)
    raise OSError(errno.ENXIO, f"a VM has no attribute {request.attr} in group {request.group}")


IOCTLS: Final[dict[int, Callable[[Vm, int], int]]] = {
    common.KVM_CREATE_IRQCHIP: create_irqchip,
    uapi.KVM_ARM_SET_DEVICE_ADDR: set_device_addr,
    uapi.KVM_ARM_PREFERRED_TARGET: preferred_target,
    uapi.KVM_ARM_SET_COUNTER_OFFSET: set_counter_offset,
    uapi.KVM_ARM_GET_REG_WRITABLE_MASKS: get_reg_writable_masks,
    common.KVM_SET_DEVICE_ATTR: _no_attr,
    common.KVM_GET_DEVICE_ATTR: _no_attr,
    common.KVM_HAS_DEVICE_ATTR: _no_attr,
}
