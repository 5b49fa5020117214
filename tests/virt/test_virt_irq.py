# SPDX-License-Identifier: GPL-2.0-only
"""GSI routing, KVM_IRQ_LINE, KVM_SIGNAL_MSI."""

from __future__ import annotations

import ctypes

import pytest
from fake_arch import Machine

from anykvm.uapi import constants as c
from anykvm.uapi import requests as rq
from anykvm.uapi.structs import KvmIrqLevel, KvmIrqRouting, KvmIrqRoutingEntry, KvmMsi


def pin(gsi: int, chip: int, number: int, flags: int = 0) -> KvmIrqRoutingEntry:
    entry = KvmIrqRoutingEntry(gsi=gsi, type=c.KVM_IRQ_ROUTING_IRQCHIP, flags=flags)
    entry.u.irqchip.irqchip = chip
    entry.u.irqchip.pin = number
    return entry


def msi(gsi: int, address: int, data: int, flags: int = 0, devid: int = 0) -> KvmIrqRoutingEntry:
    entry = KvmIrqRoutingEntry(gsi=gsi, type=c.KVM_IRQ_ROUTING_MSI, flags=flags)
    entry.u.msi.address_lo = address & 0xFFFFFFFF
    entry.u.msi.address_hi = address >> 32
    entry.u.msi.data = data
    entry.u.msi.devid = devid
    return entry


def table(*entries: KvmIrqRoutingEntry, flags: int = 0) -> ctypes.Array[ctypes.c_char]:
    raw = bytes(KvmIrqRouting(len(entries), flags)) + b"".join(map(bytes, entries))
    return ctypes.create_string_buffer(raw, len(raw))


SET = rq.KVM_SET_GSI_ROUTING


def test_routes_to_pins_and_messages(machine: Machine) -> None:
    fd = machine.vm()
    irq = machine.vm_of(fd).irq
    machine.ioctl(fd, SET, table(pin(3, 0, 5), pin(3, 1, 9), msi(4, 0xFEE00000_00001000, 0x55)))
    assert irq.set_irq(3, 1) == 2
    assert machine.arch.pins == [(0, 5, 1), (1, 9, 1)]
    assert irq.set_irq(4, 1) == 1
    assert irq.set_irq(4, 0) == -1
    assert machine.arch.msis == [(0xFEE00000_00001000, 0x55, None)]
    assert irq.set_irq(5, 1) == -1
    machine.ioctl(fd, SET, table(msi(4, 0x1000, 1, c.KVM_MSI_VALID_DEVID, 7)))
    assert irq.set_irq(3, 1) == -1
    irq.set_irq(4, 1)
    assert machine.arch.msis[-1] == (0x1000, 1, 7)


@pytest.mark.parametrize(
    "bad",
    [
        table(pin(4096, 0, 0)),
        table(pin(0, 2, 0)),
        table(pin(0, 0, 16)),
        table(pin(0, 1, 24)),
        table(pin(0, 0, 0, flags=1)),
        table(msi(0, 0, 0, flags=2)),
        table(KvmIrqRoutingEntry(gsi=0, type=3)),
        table(KvmIrqRoutingEntry(gsi=0, type=0)),
        table(pin(0, 0, 0), pin(0, 0, 1)),
        table(pin(0, 0, 0), msi(0, 0, 0)),
        table(msi(0, 0, 0), pin(0, 0, 0)),
        table(msi(0, 0, 0), msi(0, 0, 0)),
        table(pin(0, 0, 0), flags=1),
        table(*[pin(n % 4096, 0, 0) for n in range(4097)]),
    ],
)
def test_einval_leaves_the_table_alone(machine: Machine, bad: ctypes.Array[ctypes.c_char]) -> None:
    fd = machine.vm()
    machine.ioctl(fd, SET, table(pin(9, 1, 9)))
    assert machine.errno(fd, SET, bad) == "EINVAL"
    assert machine.vm_of(fd).irq.set_irq(9, 1) == 1


def test_limits_that_are_fine(machine: Machine) -> None:
    fd = machine.vm()
    assert machine.errno(fd, SET, table(*[msi(n, 0x1000, n) for n in range(4096)])) == "0"
    assert machine.vm_of(fd).irq.set_irq(4095, 1) == 1
    assert machine.errno(fd, SET, table()) == "0"
    assert machine.vm_of(fd).irq.set_irq(4095, 1) == -1


