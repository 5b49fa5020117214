# SPDX-License-Identifier: GPL-2.0-only
"""Scenarios of x86: the in-kernel irqchip and what fixes itself when the first vCPU is made."""

from __future__ import annotations

from typing import Final

from anykvm.uapi import caps
from anykvm.uapi import requests as rq
from anykvm.uapi.constants import KVM_MEM_LOG_DIRTY_PAGES
from anykvm.uapi.exits import KVM_EXIT_HLT
from anykvm.uapi.structs import KvmMsi

from .scenario import Scenario
from .world import OK, GuestPage, World

_EVERYBODY: Final = 0xFEE00000 | 0xFF << 12
_AS_NMI: Final = 4 << 8


def _create_irqchip(world: World) -> str:
    return world.try_ioctl(world.fd, rq.KVM_CREATE_IRQCHIP)


def _split_irqchip(world: World) -> str:
    return world.enable_cap(caps.KVM_CAP_SPLIT_IRQCHIP, 24)


def _lapics(world: World) -> str | None:
    """Every vCPU has a local APIC if the VM has an irqchip, and none if not."""
    chip = world.vm.arch.irqchip
    wrong = [vcpu.vcpu_id for vcpu in world.vm.vcpus() if (vcpu.arch.lapic is not None) != (chip is not None)]
    return f"vCPUs {wrong} and the VM disagree on whether there is an irqchip" if wrong else None


def _chip_and_vcpu(world: World) -> None:
    _create_irqchip(world)
    world.create_vcpu(0)


def _send_to_all(world: World) -> str:
    """An NMI by message to every local APIC: those of vCPUs that are there take it, and no other.

    A vCPU is there when its creation has returned; one that is online, its creation not having returned, may be.
    """
    at_first = len(world.fds)
    taken = world.value_of(world.fd, rq.KVM_SIGNAL_MSI, KvmMsi(_EVERYBODY & 0xFFFFFFFF, 0, _AS_NMI))
    online = world.vm.online_vcpus
    if not at_first <= taken <= online:
        world.scheduler.fail(f"{taken} vCPUs took a message, while there were {at_first}, and {online} at the end")
    return f"{taken} took it"


def _set_boot_cpu(world: World) -> str:
    return world.try_ioctl(world.fd, rq.KVM_SET_BOOT_CPU_ID, 3)


def _one_bsp(world: World) -> str | None:
    wrong = [vcpu.vcpu_id for vcpu in world.vm.vcpus() if vcpu.arch.bsp != (vcpu.vcpu_id == world.vm.arch.boot_cpu_id)]
    return f"vCPUs {wrong} and the VM disagree on who boots" if wrong else None


_RESET_PAGE: Final = 0xFFFFF000
_HALT: Final = GuestPage.holding(b"\xf4", 0xFF0)
"""HLT at the reset vector."""


def _halting(world: World) -> None:
    world.create_vcpu(0)
    world.set_slot(_RESET_PAGE, _HALT, 0)


SCENARIOS: Final = (
    Scenario(
        "run-and-log",
        "KVM_RUN of a guest, a change of its memory slot's flags, and requests to all vCPUs",
        {
            "run": lambda world: world.run_guest(0),
            "log": lambda world: world.set_slot(_RESET_PAGE, _HALT, KVM_MEM_LOG_DIRTY_PAGES),
            "kick": lambda world: world.kick_all(),
        },
        lambda outcome: outcome == (f"exit {KVM_EXIT_HLT}", OK, OK),
        prepare=_halting,
    ),
    Scenario(
        "irqchip",
        "KVM_CREATE_VCPU and KVM_CREATE_IRQCHIP",
        {"create 0": lambda world: world.create_vcpu(0), "create the irqchip": _create_irqchip},
        lambda outcome: outcome[0] == OK and outcome[1] in (OK, "EINVAL"),
        after=_lapics,
    ),
    Scenario(
        "split-irqchip",
        "KVM_CREATE_VCPU and enabling KVM_CAP_SPLIT_IRQCHIP",
        {"create 0": lambda world: world.create_vcpu(0), "split the irqchip": _split_irqchip},
        lambda outcome: outcome[0] == OK and outcome[1] in (OK, "EEXIST"),
        after=_lapics,
    ),
    Scenario(
        "two-irqchips",
        "KVM_CREATE_IRQCHIP, KVM_CAP_SPLIT_IRQCHIP and KVM_CREATE_VCPU",
        {
            "create the irqchip": _create_irqchip,
            "split the irqchip": _split_irqchip,
            "create 0": lambda world: world.create_vcpu(0),
        },
        lambda outcome: outcome[2] == OK and outcome[:2] in ((OK, "EEXIST"), ("EEXIST", OK), ("EINVAL", "EEXIST")),
        after=_lapics,
    ),
    Scenario(
        "message",
        "KVM_CREATE_VCPU, and KVM_SIGNAL_MSI to all vCPUs",
        {"create 1": lambda world: world.create_vcpu(1), "send to all": _send_to_all},
        lambda outcome: outcome[0] == OK and outcome[1] in ("1 took it", "2 took it"),
        prepare=_chip_and_vcpu,
    ),
    Scenario(
        "message-duplicate",
        "a KVM_CREATE_VCPU that is refused for its id, and KVM_SIGNAL_MSI to all vCPUs",
        {"create 0 again": lambda world: world.create_vcpu(0), "send to all": _send_to_all},
        lambda outcome: outcome == ("EEXIST", "1 took it"),
        prepare=_chip_and_vcpu,
    ),
    Scenario(
        "max-vcpu-id",
        "KVM_CREATE_VCPU of id 5, and enabling KVM_CAP_MAX_VCPU_ID with 4",
        {
            "create 5": lambda world: world.create_vcpu(5),
            "ids below 4": lambda world: world.enable_cap(caps.KVM_CAP_MAX_VCPU_ID, 4),
        },
        lambda outcome: outcome in ((OK, "EINVAL"), ("EINVAL", OK)),
    ),
    Scenario(
        "boot-cpu",
        "KVM_CREATE_VCPU of id 3, and KVM_SET_BOOT_CPU_ID 3",
        {"create 3": lambda world: world.create_vcpu(3), "3 boots": _set_boot_cpu},
        lambda outcome: outcome[0] == OK and outcome[1] in (OK, "EBUSY"),
        after=_one_bsp,
    ),
)
