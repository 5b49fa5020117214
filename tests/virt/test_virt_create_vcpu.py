# SPDX-License-Identifier: GPL-2.0-only
"""KVM_CREATE_VCPU: order, locks, errno, ids, what is visible when."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fake_arch import CountingServices, Machine, open_fds

from anykvm.uapi import requests as rq

CREATE = rq.KVM_CREATE_VCPU


def test_common_code_calls_the_four_hooks_and_nothing_else(machine: Machine) -> None:
    vm = machine.vm()
    machine.arch.calls.clear()
    vcpu = machine.vcpu(vm, 3)
    assert machine.arch.calls == ["vcpu_precreate", "vcpu_create", "vcpu_postcreate"]
    machine.arch.calls.clear()
    machine.backend.close(vcpu)
    assert machine.arch.calls == []
    machine.backend.close(vm)
    assert machine.arch.calls == ["vcpu_destroy", "vm_destroy"]


def test_the_ladder_shows_every_step(machine: Machine) -> None:
    vcpu = machine.vcpu_of(machine.vcpu(machine.vm()))
    assert vcpu.ladder.steps == [
        "created_vcpus",
        "vcpu struct",
        "run page",
        "arch: first",
        "arch: timer",
        "arch: second",
        "vcpu_array",
        "VM reference",
        "fd",
        "online",
    ]


def test_id_and_index_are_different_things(machine: Machine) -> None:
    fd = machine.vm()
    vm = machine.vm_of(fd)
    for index, vcpu_id in enumerate((7, 0, 99, 1)):
        vcpu = machine.vcpu_of(machine.vcpu(fd, vcpu_id))
        assert (vcpu.vcpu_id, vcpu.vcpu_idx) == (vcpu_id, index)
        assert vm.get_vcpu(index) is vcpu
        assert vm.get_vcpu_by_id(vcpu_id) is vcpu
    assert vm.get_vcpu_by_id(2) is None
    assert vm.get_vcpu(4) is None
    assert vm.get_vcpu(-1) is None


@pytest.mark.parametrize("vcpu_id", [100, 101, 1 << 31, 1 << 32, (1 << 64) - 1])
def test_an_id_too_large_is_einval_before_anything(machine: Machine, vcpu_id: int) -> None:
    vm = machine.vm()
    machine.arch.calls.clear()
    before = machine.ledger()
    assert machine.errno(vm, CREATE, vcpu_id) == "EINVAL"
    assert machine.arch.calls == []
    assert machine.ledger() == before


def test_the_number_of_vcpus_is_limited(machine: Machine) -> None:
    vm = machine.vm()
    for vcpu_id in range(6):
        machine.vcpu(vm, vcpu_id)
    machine.arch.calls.clear()
    assert machine.errno(vm, CREATE, 6) == "EINVAL"
    assert machine.arch.calls == []
    assert machine.vm_of(vm).created_vcpus == 6


def test_a_vm_may_lower_its_limit(machine: Machine) -> None:
    vm = machine.vm()
    machine.vm_of(vm).max_vcpus = 1
    machine.vcpu(vm, 0)
    assert machine.errno(vm, CREATE, 1) == "EINVAL"


def test_a_duplicate_id_is_eexist_after_full_creation(machine: Machine) -> None:
    vm = machine.vm()
    machine.vcpu(vm, 5)
    before = machine.ledger()
    machine.arch.calls.clear()
    assert machine.errno(vm, CREATE, 5) == "EEXIST"
    assert machine.arch.calls == ["vcpu_precreate", "vcpu_create", "vcpu_destroy"]
    assert machine.ledger() == before
    assert machine.vm_of(vm).created_vcpus == machine.vm_of(vm).online_vcpus == 1


def test_closing_the_fd_does_not_free_the_id(machine: Machine) -> None:
    vm = machine.vm()
    machine.backend.close(machine.vcpu(vm, 5))
    assert machine.errno(vm, CREATE, 5) == "EEXIST"


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EINVAL, errno.ENOMEM])
def test_precreate_refuses_before_anything_is_counted(machine: Machine, code: int) -> None:
    vm = machine.vm()
    before = machine.ledger()
    machine.arch.refuse["vcpu_precreate"] = code
    machine.arch.calls.clear()
    assert machine.errno(vm, CREATE, 0) == errno.errorcode[code]
    assert machine.arch.calls == ["vcpu_precreate"]
    assert machine.ledger() == before
    assert machine.vm_of(vm).created_vcpus == 0


def test_a_create_that_fails_is_not_destroyed(machine: Machine) -> None:
    vm = machine.vm()
    before = machine.ledger()
    machine.arch.refuse["vcpu_create"] = errno.ENODEV
    machine.arch.calls.clear()
    assert machine.errno(vm, CREATE, 0) == "ENODEV"
    assert machine.arch.calls == ["vcpu_precreate", "vcpu_create"]
    assert machine.ledger() == before
    machine.arch.refuse.clear()
    machine.vcpu(vm, 0)


def _steps_of_one_creation() -> list[str]:
    machine = Machine()
    vm = machine.vm()
    machine.services.arm(-1)
    machine.vcpu(vm, 0)
    acquired = list(machine.services.acquired)
    machine.backend.close_all()
    machine.services.close()
    return acquired


STEPS = _steps_of_one_creation()


def test_a_creation_acquires_something_at_every_level() -> None:
    assert {"charge", "mutex", "memfd", "map", "alloc", "timer"} <= set(STEPS)


@pytest.mark.parametrize("step", range(len(STEPS)), ids=[f"{n}-{name}" for n, name in enumerate(STEPS)])
def test_whatever_fails_nothing_is_left_and_the_same_id_works_next(machine: Machine, step: int) -> None:
    fd = machine.vm()
    vm = machine.vm_of(fd)
    machine.vcpu(fd, 1)
    before, counted = machine.ledger(), vm.created_vcpus
    fds = open_fds()
    machine.arch.calls.clear()
    machine.services.arm(step)
    assert machine.errno(fd, CREATE, 0) == errno.errorcode[CountingServices.FAILURES[STEPS[step]]]
    machine.services.disarm()
    assert machine.ledger() == before
    assert open_fds() == fds
    assert (vm.created_vcpus, vm.online_vcpus, len(vm.vcpu_array)) == (counted, 1, 1)
    assert machine.arch.calls.count("vcpu_destroy") == (STEPS[step] == "memfd")
    vcpu = machine.vcpu_of(machine.vcpu(fd, 0))
    assert vcpu.vcpu_idx == 1


def test_without_an_fd_a_duplicate_is_still_eexist(machine: Machine) -> None:
    vm = machine.vm()
    machine.vcpu(vm, 0)
    machine.services.arm(STEPS.index("memfd"))
    assert machine.errno(vm, CREATE, 0) == "EEXIST"


def test_a_publication_that_fails_unwinds_from_under_the_locks(machine: Machine) -> None:
    fd = machine.vm()
    vm = machine.vm_of(fd)
    before = machine.ledger()
    for point in ("vcpu array", "vcpu fd", "vcpu online"):

        def publish(what: str, point: str = point) -> None:
            if what == point:
                assert vm.lock.locked()
                raise OSError(errno.ENOMEM, point)

        machine.services.publish = publish  # type: ignore[method-assign]
        assert machine.errno(fd, CREATE, 0) == "ENOMEM", point
        del machine.services.publish
        assert machine.ledger() == before, point
        assert not vm.lock.locked()
        assert (vm.created_vcpus, vm.online_vcpus, vm.vcpu_array) == (0, 0, [])
    assert machine.vcpu_of(machine.vcpu(fd, 0)).vcpu_idx == 0


def test_no_ioctl_gets_in_before_the_vcpu_is_online(machine: Machine) -> None:
    machine.arch.alone = False
    fd = machine.vm()
    vm = machine.vm_of(fd)
    seen: list[int] = []
    threads: list[threading.Thread] = []

    def publish(what: str) -> None:
        if what != "vcpu online":
            return
        # The fd is in the table now: another thread that guesses it has to wait.
        guessed = max(machine.backend.files.by_fd)

        def early() -> None:
            machine.ioctl(guessed, rq.KVM_RUN)
            seen.append(vm.online_vcpus)

        thread = threading.Thread(target=early)
        thread.start()
        threads.append(thread)
        thread.join(0.05)
        assert thread.is_alive()

    machine.services.publish = publish  # type: ignore[method-assign]
    machine.vcpu(fd, 0)
    for thread in threads:
        thread.join(5)
    assert seen == [1]


def test_threads_that_race_for_one_id_get_one_vcpu(machine: Machine) -> None:
    machine.arch.max_vcpus = 64
    machine.arch.alone = False
    fd = machine.vm()
    vm = machine.vm_of(fd)
    for vcpu_id in range(8):
        results: list[str] = []
        start = threading.Barrier(4)

        def create(vcpu_id: int = vcpu_id, results: list[str] = results, start: threading.Barrier = start) -> None:
            start.wait()
            results.append(machine.errno(fd, CREATE, vcpu_id))

        threads = [threading.Thread(target=create) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert sorted(results) == ["0", "EEXIST", "EEXIST", "EEXIST"]
        assert vm.online_vcpus == vm.created_vcpus == vcpu_id + 1
        assert [vcpu.vcpu_idx for vcpu in vm.vcpu_array] == list(range(vcpu_id + 1))


def test_emfile_at_the_fd_step_and_the_same_id_next() -> None:
    """With the host's own limit, in a process of its own."""
    script = """
import os, resource
from fake_arch import Machine
from anykvm.uapi import requests as rq
m = Machine(); vm = m.vm(); m.vcpu(vm, 0)
before = m.ledger()
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (max(m.backend.files.by_fd) + 1, hard))
spare = []
try:
    while True: spare.append(os.dup(0))
except OSError: pass
m.arch.calls.clear()
print(m.errno(vm, rq.KVM_CREATE_VCPU, 1), m.errno(vm, rq.KVM_CREATE_VCPU, 0), m.errno(m.system, rq.KVM_CREATE_VM))
print(" ".join(m.arch.calls), m.ledger() == before)
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
print(m.errno(vm, rq.KVM_CREATE_VCPU, 1))
m.backend.close_all()
print(m.ledger())
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.splitlines() == [
        "EMFILE EEXIST EMFILE",
        "vcpu_precreate vcpu_create vcpu_destroy vcpu_precreate vcpu_create vcpu_destroy True",
        "0",
        "{}",
    ], done.stderr


def test_256_vcpus(machine: Machine) -> None:
    machine.arch.max_vcpus = machine.arch.max_vcpu_ids = 256
    vm = machine.vm()
    fds = [machine.vcpu(vm, vcpu_id) for vcpu_id in range(256)]
    assert len(set(fds)) == 256
    assert machine.errno(vm, CREATE, 256) == "EINVAL"
    machine.backend.close_all()
    assert machine.arch.calls.count("vcpu_destroy") == 256


def test_the_fd_is_named_and_close_on_exec(machine: Machine) -> None:
    vm = machine.vm()
    vcpu = machine.vcpu(vm, 3)
    assert "kvm-vcpu:3" in os.readlink(f"/proc/self/fd/{vcpu}")
    assert "kvm-vm" in os.readlink(f"/proc/self/fd/{vm}")
    assert not os.get_inheritable(vcpu)
    assert not os.get_inheritable(vm)
