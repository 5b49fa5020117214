# SPDX-License-Identifier: GPL-2.0-only
"""A VM: its structure, its fd, its life.

It lives as long as anything refers to it: its own fd, its vCPUs' and devices' fds, an ioctl in progress. The last
reference to go runs its ladder backwards.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, Final

from anykvm.uapi import requests as rq

from .bus import IoBus
from .coalesced import CoalescedRing, register_coalesced_mmio, unregister_coalesced_mmio
from .create_vcpu import create_vcpu, destroy_vcpu
from .device import DeviceOps, create_device, free_device
from .dirty import clear_dirty_log, get_dirty_log
from .dirty_ring import reset_dirty_rings
from .eventfd import Ioeventfds, Irqfds, ioeventfd, irqfd
from .extensions import check_extension, enable_cap
from .handles import FileTable, KvmFile
from .hooks import ArchHooks
from .irq import IrqRouting, irq_line, irq_line_status, set_gsi_routing, signal_msi
from .ladder import Ladder
from .memory import MemorySlots, set_user_memory_region, set_user_memory_region2
from .services import Services
from .stats import VM_STATS, Stats
from .vcpu import Vcpu

_VM_STRUCT_SIZE: Final = 16384


class Vm:
    """One VM, as common code and the architecture share it. ``arch`` is the architecture's own.

    Locks, outermost first: ``lock``, a vCPU's mutex, ``slots_lock``, ``irq_lock``.
    """

    def __init__(self, hooks: ArchHooks, services: Services, files: FileTable, ladder: Ladder) -> None:
        self.hooks = hooks
        self.services = services
        self.files = files
        self.ladder = ladder
        self.pid = os.getpid()
        self.arch: Any = None
        self.refuses = 0
        self._why = ""
        self.max_vcpus = hooks.max_vcpus
        self.created_vcpus = 0
        self.online_vcpus = 0
        self.vcpu_array: list[Vcpu] = []
        self.vcpu_by_id: dict[int, Vcpu] = {}
        self.devices: list[DeviceOps] = []
        self.manual_dirty_log_protect = 0
        self.dirty_ring_size = 0
        """In bytes, of each vCPU's dirty ring; 0 without them."""
        self._users = 1
        with services.ladder("vm struct") as inner:
            inner.acquire("vm", services.charge, services.free, "vm", _VM_STRUCT_SIZE)
            self.lock = inner.acquire("lock", services.mutex, services.free_mutex, "vm lock")
            self.slots_lock = inner.acquire("slots_lock", services.mutex, services.free_mutex, "vm slots_lock")
            self.irq_lock = inner.acquire("irq_lock", services.mutex, services.free_mutex, "vm irq_lock")
            irqfds_lock = inner.acquire("irqfds", services.mutex, services.free_mutex, "vm irqfds")
            coalesced_lock = inner.acquire("coalesced", services.mutex, services.free_mutex, "vm coalesced")
            self._users_lock = inner.acquire("users", services.mutex, services.free_mutex, "vm users")
        self._inner = inner
        self.memory = MemorySlots(self)
        self.irq = IrqRouting(self)
        self.irqfds = Irqfds(self, irqfds_lock)
        self.ioeventfds = Ioeventfds(self)
        self.coalesced = CoalescedRing(self, coalesced_lock)
        self.mmio_bus = IoBus("MMIO")
        self.pio_bus = IoBus("port I/O")
        self.ccw_bus = IoBus("virtio-ccw")
        self.stats = Stats(services, f"kvm-{self.pid}", VM_STATS)

    def free(self) -> None:
        """Give the structure back, with what is inside it."""
        self.stats.close()
        self._inner.unwind()

    # References.

    @property
    def references(self) -> int:
        """How many there are: fds, and ioctls in progress."""
        return self._users

    def get(self) -> None:
        """Take a reference; EBADF if the VM is going."""
        with self._users_lock:
            if self._users == 0:
                raise OSError(errno.EBADF, "the VM has been destroyed")
            self._users += 1

    def put(self) -> None:
        """Drop a reference; the last one destroys the VM."""
        with self._users_lock:
            self._users -= 1
            last = self._users == 0
        if last:
            self.destroy()

    def put_no_destroy(self) -> None:
        """Drop a reference that cannot be the last: someone up the stack has one too."""
        with self._users_lock:
            self._users -= 1
            if self._users == 0:
                raise AssertionError("put_no_destroy dropped the last reference")

    def destroy(self) -> None:
        """Run the ladder backwards."""
        self.ladder.unwind()

    # A VM that refuses.

    def bugged(self, why: str) -> None:
        """Refuse every ioctl from now on with EIO: KVM itself is wrong (KVM_BUG_ON)."""
        self.refuses = errno.EIO
        self._why = why
        for vcpu in self.vcpus():
            vcpu.interrupt()

    def refusal(self) -> OSError:
        """What an ioctl of a VM that refuses raises."""
        return OSError(self.refuses, f"this VM is dead: {self._why}")

    # vCPUs.

    def vcpus(self) -> list[Vcpu]:
        """Give the online vCPUs by vcpu_idx."""
        return self.vcpu_array[: self.online_vcpus]

    def get_vcpu(self, vcpu_idx: int) -> Vcpu | None:
        """Find an online vCPU by index."""
        return self.vcpu_array[vcpu_idx] if 0 <= vcpu_idx < self.online_vcpus else None

    def get_vcpu_by_id(self, vcpu_id: int) -> Vcpu | None:
        """Find an online vCPU by userspace's number."""
        return self.vcpu_by_id.get(vcpu_id)

    def make_all_request(self, request: int) -> None:
        """Make a request of every online vCPU and kick them."""
        for vcpu in self.vcpus():
            vcpu.make_request(request)
            vcpu.kick()

    def __repr__(self) -> str:
        return f"<Vm of {self.hooks.name}, {self.online_vcpus} vCPUs>"


