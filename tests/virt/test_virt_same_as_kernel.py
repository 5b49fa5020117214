# SPDX-License-Identifier: GPL-2.0-only
"""The same calls on the machine's own /dev/kvm and here end in the same errno. One VM at a time, none of them runs."""

from __future__ import annotations

import ctypes
import errno
import importlib
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_arch import FakeArch, Machine
from test_virt_eventfd import io
from test_virt_irq import msi, pin, table
from test_virt_memory import HVA, PAGE, SET, region

from anykvm.uapi import caps
from anykvm.uapi import constants as c
from anykvm.uapi import requests as rq
from anykvm.uapi.structs import (
    KvmClearDirtyLog,
    KvmCreateDevice,
    KvmDirtyLog,
    KvmEnableCap,
    KvmIrqfd,
    KvmIrqRoutingEntry,
)

pytestmark = pytest.mark.kvm

Case = Callable[[Any, int], Any]


class Host:
    """The real thing, with the methods of :class:`Machine` that only need the ABI."""

    def __init__(self) -> None:
        host = importlib.import_module("anykvm.host")
        reason = host.probe()
        if reason is not None:
            pytest.skip(reason)
        if host.host_arch() != "x86":
            pytest.skip("the cases with an interrupt controller are x86's")
        self.backend: Any = host.HostBackend()
        self.system = self.backend.open()

    ioctl = Machine.ioctl
    errno = Machine.errno
    vm = Machine.vm
    vcpu = Machine.vcpu


class LikeX86(FakeArch):
    user_mem_slots = 32764
    irqchip_pins = (8, 8, 24)


@pytest.fixture
def both(machine: Machine) -> Iterator[Callable[..., None]]:
    """Runs a case on a VM of each and compares."""
    host = Host()
    machine.arch.user_mem_slots = LikeX86.user_mem_slots
    machine.arch.irqchip_pins = LikeX86.irqchip_pins

    def compare(case: Case, irqchip: bool = False) -> None:
        results = []
        for one in (host, machine):
            vm = one.vm()
            try:
                if irqchip and one is host:
                    one.ioctl(vm, rq.KVM_CREATE_IRQCHIP)
                results.append(case(one, vm))
            finally:
                one.backend.close(vm)
        assert results[1] == results[0]

    yield compare
    host.backend.close(host.system)


@pytest.fixture
def events() -> Iterator[tuple[int, int, int]]:
    """Two eventfds and something that is none."""
    fds = (os.eventfd(0), os.eventfd(0), os.memfd_create("none"))
    yield fds
    for fd in fds:
        os.close(fd)


SLOTS = [
    region(gpa=1),
    region(size=4095),
    region(hva=HVA + 8),
    region(flags=1 << 5),
    region(flags=c.KVM_MEM_GUEST_MEMFD),
    region(slot=32763),
    region(slot=32764),
    region(slot=0xFFFF),
    region(slot=1 << 16),
    region(slot=2 << 16),
    region(gpa=(1 << 64) - PAGE),
    region(gpa=(1 << 64) - PAGE, size=2 * PAGE),
    region(size=1 << 63),
    region(hva=1 << 63),
    region(hva=(1 << 63) - PAGE),
    region(hva=(1 << 47) - PAGE),
    region(size=(1 << 31) * PAGE),
    region(size=0),
]


@pytest.mark.parametrize("slot", SLOTS, ids=range(len(SLOTS)))
def test_slot_refusals(both: Callable[..., None], slot: Any) -> None:
    both(lambda kvm, vm: kvm.errno(vm, SET, slot))


@pytest.mark.parametrize("seed", range(12))
def test_slot_sequences(both: Callable[..., None], seed: int) -> None:
    rng = random.Random(seed)
    steps = [
        region(
            rng.randrange(4),
            rng.randrange(12) * PAGE,
            rng.randrange(5) * PAGE,
            HVA + rng.randrange(3) * PAGE,
            rng.choice([0, 0, 0, 1, 2, 3, 8]),
        )
        for _ in range(40)
    ]
    both(lambda kvm, vm: [kvm.errno(vm, SET, step) for step in steps])


