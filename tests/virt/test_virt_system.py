# SPDX-License-Identifier: GPL-2.0-only
"""The system fd and capabilities."""

from __future__ import annotations

import os

import pytest
from fake_arch import Machine

from anykvm.uapi import caps
from anykvm.uapi import requests as rq
from anykvm.uapi.structs import KvmEnableCap


def test_versions_and_sizes(machine: Machine) -> None:
    assert machine.ioctl(machine.system, rq.KVM_GET_API_VERSION) == 12
    assert machine.ioctl(machine.system, rq.KVM_GET_VCPU_MMAP_SIZE) == 12288
    assert machine.errno(machine.system, rq.KVM_GET_API_VERSION, 1) == "EINVAL"
    assert machine.errno(machine.system, rq.KVM_GET_VCPU_MMAP_SIZE, 1) == "EINVAL"


def test_opening_twice_gives_two_fds(machine: Machine) -> None:
    other = machine.backend.open()
    assert other != machine.system
    machine.backend.close(machine.system)
    assert machine.ioctl(other, rq.KVM_GET_API_VERSION) == 12
    machine.system = other


@pytest.mark.parametrize(
    ("cap", "value"),
    [
        (caps.KVM_CAP_USER_MEMORY, 1),
        (caps.KVM_CAP_MAX_VCPUS, 6),
        (caps.KVM_CAP_MAX_VCPU_ID, 100),
        (caps.KVM_CAP_NR_MEMSLOTS, 32767),
        (caps.KVM_CAP_READONLY_MEM, 1),
        (caps.KVM_CAP_IRQ_ROUTING, 4096),
        (caps.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 3),
        (caps.KVM_CAP_ONE_REG, 1),
        (caps.KVM_CAP_COALESCED_MMIO, 1),
        (caps.KVM_CAP_HALT_POLL, 1),
        (caps.KVM_CAP_DIRTY_LOG_RING, 0),
        (caps.KVM_CAP_GUEST_MEMFD, 0),
        (caps.KVM_CAP_MULTI_ADDRESS_SPACE, 0),
        (100000, 0),
        ((1 << 64) - 1, 0),
    ],
)
def test_capabilities(machine: Machine, cap: int, value: int) -> None:
    assert machine.ioctl(machine.system, rq.KVM_CHECK_EXTENSION, cap) == value
    assert machine.ioctl(machine.vm(), rq.KVM_CHECK_EXTENSION, cap) == value


def test_nr_vcpus_is_the_hosts_cpus(machine: Machine) -> None:
    assert machine.ioctl(machine.system, rq.KVM_CHECK_EXTENSION, caps.KVM_CAP_NR_VCPUS) == min(os.cpu_count() or 1, 6)


def test_max_vcpus_is_the_vms_own(machine: Machine) -> None:
    vm = machine.vm()
    machine.vm_of(vm).max_vcpus = 2
    assert machine.ioctl(vm, rq.KVM_CHECK_EXTENSION, caps.KVM_CAP_MAX_VCPUS) == 2
    assert machine.ioctl(machine.system, rq.KVM_CHECK_EXTENSION, caps.KVM_CAP_MAX_VCPUS) == 6


def test_routing_is_not_offered_without_pins(machine: Machine) -> None:
    machine.arch.irqchip_pins = ()
    assert machine.ioctl(machine.system, rq.KVM_CHECK_EXTENSION, caps.KVM_CAP_IRQ_ROUTING) == 0


def test_enable_cap(machine: Machine) -> None:
    vm = machine.vm()
    cap = KvmEnableCap(cap=caps.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
    for value, result in ((0, "0"), (1, "0"), (3, "0"), (2, "EINVAL"), (4, "EINVAL"), (7, "EINVAL")):
        cap.args[0] = value
        assert machine.errno(vm, rq.KVM_ENABLE_CAP, cap) == result
    assert machine.vm_of(vm).manual_dirty_log_protect == 3
    cap.flags = 1
    cap.args[0] = 1
    assert machine.errno(vm, rq.KVM_ENABLE_CAP, cap) == "EINVAL"
    assert machine.errno(vm, rq.KVM_ENABLE_CAP, KvmEnableCap(cap=caps.KVM_CAP_ARM_MTE)) == "0"
    assert machine.errno(vm, rq.KVM_ENABLE_CAP, KvmEnableCap(cap=caps.KVM_CAP_DIRTY_LOG_RING)) == "EINVAL"
    assert machine.errno(vm, rq.KVM_ENABLE_CAP, 0) == "EFAULT"


@pytest.mark.parametrize(
    ("most", "flags", "outcome"), [(0, 0, "0"), (0xFFFFFFFF, 0, "0"), (1 << 32, 0, "EINVAL"), (0, 1, "EINVAL")]
)
def test_how_long_a_vcpu_may_poll(machine: Machine, most: int, flags: int, outcome: str) -> None:
    cap = KvmEnableCap(cap=caps.KVM_CAP_HALT_POLL, flags=flags)
    cap.args[0] = most
    assert machine.errno(machine.vm(), rq.KVM_ENABLE_CAP, cap) == outcome