def _check_extension(vm: Vm, arg: int) -> int:
    return check_extension(vm.hooks, vm, arg)


def _get_stats_fd(vm: Vm, arg: int) -> int:
    with vm.lock:
        return vm.stats.open()


_IOCTLS: Final[dict[int, Callable[[Vm, int], int]]] = {
    rq.KVM_CREATE_VCPU: create_vcpu,
    rq.KVM_SET_USER_MEMORY_REGION: set_user_memory_region,
    rq.KVM_SET_USER_MEMORY_REGION2: set_user_memory_region2,
    rq.KVM_GET_DIRTY_LOG: get_dirty_log,
    rq.KVM_CLEAR_DIRTY_LOG: clear_dirty_log,
    rq.KVM_RESET_DIRTY_RINGS: reset_dirty_rings,
    rq.KVM_IRQ_LINE: irq_line,
    rq.KVM_IRQ_LINE_STATUS: irq_line_status,
    rq.KVM_REGISTER_COALESCED_MMIO: register_coalesced_mmio,
    rq.KVM_UNREGISTER_COALESCED_MMIO: unregister_coalesced_mmio,
    rq.KVM_SIGNAL_MSI: signal_msi,
    rq.KVM_SET_GSI_ROUTING: set_gsi_routing,
    rq.KVM_IRQFD: irqfd,
    rq.KVM_IOEVENTFD: ioeventfd,
    rq.KVM_CREATE_DEVICE: create_device,
    rq.KVM_ENABLE_CAP: enable_cap,
    rq.KVM_CHECK_EXTENSION: _check_extension,
    rq.KVM_GET_STATS_FD: _get_stats_fd,
}


class VmFile(KvmFile):
    """A VM fd; it holds a reference to the VM."""

    __slots__ = ("vm",)
    kind = "vm"

    def __init__(self, vm: Vm) -> None:
        super().__init__()
        self.vm = vm

    def ioctl(self, request: int, arg: int) -> int:
        """Serve one ioctl; the VM outlives it, whoever closes what meanwhile."""
        vm = self.vm
        vm.get()
        try:
            if vm.refuses:
                raise vm.refusal()
            request &= 0xFFFFFFFF
            serve = _IOCTLS.get(request)
            if serve is not None:
                return serve(vm, arg & 0xFFFFFFFFFFFFFFFF)
            return vm.hooks.vm_ioctl(vm, request, arg & 0xFFFFFFFFFFFFFFFF)
        finally:
            vm.put()

    def release(self) -> None:
        """End the irqfds, which hold no reference, and drop the fd's."""
        self.vm.irqfds.release()
        self.vm.put()


def create_vm(hooks: ArchHooks, services: Services, files: FileTable, vm_type: int) -> int:
    """KVM_CREATE_VM (api.rst 4.2); returns the VM's fd. EMFILE, ENFILE, ENOMEM, EINVAL for an unknown type."""
    with services.ladder("vm") as ladder:
        fd = ladder.acquire("fd", services.memfd, services.close_fd, "kvm-vm", 0)
        vm = ladder.acquire("vm struct", Vm, Vm.free, hooks, services, files, ladder)
        ladder.push("memslots", vm.memory.free)
        ladder.push("io buses", _release_buses, vm)
        ladder.push("devices", _destroy_devices, vm)
        hooks.vm_init(vm, vm_type)
        ladder.push("arch", hooks.vm_destroy, vm)
        ladder.push("vcpus", _destroy_vcpus, vm)
        services.publish("vm fd")
        files.install(fd, VmFile(vm))
    # Userspace closes the fd; the VM's end does not.
    ladder.drop("fd")
    return fd


def _release_buses(vm: Vm) -> None:
    vm.coalesced.release()
    vm.ioeventfds.release()


def _destroy_vcpus(vm: Vm) -> None:
    for vcpu in reversed(vm.vcpus()):
        destroy_vcpu(vcpu)


def _destroy_devices(vm: Vm) -> None:
    for device in reversed(vm.devices):
        device.destroy()
        free_device(device)
    vm.devices.clear()
