# SPDX-License-Identifier: GPL-2.0-only
"""Whatever numbers come in, an errno comes out: never a crash, a hang, or an exception of Python's own."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any

import pytest
from fake_arch import FAKE_DEVICE, Machine, open_fds
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anykvm.uapi import requests as rq

REQUESTS = {name: value for name, value in vars(rq).items() if name.startswith("KVM_") and name != "KVM_API_VERSION"}
OK = {
    *(
        [
            "EINVAL",
            "EFAULT",
            "ENOTTY",
            "EBADF",
            "EEXIST",
            "ENOENT",
            "ENODEV",
            "ENXIO",
            "EPERM",
            "EAGAIN",
            "EBUSY",
            "ENOSPC",
            "EINTR",
            "EMFILE",
            "ENOMEM",
        ]
    ),
    "0",
}

VM_POINTERS = [
    "KVM_SET_USER_MEMORY_REGION",
    "KVM_SET_USER_MEMORY_REGION2",
    "KVM_GET_DIRTY_LOG",
    "KVM_CLEAR_DIRTY_LOG",
    "KVM_IRQ_LINE",
    "KVM_IRQ_LINE_STATUS",
    "KVM_SIGNAL_MSI",
    "KVM_SET_GSI_ROUTING",
    "KVM_IRQFD",
    "KVM_IOEVENTFD",
    "KVM_CREATE_DEVICE",
    "KVM_ENABLE_CAP",
]


@pytest.mark.parametrize("address", [0, 1, 0xFFF, 1 << 47, 0xFFFF_8000_0000_0000, (1 << 64) - 1])
@pytest.mark.parametrize("name", VM_POINTERS)
def test_a_bad_pointer_is_efault(machine: Machine, name: str, address: int) -> None:
    vm = machine.vm()
    before = machine.ledger()
    assert machine.errno(vm, REQUESTS[name], address) == "EFAULT"
    assert machine.ledger() == before


@pytest.mark.parametrize("name", ["KVM_SET_SIGNAL_MASK", "KVM_GET_ONE_REG", "KVM_SET_ONE_REG"])
def test_a_bad_pointer_on_a_vcpu_is_efault(machine: Machine, name: str) -> None:
    assert machine.errno(machine.vcpu(machine.vm()), REQUESTS[name], 9) == "EFAULT"


words = st.one_of(
    st.sampled_from(
        [0, 1, 2, 3, 8, 4096, 0xFFFF, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1, FAKE_DEVICE]
    ),
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 300),
)
calls = st.lists(
    st.tuples(
        st.sampled_from(["system", "vm", "vcpu", "device"]),
        st.one_of(
            st.sampled_from(sorted(REQUESTS.values())),
            st.integers(0, (1 << 32) - 1),
            st.integers(0, 255).map(lambda nr: 0xAE00 | nr),
        ),
        st.booleans(),
        st.lists(words, min_size=20, max_size=20),
        words,
    ),
    min_size=1,
    max_size=15,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(calls)
def test_random_ioctls_end_in_an_errno(sequence: list[tuple[str, int, bool, list[int], int]]) -> None:
    machine = Machine()
    fds: dict[str, Any] = {"system": machine.system, "vm": machine.vm()}
    fds["vcpu"] = machine.vcpu(fds["vm"])
    create = (ctypes.c_uint32 * 3)(FAKE_DEVICE, 0, 0)
    machine.ioctl(fds["vm"], rq.KVM_CREATE_DEVICE, create)
    fds["device"] = create[1]
    known = open_fds()
    for where, request, pointer, content, number in sequence:
        memory = (ctypes.c_uint64 * 20)(*content)
        arg = ctypes.addressof(memory) if pointer else number
        try:
            result = machine.backend.ioctl(fds[where], request, arg)
        except OSError as failure:
            assert errno.errorcode[failure.errno] in OK
        else:
            assert result >= 0
            if request == rq.KVM_GET_STATS_FD:
                os.close(result)
    machine.backend.close_all()
    assert machine.ledger() == {}
    assert open_fds() <= known
    machine.services.close()


def test_negative_and_huge_numbers(machine: Machine) -> None:
    vm = machine.vm()
    vcpu = machine.vcpu(vm)
    for fd in (vm, vcpu, machine.system):
        for request in (-1, 1 << 40, -(1 << 63)):
            assert machine.errno(fd, request) in {"ENOTTY", "EINVAL"}
        for arg in (-1, 1 << 70):
            assert machine.errno(fd, rq.KVM_ENABLE_CAP, arg) in {"EFAULT", "EINVAL"}
    assert machine.errno(vm, rq.KVM_CREATE_VCPU, -1) == "EINVAL"
