# SPDX-License-Identifier: GPL-2.0-only
"""Every public method and property of every handle, closed, and with an fd that is not open: always OSError EBADF."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import api_x86_uses
import pytest
from fake_backend import FakeBackend

from anykvm.api import Device, GuestMemory, Kvm, Stats, Vcpu, Vm
from anykvm.uapi import arm64, common

Use = Callable[[Any], object]

HANDLE: dict[str, Use] = {"ioctl": lambda h: h.ioctl(common.KVM_RUN), "fd": lambda h: h.fd}
CAPABLE: dict[str, Use] = {"check_extension": lambda h: h.check_extension(1)}
CONFIGURABLE: dict[str, Use] = {"enable_cap": lambda h: h.enable_cap(1)}
ATTRIBUTED: dict[str, Use] = {
    "set_attr": lambda h: h.set_attr(0, 0, 1),
    "get_attr": lambda h: h.get_attr(0, 0),
    "has_attr": lambda h: h.has_attr(0, 0),
}
USES: dict[type, dict[str, Use]] = {
    Kvm: HANDLE
    | CAPABLE
    | api_x86_uses.KVM
    | {
        "api_version": lambda h: h.api_version(),
        "vcpu_mmap_size": lambda h: h.vcpu_mmap_size(),
        "create_vm": lambda h: h.create_vm(),
    },
    Vm: HANDLE
    | CAPABLE
    | CONFIGURABLE
    | ATTRIBUTED
    | api_x86_uses.VM
    | {
        "create_vcpu": lambda h: h.create_vcpu(0),
        "create_device": lambda h: h.create_device(5),
        "create_irqchip": lambda h: h.create_irqchip(),
        "set_user_memory_region": lambda h: h.set_user_memory_region(0, 0, GuestMemory(1 << 16)),
        "get_dirty_log": lambda h: h.get_dirty_log(0),
        "clear_dirty_log": lambda h: h.clear_dirty_log(0, 0, 64, bytes(8)),
        "register_coalesced_mmio": lambda h: h.register_coalesced_mmio(0, 4),
        "unregister_coalesced_mmio": lambda h: h.unregister_coalesced_mmio(0, 4),
        "enable_dirty_ring": lambda h: h.enable_dirty_ring(4096),
        "reset_dirty_rings": lambda h: h.reset_dirty_rings(),
        "irq_line": lambda h: h.irq_line(0, 1),
        "irqfd": lambda h: h.irqfd(0, 0),
        "ioeventfd": lambda h: h.ioeventfd(0, 0),
        "set_gsi_routing": lambda h: h.set_gsi_routing([]),
        "signal_msi": lambda h: h.signal_msi(0, 0),
        "stats_fd": lambda h: h.stats_fd(),
        "preferred_target": lambda h: h.preferred_target(),
        "arm_set_device_addr": lambda h: h.arm_set_device_addr(0, 0),
    },
    Vcpu: HANDLE
    | CONFIGURABLE
    | ATTRIBUTED
    | api_x86_uses.VCPU
    | {
        "run": lambda h: h.run(),
        "kick": lambda h: h.kick(),
        "immediate_exit": lambda h: setattr(h, "immediate_exit", True),
        "run_page": lambda h: h.run_page,
        "mapped_page": lambda h: h.mapped_page(0),
        "dirty_ring": lambda h: h.dirty_ring(4096),
        "init": lambda h: h.init(5),
        "finalize": lambda h: h.finalize(4),
        "get_one_reg": lambda h: h.get_one_reg(arm64.REG_PC),
        "set_one_reg": lambda h: h.set_one_reg(arm64.REG_PC, 0),
        "reg_list": lambda h: h.reg_list(),
        "mp_state": lambda h: h.mp_state,
        "events": lambda h: h.events,
        "set_signal_mask": lambda h: h.set_signal_mask([]),
        "stats_fd": lambda h: h.stats_fd(),
    },
    Device: HANDLE | ATTRIBUTED,
    Stats: HANDLE | {"read": lambda h: h.read()},
}
# What needs no open file.
NO_FD = {"close", "closed", "backend", "arch"}
# What asks the mapped page or the backend's threads, not the kernel: refused once closed.
CLOSED_ONLY = {"fd", "run_page", "mapped_page", "immediate_exit", "kick"}


def members(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")} - NO_FD


def make(kind: type, kvm: Kvm, fake: FakeBackend) -> Any:
    if kind is Kvm:
        return Kvm(fake)
    vm = kvm.create_vm()
    if kind is Stats:
        return vm.stats_fd()
    if kind is Vcpu:
        return vm.create_vcpu(0)
    return vm.create_device(5) if kind is Device else vm


CASES = [pytest.param(kind, name, id=f"{kind.__name__}.{name}") for kind, uses in USES.items() for name in uses]


@pytest.mark.parametrize("kind", USES, ids=lambda kind: kind.__name__)
def test_no_method_is_forgotten(kind: type) -> None:
    assert set(USES[kind]) == members(kind)


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_closed(fake: FakeBackend, kvm: Kvm, kind: type, name: str) -> None:
    handle = make(kind, kvm, fake)
    handle.close()
    with pytest.raises(OSError) as caught:
        USES[kind][name](handle)
    assert caught.value.errno == errno.EBADF


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case.values[1] not in CLOSED_ONLY])
def test_an_fd_closed_behind_its_back(fake: FakeBackend, kvm: Kvm, kind: type, name: str) -> None:
    handle = make(kind, kvm, fake)
    fd = handle.fd
    close = os.close if kind is Stats else fake.close
    close(fd)
    with pytest.raises(OSError) as caught:
        USES[kind][name](handle)
    assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError) as caught:
        handle.close()
    assert caught.value.errno == errno.EBADF
    assert handle.closed
    with pytest.raises(OSError):
        os.fstat(fd)
