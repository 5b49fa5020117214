# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import errno
import gc
import os

import pytest
from fake_arch import Machine, open_fds

from anykvm.uapi.run import KvmRun
from anykvm.virt.mapping import map_shared


def mapped(name: str) -> int:
    with open("/proc/self/maps") as maps:
        return sum(name in line for line in maps)


def test_a_mapping_holds_no_fd_and_ends_with_its_last_view() -> None:
    fd = os.memfd_create("mapping-test")
    os.ftruncate(fd, 8192)
    before = open_fds()
    mapping = map_shared(fd, 8192)
    assert open_fds() == before
    view = memoryview(mapping).cast("B")[4096:]
    run = KvmRun.from_buffer(mapping)
    view[0] = 7
    assert os.pread(fd, 1, 4096) == b"\7"
    del mapping, view
    gc.collect()
    assert mapped("mapping-test") == 1
    run.exit_reason = 5
    del run
    gc.collect()
    assert mapped("mapping-test") == 0
    os.close(fd)


def test_anonymous_memory() -> None:
    mapping = map_shared(-1, 4096)
    assert bytes(memoryview(mapping).cast("B")) == bytes(4096)


@pytest.mark.parametrize(("fd", "size", "code"), [(1 << 20, 4096, errno.EBADF), (-1, 1 << 60, errno.ENOMEM)])
def test_refusals(fd: int, size: int, code: int) -> None:
    with pytest.raises(OSError) as failure:
        map_shared(fd, size)
    assert failure.value.errno == code


def test_a_vcpu_takes_one_fd_and_its_mapping_goes_with_the_vm(machine: Machine) -> None:
    vm = machine.vm()
    before = len(open_fds())
    machine.vcpu(vm, 77)
    assert len(open_fds()) == before + 1
    assert mapped("kvm-vcpu:77") == 1
    machine.backend.close_all()
    gc.collect()
    assert mapped("kvm-vcpu:77") == 0
