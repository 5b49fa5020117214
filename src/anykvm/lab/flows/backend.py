# SPDX-License-Identifier: GPL-2.0-only
"""The software backend with another KVM_CREATE_VCPU; everything else, VM and guest, is the core's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Final, NamedTuple

from anykvm.arch import interface
from anykvm.uapi.requests import KVM_CREATE_VCPU
from anykvm.virt import create_vcpu as core
from anykvm.virt.backend import SoftwareBackend
from anykvm.virt.ladder import Ladder
from anykvm.virt.vcpu import Vcpu
from anykvm.virt.vm import Vm, VmFile

from . import flow_5_5, flow_5_6, pieces
from .trace import CHECK, TracedServices, traced_hooks


class Flow(NamedTuple):
    """One way to create a vCPU; ``create`` is its KVM_CREATE_VCPU, and gives an fd."""

    name: str
    title: str
    create: Callable[[str, Vm, int], int]


def _create_5_5(arch: str, vm: Vm, vcpu_id: int) -> int:
    return flow_5_5.create_vcpu(import_module(f"{__package__}.{arch}").Old(vm, vcpu_id))


def _create_5_6(arch: str, vm: Vm, vcpu_id: int) -> int:
    return flow_5_6.create_vcpu(import_module(f"{__package__}.{arch}").New(vm, vcpu_id))


@contextmanager
def _told_when_looked_up(vm: Vm) -> Iterator[None]:
    """Tell when the core looks whether the id is in use: nothing else in it shows that."""
    services = pieces.services_of(vm)
    look_up = vm.get_vcpu_by_id

    def told(vcpu_id: int) -> Vcpu | None:
        services.event(CHECK, pieces.DUPLICATE)
        return look_up(vcpu_id)

    vars(vm)["get_vcpu_by_id"] = told
    try:
        yield
    finally:
        del vars(vm)["get_vcpu_by_id"]


def _create_today(arch: str, vm: Vm, vcpu_id: int) -> int:
    with _told_when_looked_up(vm):
        fd = core.create_vcpu(vm, vcpu_id)
    debugfs = pieces.new_debugfs(vm)
    if debugfs is not None:
        # The last step, without an event of its own: new_debugfs has told it.
        Ladder.push(vm.vcpu_by_id[vcpu_id].ladder, "debugfs", vm.services.free, debugfs)
    return fd


FLOWS: Final = (
    Flow("5.5", "Linux 5.5, before the series: three hooks create, three destroy", _create_5_5),
    Flow("5.6", "Linux 5.6, after the series: one creates, one destroys", _create_5_6),
    Flow("today", "today's kernel, and anykvm's core: one creates, one destroys", _create_today),
)


def find(name: str) -> Flow:
    """A flow by its name."""
    return next(flow for flow in FLOWS if flow.name == name)


def architectures() -> list[str]:
    """The architectures in the tree whose older hooks the lab has."""
    return [name for name in interface.packages() if find_spec(f"{__package__}.{name}") is not None]


class FlowBackend(SoftwareBackend):
    """A backend whose vCPUs are created by one of the flows."""

    def __init__(self, arch: str, flow: Flow) -> None:
        self.traced = TracedServices()
        super().__init__(traced_hooks(interface.hooks(arch), self.traced), self.traced)
        self.flow = flow

    def vm_of(self, fd: int) -> Vm:
        """The VM behind an fd."""
        file = self.files.find(fd)
        assert isinstance(file, VmFile)
        return file.vm

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        """As the backend does, but for KVM_CREATE_VCPU."""
        if request & 0xFFFFFFFF != KVM_CREATE_VCPU:
            return super().ioctl(fd, request, arg)
        vm = self.vm_of(fd)
        vm.get()
        try:
            return self.flow.create(self.arch, vm, arg)
        finally:
            vm.put()
