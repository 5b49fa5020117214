# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of the interrupt controllers stand on: a clock that moves when told, vCPUs that write down what they
are told, and a VM with real routing and buses.
"""

from __future__ import annotations

import errno
import threading
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from anykvm.arch.x86 import irqchip
from anykvm.arch.x86.apic_bus import ApicBus
from anykvm.arch.x86.lapic import APIC_DEFAULT_BASE, Lapic
from anykvm.arch.x86.lapic_regs import APIC_SVR
from anykvm.uapi.constants import KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_UNINITIALIZED
from anykvm.virt.bus import IoBus
from anykvm.virt.irq import IrqRouting
from anykvm.virt.ladder import Ladder


class FakeTimer:
    """A deadline of the clock below."""

    def __init__(self, clock: Clock, name: str, callback: Callable[[], None]) -> None:
        self.clock = clock
        self.name = name
        self.callback = callback
        self.armed: int | None = None

    def arm(self, deadline_ns: int) -> None:
        self.armed = deadline_ns

    def cancel(self) -> None:
        self.armed = None


class Clock:
    """Time in ns, and the services the interrupt controllers use."""

    def __init__(self) -> None:
        self.ns = 1_000_000
        self.timers: list[FakeTimer] = []
        self.held: Counter[str] = Counter()
        self.mutexes: dict[int, str] = {}
        self.fail_at = -1
        self.acquired = 0

    def now(self) -> int:
        return self.ns

    def _acquire(self, name: str) -> None:
        if self.acquired == self.fail_at:
            raise OSError(errno.ENOMEM, name)
        self.acquired += 1
        self.held[name] += 1

    def charge(self, name: str, size: int = 0) -> str:
        self._acquire(name)
        return name

    def free(self, name: str) -> None:
        self.held[name] -= 1

    def timer(self, name: str, callback: Callable[[], None]) -> FakeTimer:
        self._acquire(name)
        timer = FakeTimer(self, name, callback)
        self.timers.append(timer)
        return timer

    def free_timer(self, timer: FakeTimer) -> None:
        self.held[timer.name] -= 1
        self.timers.remove(timer)

    def ladder(self, owner: str) -> Ladder:
        return Ladder()

    def mutex(self, name: str) -> threading.Lock:
        self._acquire(name)
        mutex = threading.Lock()
        self.mutexes[id(mutex)] = name
        return mutex

    def free_mutex(self, mutex: threading.Lock) -> None:
        self.held[self.mutexes.pop(id(mutex))] -= 1

    def publish(self, what: str) -> None:
        pass

    def make_deadline(self, callback: Callable[[], None]) -> FakeTimer:
        return self.timer("test", callback)

    def ledger(self) -> dict[str, int]:
        return {name: count for name, count in self.held.items() if count}

    def advance(self, ns: int) -> None:
        """Let time pass, with the callbacks where they are due."""
        end = self.ns + ns
        while True:
            due = [timer for timer in self.timers if timer.armed is not None and timer.armed <= end]
            if not due:
                break
            timer = min(due, key=lambda timer: timer.armed or 0)
            assert timer.armed is not None
            self.ns = max(self.ns, timer.armed)
            timer.armed = None
            timer.callback()
        self.ns = end

    def stall(self, ns: int) -> None:
        """Let time pass with the timer thread asleep, then let it run once for each deadline."""
        self.ns += ns
        for timer in list(self.timers):
            if timer.armed is not None and timer.armed <= self.ns:
                timer.armed = None
                timer.callback()


class FakeSide:
    """A vCPU as its local APIC sees it."""

    def __init__(self, vcpu_id: int) -> None:
        self.vcpu_id = vcpu_id
        self.mp_state = KVM_MP_STATE_UNINITIALIZED if vcpu_id else KVM_MP_STATE_RUNNABLE
        self.line = False
        self.changes = 0
        self.nmis = 0
        self.smis = 0
        self.latches_init = False
        self.events = 0
        self.cr8 = 0
        self.log: list[Any] = []

    def set_intr(self, level: bool) -> None:
        assert level != self.line, "told twice"
        self.line = level
        self.changes += 1

    def nmi(self) -> None:
        self.nmis += 1

    def smi(self) -> None:
        self.smis += 1

    def apic_event(self) -> None:
        self.events += 1

    def tsc_to_ns(self, tsc: int) -> int:
        """A tick is a nanosecond."""
        return tsc

    def tpr_touched(self, write: bool) -> None:
        self.touched = write

    def set_cr8(self, cr8: int) -> None:
        self.cr8 = cr8

    def init(self) -> None:
        self.log.append("init")

    def start(self, vector: int) -> None:
        self.log.append(("start", vector))

    def ioapic_eoi(self, vector: int) -> None:
        self.log.append(("eoi", vector))

    def turned_on(self) -> None:
        """Nobody waits for this."""

    def sint_eoi(self, vector: int) -> None:
        self.log.append(("sint", vector))


def side_of(lapic: Lapic) -> FakeSide:
    side = lapic.side
    assert isinstance(side, FakeSide)
    return side


def make_lapic(bus: ApicBus, clock: Clock, vcpu_id: int = 0, *, on: bool = True) -> Lapic:
    lapic = Lapic(FakeSide(vcpu_id), bus, bsp=vcpu_id == 0, now=clock.now, make_deadline=clock.make_deadline)
    lapic.online()
    if on:
        put(lapic, APIC_SVR, 0x1FF)
    return lapic


def make_lapics(count: int, *, on: bool = True) -> tuple[Clock, ApicBus, list[Lapic]]:
    clock = Clock()
    bus = ApicBus(threading.Lock())
    return clock, bus, [make_lapic(bus, clock, vcpu_id, on=on) for vcpu_id in range(count)]


def put(lapic: Lapic, register: int, value: int, size: int = 4) -> None:
    """A guest's write to a register."""
    assert lapic.write(lapic.base + register, size, value)


