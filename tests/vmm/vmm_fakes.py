# SPDX-License-Identifier: GPL-2.0-only
"""Kernels, memory and a KVM for tests of the VMM. The KVM's guests are Python generators."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

from anykvm.uapi import arm64, common
from anykvm.vmm import memory, serial
from anykvm.vmm.config import MachineConfig

IMAGE_SIZE = 0x3000
PIO_OFFSET = 4096
"""Where in the run page ports' data are."""


def make_image(
    size: int = IMAGE_SIZE, *, text_offset: int = 0, image_size: int | None = None, flags: int = 0xA, efi: bool = False
) -> bytes:
    """An arm64 Image without code in it."""
    image = bytearray(size)
    struct.pack_into("<QQQ", image, 8, text_offset, size if image_size is None else image_size, flags)
    image[56:60] = b"ARM\x64"
    if efi:
        image[:2] = b"MZ"
        struct.pack_into("<I", image, 60, 64)
        image[64:68] = b"PE\0\0"
        struct.pack_into("<HHIIIHH", image, 68, 0xAA64, 1, 0, 0, 0, 16, 0)
        table = 64 + 24 + 16
        struct.pack_into("<II", image, table + 16, size - 0x1000, 0x1000)
    return bytes(image)


def write_image(folder: Path) -> Path:
    path = folder / "Image"
    path.write_bytes(make_image())
    return path


def config(folder: Path, **changes: object) -> MachineConfig:
    """A machine with a kernel in `folder`."""
    values: dict[str, object] = {"kernel": write_image(folder), "memory": 128 * memory.MIB}
    return MachineConfig(**(values | changes))  # type: ignore[arg-type]


class FakeMemory:
    """Guest memory for devices, from address `base` on."""

    def __init__(self, size: int = 1 << 16, base: int = 0x4000_0000) -> None:
        self.base = base
        self.data = bytearray(size)

    def view(self, gpa: int, size: int) -> memoryview:
        start = gpa - self.base
        if start < 0 or start + size > len(self.data):
            raise ValueError("not in memory")
        return memoryview(self.data)[start : start + size]


Program = Generator[tuple[Any, ...], int, None]


class Guest:
    """What a vCPU does, for `yield from`: each function makes one exit."""

    def write(self, address: int, value: int, size: int = 4) -> Program:
        yield ("write", address, value.to_bytes(size, "little"))

    def read(self, address: int, size: int = 4) -> Generator[tuple[Any, ...], int, int]:
        value = yield ("read", address, size)
        return value

    def event(self, kind: int) -> Program:
        yield ("event", kind)

    def pause(self) -> Program:
        yield ("pause",)

    def print(self, text: bytes) -> Program:
        for byte in text:
            while (yield from self.read(memory.UART.base + serial.FR)) & serial.FR_TXFF:
                pass
            yield from self.write(memory.UART.base + serial.DR, byte)

    def listen(self) -> Program:
        yield from self.write(memory.UART.base + serial.LCR_H, serial.LCR_H_FEN)
        yield from self.write(memory.UART.base + serial.IMSC, serial.INT_RX | serial.INT_RT)

    def key(self) -> Generator[tuple[Any, ...], int, int]:
        while (yield from self.read(memory.UART.base + serial.FR)) & serial.FR_RXFE:
            yield from self.pause()
        return (yield from self.read(memory.UART.base + serial.DR))

    def power_off(self) -> Program:
        yield from self.event(common.KVM_SYSTEM_EVENT_SHUTDOWN)

    def reset(self) -> Program:
        yield from self.event(common.KVM_SYSTEM_EVENT_RESET)

    def forever(self) -> Program:
        while True:
            yield from self.pause()


