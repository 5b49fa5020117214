# SPDX-License-Identifier: GPL-2.0-only
"""vcpu_load and vcpu_put: who is told what when a vCPU changes its physical CPU."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from fake_arch import FakeArch, Machine

from anykvm.api import Kvm
from anykvm.testing import software
from anykvm.uapi import requests as rq
from anykvm.virt import preempt
from anykvm.virt.preempt import PHYSICAL_CPUS, PhysicalCpus


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What the architecture is told: (what, physical CPU)."""
    seen: list[tuple[str, int]] = []
    monkeypatch.setattr(FakeArch, "vcpu_load", lambda self, vcpu, cpu: seen.append(("load", cpu)))
    monkeypatch.setattr(FakeArch, "vcpu_put", lambda self, vcpu: seen.append(("put", vcpu.cpu)))
    return seen


def _elsewhere(cpu: int) -> int:
    return (cpu + 1) % PHYSICAL_CPUS


def test_a_thread_stays_on_its_cpu_and_threads_are_spread() -> None:
    cpus = PhysicalCpus(2)
    assert [cpus.of(thread) for thread in (10, 11, 12, 10)] == [0, 1, 0, 0]
    cpus.move(10, 1)
    assert cpus.of(10) == 1
    with pytest.raises(ValueError, match="0 to 1"):
        cpus.move(10, 2)


def test_the_same_thread_loads_once(machine: Machine, told: list[tuple[str, int]]) -> None:
    fd = machine.vcpu(machine.vm())
    vcpu = machine.vcpu_of(fd)
    assert (vcpu.cpu, told) == (-1, [])
    for _ in range(3):
        machine.ioctl(fd, rq.KVM_RUN)
        machine.errno(fd, 0xAEFF)
    assert told == [("load", vcpu.cpu)]
    assert not vcpu.loaded and not vcpu.running


def test_another_thread_on_another_cpu_loads_again(machine: Machine, told: list[tuple[str, int]]) -> None:
    fd = machine.vcpu(machine.vm())
    vcpu = machine.vcpu_of(fd)
    machine.ioctl(fd, rq.KVM_RUN)
    here = vcpu.cpu

    def elsewhere() -> None:
        machine.services.cpus.move(threading.get_ident(), _elsewhere(here))
        machine.ioctl(fd, rq.KVM_RUN)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join(10)
    machine.ioctl(fd, rq.KVM_RUN)
    assert told == [("load", here), ("load", _elsewhere(here)), ("load", here)]


def test_a_loaded_vcpu_is_told_when_it_is_preempted(machine: Machine, told: list[tuple[str, int]]) -> None:
    fd = machine.vcpu(machine.vm())
    vcpu = machine.vcpu_of(fd)

    def guest(vcpu: Any) -> int:
        preempt.preempt(vcpu, _elsewhere(vcpu.cpu))
        return 0

    machine.arch.guest = guest
    machine.ioctl(fd, rq.KVM_RUN)
    first = told[0][1]
    assert told == [("load", first), ("put", first), ("load", _elsewhere(first))]
    assert vcpu.cpu == _elsewhere(first)
    # One that is not loaded finds out when it is loaded next.
    told.clear()
    preempt.preempt(vcpu, first)
    assert told == []
    machine.arch.guest = None
    machine.ioctl(fd, rq.KVM_RUN)
    assert told == [("load", first)]


def test_a_create_hook_may_load_the_vcpu(
    machine: Machine, told: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def create(self: FakeArch, vcpu: Any) -> None:
        original(self, vcpu)
        preempt.load(vcpu)
        preempt.preempt(vcpu, _elsewhere(vcpu.cpu))
        preempt.put(vcpu)

    original = FakeArch.vcpu_create
    monkeypatch.setattr(FakeArch, "vcpu_create", create)
    vcpu = machine.vcpu_of(machine.vcpu(machine.vm()))
    assert [what for what, _ in told] == ["load", "put", "load", "put"]
    assert not vcpu.loaded and vcpu.notifier.registered is False


def test_loading_before_the_notifier_is_there_is_a_bug(machine: Machine) -> None:
    """The flow before Linux 5.6: the notifier was initialised when the architecture had created the vCPU."""
    vcpu = machine.vcpu_of(machine.vcpu(machine.vm()))
    vcpu.notifier = None
    with pytest.raises(AssertionError, match="wild pointer"):
        preempt.load(vcpu)


def test_load_and_put_come_in_pairs(machine: Machine) -> None:
    vcpu = machine.vcpu_of(machine.vcpu(machine.vm()))
    with pytest.raises(AssertionError, match="not loaded"):
        preempt.put(vcpu)
    preempt.load(vcpu)
    with pytest.raises(AssertionError, match="is loaded"):
        preempt.load(vcpu)
    preempt.put(vcpu)


def test_x86_remembers_the_cpus_a_vcpu_was_on() -> None:
    backend = software("x86")
    with Kvm(backend) as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as handle:
        vcpu: Any = backend.files.by_fd[handle.fd].vcpu
        # The create hook has loaded it around its reset.
        assert vcpu.arch.wbinvd_mask[0] == 1 << vcpu.cpu
        other = _elsewhere(vcpu.cpu)
        before = vcpu.cpu
        preempt.preempt(vcpu, other)
        handle.get_regs()
        assert vcpu.cpu == other and vcpu.arch.wbinvd_mask[0] == 1 << before | 1 << other
