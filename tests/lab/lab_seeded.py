# SPDX-License-Identifier: GPL-2.0-only
"""Bugs put in on purpose: each was in the kernel once, or is one that a change here could bring.

Every one is a change to the real functions, made for the time of a test. The lab has to find each of them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pytest

from anykvm.arch.arm64 import vcpu as arm64_vcpu
from anykvm.arch.arm64.vcpu import Arm64Vcpu
from anykvm.arch.arm64.vm import Arm64Vm
from anykvm.arch.x86.lapic import Lapic
from anykvm.uapi import requests as rq
from anykvm.virt import create_vcpu as cv
from anykvm.virt import dirty_ring
from anykvm.virt import vm as vm_module
from anykvm.virt.handles import FileTable, KvmFile
from anykvm.virt.ladder import BuildStep, Ladder
from anykvm.virt.vcpu import Vcpu, VcpuFile
from anykvm.virt.vm import Vm

Patch = pytest.MonkeyPatch


def create_vcpu(vm: Vm, vcpu_id: int, bug: str) -> int:
    """KVM_CREATE_VCPU as in ``virt/create_vcpu.py``, with one mistake."""
    hooks = vm.hooks
    services = vm.services
    if vcpu_id >= hooks.max_vcpu_ids:
        raise OSError(errno.EINVAL, "id")
    with services.ladder("vcpu") as ladder:
        if bug == "precreate outside the lock":
            hooks.vcpu_precreate(vm, vcpu_id)
        with vm.lock:
            if vm.created_vcpus >= vm.max_vcpus:
                raise OSError(errno.EINVAL, "limit")
            if bug != "precreate outside the lock":
                hooks.vcpu_precreate(vm, vcpu_id)
            ladder.step("created_vcpus", cv.count, None if bug == "no decrement" else cv.uncount, vm)
        vcpu = ladder.acquire("vcpu struct", Vcpu, Vcpu.free, vm, vcpu_id, ladder)
        ladder.step("run page", vcpu.alloc_run_page, vcpu.free_run_page)
        if vm.dirty_ring_size:
            ladder.push("dirty ring", vcpu.free_dirty_ring)
        cv.create_arch(vcpu)
        if vm.dirty_ring_size:
            vcpu.alloc_dirty_ring()
        if bug == "duplicate check outside the lock" and vm.get_vcpu_by_id(vcpu_id) is not None:
            raise OSError(errno.EEXIST, "id")
        with vm.lock, ladder.guard():
            if bug != "duplicate check outside the lock" and vm.get_vcpu_by_id(vcpu_id) is not None:
                raise OSError(errno.EEXIST, "id")
            vcpu.vcpu_idx = vm.online_vcpus
            if bug == "store after reserve":
                vm.vcpu_array.append(None)  # type: ignore[arg-type]
                ladder.push("vcpu_array", vm.vcpu_array.pop)
            else:
                ladder.step("vcpu_array", cv.insert, None if bug == "no erase" else cv.erase, vcpu)
            if bug == "fd without the mutex":
                ladder.step("VM reference", vm.get, vm.put_no_destroy)
                ladder.push("fd", cv.uninstall, vcpu)
                fd = cv.install(vcpu)
                services.publish("vcpu online")
                ladder.step("online", cv.set_online, cv.set_offline, vcpu)
            else:
                with vcpu.mutex, ladder.guard():
                    if bug == "online before the fd":
                        ladder.step("online", cv.set_online, None, vcpu)
                    undo = None if bug == "reference kept" else vm.put_no_destroy
                    ladder.step("VM reference", vm.get, undo)
                    if bug == "fd step after the fd":
                        fd = ladder.step("fd", cv.install, cv.uninstall, vcpu)
                    else:
                        ladder.push("fd", cv.uninstall, vcpu)
                        fd = cv.install(vcpu)
                    if bug != "online before the fd":
                        services.publish("vcpu online")
                        ladder.step("online", cv.set_online, cv.set_offline, vcpu)
                    if bug == "store after reserve":
                        services.publish("vcpu array")
                        vm.vcpu_array[vcpu.vcpu_idx] = vcpu
    hooks.vcpu_postcreate(vcpu)
    return fd


def in_create(bug: str) -> Callable[[Patch], None]:
    def seed(patch: Patch) -> None:
        patch.setitem(vm_module._IOCTLS, rq.KVM_CREATE_VCPU, lambda vm, vcpu_id: create_vcpu(vm, vcpu_id, bug))

    return seed


def instead(patch: Patch, name: str, build: Callable[[Any, Ladder], None]) -> None:
    """Build one step of arm64's ladder in another way."""
    steps = tuple(BuildStep(name, build) if step.name == name else step for step in arm64_vcpu._STEPS)
    patch.setattr(arm64_vcpu, "_STEPS", steps)


