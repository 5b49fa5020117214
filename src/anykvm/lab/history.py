# SPDX-License-Identifier: GPL-2.0-only
"""Histories: a VM's whole life, operation by operation, for each way an architecture's VM is put together.

An operation is one request that may acquire something; what it needs besides (registers, addresses) comes with it and
acquires nothing. Every history ends with each vCPU running a guest to its end.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final

from anykvm.api import Device, GuestMemory, Kvm, Vcpu, Vm
from anykvm.testing import FaultyBackend
from anykvm.uapi import arm64, caps, common

from .guest import GUESTS, RAM_SIZE, Guest

VCPU_IDS: Final = (0, 5, 2)
"""The first vCPU, and others: an id is not an index."""
_BELL: Final = 0x0B00_0000
_QUEUE: Final = 0x0C00_0000
_GSI: Final = 5
_REDIST: Final = 0x080A_0000
_DIST: Final = 0x0800_0000
_GICC: Final = 0x0801_0000


@dataclass
class Life:
    """What there is of a VM so far."""

    backend: FaultyBackend
    guest: Guest
    memory: GuestMemory
    handles: ExitStack = field(default_factory=ExitStack)
    kvm: Kvm = field(init=False)
    vm: Vm = field(init=False)
    vcpus: list[Vcpu] = field(default_factory=list)
    device: Device | None = None
    event: int = -1

    def inside(self) -> dict[str, Any]:
        """What the kernel's structures say of this VM: counters, ids, lists; ``{}`` before there is one."""
        if not hasattr(self, "vm") or self.vm.closed:
            return {}
        vm = self.backend.files.by_fd[self.vm.fd].vm
        return {
            "created_vcpus": vm.created_vcpus,
            "online_vcpus": vm.online_vcpus,
            "vcpu_array": [(vcpu.vcpu_id, vcpu.vcpu_idx) for vcpu in vm.vcpu_array],
            "ids": sorted(vm.vcpu_by_id),
            "users": vm._users,
            "devices": len(vm.devices),
            "slots": len(vm.memory),
            "irqfds": len(vm.irqfds),
            "ioeventfds": len(vm.ioeventfds),
            "mmio bus": len(vm.mmio_bus),
            "pio bus": len(vm.pio_bus),
            "max_vcpus": vm.max_vcpus,
            "locked": [name for name in ("lock", "slots_lock", "irq_lock") if getattr(vm, name).locked()],
            "files": len(self.backend.files.files()),
        }

    def close(self) -> None:
        """Close everything, the VM's fd before its vCPUs': it dies with the last of them."""
        if hasattr(self, "vm"):
            self.vm.close()
        self.handles.close()


@dataclass(frozen=True)
class Op:
    """One operation. ``keeps``: after a failure the kernel has it all the same, and a second try is EEXIST."""

    name: str
    do: Callable[[Life], None]
    creates: int | None = None
    """The vcpu_id of the vCPU that it makes."""
    keeps: bool = False


def _open(life: Life) -> None:
    life.kvm = life.handles.enter_context(Kvm(life.backend))


def _create_vm(life: Life) -> None:
    life.vm = life.handles.enter_context(life.kvm.create_vm())


def _memory(life: Life) -> None:
    flags = common.KVM_MEM_LOG_DIRTY_PAGES
    life.vm.set_user_memory_region(0, life.guest.base, life.memory, flags=flags)


def _vm_stats(life: Life) -> None:
    life.handles.enter_context(life.vm.stats_fd())


def _vcpu_stats(life: Life) -> None:
    life.handles.enter_context(life.vcpus[-1].stats_fd())


def _ioeventfd(life: Life) -> None:
    if life.event < 0:
        life.event = os.eventfd(0, os.EFD_CLOEXEC)
        life.handles.callback(os.close, life.event)
    life.vm.ioeventfd(life.event, _BELL, 4)


def _coalesced(life: Life) -> None:
    life.vm.register_coalesced_mmio(_QUEUE, 4096)


def _irqfd(life: Life) -> None:
    life.vm.irqfd(life.event, _GSI)


def _vcpu(vcpu_id: int) -> Op:
    def do(life: Life) -> None:
        life.vcpus.append(life.handles.enter_context(life.vm.create_vcpu(vcpu_id)))

    return Op(f"vCPU {vcpu_id}", do, creates=vcpu_id)