def test_efault(machine: Machine) -> None:
    fd = machine.vm()
    assert machine.errno(fd, SET, 0) == "EFAULT"
    assert machine.errno(fd, rq.KVM_IRQ_LINE, 1) == "EFAULT"
    assert machine.errno(fd, rq.KVM_IRQ_LINE_STATUS, 1) == "EFAULT"
    assert machine.errno(fd, rq.KVM_SIGNAL_MSI, 1) == "EFAULT"


def test_without_an_irqchip(machine: Machine) -> None:
    machine.arch.irqchip = False
    fd = machine.vm()
    assert machine.errno(fd, SET, table()) == "EINVAL"
    assert machine.errno(fd, rq.KVM_IRQ_LINE, KvmIrqLevel()) == "ENXIO"
    assert machine.errno(fd, rq.KVM_SIGNAL_MSI, KvmMsi()) == "EINVAL"


def test_default_routing(machine: Machine) -> None:
    fd = machine.vm()
    vm = machine.vm_of(fd)
    assert vm.irq.routes(3) == ()
    vm.irq.set_default_routing()
    assert [(route.irqchip, route.pin) for route in vm.irq.routes(3)] == [(1, 3)]


def test_irq_line(machine: Machine) -> None:
    fd = machine.vm()
    level = KvmIrqLevel(level=1)
    level.irq = 12
    assert machine.ioctl(fd, rq.KVM_IRQ_LINE, level) == 0
    assert machine.arch.pins == [(0, 12, 1)]
    assert level.irq == 12
    assert machine.ioctl(fd, rq.KVM_IRQ_LINE_STATUS, level) == 0
    assert level.status == 1


def test_signal_msi(machine: Machine) -> None:
    fd = machine.vm()
    message = KvmMsi(address_lo=0x8000, address_hi=1, data=3)
    assert machine.ioctl(fd, rq.KVM_SIGNAL_MSI, message) == 1
    message.flags = c.KVM_MSI_VALID_DEVID
    message.devid = 6
    assert machine.ioctl(fd, rq.KVM_SIGNAL_MSI, message) == 1
    assert machine.arch.msis == [(0x1_00008000, 3, None), (0x1_00008000, 3, 6)]
    message.flags = 4
    assert machine.errno(fd, rq.KVM_SIGNAL_MSI, message) == "EINVAL"


def test_a_destination_that_refuses_is_passed_over(machine: Machine) -> None:
    fd = machine.vm()
    machine.ioctl(fd, SET, table(pin(3, 0, 5), pin(3, 1, 9)))
    taken = machine.arch.set_irq

    def set_irq(vm: object, irqchip: int, number: int, level: int, source: int) -> int:
        if irqchip == 0:
            raise OSError(22, "masked")
        return taken(vm, irqchip, number, level, source)

    machine.arch.set_irq = set_irq  # type: ignore[method-assign]
    assert machine.vm_of(fd).irq.set_irq(3, 1) == 1


def test_resamplers(machine: Machine) -> None:
    fd = machine.vm()
    irq = machine.vm_of(fd).irq
    machine.ioctl(fd, SET, table(pin(3, 1, 9)))
    acked: list[str] = []

    def first() -> None:
        acked.append("first")

    def second() -> None:
        acked.append("second")

    irq.notify_acked(1, 9)
    assert not irq.has_notifier(1, 9)
    irq.register_ack_notifier(3, first)
    irq.register_ack_notifier(3, second)
    assert irq.has_notifier(1, 9)
    assert not irq.has_notifier(1, 8)
    irq.notify_acked(1, 8)
    irq.notify_acked(1, 9)
    irq.unregister_ack_notifier(3, first)
    irq.notify_acked(1, 9)
    irq.unregister_ack_notifier(3, second)
    irq.notify_acked(1, 9)
    assert acked == ["first", "second", "second"]
    # The line is lowered once for each end of interrupt that somebody waits for.
    assert machine.arch.pins == [(1, 9, 0), (1, 9, 0)]
    assert not irq.has_notifier(1, 9)
