# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios of arm64: making, placing and initialising the in-kernel GIC while vCPUs are made."""

from __future__ import annotations

import ctypes
import errno
from typing import Final

from anykvm.uapi import arm64 as uapi
from anykvm.uapi import common
from anykvm.uapi import requests as rq
from anykvm.uapi.constants import KVM_MEM_LOG_DIRTY_PAGES
from anykvm.uapi.structs import KvmCreateDevice, KvmDeviceAttr, KvmIrqLevel

from .scenario import Scenario
from .world import OK, GuestPage, World

_DIST: Final = 0x08000000
_REDIST: Final = 0x080A0000


def _create_gic(world: World) -> str:
    request = KvmCreateDevice(common.KVM_DEV_TYPE_ARM_VGIC_V3)
    answer = world.try_ioctl(world.fd, rq.KVM_CREATE_DEVICE, request)
    if answer == OK:
        world.tell(_GIC, request.fd)
    return answer


_GIC: Final = -1
"""Where a world keeps the GIC's fd."""


def _set(world: World, group: int, attr: int, value: int | None = None) -> str:
    request = KvmDeviceAttr(0, group, attr, 0)
    if value is not None:
        word = ctypes.c_uint64(value)
        world.keep.append(word)
        request.addr = ctypes.addressof(word)
    return world.try_ioctl(world.fds[_GIC], rq.KVM_SET_DEVICE_ATTR, request)


def _init_gic(world: World) -> str:
    return _set(world, uapi.KVM_DEV_ARM_VGIC_GRP_CTRL, uapi.KVM_DEV_ARM_VGIC_CTRL_INIT)


def _place_redists(world: World) -> str:
    return _set(world, uapi.KVM_DEV_ARM_VGIC_GRP_ADDR, uapi.KVM_VGIC_V3_ADDR_TYPE_REDIST, _REDIST)


def _vcpu(world: World) -> None:
    world.create_vcpu(0)


def _gic_and_vcpu(world: World) -> None:
    _create_gic(world)
    world.create_vcpu(0)


def _placed_gic_and_vcpu(world: World) -> None:
    _gic_and_vcpu(world)
    _place_redists(world)


def _placed_gic_and_no_memory(world: World) -> None:
    _placed_gic_and_vcpu(world)
    world.refuse_first_task(errno.ENOMEM, "arch timer")


def _sides(world: World) -> str | None:
    """Every vCPU has its side of the GIC if the VM has one, and knows it to be initialised if it is."""
    chip = world.vm.arch.vgic
    for vcpu in world.vm.vcpus():
        side = vcpu.arch.vgic
        if (side is not None) != (chip is not None):
            return f"vCPU {vcpu.vcpu_id} and the VM disagree on whether there is a GIC"
        if chip is not None and chip.vgic.initialized and side not in chip.vgic.vcpus:
            return f"the GIC is initialised without vCPU {vcpu.vcpu_id}"
    return None


def _redistributors(world: World) -> str | None:
    """Every vCPU has a redistributor on the bus, and nobody else has one.

    One that was being created while the region was set has none: it looked for a region before, and was not online
    when the region looked for vCPUs. It is so in the kernel, and KVM_RUN says ENXIO (vgic_register_all_redist_iodevs
    goes over the vCPUs that are online).
    """
    wrong = _sides(world)
    regions = world.vm.arch.vgic.redists.regions
    if wrong is not None or not regions:
        return wrong
    placed = {id(cpu) for region in regions for cpu in region.cpus}
    there = {id(vcpu.arch.vgic) for vcpu in world.vm.vcpus()}
    if placed == there or (placed < there and id(world.vcpu(0).arch.vgic) in placed):
        return None
    return f"{len(there)} vCPUs, {len(placed)} redistributors, {len(placed & there)} of them of these vCPUs"


def _drive_line(world: World) -> str:
    """KVM_IRQ_LINE of vCPU 1's IRQ, without an in-kernel GIC."""
    irq = uapi.KVM_ARM_IRQ_TYPE_CPU << uapi.KVM_ARM_IRQ_TYPE_SHIFT | 1 << uapi.KVM_ARM_IRQ_VCPU_SHIFT
    return world.try_ioctl(world.fd, rq.KVM_IRQ_LINE, KvmIrqLevel(irq=irq, level=1))


