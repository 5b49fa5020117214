# SPDX-License-Identifier: GPL-2.0-only
"""Who keeps what alive: closing orders, references, forks, duplicates of an fd."""

from __future__ import annotations

import errno
import itertools
import os
import threading
import weakref
from typing import Any

import pytest
from fake_arch import FAKE_DEVICE, CountingServices, Machine, open_fds

from anykvm.uapi import requests as rq
from anykvm.uapi.exits import KVM_EXIT_HLT, KVM_EXIT_INTR
from anykvm.uapi.structs import KvmCreateDevice


@pytest.mark.parametrize("order", list(itertools.permutations(["vm", "vcpu0", "vcpu1", "device"])), ids="-".join)
def test_the_vm_dies_with_the_last_of_its_fds(machine: Machine, order: tuple[str, ...]) -> None:
    base = machine.ledger()
    vm = machine.vm()
    device = KvmCreateDevice(type=FAKE_DEVICE)
    machine.ioctl(vm, rq.KVM_CREATE_DEVICE, device)
    fds = {"vm": vm, "vcpu0": machine.vcpu(vm, 0), "vcpu1": machine.vcpu(vm, 1), "device": device.fd}
    machine.arch.calls.clear()
    for name in order[:-1]:
        machine.backend.close(fds[name])
        assert machine.arch.calls == []
    machine.backend.close(fds[order[-1]])
    assert machine.arch.calls == ["vcpu_destroy", "vcpu_destroy", "vm_destroy", f"device destroy {FAKE_DEVICE}"]
    assert machine.ledger() == base


def test_vcpus_are_destroyed_newest_first_and_none_is_visible_after(machine: Machine) -> None:
    fd = machine.vm()
    vm = machine.vm_of(fd)
    seen: list[tuple[int, int]] = []
    destroy = machine.arch.vcpu_destroy

    def watch(vcpu: Any) -> None:
        seen.append((vcpu.vcpu_idx, vm.online_vcpus))
        assert vcpu not in vm.vcpu_array
        destroy(vcpu)

    machine.arch.vcpu_destroy = watch  # type: ignore[method-assign]
    vcpus = [machine.vcpu(fd, vcpu_id) for vcpu_id in (2, 0, 1)]
    for one in (*vcpus, fd):
        machine.backend.close(one)
    assert seen == [(2, 2), (1, 1), (0, 0)]


def test_a_vcpu_works_after_its_vm_fd_is_closed(machine: Machine) -> None:
    vm = machine.vm()
    vcpu = machine.vcpu(vm)
    machine.backend.close(vm)
    assert machine.ioctl(vcpu, rq.KVM_RUN) == 0
    assert machine.errno(vm, rq.KVM_CREATE_VCPU) == "EBADF"


def test_closed_and_foreign_fds(machine: Machine) -> None:
    vm = machine.vm()
    machine.backend.close(vm)
    assert machine.errno(vm, rq.KVM_CREATE_VCPU) == "EBADF"
    assert machine.errno(-1, rq.KVM_CREATE_VCPU) == "EBADF"
    assert machine.errno(1 << 40, rq.KVM_CREATE_VCPU) == "EBADF"
    with pytest.raises(OSError) as failure:
        machine.backend.close(vm)
    assert failure.value.errno == errno.EBADF
    foreign = os.memfd_create("foreign")
    try:
        assert machine.errno(foreign, rq.KVM_CREATE_VCPU) == "ENOTTY"
    finally:
        os.close(foreign)


def test_a_duplicate_is_recognised(machine: Machine) -> None:
    vm = machine.vm()
    again = os.dup(vm)
    try:
        vcpu = machine.ioctl(again, rq.KVM_CREATE_VCPU, 4)
        assert machine.vcpu_of(vcpu).vm is machine.vm_of(vm)
    finally:
        os.close(again)


def test_an_fd_closed_behind_our_back_is_released_when_its_number_returns(machine: Machine) -> None:
    vm = machine.vm()
    os.close(vm)
    machine.arch.calls.clear()
    assert machine.vm() == vm
    assert "vm_destroy" in machine.arch.calls


def test_the_objects_go_too(machine: Machine) -> None:
    vm = machine.vm()
    gone = weakref.finalize(machine.vm_of(vm).memory, lambda: None)
    machine.vcpu(vm)
    machine.backend.close_all()
    import gc

    gc.collect()
    assert not gone.alive


def run_until(event: threading.Event) -> Any:
    def guest(vcpu: Any) -> int:
        while not vcpu.signal_pending:
            if event.wait(0.01):
                vcpu.set_exit_reason(KVM_EXIT_HLT)
                return 0
        vcpu.signal_exit()
        raise AssertionError

    return guest


def test_closing_everything_while_a_vcpu_runs(machine: Machine) -> None:
    """The ioctl in progress keeps the vCPU; the thread that leaves it last destroys the VM."""
    stop = threading.Event()
    machine.arch.guest = run_until(stop)
    vm = machine.vm()
    vcpu = machine.vcpu(vm)
    object_ = machine.vcpu_of(vcpu)
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(machine.errno(vcpu, rq.KVM_RUN)))
    thread.start()
    while not object_.running:
        pass
    machine.backend.close(vcpu)
    machine.backend.close(vm)
    assert "vcpu_destroy" not in machine.arch.calls
    stop.set()
    thread.join(5)
    assert results == ["0"]
    assert machine.arch.calls[-2:] == ["vcpu_destroy", "vm_destroy"]


