# SPDX-License-Identifier: GPL-2.0-only
"""Linux 5.5: three hooks create a vCPU (init, inside common code's vcpu_init; create; setup), three destroy it.

The architecture allocates the vCPU and calls common code's vcpu_init itself, which calls the architecture's init as its
last act. Of the three that destroy (uninit, destroy, free) common code never calls free.
"""

from __future__ import annotations

from typing import Any

from anykvm.virt.preempt import PreemptNotifier
from anykvm.virt.vcpu import Vcpu
from anykvm.virt.vm import Vm

from . import pieces
from .pieces import Built, on_error, services_of
from .trace import STEP


class OldVcpu:
    """One vCPU and the six hooks of an architecture of 5.5; a subclass says what each of them builds or takes back.

    ``frame`` is what create builds before it calls vcpu_init, ``inner`` what init builds, ``late`` what setup builds.
    A step that an architecture has got since belongs to create.
    """

    arch: type[Any]
    frame: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()
    late: tuple[str, ...] = ()

    def __init__(self, vm: Vm, vcpu_id: int) -> None:
        self.vm = vm
        self.vcpu_id = vcpu_id
        self.vcpu: Vcpu
        self.built: Built

    @property
    def rest(self) -> tuple[str, ...]:
        """What create builds after vcpu_init."""
        others = (*self.frame, *self.inner, *self.late)
        return tuple(name for name in self.built.names if name not in others)

    # The hooks that create.

    def create(self) -> None:
        """Check, allocate, have common code initialise, build the rest."""
        with services_of(self.vm).inside("create"):
            pieces.check_in_create(self.vm, self.vcpu_id)
            self.vcpu = vcpu = pieces.new_vcpu(self.vm, self.vcpu_id)
            with on_error(pieces.free_vcpu, vcpu):
                # Nobody has initialised it yet: who loads the vCPU from here is wrong.
                vcpu.notifier = None
                vcpu.arch = self.arch(vcpu, self.vm.arch)
                self.built = Built(vcpu)
                self.built.do(*self.frame)
                with on_error(self.built.undo, *reversed(self.frame)):
                    self.vcpu_init()
                    with on_error(self.vcpu_uninit):
                        self.built.do(*self.rest)

    def vcpu_init(self) -> None:
        """Common code: the run page, then the architecture's init."""
        pieces.new_run_page(self.vcpu)
        with on_error(pieces.free_run_page, self.vcpu), services_of(self.vm).inside("init"):
            self.init()

    def init(self) -> None:
        """The hook that was hidden in common code; it unwinds itself."""
        self.built.do(*self.inner)

    def setup(self) -> None:
        """The hook that was there to load the vCPU once its preempt notifier was initialised."""
        with services_of(self.vm).inside("setup"):
            self.built.do(*self.late)

    # The hooks that destroy.

    def vcpu_uninit(self) -> None:
        """Common code: the architecture's uninit, then the run page."""
        with services_of(self.vm).inside("uninit"):
            self.uninit()
        pieces.free_run_page(self.vcpu)

    def uninit(self) -> None:
        """The mirror of init, as far as it was one."""
        raise NotImplementedError

    def destroy(self) -> None:
        """What common code calls when creation fails after create."""
        with services_of(self.vm).inside("destroy"):
            self.dismantle()

    def free(self) -> None:
        """What the architecture's own code calls when the VM dies."""
        with services_of(self.vm).inside("free"):
            self.dismantle()

    def dismantle(self) -> None:
        """What destroy and free shared (vendor code's vcpu_free on x86)."""
        self.built.undo(*reversed(self.late), *reversed(self.rest))
        self.vcpu_uninit()
        self.built.undo(*reversed(self.frame))
        pieces.free_vcpu(self.vcpu)

    def vm_dies(self) -> None:
        """The architecture's VM teardown, for this vCPU."""
        self.free()


def create_vcpu(old: OldVcpu) -> int:
    """kvm_vm_ioctl_create_vcpu() of 5.5."""
    vm = old.vm
    services = services_of(vm)
    pieces.check_id(vm, old.vcpu_id)
    pieces.count(vm)
    with on_error(pieces.uncount, vm):
        old.create()
        vcpu = old.vcpu
        services.event(STEP, "preempt notifier")
        vcpu.notifier = PreemptNotifier(vcpu)
        with on_error(old.destroy):
            old.setup()
            debugfs = pieces.new_debugfs(vm)
            with on_error(pieces.free_debugfs, vm, debugfs):
                vcpu.ladder.push("arch", old.vm_dies)
                vcpu.ladder.push("debugfs", pieces.free_debugfs, vm, debugfs)
                with vm.lock:
                    pieces.check_duplicate(vm, old.vcpu_id)
                    fd = pieces.publish(vcpu)
    vm.hooks.vcpu_postcreate(vcpu)
    return fd
