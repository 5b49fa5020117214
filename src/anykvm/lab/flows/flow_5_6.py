# SPDX-License-Identifier: GPL-2.0-only
"""Linux 5.6, as the series left it: one hook creates, one destroys; precreate and postcreate around them.

Common code allocates and initialises the vCPU, with its preempt notifier, before it calls create.
"""

from __future__ import annotations

from typing import Any

from anykvm.virt.vcpu import Vcpu
from anykvm.virt.vm import Vm

from . import pieces
from .pieces import Built, on_error, services_of
from .trace import STEP


class NewVcpu:
    """One vCPU and the create and destroy of an architecture of 5.6."""

    arch: type[Any]

    def __init__(self, vm: Vm, vcpu_id: int) -> None:
        self.vm = vm
        self.vcpu_id = vcpu_id
        self.vcpu: Vcpu
        self.built: Built

    def create(self) -> None:
        """The one hook that builds; if it fails it has cleaned up."""
        with services_of(self.vm).inside("create"):
            self.vcpu.arch = self.arch(self.vcpu, self.vm.arch)
            self.built = Built(self.vcpu)
            self.built.do(*self.built.names)

    def destroy(self) -> None:
        """The one hook that tears down."""
        with services_of(self.vm).inside("destroy"):
            self.dismantle()

    def dismantle(self) -> None:
        """The mirror of create, as far as it was one."""
        self.built.undo(*reversed(self.built.names))

    def vm_dies(self) -> None:
        """kvm_vcpu_destroy(), when the VM dies."""
        self.destroy()
        pieces.free_run_page(self.vcpu)
        pieces.free_vcpu(self.vcpu)


def create_vcpu(new: NewVcpu) -> int:
    """kvm_vm_ioctl_create_vcpu() of 5.6."""
    vm = new.vm
    services = services_of(vm)
    pieces.check_id(vm, new.vcpu_id)
    pieces.count(vm)
    with on_error(pieces.uncount, vm):
        # Counted already, and not under the lock.
        vm.hooks.vcpu_precreate(vm, new.vcpu_id)
        new.vcpu = vcpu = pieces.new_vcpu(vm, new.vcpu_id)
        with on_error(pieces.free_vcpu, vcpu):
            pieces.new_run_page(vcpu)
            with on_error(pieces.free_run_page, vcpu):
                services.event(STEP, "preempt notifier")
                new.create()
                with on_error(new.destroy):
                    debugfs = pieces.new_debugfs(vm)
                    with on_error(pieces.free_debugfs, vm, debugfs):
                        vcpu.ladder.push("arch", new.vm_dies)
                        vcpu.ladder.push("debugfs", pieces.free_debugfs, vm, debugfs)
                        with vm.lock:
                            pieces.check_duplicate(vm, new.vcpu_id)
                            fd = pieces.publish(vcpu)
    vm.hooks.vcpu_postcreate(vcpu)
    return fd
