# SPDX-License-Identifier: GPL-2.0-only
"""The KVM of ``vmm_fakes`` with x86's requests and port exits."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vmm_bzimage import make_bzimage
from vmm_fakes import FakeBackend, Guest, Program

from anykvm.uapi import common, x86

LEAVES = [
    (0, 0, 0, 0x16, 0, 0, 0),
    (1, 0, 0, 0x600F10, 0xAA_00_08_00, 0, x86.CPUID_1_EDX_APIC),
    (4, 0, 1, 0xFC00_4121, 0, 0, 0),
    (0xB, 0, 1, 0, 0, 0, 0),
    (0xB, 1, 1, 0, 0, 0, 0),
    (0x4000_0000, 0, 0, 0x4000_0001, 0, 0, 0),
    (0x8000_0008, 0, 0, 0x3028, 0, 0, 0),
]


def write_bzimage(folder: Path) -> Path:
    path = folder / "bzImage"
    path.write_bytes(make_bzimage())
    return path


class PcGuest(Guest):
    """A guest of x86; its console is the 16550."""

    def out(self, port: int, data: bytes, size: int = 1) -> Program:
        yield ("out", port, size, data)

    def in_(self, port: int, size: int = 1, count: int = 1) -> Any:
        return (yield ("in", port, size, count))

    def print(self, text: bytes) -> Program:
        for byte in text:
            while not (yield from self.in_(0x3FD))[0] & 0x20:
                pass
            yield from self.out(0x3F8, bytes((byte,)))

    def power_off(self) -> Program:
        yield from self.out(0x604, (5 << 10 | 1 << 13).to_bytes(2, "little"), 2)
        yield from self.forever()

    def reset(self) -> Program:
        yield from self.out(0xCF9, b"\x06")
        yield from self.forever()


class FakePc(FakeBackend):
    """Keeps what was set: registers, CPUID, in the order of the requests."""

    arch = "x86"
    guest = PcGuest

    def __init__(self, program: Callable[[Any, int], Program], **options: Any) -> None:
        super().__init__(program, **options)
        self.requests: list[int] = []
        self.cpuid: dict[int, list[tuple[int, ...]]] = {}
        self.regs: dict[int, x86.KvmRegs] = {}
        self.sregs: dict[int, x86.KvmSregs] = {}
        self.msrs: list[tuple[int, int, int]] = []
        self.tsc_deadline = 0

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        self.requests.append(request)
        kind = self.files.get(fd)
        vcpu_id = kind[1] if isinstance(kind, tuple) else -1
        match request:
            case common.KVM_CHECK_EXTENSION if arg == common.KVM_CAP_TSC_DEADLINE_TIMER:
                return self.tsc_deadline
            case x86.KVM_GET_SUPPORTED_CPUID:
                head = x86.KvmCpuid2.from_address(arg)
                leaves = LEAVES * 20
                if head.nent < len(leaves):
                    raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
                head.nent = len(LEAVES)
                entries = (x86.KvmCpuidEntry2 * len(LEAVES)).from_address(arg + ctypes.sizeof(head))
                for entry, leaf in zip(entries, LEAVES, strict=True):
                    names = ("function", "index", "flags", "eax", "ebx", "ecx", "edx")
                    for name, value in zip(names, leaf, strict=True):
                        setattr(entry, name, value)
            case x86.KVM_SET_CPUID2:
                head = x86.KvmCpuid2.from_address(arg)
                entries = (x86.KvmCpuidEntry2 * head.nent).from_address(arg + ctypes.sizeof(head))
                self.cpuid[vcpu_id] = [(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx) for e in entries]
            case x86.KVM_GET_SREGS:
                ctypes.memset(arg, 0, ctypes.sizeof(x86.KvmSregs))
                x86.KvmSregs.from_address(arg).apic_base = 0xFEE00900
            case x86.KVM_SET_SREGS:
                self.sregs[vcpu_id] = x86.KvmSregs.from_buffer_copy(x86.KvmSregs.from_address(arg))
            case x86.KVM_SET_REGS:
                self.regs[vcpu_id] = x86.KvmRegs.from_buffer_copy(x86.KvmRegs.from_address(arg))
            case x86.KVM_GET_REGS:
                x86.KvmRegs.from_address(arg).rip = 0x1234
            case x86.KVM_SET_MSRS:
                entry = x86.KvmMsrEntry.from_address(arg + ctypes.sizeof(x86.KvmMsrs))
                self.msrs.append((vcpu_id, entry.index, entry.data))
                return 1
            case common.KVM_CREATE_IRQCHIP | x86.KVM_SET_TSS_ADDR | x86.KVM_SET_IDENTITY_MAP_ADDR | x86.KVM_CREATE_PIT2:
                pass
            case _:
                return super().ioctl(fd, request, arg)
        return 0
