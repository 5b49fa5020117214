# SPDX-License-Identifier: GPL-2.0-only
"""KVM_CREATE_DEVICE and device attributes."""

from __future__ import annotations

import ctypes
import os

import pytest
from fake_arch import BARE_DEVICE, BROKEN_DEVICE, FAKE_DEVICE, Machine

from anykvm.uapi import requests as rq
from anykvm.uapi.constants import KVM_CREATE_DEVICE_TEST
from anykvm.uapi.structs import KvmCreateDevice, KvmDeviceAttr

CREATE = rq.KVM_CREATE_DEVICE


def create(machine: Machine, vm: int, kind: int = FAKE_DEVICE) -> int:
    request = KvmCreateDevice(type=kind)
    machine.ioctl(vm, CREATE, request)
    return int(request.fd)


def attr(group: int = 1, number: int = 0, addr: int = 0) -> KvmDeviceAttr:
    return KvmDeviceAttr(0, group, number, addr)


def test_attributes(machine: Machine) -> None:
    device = create(machine, machine.vm())
    value = ctypes.c_uint64(77)
    address = ctypes.addressof(value)
    assert machine.ioctl(device, rq.KVM_HAS_DEVICE_ATTR, attr()) == 0
    assert machine.ioctl(device, rq.KVM_SET_DEVICE_ATTR, attr(addr=address)) == 0
    value.value = 0
    assert machine.ioctl(device, rq.KVM_GET_DEVICE_ATTR, attr(addr=address)) == 0
    assert value.value == 77
    assert machine.errno(device, rq.KVM_HAS_DEVICE_ATTR, attr(2)) == "ENXIO"
    assert machine.errno(device, rq.KVM_GET_DEVICE_ATTR, attr(1, 1, address)) == "ENXIO"
    assert machine.errno(device, rq.KVM_GET_DEVICE_ATTR, attr(addr=8)) == "EFAULT"
    assert machine.errno(device, rq.KVM_SET_DEVICE_ATTR, attr(addr=8)) == "EFAULT"
    for request in (rq.KVM_SET_DEVICE_ATTR, rq.KVM_GET_DEVICE_ATTR, rq.KVM_HAS_DEVICE_ATTR):
        assert machine.errno(device, request, 0) == "EFAULT"
    assert machine.errno(device, rq.KVM_RUN) == "ENOTTY"


def test_a_device_without_attributes(machine: Machine) -> None:
    device = create(machine, machine.vm(), BARE_DEVICE)
    for request in (rq.KVM_SET_DEVICE_ATTR, rq.KVM_GET_DEVICE_ATTR, rq.KVM_HAS_DEVICE_ATTR):
        assert machine.errno(device, request, attr()) == "EPERM"


def test_test_creates_nothing(machine: Machine) -> None:
    vm = machine.vm()
    before = machine.ledger()
    request = KvmCreateDevice(type=FAKE_DEVICE, flags=KVM_CREATE_DEVICE_TEST, fd=1234)
    assert machine.ioctl(vm, CREATE, request) == 0
    assert request.fd == 1234
    assert machine.ledger() == before
    assert machine.vm_of(vm).devices == []


@pytest.mark.parametrize("kind", [0, 1, 5, 0xFFFFFFFF])
def test_an_unknown_type(machine: Machine, kind: int) -> None:
    vm = machine.vm()
    for flags in (0, KVM_CREATE_DEVICE_TEST):
        assert machine.errno(vm, CREATE, KvmCreateDevice(type=kind, flags=flags)) == "ENODEV"


def test_refusals(machine: Machine) -> None:
    vm = machine.vm()
    before = machine.ledger()
    assert machine.errno(vm, CREATE, 0) == "EFAULT"
    assert machine.errno(vm, CREATE, KvmCreateDevice(type=BROKEN_DEVICE)) == "EEXIST"
    assert machine.ledger() == before
    assert machine.vm_of(vm).devices == []


@pytest.mark.parametrize(("step", "destroyed"), [(0, False), (1, True)])
def test_a_device_that_cannot_be_made(machine: Machine, step: int, destroyed: bool) -> None:
    vm = machine.vm()
    before = machine.ledger()
    machine.services.arm(step)
    assert machine.errno(vm, CREATE, KvmCreateDevice(type=FAKE_DEVICE)) in {"ENOMEM", "EMFILE"}
    machine.services.disarm()
    assert (f"device destroy {FAKE_DEVICE}" in machine.arch.calls) == destroyed
    assert machine.ledger() == before
    assert machine.vm_of(vm).devices == []


def test_the_fd(machine: Machine) -> None:
    device = create(machine, machine.vm())
    assert "kvm-fake" in os.readlink(f"/proc/self/fd/{device}")
    assert not os.get_inheritable(device)


def test_a_device_stays_when_its_fd_is_closed(machine: Machine) -> None:
    vm = machine.vm()
    machine.backend.close(create(machine, vm))
    assert len(machine.vm_of(vm).devices) == 1
    assert f"device destroy {FAKE_DEVICE}" not in machine.arch.calls
    machine.backend.close(vm)
    assert machine.arch.calls[-2:] == ["vm_destroy", f"device destroy {FAKE_DEVICE}"]


def test_a_device_that_ends_with_its_fd(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    vm = machine.vm()
    before = machine.ledger()
    device = create(machine, vm)
    monkeypatch.setattr(machine.vm_of(vm).devices[0], "release", lambda: True)
    machine.backend.close(device)
    assert machine.vm_of(vm).devices == []
    assert machine.ledger() == before
