# SPDX-License-Identifier: GPL-2.0-only
"""What holds at every step, whoever runs: the invariants of kvm_main.c, and of the contract with an architecture.

Each function says what is wrong in one line, or nothing. :func:`watched` makes an architecture's hooks say so too, at
the moment an ioctl reaches them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from functools import cache
from typing import TYPE_CHECKING, Any

from anykvm.virt.hooks import ArchHooks
from anykvm.virt.vcpu import Vcpu
from anykvm.virt.vm import Vm

if TYPE_CHECKING:
    from .scheduler import Scheduler

ORDER = ("vm lock", "vcpu mutex", "vm slots_lock", "vm irq_lock")
"""The documented order of common code's mutexes, outermost first (:class:`anykvm.virt.vm.Vm`)."""


def check_vm(vm: Vm) -> str | None:
    """The invariants of a VM that lives."""
    online = vm.online_vcpus
    array = vm.vcpu_array
    if not 0 <= online <= vm.created_vcpus <= vm.max_vcpus:
        return f"online_vcpus {online}, created_vcpus {vm.created_vcpus}, at most {vm.max_vcpus}"
    if not online <= len(array) <= online + 1:
        return f"vcpu_array has {len(array)} entries, {online} vCPUs are online"
    if len(array) > online and not vm.lock.locked():
        return "vcpu_array has an entry that is not online, and nobody holds the VM's lock"
    ids = set()
    for index in range(online):
        vcpu = array[index]
        if not isinstance(vcpu, Vcpu):
            return f"vcpu_array[{index}] is empty, and {online} vCPUs are online"
        if vcpu.vcpu_idx != index:
            return f"vcpu_array[{index}] has vcpu_idx {vcpu.vcpu_idx}"
        if vcpu.destroyed:
            return f"vcpu_array[{index}] has been destroyed"
        if not vcpu.ladder:
            return f"vcpu_array[{index}] is not built"
        ids.add(vcpu.vcpu_id)
    if len(ids) != online:
        return f"{online} vCPUs have {len(ids)} different ids"
    return None


def check_idle(vm: Vm) -> str | None:
    """The invariants of a VM that nobody creates a vCPU in."""
    if vm.created_vcpus != vm.online_vcpus:
        return f"nothing is being created: created_vcpus is {vm.created_vcpus}, online_vcpus {vm.online_vcpus}"
    if len(vm.vcpu_array) != vm.online_vcpus:
        return f"nothing is being created: vcpu_array has {len(vm.vcpu_array)} entries, {vm.online_vcpus} are online"
    by_id = {vcpu.vcpu_id: vcpu for vcpu in vm.vcpu_array}
    if by_id != vm.vcpu_by_id:
        return f"vcpu_by_id has ids {sorted(vm.vcpu_by_id)}, vcpu_array {sorted(by_id)}"
    return None


def check_edges(edges: Iterable[tuple[str, str]]) -> str | None:
    """The order mutexes were taken in, over many runs: the documented order, and no circle."""
    after: dict[str, set[str]] = {}
    for held, taken in sorted(edges):
        if held in ORDER and taken in ORDER and ORDER.index(taken) <= ORDER.index(held):
            return f"{taken} is taken with {held} held: the order is {', '.join(ORDER)}"
        after.setdefault(held, set()).add(taken)
    for start in sorted(after):
        ways = deque([(start, start)])
        seen = set()
        while ways:
            at, way = ways.popleft()
            for then in sorted(after.get(at, ())):
                if then == start:
                    return f"mutexes are taken in a circle: {way}, {then}"
                if then not in seen:
                    seen.add(then)
                    ways.append((then, f"{way}, {then}"))
    return None


@cache
def _watched(kind: Any) -> Any:
    """A subclass of an architecture's hooks; each has the ``scheduler`` it tells."""

    def usable(scheduler: Scheduler, vcpu: Vcpu) -> None:
        if not 0 <= vcpu.vcpu_idx < vcpu.vm.online_vcpus:
            scheduler.fail(f"an ioctl runs on vCPU {vcpu.vcpu_id} before it is online")
        if vcpu.destroyed:
            scheduler.fail(f"an ioctl runs on vCPU {vcpu.vcpu_id}, which has been destroyed")
        if not vcpu.mutex.locked():
            scheduler.fail(f"an ioctl runs on vCPU {vcpu.vcpu_id} without its mutex")

    def on_vcpu(name: str) -> Callable[..., Any]:
        def hook(self: Any, vcpu: Vcpu, *arguments: Any) -> Any:
            usable(self.scheduler, vcpu)
            # Bound as the architecture has it: a hook may be a static method.
            return getattr(super(type(self), self), name)(vcpu, *arguments)

        return hook

    def vcpu_precreate(self: Any, vm: Vm, vcpu_id: int) -> None:
        if not vm.lock.locked():
            self.scheduler.fail("precreate is called without the VM's lock")
        kind.vcpu_precreate(self, vm, vcpu_id)

    def vcpu_postcreate(self: Any, vcpu: Vcpu) -> None:
        if not 0 <= vcpu.vcpu_idx < vcpu.vm.online_vcpus and not vcpu.destroyed:
            self.scheduler.fail(f"postcreate is called on vCPU {vcpu.vcpu_id} before it is online")
        kind.vcpu_postcreate(self, vcpu)

    def vcpu_destroy(self: Any, vcpu: Vcpu) -> None:
        vm = vcpu.vm
        if any(other is vcpu for other in vm.vcpu_array[: vm.online_vcpus]):
            self.scheduler.fail(f"vCPU {vcpu.vcpu_id} is destroyed while it can be found")
        # It was inserted, so it had one.
        if vcpu.vcpu_idx >= 0 and vm.dirty_ring_size and vcpu.dirty_ring is None:
            self.scheduler.fail("the dirty ring is freed before the architecture's part, which may still dirty pages")
        kind.vcpu_destroy(self, vcpu)

    def vm_destroy(self: Any, vm: Vm) -> None:
        if vm.online_vcpus or vm.vcpu_array:
            self.scheduler.fail("the architecture's VM is destroyed before its vCPUs")
        kind.vm_destroy(self, vm)

    body: dict[str, Any] = {name: on_vcpu(name) for name in ("vcpu_ioctl", "vcpu_run", "vcpu_complete_io")}
    body |= {hook.__name__: hook for hook in (vcpu_precreate, vcpu_postcreate, vcpu_destroy, vm_destroy)}
    return type(f"Watched{kind.__name__}", (kind,), body)


def watched(hooks: ArchHooks, scheduler: Scheduler) -> ArchHooks:
    """Make hooks that also say when the contract is broken; they are of a subclass of the architecture's own."""
    made = _watched(type(hooks))()
    made.scheduler = scheduler
    kept: ArchHooks = made
    return kept
