# SPDX-License-Identifier: GPL-2.0-only
"""What the older flows have in common: the steps of an architecture one by one, and the checks of common code."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator
from typing import Any, Final

from anykvm.virt.create_vcpu import install, set_online, uninstall
from anykvm.virt.ladder import Ladder
from anykvm.virt.services import Charge
from anykvm.virt.vcpu import Vcpu
from anykvm.virt.vm import Vm

from .trace import CHECK, STEP, UNDO, TracedServices, untraced

DUPLICATE: Final = "duplicate id"


def services_of(vm: Vm) -> TracedServices:
    """The services of a VM in the lab."""
    services = vm.services
    assert isinstance(services, TracedServices)
    return services


class Built:
    """The architecture's steps for one vCPU, each on a ladder of its own, so that any can be taken back by itself."""

    def __init__(self, vcpu: Vcpu) -> None:
        self._services = vcpu.services
        self._arch = vcpu.arch
        self._steps = {step.name: step for step in vcpu.arch.build_steps()}
        self._ladders: dict[str, Ladder] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """All steps, in the architecture's order."""
        return tuple(self._steps)

    def do(self, *names: str) -> None:
        """Build these, in this order; if one fails, those before it are taken back. A step there is not is no step."""
        done: list[str] = []
        try:
            for name in names:
                if name in self._steps:
                    with self._services.ladder("arch") as ladder:
                        self._steps[name].build(self._arch, ladder)
                    self._ladders[name] = ladder
                    done.append(name)
        except BaseException:
            self.undo(*reversed(done))
            raise

    def undo(self, *names: str) -> None:
        """Take these back, in this order; one that is not built is left alone."""
        for name in names:
            if name in self._ladders:
                self._ladders.pop(name).unwind()


@contextlib.contextmanager
def on_error(undo: Callable[..., object], *args: Any) -> Iterator[None]:
    """A label that an error jumps to."""
    try:
        yield
    except BaseException:
        undo(*args)
        raise


def check_id(vm: Vm, vcpu_id: int) -> None:
    """EINVAL for an id that no VM of this architecture can have."""
    if vcpu_id >= vm.hooks.max_vcpu_ids:
        raise OSError(errno.EINVAL, f"vcpu_id {vcpu_id} is too large")


def count(vm: Vm) -> None:
    """EINVAL for a vCPU too many, else count it."""
    services = services_of(vm)
    with vm.lock:
        if vm.created_vcpus >= vm.max_vcpus:
            raise OSError(errno.EINVAL, "the VM has its limit of vCPUs already")
        services.event(STEP, "created_vcpus")
        vm.created_vcpus += 1


def uncount(vm: Vm) -> None:
    """Take the count back."""
    services_of(vm).event(UNDO, "created_vcpus")
    with vm.lock:
        vm.created_vcpus -= 1


def check_in_create(vm: Vm, vcpu_id: int) -> None:
    """What precreate refuses since 5.6, create refused before: the same checks, in no hook of their own."""
    services_of(vm).event(CHECK, "what precreate refuses")
    untraced(vm.hooks).vcpu_precreate(vm.hooks, vm, vcpu_id)


def new_vcpu(vm: Vm, vcpu_id: int) -> Vcpu:
    """Allocate a vCPU's structure."""
    services_of(vm).event(STEP, "vcpu struct")
    return Vcpu(vm, vcpu_id, Ladder())


def free_vcpu(vcpu: Vcpu) -> None:
    """Free it."""
    services_of(vcpu.vm).event(UNDO, "vcpu struct")
    vcpu.free()


def new_run_page(vcpu: Vcpu) -> None:
    """Allocate the run page."""
    services_of(vcpu.vm).event(STEP, "run page")
    vcpu.alloc_run_page()


def free_run_page(vcpu: Vcpu) -> None:
    """Free it."""
    services_of(vcpu.vm).event(UNDO, "run page")
    vcpu.free_run_page()


def new_debugfs(vm: Vm) -> Charge | None:
    """Make the vCPU's directory in debugfs; a failure is nobody's business, as in the kernel.

    The core has no debugfs: this stands for the kernel's, since where it is made has changed.
    """
    services_of(vm).event(STEP, "debugfs")
    try:
        return vm.services.charge("debugfs", 0)
    except OSError:
        return None


def free_debugfs(vm: Vm, made: Charge | None) -> None:
    """Remove it."""
    services_of(vm).event(UNDO, "debugfs")
    if made is not None:
        vm.services.free(made)


def check_duplicate(vm: Vm, vcpu_id: int) -> None:
    """EEXIST for an id in use; with the VM's lock held."""
    services_of(vm).event(CHECK, DUPLICATE)
    if vm.get_vcpu_by_id(vcpu_id) is not None:
        raise OSError(errno.EEXIST, f"the VM has a vCPU with vcpu_id {vcpu_id} already")


def publish(vcpu: Vcpu) -> int:
    """Up to Linux 5.16: the fd, then the array, then the number of those online; with the VM's lock held."""
    vm = vcpu.vm
    services = services_of(vm)
    vcpu.vcpu_idx = vm.online_vcpus
    services.event(STEP, "VM reference")
    vm.get()
    with on_error(vm.put_no_destroy):
        services.event(STEP, "fd")
        # The file takes both steps off when it is closed.
        vcpu.ladder.push("VM reference", vm.put_no_destroy)
        vcpu.ladder.push("fd", uninstall, vcpu)
        fd = install(vcpu)
    services.event(STEP, "vcpu_array")
    vm.vcpu_array.append(vcpu)
    vm.coalesced.show(vcpu)
    services.event(STEP, "online")
    set_online(vcpu)
    return fd
