# SPDX-License-Identifier: GPL-2.0-only
"""The VM handle."""

from __future__ import annotations

from typing import Literal, overload

from anykvm.api.backend import Backend
from anykvm.api.coalesced import CoalescedZones
from anykvm.api.device import Device
from anykvm.api.handle import Attributed, Capable, Configurable
from anykvm.api.stats import Stats
from anykvm.api.vcpu import Vcpu
from anykvm.api.vm_interrupts import Interrupts
from anykvm.api.vm_memory import MemorySlots
from anykvm.api.x86_vm import X86Machine
from anykvm.uapi.arm64 import KVM_ARM_PREFERRED_TARGET, KVM_ARM_SET_DEVICE_ADDR, KvmArmDeviceAddr, KvmVcpuInit
from anykvm.uapi.common import (
    KVM_CREATE_DEVICE,
    KVM_CREATE_DEVICE_TEST,
    KVM_CREATE_VCPU,
    KVM_GET_STATS_FD,
    KvmCreateDevice,
)


class Vm(MemorySlots, CoalescedZones, Interrupts, Capable, Configurable, Attributed, X86Machine):
    """A virtual machine: its memory, vCPUs, devices and interrupts.

    Made by :meth:`Kvm.create_vm`. Closing the handle leaves the VM alive until its vCPUs and devices are closed too.

    >>> with kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
    ...     vcpu.vcpu_id
    0
    """

    def __init__(self, backend: Backend, fd: int, vcpu_mmap_size: int) -> None:
        super().__init__(backend, fd)
        self._vcpu_mmap_size = vcpu_mmap_size

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """Make a vCPU and map its run page (api.rst 4.7).

        ``vcpu_id`` is yours: from 0 to below KVM_CAP_MAX_VCPU_ID, unique in the VM for its whole life. Errors:
        EINVAL for an id or a number of vCPUs above the limit, EEXIST for an id in use (closing the vCPU does not
        free it), EBUSY when the interrupt controller is already initialised (arm64), EMFILE, ENOMEM, EBADF.

        >>> vm.create_vcpu(1).vcpu_id
        1
        >>> vm.create_vcpu(1)
        Traceback (most recent call last):
        FileExistsError: [Errno 17] ...
        """
        fd = self.ioctl(KVM_CREATE_VCPU, vcpu_id)
        try:
            return Vcpu(self._backend, fd, vcpu_id, self._vcpu_mmap_size, self._slots)
        except BaseException:
            self._backend.close(fd)
            raise

    @overload
    def create_device(self, type: int, *, test: Literal[False] = False) -> Device: ...
    @overload
    def create_device(self, type: int, *, test: Literal[True]) -> None: ...

    def create_device(self, type: int, *, test: bool = False) -> Device | None:
        """Make an in-kernel device (api.rst 4.79), or with ``test`` only ask whether it could be made.

        ``type`` is one of KVM_DEV_TYPE_*. Errors: ENODEV for a type that is not supported, EEXIST when the VM
        already has one and may have only one, EINVAL, EMFILE, ENOMEM, EBADF.

        >>> from anykvm.uapi.common import KVM_DEV_TYPE_ARM_VGIC_V2
        >>> vm.create_device(KVM_DEV_TYPE_ARM_VGIC_V2, test=True)
        >>> vm.create_device(0xFFFF)
        Traceback (most recent call last):
        OSError: [Errno 19] ...
        """
        request = KvmCreateDevice(type=type, flags=KVM_CREATE_DEVICE_TEST if test else 0)
        self.ioctl(KVM_CREATE_DEVICE, request)
        return None if test else Device(self._backend, request.fd, type, self._slots)

    def stats_fd(self) -> Stats:
        """Open the VM's binary statistics (api.rst 4.133). Errors: EMFILE, ENOMEM, EBADF.

        >>> with vm.stats_fd() as stats:
        ...     stats.id.startswith("kvm-")
        True
        """
        return Stats(self._backend, self.ioctl(KVM_GET_STATS_FD))

    def preferred_target(self) -> KvmVcpuInit:
        """Ask which target and features suit this machine: what :meth:`Vcpu.init` takes (arm64; api.rst 4.83).

        Errors: ENODEV where there is none, ENOTTY on another architecture, EBADF.

        >>> from anykvm.uapi.arm64 import KVM_ARM_TARGET_GENERIC_V8
        >>> vm.preferred_target().target == KVM_ARM_TARGET_GENERIC_V8
        True
        """
        init = KvmVcpuInit()
        self.ioctl(KVM_ARM_PREFERRED_TARGET, init)
        return init

    def arm_set_device_addr(self, id: int, address: int) -> None:
        """Say where an in-kernel device is in guest-physical memory (arm64; api.rst 4.85).

        The old way, for the controller of :meth:`create_irqchip`; newer programs set KVM_DEV_ARM_VGIC_GRP_ADDR.
        ``id`` is the device id << 16 | the address type. Errors: ENODEV, ENXIO, EEXIST when set already, E2BIG,
        EBADF.

        >>> from anykvm.uapi.arm64 import KVM_VGIC_V2_ADDR_TYPE_DIST
        >>> vm.create_irqchip()
        >>> vm.arm_set_device_addr(KVM_VGIC_V2_ADDR_TYPE_DIST, 0x08000000)
        """
        self.ioctl(KVM_ARM_SET_DEVICE_ADDR, KvmArmDeviceAddr(id=id, addr=address))
