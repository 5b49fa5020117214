# SPDX-License-Identifier: GPL-2.0-only
"""The binary statistics, read as a program reads them."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from typing import Any

import pytest
from fake_arch import Machine

from anykvm.uapi import requests as rq
from anykvm.uapi.structs import KvmStatsDesc, KvmStatsHeader
from anykvm.virt import stats

GET = rq.KVM_GET_STATS_FD


def parse(fd: int) -> tuple[str, dict[str, int]]:
    """Read everything through pread, by the offsets in the header."""
    head = KvmStatsHeader.from_buffer_copy(os.pread(fd, ctypes.sizeof(KvmStatsHeader), 0))
    assert head.flags == 0
    for offset in (head.id_offset, head.desc_offset, head.data_offset):
        assert offset % 8 == 0
    identity = os.pread(fd, head.name_size, head.id_offset).split(b"\0")[0].decode()
    values = {}
    size = ctypes.sizeof(KvmStatsDesc)
    for index in range(head.num_desc):
        raw = os.pread(fd, size + head.name_size, head.desc_offset + index * (size + head.name_size))
        desc = KvmStatsDesc.from_buffer_copy(raw)
        assert desc.size == 1
        name = raw[size:].split(b"\0")[0].decode()
        (values[name],) = struct.unpack("=Q", os.pread(fd, 8, head.data_offset + desc.offset))
    return identity, values


def test_a_vm(machine: Machine) -> None:
    vm = machine.vm()
    machine.vcpu(vm)
    fd = machine.ioctl(vm, GET)
    identity, values = parse(fd)
    assert identity == f"kvm-{os.getpid()}"
    assert list(values) == [name for name, _, _ in stats.VM_STATS]
    assert values["vcpus"] == 1
    machine.vcpu(vm, 1)
    assert parse(fd)[1]["vcpus"] == 2
    os.close(fd)


def test_a_vcpu_has_live_values(machine: Machine) -> None:
    vcpu = machine.vcpu(machine.vm(), 7)
    object_ = machine.vcpu_of(vcpu)
    object_.stats.values[stats.EXITS] += 3
    fd = machine.ioctl(vcpu, GET)
    identity, values = parse(fd)
    assert identity == f"kvm-{os.getpid()}/vcpu-7"
    assert list(values) == [name for name, _, _ in stats.VCPU_STATS] + ["fake_exits"]
    assert values["exits"] == 3
    object_.stats.values[stats.EXITS] += 1
    object_.stats.values[stats.FIRST_ARCH_STAT] += 9
    values = parse(fd)[1]
    assert (values["exits"], values["fake_exits"]) == (4, 9)
    assert object_.stats.as_dict()["exits"] == 4
    os.close(fd)


@pytest.mark.parametrize("kind", ["vm", "vcpu"])
def test_values_are_kept_when_the_first_fd_moves_them(machine: Machine, kind: str) -> None:
    vm = machine.vm()
    vcpu = machine.vcpu(vm)
    fd, object_ = (vcpu, machine.vcpu_of(vcpu)) if kind == "vcpu" else (vm, machine.vcpu_of(vcpu).vm)
    values = object_.stats.values
    assert isinstance(values, list)
    expected = [1000 + index for index in range(len(values) - 1)] + [(1 << 64) - 1]
    values[:] = expected
    one = machine.ioctl(fd, GET)
    assert not isinstance(object_.stats.values, list)
    assert list(parse(one)[1].values()) == list(object_.stats.as_dict().values()) == expected
    # The second fd is of the same words: nothing moves again.
    shared = object_.stats.values
    two = machine.ioctl(fd, GET)
    assert object_.stats.values is shared
    object_.stats.values[0] += 5
    assert parse(one) == parse(two)
    assert list(parse(two)[1].values()) == [1005, *expected[1:]]
    os.close(one)
    os.close(two)


def test_a_vcpu_counts_exactly_while_its_fds_are_opened(machine: Machine) -> None:
    """KVM_RUN counts and KVM_GET_STATS_FD moves under one mutex: no count is lost between list and memfd."""
    vcpu = machine.vcpu(machine.vm())
    object_ = machine.vcpu_of(vcpu)
    rounds = 300
    count = 20

    def guest(vcpu: Any) -> int:
        values = vcpu.stats.values
        for _ in range(count):
            values[stats.EXITS] += 1
        return 0

    machine.arch.guest = guest

    def run() -> None:
        for _ in range(rounds):
            machine.ioctl(vcpu, rq.KVM_RUN)

    thread = threading.Thread(target=run)
    thread.start()
    fds = [machine.ioctl(vcpu, GET) for _ in range(8)]
    thread.join(30)
    assert not thread.is_alive()
    assert object_.stats.as_dict()["exits"] == rounds * count
    assert {parse(fd)[1]["exits"] for fd in fds} == {rounds * count}
    for fd in fds:
        os.close(fd)


def test_the_names_of_indices() -> None:
    names = [name for name, _, _ in stats.VCPU_STATS]
    assert names[stats.MMIO_EXIT_KERNEL] == "mmio_exit_kernel"
    assert names[stats.VCPU_IRQ_INJECTIONS] == "irq_injections"
    assert names[stats.HALT_WAIT_NS] == "halt_wait_ns"
    assert names[stats.BLOCKING] == "blocking"
    assert [name for name, _, _ in stats.VM_STATS][stats.VCPUS] == "vcpus"


def test_each_fd_has_a_position_and_none_can_write(machine: Machine) -> None:
    vcpu = machine.vcpu(machine.vm())
    one, two = machine.ioctl(vcpu, GET), machine.ioctl(vcpu, GET)
    assert one != two
    first = os.read(one, 24)
    assert os.read(two, 24) == first
    assert os.read(one, 24) != first
    with pytest.raises(OSError):
        os.pwrite(one, b"x", 0)
    assert not os.get_inheritable(one)
    assert os.pread(one, 10, 1 << 20) == b""
    os.close(one)
    os.close(two)


def test_an_fd_outlives_the_vm(machine: Machine) -> None:
    base = machine.ledger()
    vm = machine.vm()
    vcpu = machine.vcpu(vm)
    fd = machine.ioctl(vcpu, GET)
    machine.backend.close(vcpu)
    machine.backend.close(vm)
    assert machine.ledger() == base
    assert parse(fd)[1]["exits"] == 0
    os.close(fd)


@pytest.mark.parametrize("step", range(3))
def test_no_fd_left(machine: Machine, step: int) -> None:
    vm = machine.vm()
    before = machine.ledger()
    machine.services.arm(step)
    assert machine.errno(vm, GET) in {"EMFILE", "ENOMEM"}
    machine.services.disarm()
    assert machine.ledger() == before
    os.close(machine.ioctl(vm, GET))