def test_close_all_interrupts_what_runs(machine: Machine) -> None:
    machine.arch.guest = run_until(threading.Event())
    vm = machine.vm()
    vcpu = machine.vcpu(vm)
    object_ = machine.vcpu_of(vcpu)
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(machine.errno(vcpu, rq.KVM_RUN)))
    thread.start()
    while not object_.running:
        pass
    machine.backend.close_all()
    thread.join(5)
    assert results == ["EINTR"]
    assert machine.ledger() == {}


def test_an_ioctl_that_waits_for_the_mutex_while_everything_closes(machine: Machine) -> None:
    stop = threading.Event()
    machine.arch.guest = run_until(stop)
    vm = machine.vm()
    vcpu = machine.vcpu(vm)
    object_ = machine.vcpu_of(vcpu)
    results: list[str] = []
    threads = [threading.Thread(target=lambda: results.append(machine.errno(vcpu, rq.KVM_RUN))) for _ in range(3)]
    for thread in threads:
        thread.start()
    while not object_.running:
        pass
    machine.backend.close(vm)
    machine.backend.close(vcpu)
    stop.set()
    for thread in threads:
        thread.join(5)
    assert len(results) == 3
    assert set(results) <= {"0", "EBADF", "EIO"}
    assert machine.arch.calls.count("vcpu_destroy") == 1


def test_threads_that_create_and_close(machine: Machine) -> None:
    machine.arch.alone = False
    base = machine.ledger()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(30):
                vm = machine.vm()
                vcpus = [machine.vcpu(vm, n) for n in range(3)]
                machine.ioctl(vcpus[1], rq.KVM_RUN)
                machine.backend.close(vcpus[0])
                machine.backend.close(vm)
                machine.backend.close(vcpus[2])
                machine.backend.close(vcpus[1])
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert machine.ledger() == base


def test_a_forked_child_gets_eio_and_can_make_its_own(machine: Machine) -> None:
    vm = machine.vm()
    vcpu = machine.vcpu(vm)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            results = [machine.errno(fd, request) for fd, request in ((vm, rq.KVM_CREATE_VCPU), (vcpu, rq.KVM_RUN))]
            machine.arch.calls.clear()
            machine.backend.close(vcpu)
            machine.backend.close(vm)
            results.append(str(machine.arch.calls))
            own = machine.vcpu(machine.vm())
            results.append(machine.errno(own, rq.KVM_RUN))
            os.write(write, " ".join(results).encode())
        except BaseException as failure:
            os.write(write, repr(failure).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 1000) == b"EIO EIO [] 0"
    os.close(read)
    os.close(write)
    assert machine.errno(vcpu, rq.KVM_RUN) == "0"


def test_a_bugged_vm_refuses_everything(machine: Machine) -> None:
    vm = machine.vm()
    vcpu = machine.vcpu(vm)
    machine.vm_of(vm).bugged("the test says so")
    assert machine.errno(vm, rq.KVM_CREATE_VCPU, 1) == "EIO"
    assert machine.errno(vcpu, rq.KVM_RUN) == "EIO"


def _steps_of_a_vm() -> list[str]:
    machine = Machine()
    machine.services.arm(-1)
    machine.vm()
    acquired = list(machine.services.acquired)
    machine.backend.close_all()
    machine.services.close()
    return acquired


VM_STEPS = _steps_of_a_vm()


@pytest.mark.parametrize("step", range(len(VM_STEPS)), ids=[f"{n}-{name}" for n, name in enumerate(VM_STEPS)])
def test_a_vm_that_cannot_be_made_leaves_nothing(machine: Machine, step: int) -> None:
    before = machine.ledger()
    fds = open_fds()
    machine.services.arm(step)
    expected = errno.errorcode[CountingServices.FAILURES[VM_STEPS[step]]]
    assert machine.errno(machine.system, rq.KVM_CREATE_VM) == expected
    machine.services.disarm()
    assert machine.ledger() == before
    assert open_fds() == fds
    assert "vm_destroy" not in machine.arch.calls


def test_an_unknown_vm_type(machine: Machine) -> None:
    before = machine.ledger()
    assert machine.errno(machine.system, rq.KVM_CREATE_VM, 9) == "EINVAL"
    assert machine.ledger() == before
    assert machine.arch.calls == ["vm_init"]


def test_exit_reason_of_an_interrupted_run(machine: Machine) -> None:
    machine.arch.guest = run_until(threading.Event())
    vcpu = machine.vcpu(machine.vm())
    object_ = machine.vcpu_of(vcpu)
    results: list[str] = []
    thread = threading.Thread(target=lambda: results.append(machine.errno(vcpu, rq.KVM_RUN)))
    thread.start()
    while not object_.running:
        pass
    machine.backend.interrupt(vcpu)
    thread.join(5)
    assert results == ["EINTR"]
    assert object_.run.exit_reason == KVM_EXIT_INTR