def redistributor(patch: Patch) -> None:
    """The GIC's part is built before something that can fail, and not taken back when that fails."""
    init = Arm64Vm.vgic_vcpu_init

    def build_timers(arch: Arm64Vcpu, ladder: Ladder) -> None:
        init(arch.vm, arch)
        arch._build_timers(ladder)

    instead(patch, "timers", build_timers)
    patch.setattr(Arm64Vm, "vgic_vcpu_init", lambda self, vcpu: None)


def timers_freed_first(patch: Patch) -> None:
    """Teardown frees the timers, and then stops them: the PowerPC use-after-free's order."""

    def build_timers(arch: Arm64Vcpu, ladder: Ladder) -> None:
        ladder.push("timer stop", lambda: arch.timers.stop())
        inner = Ladder()
        arch._build_timers(inner)
        inner.drop("timer stop")
        for step in inner._steps:
            ladder.push(step.name, step.undo, *step.args)

    instead(patch, "timers", build_timers)


def lapic_timer_freed_first(patch: Patch) -> None:
    """The same on x86: the local APIC's timer is freed before the local APIC is closed."""
    real = Ladder.push

    def push(self: Ladder, name: str, undo: Any, *args: Any, **kwargs: Any) -> None:
        real(self, name, undo, *args, **kwargs)
        if name == "bus" and [step.name for step in self._steps] == ["lapic", "timer", "bus"]:
            self._steps.insert(1, self._steps.pop())

    patch.setattr(Ladder, "push", push)


def vm_before_vcpus(patch: Patch) -> None:
    """The architecture's VM is freed before the vCPUs that refer to it."""
    real = Ladder.push

    def push(self: Ladder, name: str, undo: Any, *args: Any, **kwargs: Any) -> None:
        real(self, name, undo, *args, **kwargs)
        if name == "vcpus":
            self._steps[-1], self._steps[-2] = self._steps[-2], self._steps[-1]

    patch.setattr(Ladder, "push", push)


def ring_freed_first(patch: Patch) -> None:
    """The dirty ring is freed before the architecture's part, which may still dirty pages."""
    real = cv.create_arch

    def create_arch(vcpu: Vcpu) -> None:
        real(vcpu)
        steps = vcpu.ladder._steps
        ring = next((at for at, step in enumerate(steps) if step.name == "dirty ring"), None)
        if ring is not None:
            steps.append(steps.pop(ring))

    patch.setattr(cv, "create_arch", create_arch)


def rings_unlocked(patch: Patch) -> None:
    """Dirty rings are enabled without the VM's lock: between the look at created_vcpus and the size is a moment."""

    def enable(vm: Vm, size: int) -> int:
        if vm.created_vcpus or vm.dirty_ring_size:
            raise OSError(errno.EINVAL, "late")
        vm.services.publish("dirty ring size")
        vm.dirty_ring_size = size
        return 0

    patch.setattr(dirty_ring, "enable", enable)


def its_own_duplicate(patch: Patch) -> None:
    """An fd that is installed between two looks for it is taken for a duplicate of itself, and closing leaves it."""
    real = FileTable.find

    def find(self: FileTable, fd: int) -> KvmFile:
        file = real(self, fd)
        if fd not in self._duplicates.setdefault(file.inode, []):
            self._duplicates[file.inode].append(fd)
        return file

    patch.setattr(FileTable, "find", find)


def lookup_past_online(patch: Patch) -> None:
    """vCPUs are found as soon as they are in the array."""

    def get_vcpu(self: Vm, vcpu_idx: int) -> Vcpu | None:
        return self.vcpu_array[vcpu_idx] if 0 <= vcpu_idx < len(self.vcpu_array) else None

    patch.setattr(Vm, "get_vcpu", get_vcpu)


def all_of_the_array(patch: Patch) -> None:
    """Requests to all vCPUs go to those in the array."""
    patch.setattr(Vm, "vcpus", lambda self: list(self.vcpu_array))