_STORE: Final = GuestPage.holding(bytes.fromhex("0100a2d2 200000b9"))
"""mov x1, #0x10000000; str w0, [x1]: a write where there is no memory."""


def _storing(world: World) -> None:
    world.create_vcpu(0)
    world.set_slot(0, _STORE, 0)
    world.try_ioctl(world.fds[0], uapi.KVM_ARM_VCPU_INIT, uapi.KvmVcpuInit(uapi.KVM_ARM_TARGET_GENERIC_V8))


SCENARIOS: Final = (
    Scenario(
        "run-and-log",
        "KVM_RUN of a guest, a change of its memory slot's flags, and requests to all vCPUs",
        {
            "run": lambda world: world.run_guest(0),
            "log": lambda world: world.set_slot(0, _STORE, KVM_MEM_LOG_DIRTY_PAGES),
            "kick": lambda world: world.kick_all(),
        },
        lambda outcome: outcome == (f"exit {common.KVM_EXIT_MMIO}", OK, OK),
        prepare=_storing,
    ),
    Scenario(
        "irq-line",
        "KVM_CREATE_VCPU, and KVM_IRQ_LINE of the vCPU with the next index",
        {"create 1": lambda world: world.create_vcpu(1), "drive its line": _drive_line},
        lambda outcome: outcome[0] == OK and outcome[1] in (OK, "EINVAL"),
        prepare=_vcpu,
    ),
    Scenario(
        "gic-create",
        "KVM_CREATE_VCPU, and KVM_CREATE_DEVICE of a GICv3",
        {"create 1": lambda world: world.create_vcpu(1), "create the GIC": _create_gic},
        lambda outcome: outcome[0] == OK and outcome[1] in (OK, "EBUSY"),
        prepare=_vcpu,
        after=_sides,
    ),
    Scenario(
        "gic-init",
        "KVM_CREATE_VCPU, and the initialisation of the GIC",
        {"create 1": lambda world: world.create_vcpu(1), "initialise the GIC": _init_gic},
        lambda outcome: outcome in ((OK, OK), (OK, "EBUSY"), ("EBUSY", OK)),
        prepare=_placed_gic_and_vcpu,
        after=_redistributors,
    ),
    Scenario(
        "gic-init-duplicate",
        "a KVM_CREATE_VCPU that is refused for its id, and the initialisation of the GIC",
        {"create 0 again": lambda world: world.create_vcpu(0), "initialise the GIC": _init_gic},
        lambda outcome: outcome in (("EEXIST", OK), ("EEXIST", "EBUSY"), ("EBUSY", OK)),
        prepare=_placed_gic_and_vcpu,
        after=_redistributors,
    ),
    Scenario(
        "gic-no-memory",
        "a KVM_CREATE_VCPU whose architecture gets no memory, and another one of its id, with redistributors in place",
        {"create 1": lambda world: world.create_vcpu(1), "create 1 too": lambda world: world.create_vcpu(1)},
        lambda outcome: outcome == ("ENOMEM", OK),
        prepare=_placed_gic_and_no_memory,
        after=_redistributors,
    ),
    Scenario(
        "redistributors",
        "KVM_CREATE_VCPU, and placing the redistributors",
        {"create 1": lambda world: world.create_vcpu(1), "place them": _place_redists},
        lambda outcome: outcome == (OK, OK),
        prepare=_gic_and_vcpu,
        after=_redistributors,
    ),
    Scenario(
        "redistributors-duplicate",
        "a KVM_CREATE_VCPU that is refused for its id, and placing the redistributors",
        {"create 0 again": lambda world: world.create_vcpu(0), "place them": _place_redists},
        lambda outcome: outcome == ("EEXIST", OK),
        prepare=_gic_and_vcpu,
        after=_redistributors,
    ),
    Scenario(
        "gic-close",
        "KVM_CREATE_VCPU, and the close of the GIC's fd and of the VM's",
        {
            "create 1": lambda world: world.create_vcpu(1),
            "close the GIC": lambda world: world.close(world.fds[_GIC]),
            "close the VM": lambda world: world.close(world.fd),
        },
        lambda outcome: outcome[0] in (OK, "EBADF", "ENOTTY") and outcome[1:] == (OK, OK),
        prepare=_gic_and_vcpu,
    ),
)
