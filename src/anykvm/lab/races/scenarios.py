# SPDX-License-Identifier: GPL-2.0-only
"""The scenarios of common code, and all scenarios by name.

Each is a few lines: who does what, and which answers together are the kernel's. What a reader may want beside them: a
vCPU can be found by index only when it is online; KVM_CREATE_VCPU checks the id for duplicates last, when the
vCPU is built; closing a vCPU's fd drops a reference to the VM and nothing else.
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from typing import Final

from anykvm.uapi import caps
from anykvm.uapi import requests as rq
from anykvm.uapi.constants import KVM_MEM_LOG_DIRTY_PAGES
from anykvm.uapi.structs import KvmDirtyLog, KvmMpState, KvmUserspaceMemoryRegion

from . import scenarios_arm64, scenarios_x86
from .scenario import Outcome, Scenario
from .world import OK, GuestPage, World

NO_FD: Final = ("EBADF", "ENOTTY")
"""What an fd answers that is not KVM's yet, or not any more: while its memfd is open that is ENOTTY here."""
_REQUEST: Final = 9
_PAGE: Final = GuestPage.holding(b"")


def _create(vcpu_id: int) -> Callable[[World], str]:
    return lambda world: world.create_vcpu(vcpu_id)


def _one_vcpu(world: World) -> None:
    world.create_vcpu(0)


def _online(world: World, *ids: int) -> str | None:
    """Say so if these are not exactly the ids that are online."""
    found = sorted(vcpu.vcpu_id for vcpu in world.vm.vcpus())
    return None if found == sorted(ids) else f"vCPUs {found} are online, not {sorted(ids)}"


# Two creations.


def _limit_one(world: World) -> None:
    world.vm.max_vcpus = 1


def _any_one(world: World) -> str | None:
    return None if world.vm.online_vcpus == 1 else f"{world.vm.online_vcpus} vCPUs are online, not 1"


def _no_fd(world: World) -> None:
    """Task A gets no file descriptor: its creation fails at the last step that can."""
    world.refuse_first_task(errno.EMFILE, "kvm-vcpu:0")


def _no_memory(world: World) -> None:
    """Task A's architecture gets no memory for what it allocates last: the contract says that it has cleaned up."""
    world.refuse_first_task(errno.ENOMEM, "arch timer", "mce banks")


# Lookups.


def _look_up(world: World) -> str:
    """Find vCPUs as kernel code does, and use what is found."""
    vm = world.vm
    found = []
    for index in range(3):
        vcpu = vm.get_vcpu(index)
        if vcpu is not None and (vcpu.destroyed or vcpu.vcpu_idx != index or index >= vm.online_vcpus):
            world.scheduler.fail(f"get_vcpu({index}) finds a vCPU that is not online")
        world.pause(f"vCPU {index} looked up")
        if vcpu is not None:
            found.append(index)
            vcpu.make_request(_REQUEST)
            vcpu.kick()
    vm.make_all_request(_REQUEST)
    for vcpu in vm.vcpus():
        world.pause("each vCPU")
        if vm.get_vcpu_by_id(vcpu.vcpu_id) is not vcpu:
            world.scheduler.fail(f"vCPU {vcpu.vcpu_id} is found by index and not by id")
    return " ".join(map(str, found))


# A file descriptor that nobody was told of.


def _guess_and_use(world: World) -> str:
    fd = world.guess()
    if fd < 0:
        return "no fd"
    first = world.try_ioctl(fd, rq.KVM_GET_MP_STATE, KvmMpState())
    return f"{first} {world.run_briefly(fd)}"


def _guesses_well(outcome: Outcome) -> bool:
    create, used = outcome
    state, _, ran = used.partition(" ")
    return create == OK and (used == "no fd" or (state in (OK, *NO_FD) and ran in ("EINTR", *NO_FD)))


def _guess_and_close(world: World) -> str:
    return world.close(world.guess())


# The end of a VM.


def _close_vm(world: World) -> str:
    return world.close(world.fd)