def on_the_bus_too_early(patch: Patch) -> None:
    """Messages reach a local APIC from the moment it is built."""
    real = Lapic.reset

    def reset(self: Lapic, init: bool = False) -> None:
        real(self, init)
        if self not in self.bus.lapics:
            self.bus.add(self)

    patch.setattr(Lapic, "reset", reset)
    patch.setattr(Lapic, "online", lambda self: None)


def gic_unaware(patch: Patch) -> None:
    """The GIC may be initialised between precreate and the count of the vCPU."""

    def vgic_vcpu_init(self: Arm64Vm, vcpu: Arm64Vcpu) -> None:
        if self.vgic is not None:
            self.vgic.vcpu_init(vcpu)

    patch.setattr(Arm64Vm, "vgic_vcpu_init", vgic_vcpu_init)


def locks_swapped(patch: Patch) -> None:
    """One path takes the VM's lock inside slots_lock."""
    real = vm_module._IOCTLS[rq.KVM_SET_USER_MEMORY_REGION]

    def set_region(vm: Vm, arg: int) -> int:
        with vm.slots_lock:
            vm.lock.acquire()
            vm.lock.release()
        return real(vm, arg)

    patch.setitem(vm_module._IOCTLS, rq.KVM_SET_USER_MEMORY_REGION, set_region)


def lock_kept(patch: Patch) -> None:
    """A refusal leaves with the VM's lock held."""
    real = cv.count

    def count(vm: Vm) -> None:
        if vm.created_vcpus:
            vm.lock.acquire()
        real(vm)

    patch.setattr(cv, "count", count)


def used_after_close(patch: Patch) -> None:
    """Closing a vCPU's fd does not wait for the ioctl in progress."""

    def release(self: VcpuFile) -> None:
        self.closed = True
        self._drop()

    patch.setattr(VcpuFile, "release", release)


@dataclass(frozen=True)
class Seeded:
    """A bug, how to put it in, and who finds it: an architecture and a scenario."""

    name: str
    seed: Callable[[Patch], None]
    arch: str
    scenario: str


SEEDED: Final = (
    Seeded("redistributor left registered (2024)", redistributor, "arm64", "gic-no-memory"),
    Seeded("fd installed without the mutex (2023)", in_create("fd without the mutex"), "x86", "guessed-fd"),
    Seeded("vcpu_array stored after online (2024)", in_create("store after reserve"), "arm64", "lookup"),
    Seeded("lookup between insert and online", lookup_past_online, "arm64", "lookup"),
    Seeded("requests to all of the array", all_of_the_array, "x86", "lookup"),
    Seeded("online before the fd", in_create("online before the fd"), "x86", "no-fd"),
    Seeded("teardown order, arm64 (PowerPC's use-after-free, 2020)", timers_freed_first, "arm64", "same-id"),
    Seeded("teardown order, x86 (PowerPC's use-after-free, 2020)", lapic_timer_freed_first, "x86", "message"),
    Seeded("dirty ring freed before the architecture's part (2023)", ring_freed_first, "x86", "dirty-ring-reset"),
    Seeded("dirty rings enabled without the lock", rings_unlocked, "arm64", "dirty-ring"),
    Seeded("an fd taken for its own duplicate", its_own_duplicate, "x86", "guessed-fd"),
    Seeded("VM freed before its vCPUs (2025)", vm_before_vcpus, "x86", "vm-close"),
    Seeded("precreate outside the lock (2022)", in_create("precreate outside the lock"), "arm64", "gic-init"),
    Seeded("created_vcpus not decremented", in_create("no decrement"), "x86", "same-id"),
    Seeded("duplicate check outside the lock", in_create("duplicate check outside the lock"), "arm64", "same-id"),
    Seeded("vcpu_array not erased when there is no fd", in_create("no erase"), "x86", "no-fd"),
    Seeded("VM reference kept when there is no fd", in_create("reference kept"), "arm64", "no-fd"),
    Seeded("an fd closed before its step is noted", in_create("fd step after the fd"), "arm64", "guessed-close"),
    Seeded("a local APIC on the bus before its vCPU is online", on_the_bus_too_early, "x86", "message-duplicate"),
    Seeded("a GIC initialised while a vCPU is counted", gic_unaware, "arm64", "gic-init"),
    Seeded("locks in the wrong order", locks_swapped, "x86", "slots"),
    Seeded("a vCPU's VM dropped while an ioctl is in progress", used_after_close, "arm64", "destroy"),
    Seeded("a lock taken twice", lock_kept, "arm64", "two-ids"),
)