def _gic(kind: int) -> Op:
    def do(life: Life) -> None:
        life.device = device = life.handles.enter_context(life.vm.create_device(kind))
        v3 = kind == common.KVM_DEV_TYPE_ARM_VGIC_V3
        group = arm64.KVM_DEV_ARM_VGIC_GRP_ADDR
        device.set_attr(group, arm64.KVM_VGIC_V3_ADDR_TYPE_DIST if v3 else arm64.KVM_VGIC_V2_ADDR_TYPE_DIST, _DIST)
        # A GICv3 has its redistributors' region before the vCPUs, which register theirs as they are made.
        where = (arm64.KVM_VGIC_V3_ADDR_TYPE_REDIST, _REDIST) if v3 else (arm64.KVM_VGIC_V2_ADDR_TYPE_CPU, _GICC)
        device.set_attr(group, *where)

    return Op("GIC", do, keeps=True)


def _init_gic(life: Life) -> None:
    assert life.device is not None
    life.device.set_attr(arm64.KVM_DEV_ARM_VGIC_GRP_CTRL, arm64.KVM_DEV_ARM_VGIC_CTRL_INIT)


def _irqchip(life: Life) -> None:
    life.vm.create_irqchip()


def _split(life: Life) -> None:
    life.vm.enable_cap(caps.KVM_CAP_SPLIT_IRQCHIP, 24)


def _rings(life: Life) -> None:
    life.vm.enable_dirty_ring(4096)


def _pit(life: Life) -> None:
    life.vm.create_pit2()


@dataclass(frozen=True)
class Subject:
    """One way to put a VM together. ``early``: a vCPU can run while others are still to be made."""

    name: str
    ops: tuple[Op, ...]
    early: bool = True

    @property
    def arch(self) -> str:
        """The architecture."""
        return self.name.partition("/")[0]

    def life(self, backend: FaultyBackend) -> Life:
        """Begin a life: memory with the guest in it, and nothing of KVM."""
        guest = GUESTS[self.arch]
        memory = GuestMemory(RAM_SIZE)
        memory.write(0, guest.code)
        return Life(backend, guest, memory)


_FIRST: Final = (Op("open", _open), Op("VM", _create_vm), Op("memory", _memory))
_REST: Final = (
    Op("VM statistics", _vm_stats),
    Op("vCPU statistics", _vcpu_stats),
    Op("ioeventfd", _ioeventfd),
    Op("coalesced zone", _coalesced),
)
_VCPUS: Final = tuple(map(_vcpu, VCPU_IDS))
_GIC_END: Final = (Op("GIC initialised", _init_gic), Op("irqfd", _irqfd))


def _subjects() -> dict[str, Subject]:
    gicv2, gicv3 = _gic(common.KVM_DEV_TYPE_ARM_VGIC_V2), _gic(common.KVM_DEV_TYPE_ARM_VGIC_V3)
    rings = Op("dirty rings", _rings)
    irqchip = (Op("irqchip", _irqchip), Op("PIT", _pit))
    listed = [
        Subject("arm64/none", (*_FIRST, *_VCPUS, *_REST)),
        Subject("arm64/gicv2", (*_FIRST, gicv2, *_VCPUS, *_REST, *_GIC_END), early=False),
        Subject("arm64/gicv3", (*_FIRST, gicv3, *_VCPUS, *_REST, *_GIC_END), early=False),
        Subject("arm64/gicv3-late", (*_FIRST, *_VCPUS, gicv3, *_REST, *_GIC_END), early=False),
        Subject("arm64/ring", (*_FIRST[:2], rings, *_FIRST[2:], *_VCPUS, *_REST)),
        Subject("x86/ring", (*_FIRST[:2], rings, *_FIRST[2:], *_VCPUS, *_REST)),
        Subject("x86/none", (*_FIRST, *_VCPUS, *_REST)),
        Subject("x86/irqchip", (*_FIRST, *irqchip, *_VCPUS, *_REST, Op("irqfd", _irqfd))),
        Subject("x86/split", (*_FIRST, Op("split irqchip", _split), *_VCPUS, *_REST)),
    ]
    return {subject.name: subject for subject in listed}


SUBJECTS: Final = _subjects()
"""By name: architecture/variant."""
