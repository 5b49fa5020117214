# SPDX-License-Identifier: GPL-2.0-only
"""Preemption: on which physical CPU a vCPU is, and who is told when the scheduler moves it.

The kernel brackets every use of a vCPU with vcpu_load() and vcpu_put(): between them a preempt notifier tells KVM when
the scheduler takes the thread off its CPU and puts it on another. The host's scheduler tells nobody in user space, so
the physical CPUs here are a model: each thread has one, from a small set, and the lab moves threads about.

Loading is lazy, since it is on the way of every ioctl: the thread is compared with the last one's, and the
architecture's ``vcpu_load`` is called when the physical CPU is another than last time. To who looks only at what a
change of CPU needs it is all the same.
"""

from __future__ import annotations

from itertools import count
from threading import get_ident
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .vcpu import Vcpu

PHYSICAL_CPUS: Final = 4


class PhysicalCpus:
    """The physical CPUs, and which thread is on which: a new thread gets the next one."""

    def __init__(self, number: int = PHYSICAL_CPUS) -> None:
        self.number = number
        self._of: dict[int, int] = {}
        self._next = count()

    def of(self, thread: int) -> int:
        """The physical CPU of a thread, by its identification (``threading.get_ident``)."""
        cpu = self._of.get(thread)
        if cpu is None:
            cpu = self._of.setdefault(thread, next(self._next) % self.number)
        return cpu

    def move(self, thread: int, cpu: int) -> None:
        """Let a thread be on another physical CPU from now on; the vCPU it has loaded is :func:`preempt`'s business."""
        if not 0 <= cpu < self.number:
            raise ValueError(f"there are physical CPUs 0 to {self.number - 1}, not {cpu}")
        self._of[thread] = cpu


class PreemptNotifier:
    """What the scheduler tells a loaded vCPU (struct preempt_notifier, with KVM's two functions)."""

    __slots__ = ("_vcpu", "registered")

    def __init__(self, vcpu: Vcpu) -> None:
        self._vcpu = vcpu
        self.registered = False

    def sched_out(self) -> None:
        """The thread leaves its physical CPU (kvm_sched_out)."""
        self._vcpu.hooks.vcpu_put(self._vcpu)

    def sched_in(self, cpu: int) -> None:
        """The thread goes on, on this physical CPU (kvm_sched_in)."""
        self._vcpu.cpu = cpu
        self._vcpu.hooks.vcpu_load(self._vcpu, cpu)


def load(vcpu: Vcpu) -> None:
    """Bring a vCPU to the calling thread (vcpu_load); AssertionError if that is a bug in KVM.

    Loading a vCPU whose preempt notifier is not initialised would have the scheduler follow a wild pointer: until
    Linux 5.6 that happened after the architecture had created the vCPU, so a create hook could not do this.
    """
    notifier = vcpu.notifier
    if notifier is None:
        raise AssertionError("vcpu_load before preempt_notifier_init: the scheduler would follow a wild pointer")
    if vcpu.loaded or vcpu.running:
        raise AssertionError("vcpu_load of a vCPU that is loaded")
    notifier.registered = vcpu.loaded = True
    if vcpu.thread != get_ident():
        arrive(vcpu)


def put(vcpu: Vcpu) -> None:
    """Let go of a vCPU that was loaded (vcpu_put)."""
    if not vcpu.loaded or vcpu.notifier is None:
        raise AssertionError("vcpu_put of a vCPU that is not loaded")
    vcpu.hooks.vcpu_put(vcpu)
    vcpu.notifier.registered = vcpu.loaded = False


def arrive(vcpu: Vcpu) -> None:
    """Note that the calling thread has the vCPU, which is not the one that had it last."""
    thread = get_ident()
    cpu = vcpu.services.cpus.of(thread)
    vcpu.thread = thread
    if cpu != vcpu.cpu:
        vcpu.cpu = cpu
        vcpu.hooks.vcpu_load(vcpu, cpu)


def preempt(vcpu: Vcpu, cpu: int) -> None:
    """Be the scheduler: take a vCPU's thread off its physical CPU and let it go on, on another one.

    A vCPU that is not loaded is told nothing now; it finds itself elsewhere when it is loaded next.
    """
    vcpu.services.cpus.move(vcpu.thread, cpu)
    if (vcpu.loaded or vcpu.running) and vcpu.notifier is not None:
        vcpu.notifier.sched_out()
        vcpu.notifier.sched_in(cpu)
    else:
        vcpu.thread = 0