@pytest.mark.parametrize("flags", [0, c.KVM_MEM_LOG_DIRTY_PAGES])
def test_dirty_logs(both: Callable[..., None], flags: int) -> None:
    buffer = (ctypes.c_uint64 * 8)()

    def get(slot: int, address: int = ctypes.addressof(buffer)) -> KvmDirtyLog:
        log = KvmDirtyLog(slot=slot)
        log.dirty_bitmap = address
        return log

    def clear(slot: int, first: int, count: int, address: int = ctypes.addressof(buffer)) -> KvmClearDirtyLog:
        log = KvmClearDirtyLog(slot=slot, num_pages=count, first_page=first)
        log.dirty_bitmap = address
        return log

    def case(kvm: Any, vm: int) -> list[str]:
        found = [kvm.errno(vm, rq.KVM_GET_DIRTY_LOG, get(2)), kvm.errno(vm, rq.KVM_CLEAR_DIRTY_LOG, clear(2, 1, 64))]
        kvm.ioctl(vm, SET, region(2, 0x100000, 50 * PAGE, flags=flags))
        for slot in (2, 3, 32764, 32767, 1 << 16 | 2, 1 << 20):
            found.append(kvm.errno(vm, rq.KVM_GET_DIRTY_LOG, get(slot)))
            found.append(kvm.errno(vm, rq.KVM_CLEAR_DIRTY_LOG, clear(slot, 0, 50)))
        found.append(kvm.errno(vm, rq.KVM_GET_DIRTY_LOG, get(2, 64)))
        for first in (0, 1, 64, (1 << 64) - 64):
            for count in (0, 1, 49, 50, 51, 64, 0xFFFFFFFF):
                found.append(kvm.errno(vm, rq.KVM_CLEAR_DIRTY_LOG, clear(2, first, count)))
        found.append(kvm.errno(vm, rq.KVM_CLEAR_DIRTY_LOG, clear(2, 0, 50, 64)))
        return found

    both(case)


def test_manual_dirty_log_protect(both: Callable[..., None]) -> None:
    def cap(value: int, flags: int = 0) -> KvmEnableCap:
        request = KvmEnableCap(cap=caps.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, flags=flags)
        request.args[0] = value
        return request

    requests = [*map(cap, range(9)), cap(1, 1), KvmEnableCap(cap=9999), 0]
    both(lambda kvm, vm: [kvm.errno(vm, rq.KVM_ENABLE_CAP, request) for request in requests])


@pytest.mark.parametrize("irqchip", [False, True])
def test_ioeventfds(both: Callable[..., None], events: tuple[int, int, int], irqchip: bool) -> None:
    one, two, none = events
    off, pio = c.KVM_IOEVENTFD_FLAG_DEASSIGN, c.KVM_IOEVENTFD_FLAG_PIO
    requests = [
        0,
        *[io(one, size=size) for size in (3, 16, 5)],
        *[io(one, addr=(1 << 64) - n) for n in (2, 4, 5, 8)],
        *[io(one, addr=0x9000 + bit * 64, flags=1 << bit) for bit in range(3, 32)],
        io(one, size=0, match=1),
        *[io(fd) for fd in (1000, -1, none)],
        *[io(one, match=5), io(two, match=5), io(two), io(two, size=0), io(two, size=2), io(two, match=6)],
        *[io(two, match=5, flags=off), io(one, match=9, flags=off), io(one, flags=off)],
        *[io(1000, match=5, flags=off), io(none, match=5, flags=off), io(one, size=3, flags=off)],
        *[io(one, match=5, flags=off), io(one, match=5, flags=off), io(one, flags=pio), io(one, flags=off)],
        *[io(one, flags=pio), io(one, flags=off | pio), io(one, size=0, addr=0x5000)],
        io(one, size=0, addr=0x5000, flags=off | 1024),
    ]
    both(lambda kvm, vm: [kvm.errno(vm, rq.KVM_IOEVENTFD, request) for request in requests], irqchip=irqchip)