def _close_vcpu(world: World) -> str:
    return world.close(world.fds[0])


def _use_vcpu(world: World) -> str:
    state = world.try_ioctl(world.fds[0], rq.KVM_GET_MP_STATE, KvmMpState())
    return f"{state} {world.run_briefly(world.fds[0])}"


def _used_or_closed(answer: str) -> bool:
    state, _, ran = answer.partition(" ")
    return state in (OK, *NO_FD) and ran in ("EINTR", *NO_FD) and (state == OK or ran in NO_FD)


# Memory slots.


def _add_slot(world: World) -> str:
    return world.set_slot(0x10000, _PAGE, KVM_MEM_LOG_DIRTY_PAGES)


def _drop_slot(world: World) -> str:
    region = KvmUserspaceMemoryRegion(0, 0, 0x10000, 0, _PAGE.address)
    return world.try_ioctl(world.fd, rq.KVM_SET_USER_MEMORY_REGION, region)


def _read_log(world: World) -> str:
    bitmap = ctypes.create_string_buffer(8)
    world.keep.append(bitmap)
    log = KvmDirtyLog(slot=0)
    log.dirty_bitmap = ctypes.addressof(bitmap)
    return world.try_ioctl(world.fd, rq.KVM_GET_DIRTY_LOG, log)


# Dirty rings.


def _enable_rings(world: World) -> str:
    return world.enable_cap(caps.KVM_CAP_DIRTY_LOG_RING_ACQ_REL, 4096)


def _reset_rings(world: World) -> str:
    return world.try_ioctl(world.fd, rq.KVM_RESET_DIRTY_RINGS)


def _rings_and_vcpu(world: World) -> None:
    _enable_rings(world)
    world.create_vcpu(0)


def _rings_and_no_memory(world: World) -> None:
    _enable_rings(world)
    world.refuse_first_task(errno.ENOMEM, "dirty ring counts")


def _rings(world: World) -> str | None:
    """Every vCPU has a ring if the VM has them, and none if not."""
    wrong = [vcpu.vcpu_id for vcpu in world.vm.vcpus() if (vcpu.dirty_ring is None) != (world.vm.dirty_ring_size == 0)]
    return f"vCPUs {wrong} and the VM disagree on whether there are dirty rings" if wrong else None


