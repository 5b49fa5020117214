# SPDX-License-Identifier: GPL-2.0-only
"""Devices: KVM_CREATE_DEVICE and the attributes of a device fd (api.rst 4.79 to 4.81)."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from anykvm.uapi import requests as rq
from anykvm.uapi.constants import KVM_CREATE_DEVICE_TEST
from anykvm.uapi.structs import KvmCreateDevice, KvmDeviceAttr

from .handles import KvmFile
from .services import Charge

if TYPE_CHECKING:
    from .vm import Vm


class DeviceOps:
    """One device of a VM. An architecture subclasses it for each of its device types (struct kvm_device_ops).

    ``group`` and ``attr`` name an attribute, ``addr`` is the user address of its value:
    ``self.vm.services.read_struct``, ``copy_from_user`` and their counterparts reach it (EFAULT). An attribute that
    does not exist is ENXIO.
    """

    name: str = "kvm-device"

    def __init__(self, vm: Vm, device_type: int) -> None:
        self.vm = vm
        self.device_type = device_type
        self.charge: Charge | None = None

    def create(self) -> None:
        """Build the device, with the VM's lock held; on failure clean up and raise, and destroy is not called."""

    def init(self) -> None:
        """Finish what cannot be done with the VM's lock held; cannot fail."""

    def release(self) -> bool:
        """See the device's fd closed, with the VM's lock held; True if that ends the device (then it must be freed)."""
        return False

    def destroy(self) -> None:
        """Tear the device down: when its VM dies, vCPUs and ``vm.arch`` gone, or when its fd could not be made."""

    def set_attr(self, group: int, attr: int, addr: int) -> None:
        """KVM_SET_DEVICE_ATTR."""
        raise OSError(errno.EPERM, f"{self.name} has no attributes to set")

    def get_attr(self, group: int, attr: int, addr: int) -> None:
        """KVM_GET_DEVICE_ATTR."""
        raise OSError(errno.EPERM, f"{self.name} has no attributes to get")

    def has_attr(self, group: int, attr: int) -> None:
        """KVM_HAS_DEVICE_ATTR: return if it is there, ENXIO if not."""
        raise OSError(errno.EPERM, f"{self.name} has no attributes")


class DeviceFile(KvmFile):
    """A device fd; it holds a reference to its VM."""

    kind = "device"

    def __init__(self, device: DeviceOps) -> None:
        super().__init__()
        self.device = device
        self.vm = device.vm

    def ioctl(self, request: int, arg: int) -> int:
        """Serve the device's attributes; ENOTTY for anything else."""
        vm = self.vm
        vm.get()
        try:
            if vm.refuses:
                raise vm.refusal()
            if request == rq.KVM_SET_DEVICE_ATTR:
                attr = vm.services.read_struct(arg, KvmDeviceAttr)
                self.device.set_attr(attr.group, attr.attr, attr.addr)
            elif request == rq.KVM_GET_DEVICE_ATTR:
                attr = vm.services.read_struct(arg, KvmDeviceAttr)
                self.device.get_attr(attr.group, attr.attr, attr.addr)
            elif request == rq.KVM_HAS_DEVICE_ATTR:
                attr = vm.services.read_struct(arg, KvmDeviceAttr)
                self.device.has_attr(attr.group, attr.attr)
            else:
                raise OSError(errno.ENOTTY, f"request {request:#x} is not one of a device fd")
            return 0
        finally:
            vm.put()

    def release(self) -> None:
        """Drop the VM reference; the device stays until the VM dies."""
        vm = self.vm
        device = self.device
        with vm.lock:
            if device in vm.devices and device.release():
                vm.devices.remove(device)
                free_device(device)
        vm.put()


def create_device(vm: Vm, arg: int) -> int:
    """KVM_CREATE_DEVICE; ENODEV for a type this architecture does not have, or what the device's create says."""
    services = vm.services
    request = services.read_struct(arg, KvmCreateDevice)
    kind = vm.hooks.device_types().get(request.type)
    if kind is None:
        raise OSError(errno.ENODEV, f"{vm.hooks.name} has no device of type {request.type}")
    if request.flags & KVM_CREATE_DEVICE_TEST:
        return 0
    with services.ladder(f"device {kind.name}") as ladder:
        charge = ladder.acquire("device struct", services.charge, services.free, f"device {kind.name}", 64)
        device = kind(vm, request.type)
        with vm.lock:
            device.create()
            vm.devices.append(device)
        ladder.push("create", _unmake, vm, device)
        device.init()
        ladder.step("VM reference", vm.get, vm.put_no_destroy)
        fd = ladder.acquire("fd", services.memfd, services.close_fd, device.name, 0)
        request.fd = fd
        services.write_struct(arg, request)
        services.publish("device fd")
        vm.files.install(fd, DeviceFile(device))
    device.charge = charge
    return 0


def free_device(device: DeviceOps) -> None:
    """Give a device's structure back, when it has been torn down."""
    if device.charge is not None:
        device.vm.services.free(device.charge)
        device.charge = None


def _unmake(vm: Vm, device: DeviceOps) -> None:
    with vm.lock:
        vm.devices.remove(device)
        device.release()
    device.destroy()
