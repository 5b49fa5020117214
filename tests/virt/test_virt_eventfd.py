# SPDX-License-Identifier: GPL-2.0-only
"""irqfd and ioeventfd, with real eventfds."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from fake_arch import Machine
from test_virt_irq import msi, pin, table

from anykvm.uapi import constants as c
from anykvm.uapi import requests as rq
from anykvm.uapi.structs import KvmIoeventfd, KvmIrqfd

IRQFD = rq.KVM_IRQFD
IOEVENTFD = rq.KVM_IOEVENTFD


def wait_for(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 5
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


@pytest.fixture
def event() -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


@pytest.fixture
def event2() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


@pytest.fixture
def vm(machine: Machine) -> int:
    fd = machine.vm()
    machine.ioctl(fd, rq.KVM_SET_GSI_ROUTING, table(pin(3, 1, 9), msi(4, 0x1000, 0x44)))
    return fd


def test_an_irqfd_raises_an_edge(machine: Machine, vm: int, event: int) -> None:
    assert machine.ioctl(vm, IRQFD, KvmIrqfd(fd=event, gsi=3)) == 0
    os.eventfd_write(event, 1)
    assert wait_for(lambda: machine.arch.pins == [(1, 9, 1), (1, 9, 0)])
    for count in range(2, 20):
        os.eventfd_write(event, 1)
        assert wait_for(lambda count=count: len(machine.arch.pins) == 2 * count)


def test_an_irqfd_sends_a_message(machine: Machine, vm: int, event: int) -> None:
    machine.ioctl(vm, IRQFD, KvmIrqfd(fd=event, gsi=4))
    os.eventfd_write(event, 5)
    assert wait_for(lambda: machine.arch.msis == [(0x1000, 0x44, None)])


def test_the_eventfd_is_read_empty(machine: Machine, vm: int, event2: int) -> None:
    machine.ioctl(vm, IRQFD, KvmIrqfd(fd=event2, gsi=4))
    os.eventfd_write(event2, 1)
    assert wait_for(lambda: len(machine.arch.msis) == 1)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(event2)


def test_an_event_from_before_counts(machine: Machine, vm: int, event: int) -> None:
    os.eventfd_write(event, 1)
    machine.ioctl(vm, IRQFD, KvmIrqfd(fd=event, gsi=4))
    assert wait_for(lambda: len(machine.arch.msis) == 1)


def test_deassign(machine: Machine, vm: int, event: int) -> None:
    before = machine.ledger()
    machine.ioctl(vm, IRQFD, KvmIrqfd(fd=event, gsi=3))
    assert machine.errno(vm, IRQFD, KvmIrqfd(fd=event, gsi=4, flags=c.KVM_IRQFD_FLAG_DEASSIGN)) == "0"
    os.eventfd_write(event, 1)
    assert wait_for(lambda: len(machine.arch.pins) == 2)
    duplicate = os.dup(event)
    machine.ioctl(vm, IRQFD, KvmIrqfd(fd=duplicate, gsi=3, flags=c.KVM_IRQFD_FLAG_DEASSIGN))
    os.close(duplicate)
    os.eventfd_write(event, 1)
    time.sleep(0.02)
    assert len(machine.arch.pins) == 2
    held = {key for key in machine.ledger() if machine.ledger()[key] != before.get(key)}
    assert held == {("fd", "irqfd epoll"), ("fd", "irqfd wake"), ("thread", "irqfd")}
    machine.ioctl(vm, IRQFD, KvmIrqfd(fd=event, gsi=3))


def test_one_eventfd_is_one_irqfd(machine: Machine, vm: int, event: int, event2: int) -> None:
    machine.ioctl(vm, IRQFD, KvmIrqfd(fd=event, gsi=3))
    duplicate = os.dup(event)
    assert machine.errno(vm, IRQFD, KvmIrqfd(fd=event, gsi=4)) == "EBUSY"
    assert machine.errno(vm, IRQFD, KvmIrqfd(fd=duplicate, gsi=4)) == "EBUSY"
    assert machine.errno(vm, IRQFD, KvmIrqfd(fd=event2, gsi=3)) == "0"
    os.close(duplicate)
    assert len(machine.vm_of(vm).irqfds) == 2


def test_irqfd_refusals(machine: Machine, vm: int, event: int) -> None:
    not_open = 1000
    pipe = os.pipe()
    assert machine.errno(vm, IRQFD, 0) == "EFAULT"
    assert machine.errno(vm, IRQFD, KvmIrqfd(fd=event, gsi=3, flags=4)) == "EINVAL"
    for flags in (0, c.KVM_IRQFD_FLAG_DEASSIGN):
        assert machine.errno(vm, IRQFD, KvmIrqfd(fd=not_open, gsi=3, flags=flags)) == "EBADF"
        assert machine.errno(vm, IRQFD, KvmIrqfd(fd=0xFFFFFFFF, gsi=3, flags=flags)) == "EBADF"
        assert machine.errno(vm, IRQFD, KvmIrqfd(fd=pipe[0], gsi=3, flags=flags)) == "EINVAL"
    resample = KvmIrqfd(fd=event, gsi=3, flags=c.KVM_IRQFD_FLAG_RESAMPLE, resamplefd=not_open)
    assert machine.errno(vm, IRQFD, resample) == "EBADF"
    resample.resamplefd = pipe[1]
    assert machine.errno(vm, IRQFD, resample) == "EINVAL"
    machine.arch.ready = False
    assert machine.errno(vm, IRQFD, KvmIrqfd(fd=event, gsi=3)) == "EAGAIN"
    machine.arch.ready = True
    machine.arch.irqchip = False
    assert machine.errno(vm, IRQFD, KvmIrqfd(fd=event, gsi=3)) == "EINVAL"
    for fd in pipe:
        os.close(fd)
    assert len(machine.vm_of(vm).irqfds) == 0


def test_a_resampling_irqfd(machine: Machine, vm: int, event: int, event2: int) -> None:
    irq = machine.vm_of(vm).irq
    machine.ioctl(vm, IRQFD, KvmIrqfd(fd=event, gsi=3, flags=c.KVM_IRQFD_FLAG_RESAMPLE, resamplefd=event2))
    assert irq.has_notifier(1, 9)
    os.eventfd_write(event, 1)
    assert wait_for(lambda: machine.arch.pins == [(1, 9, 1)])
    irq.notify_acked(1, 9)
    assert machine.arch.pins == [(1, 9, 1), (1, 9, 0)]
    assert os.eventfd_read(event2) == 1
    os.eventfd_write(event, 1)
    assert wait_for(lambda: machine.arch.pins[-1] == (1, 9, 1))
    machine.ioctl(vm, IRQFD, KvmIrqfd(fd=event, gsi=3, flags=c.KVM_IRQFD_FLAG_DEASSIGN))
    assert machine.arch.pins[-1] == (1, 9, 0)
    assert not irq.has_notifier(1, 9)


def test_closing_the_vm_fd_ends_irqfds_though_a_vcpu_keeps_the_vm(machine: Machine, vm: int, event: int) -> None:
    machine.vcpu(vm)
    machine.ioctl(vm, IRQFD, KvmIrqfd(fd=event, gsi=3))
    threads = threading.active_count()
    machine.backend.close(vm)
    assert threading.active_count() == threads - 1
    os.eventfd_write(event, 1)
    time.sleep(0.02)
    assert machine.arch.pins == []
    assert os.eventfd_read(event) == 1


@pytest.mark.parametrize("step", range(6))
def test_an_irqfd_that_cannot_be_made(machine: Machine, vm: int, event: int, event2: int, step: int) -> None:
    before = machine.ledger()
    machine.services.arm(step)
    args = KvmIrqfd(fd=event, gsi=3, flags=c.KVM_IRQFD_FLAG_RESAMPLE, resamplefd=event2)
    assert machine.errno(vm, IRQFD, args) in {"ENOMEM", "EMFILE", "EAGAIN"}
    machine.services.disarm()
    assert machine.ledger() == before
    assert machine.errno(vm, IRQFD, args) == "0"


def test_assigning_while_events_arrive(machine: Machine, vm: int, event: int) -> None:
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            os.eventfd_write(event, 1)
            time.sleep(0.0002)

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(50):
        machine.ioctl(vm, IRQFD, KvmIrqfd(fd=event, gsi=4))
        machine.ioctl(vm, IRQFD, KvmIrqfd(fd=event, gsi=4, flags=c.KVM_IRQFD_FLAG_DEASSIGN))
        count = len(machine.arch.msis)
        time.sleep(0.0005)
        assert len(machine.arch.msis) == count
    stop.set()
    thread.join()


# ioeventfd.


def io(fd: int, addr: int = 0x1000, size: int = 4, match: int | None = None, flags: int = 0) -> KvmIoeventfd:
    if match is not None:
        flags |= c.KVM_IOEVENTFD_FLAG_DATAMATCH
    return KvmIoeventfd(match or 0, addr, size, fd, flags)


def test_a_write_signals(machine: Machine, vm: int, event2: int) -> None:
    bus = machine.vm_of(vm).mmio_bus
    machine.ioctl(vm, IOEVENTFD, io(event2))
    assert bus.write(None, 0x1000, 4, 9)
    assert bus.write(None, 0x1000, 4, 10)
    assert os.eventfd_read(event2) == 2
    assert not bus.write(None, 0x1000, 2, 9)
    assert not bus.write(None, 0x1001, 4, 9)
    assert not bus.write(None, 0x0FFF, 4, 9)
    assert bus.read(None, 0x1000, 4) is None
    assert not machine.vm_of(vm).pio_bus.write(None, 0x1000, 4, 9)


def test_datamatch_chooses(machine: Machine, vm: int, event: int, event2: int) -> None:
    bus = machine.vm_of(vm).mmio_bus
    machine.ioctl(vm, IOEVENTFD, io(event, match=1))
    machine.ioctl(vm, IOEVENTFD, io(event2, match=2))
    assert bus.write(None, 0x1000, 4, 2)
    assert os.eventfd_read(event2) == 1
    assert bus.write(None, 0x1000, 4, 1)
    assert os.eventfd_read(event) == 1
    assert not bus.write(None, 0x1000, 4, 3)


def test_any_length(machine: Machine, vm: int, event2: int) -> None:
    bus = machine.vm_of(vm).mmio_bus
    machine.ioctl(vm, IOEVENTFD, io(event2, size=0))
    for size in (1, 2, 4, 8):
        assert bus.write(None, 0x1000, size, 0)
    assert os.eventfd_read(event2) == 4


def test_port_io(machine: Machine, vm: int, event2: int) -> None:
    machine.ioctl(vm, IOEVENTFD, io(event2, flags=c.KVM_IOEVENTFD_FLAG_PIO))
    assert machine.vm_of(vm).pio_bus.write(None, 0x1000, 4, 0)
    assert not machine.vm_of(vm).mmio_bus.write(None, 0x1000, 4, 0)


@pytest.mark.parametrize(
    ("size", "match", "collides"),
    [(4, None, True), (4, 7, False), (4, 5, True), (2, 5, False), (0, None, True), (8, None, False)],
)
def test_collisions(
    machine: Machine, vm: int, event: int, event2: int, size: int, match: int | None, collides: bool
) -> None:
    machine.ioctl(vm, IOEVENTFD, io(event, size=4, match=5))
    assert machine.errno(vm, IOEVENTFD, io(event2, size=size, match=match)) == ("EEXIST" if collides else "0")
    assert machine.errno(vm, IOEVENTFD, io(event2, addr=0x2000, size=size, match=match)) == "0"


def test_ioeventfd_refusals(machine: Machine, vm: int, event: int) -> None:
    assert machine.errno(vm, IOEVENTFD, 0) == "EFAULT"
    assert machine.errno(vm, IOEVENTFD, io(event, size=3)) == "EINVAL"
    assert machine.errno(vm, IOEVENTFD, io(event, size=16)) == "EINVAL"
    assert machine.errno(vm, IOEVENTFD, io(event, addr=(1 << 64) - 2)) == "EINVAL"
    assert machine.errno(vm, IOEVENTFD, io(event, flags=1 << 10)) == "EINVAL"
    assert machine.errno(vm, IOEVENTFD, io(event, size=0, match=1)) == "EINVAL"
    assert machine.errno(vm, IOEVENTFD, io(1000)) == "EBADF"
    assert machine.errno(vm, IOEVENTFD, io(-1)) == "EBADF"
    assert machine.errno(vm, IOEVENTFD, io(0 if not os.isatty(0) else 1)) == "EINVAL"


def test_ioeventfd_deassign(machine: Machine, vm: int, event: int, event2: int) -> None:
    before = machine.ledger()
    off = c.KVM_IOEVENTFD_FLAG_DEASSIGN
    machine.ioctl(vm, IOEVENTFD, io(event, match=5))
    assert machine.errno(vm, IOEVENTFD, io(event2, match=5, flags=off)) == "ENOENT"
    assert machine.errno(vm, IOEVENTFD, io(event, match=6, flags=off)) == "ENOENT"
    assert machine.errno(vm, IOEVENTFD, io(event, flags=off)) == "ENOENT"
    assert machine.errno(vm, IOEVENTFD, io(event, match=5, size=8, flags=off)) == "ENOENT"
    assert machine.errno(vm, IOEVENTFD, io(1000, match=5, flags=off)) == "EBADF"
    assert machine.errno(vm, IOEVENTFD, io(event, match=5, flags=off)) == "0"
    assert machine.ledger() == before
    assert not machine.vm_of(vm).mmio_bus.write(None, 0x1000, 4, 5)
    assert machine.errno(vm, IOEVENTFD, io(event, match=5, flags=off)) == "ENOENT"


def test_the_bus_has_1000_places(machine: Machine, vm: int, event: int) -> None:
    bus = machine.vm_of(vm).mmio_bus

    class Device:
        def read(self, vcpu: object, addr: int, size: int) -> int | None:
            return addr

        def write(self, vcpu: object, addr: int, size: int, value: int) -> bool:
            return True

    for n in range(1000):
        bus.register(n << 12, 4096, Device())
    before = machine.ledger()
    assert machine.errno(vm, IOEVENTFD, io(event)) == "ENOSPC"
    assert machine.ledger() == before


def test_devices_on_the_bus(machine: Machine, vm: int) -> None:
    bus = machine.vm_of(vm).mmio_bus
    writes: list[tuple[str, int, int, int]] = []

    class Device:
        def __init__(self, name: str, takes: bool = True) -> None:
            self.name = name
            self.takes = takes

        def read(self, vcpu: object, addr: int, size: int) -> int | None:
            return addr if self.takes else None

        def write(self, vcpu: object, addr: int, size: int, value: int) -> bool:
            writes.append((self.name, addr, size, value))
            return self.takes

    big, small, shy = Device("big"), Device("small"), Device("shy", takes=False)
    bus.register(0x8000, 0x10000, big)
    bus.register(0x9000, 0x100, shy)
    bus.register(0x20000, 0x100, small)
    assert bus.write(None, 0x9000, 4, 1)
    assert bus.write(None, 0x17FFC, 4, 2)
    assert not bus.write(None, 0x17FFE, 4, 3)
    assert bus.write(None, 0x200FF, 1, 4)
    assert writes == [("shy", 0x9000, 4, 1), ("big", 0x9000, 4, 1), ("big", 0x17FFC, 4, 2), ("small", 0x200FF, 1, 4)]
    assert bus.read(None, 0x9010, 4) == 0x9010
    assert bus.read(None, 0x7FFF, 1) is None
    assert bus.read(None, 0x20100, 1) is None
    bus.unregister(big)
    assert bus.read(None, 0x9010, 4) is None
    assert len(bus) == 2


def test_what_leaves_the_bus_leaves_the_rest_as_it_was(machine: Machine, vm: int) -> None:
    bus = machine.vm_of(vm).mmio_bus

    class Device:
        def __init__(self, number: int) -> None:
            self.number = number

        def read(self, vcpu: object, addr: int, size: int) -> int | None:
            return self.number

        def write(self, vcpu: object, addr: int, size: int, value: int) -> bool:
            return True

    devices = [Device(number) for number in range(6)]
    for device in (devices[3], devices[0], devices[5], devices[1], devices[4], devices[2]):
        bus.register(device.number << 12, 4096, device)
    bus.register_point(0x9000, 4, devices[0])
    bus.register_point(0x9000, 8, devices[1])
    for gone in (2, 5, 0):
        bus.unregister(devices[gone])
    assert [bus.read(None, number << 12, 4) for number in range(6)] == [None, 1, None, 3, 4, None]
    assert (len(bus), bus.write(None, 0x9000, 4, 0)) == (5, True)
    bus.unregister(devices[0])
    assert (len(bus), bus.write(None, 0x9000, 4, 0), bus.write(None, 0x9000, 8, 0)) == (4, False, True)
    bus.unregister(devices[0])
    assert len(bus) == 4


def test_closing_the_vm_lowers_a_resampled_line(machine: Machine, vm: int, event: int, event2: int) -> None:
    machine.ioctl(vm, IRQFD, KvmIrqfd(fd=event, gsi=3, flags=c.KVM_IRQFD_FLAG_RESAMPLE, resamplefd=event2))
    os.eventfd_write(event, 1)
    assert wait_for(lambda: machine.arch.pins == [(1, 9, 1)])
    machine.backend.close(vm)
    assert machine.arch.pins[-1] == (1, 9, 0)
