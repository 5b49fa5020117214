# SPDX-License-Identifier: GPL-2.0-only
"""A CPU and a machine that run no guest: tests say which events come, and see what became of the registers."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from anykvm.arch.x86.hooks import X86Hooks
from anykvm.engine import Event
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X
from anykvm.virt.backend import SoftwareBackend

NATIVE = frozenset((0x174, 0x175, 0x176, 0x277, *range(0xC0000080, 0xC0000085), *range(0xC0000100, 0xC0000104)))
MID_INSTRUCTION = (
    Event.MMIO_READ,
    Event.MMIO_WRITE,
    Event.PIO_READ,
    Event.PIO_WRITE,
    Event.MSR_READ,
    Event.MSR_WRITE,
    Event.CR8_WRITE,
)
IF = X.X86_EFLAGS_IF


class FakeMachine:
    """Records what is mapped."""

    def __init__(self, target: str) -> None:
        assert target == "x86"
        self.regions: dict[int, dict[str, Any]] = {}
        self.reprotected: list[tuple[int, int, int]] = []
        self.stops = 0
        self.closed = False

    def map(
        self, gpa: int, size: int, hva: int, readonly: bool = False, dirty: int = 0, tag: int = 0, space: int = 0
    ) -> None:
        assert gpa not in self.regions
        self.regions[gpa] = {"size": size, "hva": hva, "readonly": readonly, "dirty": dirty}

    def unmap(self, gpa: int, space: int = 0) -> None:
        del self.regions[gpa]

    def reprotect(self, gpa: int, first: int, pages: int) -> None:
        self.reprotected.append((gpa, first, pages))

    def distrust(self) -> None:
        """There is no code."""

    def harvest_dirty(self, gpa: int, space: int = 0) -> bytes:
        region = self.regions[gpa]
        size = (region["size"] // 4096 + 63) // 64 * 8
        data = ctypes.string_at(region["dirty"], size)
        ctypes.memset(region["dirty"], 0, size)
        return data

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        self.stops += 1
        yield

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class FakeCpu:
    """Gives the events of ``script``; an item may be a function called with the CPU, which returns an event.

    With line 0 high and interrupts enabled, IRQ_ACK comes first, as the engine has it.
    """

    ticks = 1_000_000
    cpuid_table: dict[tuple[int, int], tuple[int, int, int, int]] = {
        (0, 0): (0xD, 0x756E6547, 0x6C65746E, 0x49656E69),
        (1, 0): (0x306C4, 0x800, 0xFFFFFFFF, 0x78BFBFD),
        (4, 0): (0x121, 0x1C0003F, 0x3F, 1),
        (7, 0): (0, 0xFFFFFFFF, 0xFFFFFFFF, 0),
        (0xD, 0): (7, 0x340, 0x340, 0),
        (0xD, 1): (0xF, 0x340, 0, 0),
        (0xD, 2): (256, 576, 0, 0),
        (0x80000000, 0): (0x8000001F, 0, 0, 0),
        (0x80000001, 0): (0x306C4, 0, 0x25, 0x28100800),
        (0x80000008, 0): (0x3028, 0, 0x7, 0),
    }

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine
        self.script: deque[Any] = deque()
        self.answers: list[int] = []
        self.log: list[Any] = []
        self.parked: int | None = None
        self.line = False
        self.kicked = threading.Event()
        self.closed = False
        self.cpuid: list[Any] = []
        self.tsc_khz = 1_000_000
        self.tsc_offset = 0
        self.resets = 0
        self.raised = -1
        self.smm = False
        self.space = 0
        self._zero()

    def _zero(self) -> None:
        self.gpr = memoryview(bytearray(16 * 8)).cast("Q")
        self.rip, self.rflags = 0xFFF0, 2
        self.cr0, self.cr2, self.cr3, self.cr4, self.cr8 = 0x60000010, 0, 0, 0, 0
        self.efer = 0
        self.xcr0 = 1
        self.shadow = self.nmi_masked = self.nmi_pending = self.want_window = False
        self.segments = [(0, 0, 0xFFFF, 0x93)] * 8
        self.segments[1] = (0xF000, 0xFFFF0000, 0xFFFF, 0x9B)
        self.tables = [(0, 0xFFFF), (0, 0xFFFF)]
        self.dr = [0] * 6 + [0xFFFF0FF0, 0x400]
        self.fx = bytes([0x7F, 3]) + bytes(22) + bytes([0x80, 0x1F]) + bytes(486)
        self.msrs: dict[int, int] = dict.fromkeys(NATIVE, 0)

    @property
    def interruptible(self) -> bool:
        return bool(self.rflags & IF) and not self.shadow

    @property
    def tsc(self) -> int:
        return self.ticks + self.tsc_offset

    def reset(self) -> None:
        self.resets += 1
        self.parked = None
        self._zero()

    def run(self, value: int = 0) -> tuple[int, int, int, int]:
        self.answers.append(value)
        self.parked = None
        if self.kicked.is_set():
            self.kicked.clear()
            return (Event.KICK, 0, 0, 0)
        if self.line and self.interruptible and not self.script_wants_line():
            return self._park((Event.IRQ_ACK, 0, 0, 0))
        if not self.script:
            # A guest that computes for ever.
            assert self.kicked.wait(10), "nobody kicked the guest"
            self.kicked.clear()
            return (Event.KICK, 0, 0, 0)
        item = self.script.popleft()
        return self._park(item(self) if callable(item) else item)

    def script_wants_line(self) -> bool:
        return bool(self.script) and getattr(self.script[0], "__name__", "") == "first"

    def _park(self, event: Any) -> tuple[int, int, int, int]:
        event = (*event, 0, 0, 0)[:4]
        self.parked = event[0]
        return event

    def abandon(self) -> None:
        self.log.append("abandon")
        self.parked = None

    def finish(self, value: int) -> None:
        self.answers.append(value)
        self.parked = None
        if self.script and callable(self.script[0]):
            self.script.popleft()(self)

    def kick(self) -> None:
        self.kicked.set()

    def set_irq(self, line: int, level: bool) -> None:
        assert line == 0
        self.line = bool(level)

    def nmi(self) -> None:
        self.log.append("nmi")
        self.nmi_pending = self.nmi_masked

    def raise_exception(self, vector: int, error_code: int = -1, /) -> None:
        self.log.append(("raise", vector, error_code, self.parked in MID_INSTRUCTION))

    def get_segment(self, index: int) -> tuple[int, int, int, int]:
        return self.segments[index]

    def set_segment(self, index: int, value: tuple[int, int, int, int]) -> None:
        assert self.parked not in MID_INSTRUCTION
        self.segments[index] = value

    def get_table(self, index: int) -> tuple[int, int]:
        return self.tables[index]

    def set_table(self, index: int, base: int, limit: int) -> None:
        self.tables[index] = (base, limit)

    def get_dr(self, number: int) -> int:
        return self.dr[number]

    def set_dr(self, number: int, value: int) -> None:
        self.dr[number] = value

    def get_fx(self) -> bytes:
        return self.fx

    def set_fx(self, image: bytes) -> None:
        assert len(image) == 512
        self.fx = image

    def get_msr(self, index: int) -> int:
        return self.msrs[index]

    def set_msr(self, index: int, value: int) -> None:
        if index not in NATIVE:
            raise KeyError(index)
        self.msrs[index] = value

    def set_cpuid(self, leaves: list[Any]) -> None:
        assert leaves, "an empty table would show the engine's own CPU"
        self.cpuid = leaves

    def supported_cpuid(self, function: int, index: int) -> tuple[int, int, int, int]:
        return self.cpuid_table.get((function, index), (0, 0, 0, 0))

    def set_debug(self, *, step: bool, int3: bool, dr: tuple[int, ...] | None, block_irq: bool) -> None:
        self.log.append(("debug", step, int3, dr, block_irq))

    def close(self) -> None:
        assert not self.closed
        self.closed = True


class Rig:
    """A VM over the fake engine, with the ioctls as methods."""

    def __init__(self) -> None:
        self.backend = SoftwareBackend(X86Hooks())
        self.system = self.backend.open()
        self.fd = self.backend.ioctl(self.system, C.KVM_CREATE_VM)
        self.vcpus: list[int] = []
        self.memory: list[mmap.mmap] = []

    def ioctl(self, fd: int, request: int, arg: Any = 0) -> int:
        if isinstance(arg, int):
            return self.backend.ioctl(fd, request, arg)
        return self.backend.ioctl(fd, request, ctypes.addressof(arg))

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

    def create_vcpu(self, vcpu_id: int | None = None) -> int:
        fd = self.ioctl(self.fd, C.KVM_CREATE_VCPU, len(self.vcpus) if vcpu_id is None else vcpu_id)
        self.vcpus.append(fd)
        return fd

    def get(self, request: int, kind: type[Any], index: int = 0) -> Any:
        value = kind()
        self.ioctl(self.vcpus[index], request, value)
        return value

    def set(self, request: int, value: Any, index: int = 0) -> int:
        return self.ioctl(self.vcpus[index], request, value)

    def enable(self, cap: int, value: int, flags: int = 0) -> int:
        request = C.KvmEnableCap(cap=cap, flags=flags)
        request.args[0] = value
        return self.ioctl(self.fd, C.KVM_ENABLE_CAP, request)

    def msrs(self, request: int, values: list[tuple[int, int]], index: int = 0) -> tuple[int, list[int]]:
        """KVM_GET_MSRS or KVM_SET_MSRS: what it returns, and the values there now."""
        raw = b"".join(bytes(X.KvmMsrEntry(index=msr, data=value)) for msr, value in values)
        buffer = ctypes.create_string_buffer(bytes(X.KvmMsrs(nmsrs=len(values))) + raw, 8 + len(raw))
        done = self.ioctl(self.vcpus[index], request, buffer)
        return done, [X.KvmMsrEntry.from_buffer(buffer, 8 + 16 * n).data for n in range(len(values))]

    def get_msr(self, msr: int, index: int = 0) -> int | None:
        done, values = self.msrs(X.KVM_GET_MSRS, [(msr, 0)], index)
        return values[0] if done else None

    def set_msr(self, msr: int, value: int, index: int = 0) -> bool:
        return self.msrs(X.KVM_SET_MSRS, [(msr, value)], index)[0] == 1

    def run(self, *events: Any, index: int = 0) -> Any:
        """Let these events come, and KVM_RUN; the run page."""
        if events:
            self.cpu(index).script.extend(events)
        self.ioctl(self.vcpus[index], C.KVM_RUN)
        return self.page(index)

    def page(self, index: int = 0) -> Any:
        return self.vm.vcpu_array[index].run

    def bytes(self, index: int = 0) -> memoryview:
        return self.vm.vcpu_array[index].page

    def add_memory(self, gpa: int, size: int, *, slot: int = 0, flags: int = 0) -> mmap.mmap:
        memory = mmap.mmap(-1, size)
        self.memory.append(memory)
        view = ctypes.c_char.from_buffer(memory)
        region = C.KvmUserspaceMemoryRegion(slot, flags, gpa, size, ctypes.addressof(view))
        self.ioctl(self.fd, C.KVM_SET_USER_MEMORY_REGION, region)
        return memory

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


def install(monkeypatch: pytest.MonkeyPatch, cpu: type[FakeCpu] = FakeCpu) -> None:
    """Put the fakes in the engine's place."""
    from anykvm.arch.x86 import cpuid

    monkeypatch.setattr("anykvm.arch.x86.vcpu.Cpu", cpu)
    monkeypatch.setattr("anykvm.arch.x86.vm.Machine", FakeMachine)
    monkeypatch.setattr("anykvm.arch.x86.cpuid.Cpu", cpu)
    monkeypatch.setattr("anykvm.arch.x86.cpuid.Machine", FakeMachine)
    monkeypatch.setattr(FakeCpu, "ticks", 1_000_000)
    cpuid.forget()


def errno_of(function: Callable[..., object], *args: Any, **kwargs: Any) -> int:
    """The errno a call fails with."""
    with pytest.raises(OSError) as caught:
        function(*args, **kwargs)
    assert caught.value.errno is not None
    assert str(caught.value.strerror)
    return caught.value.errno


def rigs(monkeypatch: pytest.MonkeyPatch, cpu: type[FakeCpu] = FakeCpu) -> Iterator[Rig]:
    """A rig that leaves nothing behind."""
    from anykvm.arch.x86 import cpuid

    install(monkeypatch, cpu)
    rig = Rig()
    yield rig
    rig.close()
    assert rig.backend.services.ledger() == {}
    cpuid.forget()