COMMON: Final = (
    Scenario(
        "same-id",
        "two KVM_CREATE_VCPU of one id",
        {"create 0": _create(0), "create 0 too": _create(0)},
        lambda outcome: sorted(outcome) == ["EEXIST", OK],
        after=lambda world: _online(world, 0),
    ),
    Scenario(
        "two-ids",
        "two KVM_CREATE_VCPU of different ids",
        {"create 0": _create(0), "create 1": _create(1)},
        lambda outcome: outcome == (OK, OK),
        after=lambda world: _online(world, 0, 1),
    ),
    Scenario(
        "three-ids",
        "three KVM_CREATE_VCPU of two ids",
        {"create 0": _create(0), "create 1": _create(1), "create 0 too": _create(0)},
        lambda outcome: outcome[1] == OK and sorted(outcome) == ["EEXIST", OK, OK],
        after=lambda world: _online(world, 0, 1),
    ),
    Scenario(
        "limit",
        "two KVM_CREATE_VCPU where there is room for one",
        {"create 0": _create(0), "create 0 too": _create(0)},
        lambda outcome: sorted(outcome) == ["EINVAL", OK],
        prepare=_limit_one,
        after=_any_one,
    ),
    Scenario(
        "no-fd",
        "a KVM_CREATE_VCPU that gets no fd, and another one of its id",
        {"create 0": _create(0), "create 0 too": _create(0)},
        lambda outcome: outcome in (("EMFILE", OK), ("EEXIST", OK)),
        prepare=_no_fd,
        after=lambda world: _online(world, 0),
    ),
    Scenario(
        "no-memory",
        "a KVM_CREATE_VCPU whose architecture gets no memory, and another one of its id",
        {"create 0": _create(0), "create 0 too": _create(0)},
        lambda outcome: outcome == ("ENOMEM", OK),
        prepare=_no_memory,
        after=lambda world: _online(world, 0),
    ),
    Scenario(
        "lookup",
        "KVM_CREATE_VCPU, and kernel code that finds vCPUs by index and asks all of them for something",
        {"create 1": _create(1), "look up": _look_up},
        lambda outcome: outcome[0] == OK and outcome[1] in ("0", "0 1"),
        prepare=_one_vcpu,
    ),
    Scenario(
        "guessed-fd",
        "KVM_CREATE_VCPU, and KVM_RUN and an ioctl on the fd it is about to return",
        {"create 0": _create(0), "guess the fd": _guess_and_use},
        _guesses_well,
    ),
    Scenario(
        "guessed-close",
        "KVM_CREATE_VCPU, and a close of the fd it is about to return",
        {"create 0": _create(0), "guess and close": _guess_and_close},
        lambda outcome: outcome[0] == OK and outcome[1] in (OK, "EBADF"),
        after=lambda world: _online(world, 0),
    ),
    Scenario(
        "vm-close",
        "KVM_CREATE_VCPU, and the close of the VM's fd and of the only other vCPU's",
        {"create 1": _create(1), "close the VM": _close_vm, "close vCPU 0": _close_vcpu},
        lambda outcome: outcome[0] in (OK, *NO_FD) and outcome[1:] == (OK, OK),
        prepare=_one_vcpu,
    ),
    Scenario(
        "destroy",
        "ioctls and KVM_RUN on a vCPU, and the close of its fd and of its VM's",
        {"use vCPU 0": _use_vcpu, "close vCPU 0": _close_vcpu, "close the VM": _close_vm},
        lambda outcome: _used_or_closed(outcome[0]) and outcome[1:] == (OK, OK),
        prepare=_one_vcpu,
    ),
    Scenario(
        "dirty-ring",
        "KVM_CREATE_VCPU, and enabling KVM_CAP_DIRTY_LOG_RING_ACQ_REL",
        {"create 0": _create(0), "enable the rings": _enable_rings},
        lambda outcome: outcome[0] == OK and outcome[1] in (OK, "EINVAL"),
        after=_rings,
    ),
    Scenario(
        "dirty-ring-reset",
        "KVM_CREATE_VCPU with a dirty ring, and KVM_RESET_DIRTY_RINGS",
        {"create 1": _create(1), "reset the rings": _reset_rings},
        lambda outcome: outcome == (OK, OK),
        prepare=_rings_and_vcpu,
        after=_rings,
    ),
    Scenario(
        "dirty-ring-no-memory",
        "a KVM_CREATE_VCPU that gets no memory for its dirty ring, and another one of its id",
        {"create 0": _create(0), "create 0 too": _create(0)},
        lambda outcome: outcome == ("ENOMEM", OK),
        prepare=_rings_and_no_memory,
        after=_rings,
    ),
    Scenario(
        "slots",
        "KVM_SET_USER_MEMORY_REGION making and deleting a slot, and KVM_GET_DIRTY_LOG of it",
        {"add the slot": _add_slot, "read its log": _read_log, "drop the slot": _drop_slot},
        lambda outcome: outcome[0] == OK and outcome[1] in (OK, "ENOENT") and outcome[2] in (OK, "EINVAL"),
        prepare=_one_vcpu,
    ),
)

ALL: Final[dict[str, tuple[Scenario, ...]]] = {
    "arm64": (*COMMON, *scenarios_arm64.SCENARIOS),
    "x86": (*COMMON, *scenarios_x86.SCENARIOS),
}
"""The scenarios of each architecture in the tree."""


def find(arch: str, name: str) -> Scenario:
    """Find a scenario; ValueError for none of that name."""
    for scenario in ALL[arch]:
        if scenario.name == name:
            return scenario
    raise ValueError(f"{arch} has no scenario {name!r}: it has {', '.join(one.name for one in ALL[arch])}")