class FakeBackend:
    """Answers what the VMM asks of KVM; `program` gives each vCPU's guest."""

    name = "fake"
    arch = "arm64"
    guest: type[Guest] = Guest

    def __init__(self, program: Callable[[Guest, int], Program], *, max_vcpus: int = 512, no_gic: int | None = None):
        self.program = program
        self.max_vcpus = max_vcpus
        self.no_gic = no_gic
        self.files: dict[int, Any] = {}
        self.maps: dict[int, mmap.mmap] = {}
        self.running: dict[int, Program] = {}
        self.last: dict[int, tuple[Any, ...]] = {}
        self.kicks: dict[int, threading.Event] = {}
        self.registers: dict[tuple[int, int], int] = {}
        self.attributes: list[tuple[int, int, int]] = []
        self.lines: list[tuple[int, int]] = []
        self.slots: list[tuple[int, int, int]] = []
        self.vcpu_features: list[int] = []
        self.fail_create: int | None = None

    def _new(self, kind: Any) -> int:
        fd = os.open(os.devnull, os.O_RDONLY)
        self.files[fd] = kind
        return fd

    def open(self) -> int:
        return self._new("kvm")

    def close(self, fd: int) -> None:
        del self.files[fd]
        os.close(fd)

    def mmap(self, fd: int, length: int) -> memoryview:
        self.maps[fd] = mmap.mmap(-1, length)
        return memoryview(self.maps[fd])

    def interrupt(self, fd: int) -> None:
        self.kicks[fd].set()

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        match request:
            case common.KVM_GET_VCPU_MMAP_SIZE:
                return 8192
            case common.KVM_CREATE_VM:
                return self._new("vm")
            case common.KVM_CHECK_EXTENSION:
                return {common.KVM_CAP_MAX_VCPUS: self.max_vcpus, common.KVM_CAP_ARM_VM_IPA_SIZE: 40}.get(arg, 0)
            case common.KVM_CREATE_VCPU:
                if self.fail_create is not None:
                    raise OSError(self.fail_create, os.strerror(self.fail_create))
                vcpu = self._new(("vcpu", arg))
                self.running[vcpu] = self.program(self.guest(), arg)
                self.kicks[vcpu] = threading.Event()
                return vcpu
            case common.KVM_CREATE_DEVICE:
                device = common.KvmCreateDevice.from_address(arg)
                if device.type == self.no_gic:
                    raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
                device.fd = self._new(("device", device.type))
            case common.KVM_SET_DEVICE_ATTR:
                attr = common.KvmDeviceAttr.from_address(arg)
                value = ctypes.c_uint32.from_address(attr.addr).value if attr.addr else 0
                self.attributes.append((attr.group, attr.attr, value))
            case common.KVM_SET_USER_MEMORY_REGION:
                region = common.KvmUserspaceMemoryRegion.from_address(arg)
                self.slots.append((region.slot, region.guest_phys_addr, region.memory_size))
            case arm64.KVM_ARM_VCPU_INIT:
                self.vcpu_features.append(arm64.KvmVcpuInit.from_address(arg).features[0])
            case common.KVM_SET_ONE_REG:
                reg = common.KvmOneReg.from_address(arg)
                self.registers[fd, reg.id] = ctypes.c_uint64.from_address(reg.addr).value
            case common.KVM_GET_ONE_REG:
                reg = common.KvmOneReg.from_address(arg)
                _, vcpu_id = self.files[fd]
                mpidr = 0x8000_0000 | vcpu_id & 0xF | vcpu_id >> 4 << 8
                ctypes.c_uint64.from_address(reg.addr).value = self.registers.get((fd, reg.id), mpidr)
            case common.KVM_IRQ_LINE:
                line = common.KvmIrqLevel.from_address(arg)
                self.lines.append((line.irq, line.level))
            case common.KVM_RUN:
                return self._run(fd)
            case arm64.KVM_ARM_PREFERRED_TARGET:
                pass
            case _:
                raise OSError(errno.ENOTTY, os.strerror(errno.ENOTTY))
        return 0

    def _run(self, fd: int) -> int:
        page = self.maps[fd]
        run = common.KvmRun.from_buffer(page)
        last = self.last.get(fd)
        answer: Any = None
        if last is not None and last[0] == "read":
            answer = int.from_bytes(bytes(run.mmio.data)[: last[2]], "little")
        elif last is not None and last[0] == "in":
            answer = bytes(page[PIO_OFFSET : PIO_OFFSET + last[2] * last[3]])
        self.last.pop(fd, None)
        while True:
            if self.kicks[fd].is_set() or run.immediate_exit:
                self.kicks[fd].clear()
                raise OSError(errno.EINTR, os.strerror(errno.EINTR))
            try:
                step = self.running[fd].send(answer)
            except StopIteration:
                self.running[fd] = Guest().forever()
                answer = None
                continue
            answer = None
            match step:
                case ("pause",):
                    time.sleep(0.001)
                    continue
                case ("raise", error):
                    raise error
                case ("event", kind):
                    run.exit_reason = common.KVM_EXIT_SYSTEM_EVENT
                    run.system_event.type = kind
                case ("reason", number):
                    run.exit_reason = number
                case ("in", port, size, count):
                    run.exit_reason = common.KVM_EXIT_IO
                    run.io.direction, run.io.size, run.io.port, run.io.count = common.KVM_EXIT_IO_IN, size, port, count
                    run.io.data_offset = PIO_OFFSET
                case ("out", port, size, data):
                    run.exit_reason = common.KVM_EXIT_IO
                    run.io.direction, run.io.size, run.io.port = common.KVM_EXIT_IO_OUT, size, port
                    run.io.count, run.io.data_offset = len(data) // size, PIO_OFFSET
                    page[PIO_OFFSET : PIO_OFFSET + len(data)] = data
                case ("write", address, data):
                    run.exit_reason = common.KVM_EXIT_MMIO
                    run.mmio.phys_addr, run.mmio.len, run.mmio.is_write = address, len(data), 1
                    ctypes.memmove(run.mmio.data, data, len(data))
                case ("read", address, size):
                    run.exit_reason = common.KVM_EXIT_MMIO
                    run.mmio.phys_addr, run.mmio.len, run.mmio.is_write = address, size, 0
            self.last[fd] = step
            return 0