def test_irqfds(both: Callable[..., None], events: tuple[int, int, int]) -> None:
    one, two, none = events
    off, resample = c.KVM_IRQFD_FLAG_DEASSIGN, c.KVM_IRQFD_FLAG_RESAMPLE
    requests = [
        0,
        KvmIrqfd(fd=one, gsi=3, flags=4),
        *[KvmIrqfd(fd=fd, gsi=3) for fd in (1000, 0xFFFFFFFF, none)],
        *[KvmIrqfd(fd=fd, gsi=3, flags=off) for fd in (1000, 0xFFFFFFFF, none, one)],
        *[KvmIrqfd(fd=one, gsi=3, flags=resample, resamplefd=fd) for fd in (1000, none)],
        *[KvmIrqfd(fd=one, gsi=3), KvmIrqfd(fd=one, gsi=4), KvmIrqfd(fd=two, gsi=3)],
        *[KvmIrqfd(fd=one, gsi=4, flags=off), KvmIrqfd(fd=one, gsi=4), KvmIrqfd(fd=one, gsi=3, flags=off)],
        *[KvmIrqfd(fd=one, gsi=99999), KvmIrqfd(fd=one, gsi=99999, flags=off)],
        KvmIrqfd(fd=one, gsi=3, flags=resample, resamplefd=one),
    ]
    both(lambda kvm, vm: [kvm.errno(vm, rq.KVM_IRQFD, request) for request in requests], irqchip=True)


def test_routing(both: Callable[..., None]) -> None:
    doorbell = 0xFEE00000
    requests = [
        0,
        table(),
        *[table(pin(gsi, 0, 0)) for gsi in (0, 4095, 4096)],
        *[table(pin(0, chip, number)) for chip, number in ((3, 0), (0, 8), (1, 7), (2, 24), (2, 23))],
        table(pin(0, 0, 0, flags=1)),
        *[table(msi(0, doorbell, 0, flags=flags)) for flags in (0, 1, 2)],
        *[table(KvmIrqRoutingEntry(gsi=0, type=kind)) for kind in (0, 3, 99)],
        table(pin(0, 0, 0), pin(0, 0, 1)),
        table(pin(0, 0, 0), pin(0, 2, 1)),
        table(pin(0, 0, 0), msi(0, doorbell, 0)),
        table(msi(0, doorbell, 0), pin(0, 0, 0)),
        table(msi(0, doorbell, 0), msi(0, doorbell, 0)),
        table(pin(0, 0, 0), flags=1),
        table(*[pin(n % 4096, 0, 0) for n in range(4097)]),
        table(*[msi(n, doorbell, 0) for n in range(4096)]),
    ]
    both(lambda kvm, vm: [kvm.errno(vm, rq.KVM_SET_GSI_ROUTING, request) for request in requests], irqchip=True)


def test_requests_nobody_knows(both: Callable[..., None]) -> None:
    def case(kvm: Any, vm: int) -> list[str]:
        vcpu = kvm.vcpu(vm)
        try:
            found = [kvm.errno(fd, n) for fd in (kvm.system, vm, vcpu) for n in (0, 0x5401, 0xAE7F, 0xAEAE0000)]
            found += [kvm.errno(kvm.system, n, 1) for n in (rq.KVM_GET_API_VERSION, rq.KVM_GET_VCPU_MMAP_SIZE)]
            found += [kvm.errno(vcpu, rq.KVM_RUN, 1), kvm.errno(kvm.system, rq.KVM_CREATE_VCPU)]
            for length in (0, 4, 8, 16, 128):
                found.append(kvm.errno(vcpu, rq.KVM_SET_SIGNAL_MASK, (ctypes.c_uint32 * 3)(length)))
            found += [kvm.errno(vcpu, rq.KVM_SET_SIGNAL_MASK, address) for address in (0, 5)]
            return found
        finally:
            kvm.backend.close(vcpu)

    both(case)


def test_vcpu_ids(both: Callable[..., None]) -> None:
    def case(kvm: Any, vm: int) -> list[str]:
        found, fds = [], []
        for vcpu_id in (0, 3, 0, 3, 5000, 1 << 31, 1 << 32, (1 << 64) - 1, 1):
            try:
                fds.append(kvm.vcpu(vm, vcpu_id))
                found.append("0")
            except OSError as failure:
                found.append(errno.errorcode[failure.errno])
        kvm.backend.close(fds.pop(0))
        found.append(kvm.errno(vm, rq.KVM_CREATE_VCPU, 0))
        for fd in fds:
            kvm.backend.close(fd)
        return found

    both(case)


def test_devices(both: Callable[..., None]) -> None:
    requests = [KvmCreateDevice(type=kind, flags=flags) for kind in (0, 5, 7, 9999) for flags in range(4)]
    both(lambda kvm, vm: [kvm.errno(vm, rq.KVM_CREATE_DEVICE, request) for request in (*requests, 0)])