def get(lapic: Lapic, register: int, size: int = 4) -> int:
    """A guest's read of a register."""
    value = lapic.read(lapic.base + register, size)
    assert value is not None
    return value


def bits(bitmap: int) -> list[int]:
    return [bit for bit in range(bitmap.bit_length()) if bitmap >> bit & 1]


class Hooks:
    """The part of the architecture's hooks that routing uses."""

    name = "x86"
    irqchip_pins = irqchip.IRQCHIP_PINS

    def set_irq(self, vm: Any, chip: int, pin: int, level: int, source: int) -> int:
        return int(vm.arch.irqchip.set_irq(chip, pin, level))

    def set_msi(self, vm: Any, address: int, data: int, devid: int | None) -> int:
        return int(vm.arch.irqchip.set_msi(address, data))

    def default_routing(self, vm: Any) -> list[tuple[int, int, int]]:
        return irqchip.DEFAULT_ROUTING


class FakeVm:
    """A VM with what an irqchip needs of it."""

    def __init__(self) -> None:
        self.services = self.clock = Clock()
        self.hooks = Hooks()
        self.lock = threading.Lock()
        self.slots_lock = threading.Lock()
        self.irq_lock = threading.Lock()
        self.stats = SimpleNamespace(values=[0] * 64)
        self.arch = SimpleNamespace(irqchip=None)
        self.created_vcpus = 0
        self.mmio_bus = IoBus("MMIO")
        self.pio_bus = IoBus("port I/O")
        vm: Any = self
        self.irq = IrqRouting(vm)
        self.lapics: list[Lapic] = []

    @property
    def chip(self) -> irqchip.IrqChip:
        chip = self.arch.irqchip
        assert chip is not None
        return chip

    def create(self) -> irqchip.IrqChip:
        vm: Any = self
        self.arch.irqchip = irqchip.create(vm)
        self.irq.set_default_routing()
        return self.chip

    def create_split(self, pins: int = 24) -> irqchip.IrqChip:
        vm: Any = self
        self.arch.irqchip = irqchip.create_split(vm, pins)
        self.irq.set_entries([])
        return self.chip

    def add_vcpu(self, *, on: bool = True) -> Lapic:
        lapic = self.chip.create_lapic(FakeSide(self.created_vcpus), bsp=self.created_vcpus == 0)
        lapic.online()
        self.created_vcpus += 1
        self.lapics.append(lapic)
        if on:
            put(lapic, APIC_SVR, 0x1FF)
        return lapic

    def inb(self, port: int, size: int = 1) -> int:
        value = self.pio_bus.read(None, port, size)
        assert value is not None, f"nobody at port {port:#x}"
        return value

    def outb(self, port: int, value: int, size: int = 1) -> None:
        assert self.pio_bus.write(None, port, size, value), f"nobody at port {port:#x}"

    def read(self, address: int, size: int = 4) -> int:
        value = self.mmio_bus.read(None, address, size)
        assert value is not None
        return value

    def write(self, address: int, value: int, size: int = 4) -> None:
        assert self.mmio_bus.write(None, address, size, value)


def init_pics(outb: Callable[[int, int], None], *, auto_eoi: bool = False) -> None:
    """Initialise the PICs as Linux does (init_8259A): vectors 0x30 and 0x38, all masked but what the caller opens."""
    outb(0x21, 0xFF)
    outb(0x20, 0x11)
    outb(0x21, 0x30)
    outb(0x21, 1 << 2)
    outb(0x21, 3 if auto_eoi else 1)
    outb(0xA0, 0x11)
    outb(0xA1, 0x38)
    outb(0xA1, 2)
    outb(0xA1, 1)
    outb(0x21, 0xFB)
    outb(0xA1, 0xFF)


__all__ = [
    "APIC_DEFAULT_BASE",
    "Clock",
    "FakeSide",
    "FakeVm",
    "bits",
    "get",
    "init_pics",
    "make_lapic",
    "make_lapics",
    "put",
    "side_of",
]
