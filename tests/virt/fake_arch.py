# SPDX-License-Identifier: GPL-2.0-only
"""An architecture without a CPU, that records what common code asks of it."""

from __future__ import annotations

import ctypes
import errno
import os
import threading
from typing import Any

from anykvm.uapi import caps
from anykvm.uapi import requests as rq
from anykvm.uapi.exits import KVM_EXIT_HLT
from anykvm.uapi.structs import KvmOneReg
from anykvm.virt.backend import SoftwareBackend
from anykvm.virt.device import DeviceOps
from anykvm.virt.hooks import ArchHooks
from anykvm.virt.services import Services

FAKE_DEVICE = 77
BROKEN_DEVICE = 78
BARE_DEVICE = 79


def open_fds() -> set[int]:
    """The fds of this process, without the one that lists them."""
    return {fd for fd in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{fd}")}


class FakeDevice(DeviceOps):
    """A device with one attribute in group 1: a 64-bit word."""

    name = "kvm-fake"

    def create(self) -> None:
        self.value = 0
        self.vm.hooks.note(f"device create {self.device_type}")

    def destroy(self) -> None:
        self.vm.hooks.note(f"device destroy {self.device_type}")

    def has_attr(self, group: int, attr: int) -> None:
        if (group, attr) != (1, 0):
            raise OSError(errno.ENXIO, "no such attribute")

    def set_attr(self, group: int, attr: int, addr: int) -> None:
        self.has_attr(group, attr)
        self.value = int.from_bytes(self.vm.services.copy_from_user(addr, 8), "little")

    def get_attr(self, group: int, attr: int, addr: int) -> None:
        self.has_attr(group, attr)
        self.vm.services.copy_to_user(addr, self.value.to_bytes(8, "little"))


class BrokenDevice(DeviceOps):
    name = "kvm-broken"

    def create(self) -> None:
        raise OSError(errno.EEXIST, "one is there already")


class BareDevice(DeviceOps):
    name = "kvm-bare"


class FakeArch(ArchHooks):
    """Records every call in ``calls``; ``refuse`` maps a hook's name to the errno it raises."""

    name = "fake"
    max_vcpus = 6
    max_vcpu_ids = 100
    vcpu_mmap_size = 12288
    irqchip_pins = (16, 24)
    vcpu_stats = ("fake_exits",)

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.refuse: dict[str, int] = {}
        self.irqchip = True
        self.ready = True
        self.pins: list[tuple[int, int, int]] = []
        self.msis: list[tuple[int, int, int | None]] = []
        self.slots: list[tuple[str, Any, Any]] = []
        self.guest: Any = None
        self.kicked = threading.Event()
        # No other thread holds locks: tests with threads say otherwise.
        self.alone = True

    def note(self, what: str) -> None:
        self.calls.append(what)

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if name in self.refuse:
            raise OSError(self.refuse[name], f"{name} refuses")

    def check_extension(self, cap: int, vm: Any) -> int:
        return 1 if cap == caps.KVM_CAP_ONE_REG else 0

    def dev_ioctl(self, request: int, arg: int) -> int:
        raise OSError(errno.EINVAL, "unknown request")

    def vm_init(self, vm: Any, vm_type: int) -> None:
        self._called("vm_init")
        if vm_type > 1:
            raise OSError(errno.EINVAL, "no such type")
        vm.arch = {"charge": vm.services.charge("fake vm", 8)}

    def vm_destroy(self, vm: Any) -> None:
        self._called("vm_destroy")
        vm.services.free(vm.arch["charge"])

    def vm_ioctl(self, vm: Any, request: int, arg: int) -> int:
        raise OSError(errno.ENOTTY, "unknown request")

    def vm_enable_cap(self, vm: Any, cap: int, flags: int, args: tuple[int, int, int, int]) -> int:
        if cap == caps.KVM_CAP_ARM_MTE and not flags:
            return 0
        raise OSError(errno.EINVAL, "unknown capability")

    def prepare_memory_region(self, vm: Any, old: Any, new: Any, change: Any) -> None:
        if "prepare_memory_region" in self.refuse:
            raise OSError(self.refuse["prepare_memory_region"], "no")

    def commit_memory_region(self, vm: Any, old: Any, new: Any, change: Any) -> None:
        if "commit_memory_region" in self.refuse:
            raise OSError(self.refuse["commit_memory_region"], "no")
        self.slots.append((change.name, old, new))

    def harvest_dirty(self, vm: Any, slot: Any) -> bytes:
        return slot.dirty.take()

    def clear_dirty(self, vm: Any, slot: Any, first_page: int, mask: bytes) -> None:
        slot.dirty.clear(first_page, mask)

    def irqchip_in_kernel(self, vm: Any) -> bool:
        return self.irqchip

    def intc_initialized(self, vm: Any) -> bool:
        return self.ready

    def can_set_irq_routing(self, vm: Any) -> bool:
        return self.irqchip

    def irq_line(self, vm: Any, irq: int, level: int) -> int:
        if not self.irqchip:
            raise OSError(errno.ENXIO, "no irqchip")
        self.pins.append((0, irq, level))
        return 1

    def set_irq(self, vm: Any, irqchip: int, pin: int, level: int, source: int) -> int:
        self.pins.append((irqchip, pin, level))
        return 1

    def set_msi(self, vm: Any, address: int, data: int, devid: int | None) -> int:
        self.msis.append((address, data, devid))
        return 1

    def default_routing(self, vm: Any) -> list[tuple[int, int, int]]:
        return [(gsi, 1, gsi) for gsi in range(24)]

    def device_types(self) -> dict[int, type[DeviceOps]]:
        return {FAKE_DEVICE: FakeDevice, BROKEN_DEVICE: BrokenDevice, BARE_DEVICE: BareDevice}

    def vcpu_precreate(self, vm: Any, vcpu_id: int) -> None:
        assert vm.lock.locked()
        self._called("vcpu_precreate")

    def vcpu_create(self, vcpu: Any) -> None:
        assert not (self.alone and vcpu.vm.lock.locked())
        services = vcpu.services
        with vcpu.arch_ladder as ladder:
            ladder.acquire("first", services.charge, services.free, "fake first", 8)
            ladder.acquire("timer", services.timer, services.free_timer, "fake timer", lambda: None)
            ladder.acquire("second", services.alloc, services.free, "fake second", 64)
            self._called("vcpu_create")
        vcpu.arch = {"reg": 0}

    def vcpu_postcreate(self, vcpu: Any) -> None:
        assert vcpu.vm.get_vcpu(vcpu.vcpu_idx) is vcpu
        assert not (self.alone and vcpu.mutex.locked())
        self._called("vcpu_postcreate")

    def vcpu_destroy(self, vcpu: Any) -> None:
        self._called("vcpu_destroy")
        vcpu.arch_ladder.unwind()

    def vcpu_ioctl(self, vcpu: Any, request: int, arg: int) -> int:
        assert vcpu.mutex.locked()
        if request in (rq.KVM_GET_ONE_REG, rq.KVM_SET_ONE_REG):
            reg = vcpu.services.read_struct(arg, KvmOneReg)
            if request == rq.KVM_SET_ONE_REG:
                vcpu.arch["reg"] = int.from_bytes(vcpu.services.copy_from_user(reg.addr, 8), "little")
            else:
                vcpu.services.copy_to_user(reg.addr, vcpu.arch["reg"].to_bytes(8, "little"))
            return 0
        raise OSError(errno.EINVAL, "unknown request")

    def vcpu_run(self, vcpu: Any) -> int:
        self._called("vcpu_run")
        if self.guest is not None:
            return self.guest(vcpu)
        vcpu.set_exit_reason(KVM_EXIT_HLT)
        return 0

    def vcpu_complete_io(self, vcpu: Any) -> None:
        self.calls.append("vcpu_complete_io")

    def vcpu_kick(self, vcpu: Any) -> None:
        self.kicked.set()


class CountingServices(Services):
    """Fails the Nth thing acquired, ``fail_at`` counting from 0; ``count`` tells how many there were."""

    FAILURES = {
        "charge": errno.ENOMEM,
        "alloc": errno.ENOMEM,
        "mutex": errno.ENOMEM,
        "timer": errno.ENOMEM,
        "thread": errno.EAGAIN,
        "memfd": errno.EMFILE,
        "map": errno.ENOMEM,
        "reopen": errno.EMFILE,
        "epoll": errno.EMFILE,
        "eventfd": errno.EMFILE,
        "eventfd_get": errno.EMFILE,
    }

    def __init__(self) -> None:
        super().__init__()
        self.fail_at = -1
        self.armed = False
        self.count = 0
        self.acquired: list[str] = []

    def arm(self, fail_at: int) -> None:
        self.armed, self.fail_at, self.count = True, fail_at, 0
        self.acquired = []

    def disarm(self) -> None:
        self.armed = False

    def fail_here(self, what: str) -> None:
        if not self.armed:
            return
        self.count += 1
        self.acquired.append(what)
        if self.count - 1 == self.fail_at:
            raise OSError(self.FAILURES[what], f"{what} number {self.fail_at} fails")


def _counted(name: str) -> Any:
    original = getattr(Services, name)

    def method(self: CountingServices, *args: Any) -> Any:
        self.fail_here(name)
        return original(self, *args)

    return method


for _name in CountingServices.FAILURES:
    setattr(CountingServices, _name, _counted(_name))


class Machine:
    """A backend over a :class:`FakeArch`, with ioctls that take structures."""

    def __init__(self, services: Services | None = None) -> None:
        self.arch = FakeArch()
        self.services = services if services is not None else CountingServices()
        self.backend = SoftwareBackend(self.arch, self.services)
        self.system = self.backend.open()

    def ioctl(self, fd: int, request: int, arg: Any = 0) -> int:
        """An ioctl; a structure stands for its address."""
        if isinstance(arg, ctypes.Structure | ctypes.Union | ctypes.Array):
            return self.backend.ioctl(fd, request, ctypes.addressof(arg))
        return self.backend.ioctl(fd, request, arg)

    def errno(self, fd: int, request: int, arg: Any = 0) -> str:
        """The name of the errno an ioctl ends in; "0" if it succeeds."""
        try:
            self.ioctl(fd, request, arg)
        except OSError as failure:
            return errno.errorcode[failure.errno]
        return "0"

    def vm(self, vm_type: int = 0) -> int:
        return self.ioctl(self.system, rq.KVM_CREATE_VM, vm_type)

    def vcpu(self, vm: int, vcpu_id: int = 0) -> int:
        return self.ioctl(vm, rq.KVM_CREATE_VCPU, vcpu_id)

    def vm_of(self, vm: int) -> Any:
        """The object behind a VM fd."""
        file: Any = self.backend.files.by_fd[vm]
        return file.vm

    def vcpu_of(self, vcpu: int) -> Any:
        """The object behind a vCPU fd."""
        file: Any = self.backend.files.by_fd[vcpu]
        return file.vcpu

    def ledger(self) -> dict[tuple[str, str], int]:
        return self.services.ledger()
