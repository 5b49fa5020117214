# SPDX-License-Identifier: GPL-2.0-only
"""Coalesced writes in common code: the ring between KVM and userspace, and nothing held after a failure."""

from __future__ import annotations

import struct
from typing import Any

from fake_arch import CountingServices, Machine
from hypothesis import given
from hypothesis import strategies as st

from anykvm.uapi import requests as rq
from anykvm.uapi.structs import KvmCoalescedMmioZone
from anykvm.virt.coalesced import KVM_COALESCED_MMIO_MAX


def zone(addr: int, size: int, pio: int = 0) -> KvmCoalescedMmioZone:
    return KvmCoalescedMmioZone(addr=addr, size=size, pio=pio)


def ring_of(machine: Machine, vcpu: int) -> memoryview:
    return machine.vcpu_of(vcpu).page[4096:8192]


@given(st.lists(st.one_of(st.integers(0, 300), st.none()), max_size=40))
def test_the_ring_gives_out_what_went_in(steps: list[int | None]) -> None:
    """A number writes so often (from then on in vain once it is full); None reads everything."""
    machine = Machine()
    vm = machine.vm()
    vcpu = machine.vcpu(vm)
    machine.ioctl(vm, rq.KVM_REGISTER_COALESCED_MMIO, zone(0x1000, 8))
    bus: Any = machine.vm_of(vm).mmio_bus
    ring = ring_of(machine, vcpu)
    words = ring[:8].cast("I")
    waiting: list[int] = []
    number = 0
    for step in steps:
        if step is None:
            for value in waiting:
                assert struct.unpack_from("<QIIQ", ring, 8 + words[0] * 24) == (0x1004, 4, 0, value)
                words[0] = (words[0] + 1) % KVM_COALESCED_MMIO_MAX
            assert words[0] == words[1]
            waiting.clear()
            continue
        for _ in range(step):
            number += 1
            taken = bus.write(None, 0x1004, 4, number)
            assert taken == (len(waiting) < KVM_COALESCED_MMIO_MAX - 1)
            if taken:
                waiting.append(number)
    words.release()
    ring.release()
    machine.backend.close_all()
    assert machine.ledger() == {}
    machine.services.close()


def test_a_ring_that_userspace_broke_is_full(machine: Machine) -> None:
    vm = machine.vm()
    vcpu = machine.vcpu(vm)
    machine.ioctl(vm, rq.KVM_REGISTER_COALESCED_MMIO, zone(0, 8))
    ring = ring_of(machine, vcpu)
    ring[4:8] = struct.pack("<I", 170)
    assert not machine.vm_of(vm).mmio_bus.write(None, 0, 1, 1)


def test_without_a_vcpu_there_is_no_ring(machine: Machine) -> None:
    vm = machine.vm()
    machine.ioctl(vm, rq.KVM_REGISTER_COALESCED_MMIO, zone(0, 8))
    assert not machine.vm_of(vm).mmio_bus.write(None, 0, 1, 1)


def test_a_failure_leaves_nothing() -> None:
    for fail_at in range(2):
        services = CountingServices()
        machine = Machine(services)
        vm = machine.vm()
        services.arm(fail_at)
        result = machine.errno(vm, rq.KVM_REGISTER_COALESCED_MMIO, zone(0, 8))
        services.disarm()
        assert result == ("ENOMEM" if fail_at == 0 else "0")
        assert len(machine.vm_of(vm).coalesced) == fail_at
        machine.backend.close_all()
        assert machine.ledger() == {}
        services.close()
