# SPDX-License-Identifier: GPL-2.0-only
"""A CPU and a machine that run no guest: tests say which events come, and see what became of the registers."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from anykvm.arch.arm64 import hooks
from anykvm.engine import Event
from anykvm.uapi import arm64 as A
from anykvm.uapi import common as C
from anykvm.virt.backend import SoftwareBackend

KNOWN_SYSREGS = frozenset(range(0x8000, 0x10000))


class FakeMachine:
    """Records what is mapped."""

    def __init__(self, target: str, traps: tuple[int, ...] = (), constants: dict[int, int] | None = None) -> None:
        assert target == "arm64"
        self.traps = traps
        self.constants = dict(constants or {})
        self.regions: dict[int, dict[str, Any]] = {}
        self.reprotected: list[tuple[int, int, int]] = []
        self.changes: list[str] = []
        self.closed = False

    def map(
        self, gpa: int, size: int, hva: int, readonly: bool = False, dirty: int = 0, tag: int = 0, space: int = 0
    ) -> None:
        assert gpa not in self.regions
        self.changes.append("map")
        self.regions[gpa] = {"size": size, "hva": hva, "readonly": readonly, "dirty": dirty}

    def unmap(self, gpa: int, space: int = 0) -> None:
        del self.regions[gpa]
        self.changes.append("unmap")

    def reprotect(self, gpa: int, first: int, pages: int) -> None:
        self.reprotected.append((gpa, first, pages))
        self.changes.append("reprotect")

    def harvest_dirty(self, gpa: int, space: int = 0) -> bytes:
        region = self.regions[gpa]
        size = (region["size"] // 4096 + 63) // 64 * 8
        data = ctypes.string_at(region["dirty"], size)
        ctypes.memset(region["dirty"], 0, size)
        return data

    @contextmanager
    def stopped(self) -> Iterator[None]:
        self.changes.append("stop")
        yield
        self.changes.append("go")

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class FakeCpu:
    """Gives the events of ``script``; an item may be a function called with the CPU, which returns an event."""

    ticks = 1_000_000

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        self.script: deque[Any] = deque()
        self.answers: list[int] = []
        self.log: list[str] = []
        self.parked: int | None = None
        self.lines = [False, False]
        self.kicked = threading.Event()
        self.closed = False
        self.fault_va = 0
        self.mpidr = 0
        self.cntvoff = 0
        self._zero()

    def _zero(self) -> None:
        self.gpr = memoryview(bytearray(32 * 8)).cast("Q")
        self.pc = 0
        self.pstate = 0
        self.sp_el0 = self.sp_el1 = self.elr_el1 = 0
        self.fpsr = self.fpcr = 0
        self.spsr = [0] * 5
        self.vregs = [bytes(16)] * 32
        self.sysregs: dict[int, int] = {}

    def reset(self) -> None:
        assert self.parked not in (Event.MMIO_READ, Event.MMIO_WRITE, Event.SYSREG_READ, Event.SYSREG_WRITE)
        self.parked = None
        self.log.append("reset")
        self._zero()

    def run(self, value: int = 0) -> tuple[int, int, int, int]:
        self.answers.append(value)
        self.parked = None
        if self.kicked.is_set():
            self.kicked.clear()
            return (Event.KICK, 0, 0, 0)
        if not self.script:
            # A guest that computes for ever.
            assert self.kicked.wait(10), "nobody kicked the guest"
            self.kicked.clear()
            return (Event.KICK, 0, 0, 0)
        item = self.script.popleft()
        event = item(self) if callable(item) else item
        event = (*event, 0, 0, 0)[:4]
        self.parked = event[0]
        return event

    def abandon(self) -> None:
        self.log.append("abandon")
        self.parked = None

    def kick(self) -> None:
        self.kicked.set()

    def set_irq(self, line: int, level: bool) -> None:
        self.lines[line] = level

    def get_spsr(self, index: int) -> int:
        return self.spsr[index]

    def set_spsr(self, index: int, value: int) -> None:
        self.spsr[index] = value

    def get_vreg(self, number: int) -> bytes:
        return self.vregs[number]

    def set_vreg(self, number: int, value: bytes) -> None:
        assert len(value) == 16
        self.vregs[number] = value

    def get_sysreg(self, encoding: int) -> int:
        if encoding not in KNOWN_SYSREGS:
            raise KeyError(encoding)
        return self.sysregs.get(encoding, 0)

    def set_sysreg(self, encoding: int, value: int) -> None:
        if encoding not in KNOWN_SYSREGS:
            raise KeyError(encoding)
        self.sysregs[encoding] = value

    @classmethod
    def counter(cls) -> int:
        return cls.ticks

    def set_mpidr(self, value: int) -> None:
        self.mpidr = value

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Rig:
    """A VM over the fake engine, with the ioctls as methods."""

    def __init__(self, backend: SoftwareBackend | None = None, vm_type: int = 0) -> None:
        self.backend = backend or SoftwareBackend(hooks())
        self.system = self.backend.open()
        self.fd = self.backend.ioctl(self.system, C.KVM_CREATE_VM, vm_type)
        self.vcpus: list[int] = []
        self.memory: list[mmap.mmap] = []
        self.maps: list[Any] = []

    def ioctl(self, fd: int, request: int, arg: int | ctypes.Structure = 0) -> int:
        if isinstance(arg, ctypes.Structure):
            return self.backend.ioctl(fd, request, ctypes.addressof(arg))
        return self.backend.ioctl(fd, request, arg)

    @property
    def vm(self) -> Any:
        return self.backend.files.find(self.fd).vm

    @property
    def arch(self) -> Any:
        return self.vm.arch

    def vcpu(self, index: int = 0) -> Any:
        return self.vm.vcpu_array[index].arch

    def cpu(self, index: int = 0) -> FakeCpu:
        return self.vcpu(index).cpu

    def create_vcpu(
        self, vcpu_id: int | None = None, *, init: bool = True, off: bool = False, psci: bool = True
    ) -> int:
        fd = self.ioctl(self.fd, C.KVM_CREATE_VCPU, len(self.vcpus) if vcpu_id is None else vcpu_id)
        self.vcpus.append(fd)
        if init:
            self.init(fd, off=off, psci=psci)
        return fd

    def init(
        self, fd: int, *, off: bool = False, psci: bool = True, target: int = 5, features: int | None = None
    ) -> None:
        request = A.KvmVcpuInit(target)
        request.features[0] = psci << A.KVM_ARM_VCPU_PSCI_0_2 | off if features is None else features
        self.ioctl(fd, A.KVM_ARM_VCPU_INIT, request)

    def run(self, index: int = 0) -> Any:
        fd = self.vcpus[index]
        self.ioctl(fd, C.KVM_RUN)
        return self.page(index)

    def page(self, index: int = 0) -> Any:
        return self.vm.vcpu_array[index].run

    def get_reg(self, register: int, index: int = 0) -> int:
        buffer = ctypes.create_string_buffer(C.reg_size(register))
        self.ioctl(self.vcpus[index], C.KVM_GET_ONE_REG, C.KvmOneReg(register, ctypes.addressof(buffer)))
        return int.from_bytes(buffer.raw, "little")

    def set_reg(self, register: int, value: int, index: int = 0) -> None:
        buffer = ctypes.create_string_buffer(value.to_bytes(C.reg_size(register), "little"), C.reg_size(register))
        self.ioctl(self.vcpus[index], C.KVM_SET_ONE_REG, C.KvmOneReg(register, ctypes.addressof(buffer)))

    def add_memory(self, gpa: int, size: int, *, slot: int = 0, flags: int = 0) -> mmap.mmap:
        memory = mmap.mmap(-1, size)
        self.memory.append(memory)
        self.set_region(gpa, size, memory, slot=slot, flags=flags)
        return memory

    def set_region(self, gpa: int, size: int, memory: mmap.mmap, *, slot: int = 0, flags: int = 0) -> None:
        view = ctypes.c_char.from_buffer(memory)
        region = C.KvmUserspaceMemoryRegion(slot, flags, gpa, size, ctypes.addressof(view))
        self.ioctl(self.fd, C.KVM_SET_USER_MEMORY_REGION, region)

    # Devices.

    def create_device(self, kind: int, flags: int = 0) -> int:
        request = C.KvmCreateDevice(kind, 0, flags)
        self.ioctl(self.fd, C.KVM_CREATE_DEVICE, request)
        return int(request.fd)

    def set_attr(self, fd: int, group: int, attr: int, value: int, size: int = 8) -> None:
        buffer = ctypes.create_string_buffer((value & (1 << size * 8) - 1).to_bytes(size, "little"), size)
        self.ioctl(fd, C.KVM_SET_DEVICE_ATTR, C.KvmDeviceAttr(0, group, attr, ctypes.addressof(buffer)))

    def get_attr(self, fd: int, group: int, attr: int, size: int = 8, value: int = 0) -> int:
        buffer = ctypes.create_string_buffer(value.to_bytes(size, "little"), size)
        self.ioctl(fd, C.KVM_GET_DEVICE_ATTR, C.KvmDeviceAttr(0, group, attr, ctypes.addressof(buffer)))
        return int.from_bytes(buffer.raw, "little")

    def has_attr(self, fd: int, group: int, attr: int) -> bool:
        try:
            self.ioctl(fd, C.KVM_HAS_DEVICE_ATTR, C.KvmDeviceAttr(0, group, attr, 0))
        except OSError:
            return False
        return True

    def vgic_v2(self, *, init: bool = True, dist: int = 0x0800_0000, cpu: int = 0x0801_0000) -> int:
        fd = self.create_device(C.KVM_DEV_TYPE_ARM_VGIC_V2)
        self.set_attr(fd, A.KVM_DEV_ARM_VGIC_GRP_ADDR, A.KVM_VGIC_V2_ADDR_TYPE_DIST, dist)
        self.set_attr(fd, A.KVM_DEV_ARM_VGIC_GRP_ADDR, A.KVM_VGIC_V2_ADDR_TYPE_CPU, cpu)
        if init:
            self.set_attr(fd, A.KVM_DEV_ARM_VGIC_GRP_CTRL, A.KVM_DEV_ARM_VGIC_CTRL_INIT, 0)
        return fd

    def vgic_v3(self, *, init: bool = True, dist: int = 0x0800_0000, redist: int = 0x080A_0000) -> int:
        fd = self.create_device(C.KVM_DEV_TYPE_ARM_VGIC_V3)
        self.set_attr(fd, A.KVM_DEV_ARM_VGIC_GRP_ADDR, A.KVM_VGIC_V3_ADDR_TYPE_DIST, dist)
        self.set_attr(fd, A.KVM_DEV_ARM_VGIC_GRP_ADDR, A.KVM_VGIC_V3_ADDR_TYPE_REDIST, redist)
        if init:
            self.set_attr(fd, A.KVM_DEV_ARM_VGIC_GRP_CTRL, A.KVM_DEV_ARM_VGIC_CTRL_INIT, 0)
        return fd

    def irq_line(self, irq: int, level: int) -> None:
        self.ioctl(self.fd, C.KVM_IRQ_LINE, C.KvmIrqLevel(C.KvmIrqLevel._Irq(irq), level))

    def spi(self, intid: int, level: int) -> None:
        self.irq_line(A.KVM_ARM_IRQ_TYPE_SPI << A.KVM_ARM_IRQ_TYPE_SHIFT | intid, level)

    def in_thread(self, index: int = 0) -> RunThread:
        return RunThread(lambda: self.ioctl(self.vcpus[index], C.KVM_RUN))

    def close(self) -> None:
        self.backend.close_all()


class RunThread:
    """KVM_RUN on a thread of its own; ``join`` gives the result or raises what it raised."""

    def __init__(self, function: Callable[[], int]) -> None:
        self._function = function
        self._failure: BaseException | None = None
        self._result = -1
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    def _main(self) -> None:
        try:
            self._result = self._function()
        except BaseException as failure:
            self._failure = failure

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> int:
        self._thread.join(10)
        assert not self._thread.is_alive(), "KVM_RUN did not return"
        if self._failure is not None:
            raise self._failure
        return self._result


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the fakes in the engine's place."""
    monkeypatch.setattr("anykvm.arch.arm64.vcpu.Cpu", FakeCpu)
    monkeypatch.setattr("anykvm.arch.arm64.vm.Machine", FakeMachine)
    monkeypatch.setattr("anykvm.arch.arm64.vm.Arm64Cpu", FakeCpu)
    monkeypatch.setattr(FakeCpu, "ticks", 1_000_000)


def errno_of(function: Callable[..., object], *args: Any, **kwargs: Any) -> int:
    """The errno a call fails with."""
    with pytest.raises(OSError) as caught:
        function(*args, **kwargs)
    assert caught.value.errno is not None
    assert str(caught.value.strerror)
    return caught.value.errno


def rigs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A rig that leaves nothing behind."""
    install(monkeypatch)
    rig = Rig()
    yield rig
    rig.close()
    assert rig.backend.services.ledger() == {}
