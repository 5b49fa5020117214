# SPDX-License-Identifier: GPL-2.0-only
"""The run page and KVM_RUN."""

from __future__ import annotations

import ctypes
import errno
from typing import Any

import pytest
from fake_arch import Machine

from anykvm.uapi import requests as rq
from anykvm.uapi.exits import KVM_EXIT_HLT, KVM_EXIT_MMIO
from anykvm.uapi.run import KvmRun
from anykvm.uapi.structs import KvmOneReg, KvmSignalMask


def test_the_mapped_fd_is_the_run_page(machine: Machine) -> None:
    vcpu = machine.vcpu(machine.vm())
    size = machine.ioctl(machine.system, rq.KVM_GET_VCPU_MMAP_SIZE)
    assert size == 12288
    mapped = machine.backend.mmap(vcpu, size)
    run = KvmRun.from_buffer(mapped)
    assert bytes(mapped) == bytes(size)
    assert machine.ioctl(vcpu, rq.KVM_RUN) == 0
    assert run.exit_reason == KVM_EXIT_HLT
    run.immediate_exit = 1
    assert machine.vcpu_of(vcpu).immediate_exit
    del run
    mapped.release()


def test_a_mapping_outlives_everything(machine: Machine) -> None:
    vm = machine.vm()
    vcpu = machine.vcpu(vm)
    mapped = machine.backend.mmap(vcpu, 12288)
    machine.ioctl(vcpu, rq.KVM_RUN)
    machine.backend.close_all()
    assert KvmRun.from_buffer_copy(mapped).exit_reason == KVM_EXIT_HLT


@pytest.mark.parametrize("length", [12289, 1 << 30, 0, -1, 1 << 70])
def test_a_mapping_that_is_too_long(machine: Machine, length: int) -> None:
    vcpu = machine.vcpu(machine.vm())
    with pytest.raises(OSError) as failure:
        machine.backend.mmap(vcpu, length)
    assert failure.value.errno == errno.EINVAL


def test_only_a_vcpu_can_be_mapped_and_interrupted(machine: Machine) -> None:
    vm = machine.vm()
    for fd in (vm, machine.system):
        with pytest.raises(OSError) as failure:
            machine.backend.mmap(fd, 4096)
        assert failure.value.errno == errno.ENODEV
        with pytest.raises(OSError) as failure:
            machine.backend.interrupt(fd)
        assert failure.value.errno == errno.EINVAL


@pytest.mark.parametrize("arg", [1, 4096, (1 << 64) - 1])
def test_run_takes_no_argument(machine: Machine, arg: int) -> None:
    vcpu = machine.vcpu(machine.vm())
    assert machine.errno(vcpu, rq.KVM_RUN, arg) == "EINVAL"
    assert "vcpu_run" not in machine.arch.calls


def test_immediate_exit_completes_io_and_does_not_run(machine: Machine) -> None:
    vcpu = machine.vcpu(machine.vm())
    run = machine.vcpu_of(vcpu).run
    run.exit_reason = KVM_EXIT_MMIO
    run.immediate_exit = 1
    machine.arch.calls.clear()
    assert machine.errno(vcpu, rq.KVM_RUN) == "EINTR"
    assert machine.arch.calls == ["vcpu_complete_io"]
    assert run.exit_reason == KVM_EXIT_MMIO
    run.immediate_exit = 0
    assert machine.errno(vcpu, rq.KVM_RUN) == "0"
    assert machine.arch.calls == ["vcpu_complete_io", "vcpu_run"]
    del run


def test_an_interrupt_outside_run_is_lost(machine: Machine) -> None:
    vcpu = machine.vcpu(machine.vm())
    machine.backend.interrupt(vcpu)
    assert not machine.arch.kicked.is_set()
    assert machine.errno(vcpu, rq.KVM_RUN) == "0"


def test_what_the_architecture_raises_comes_out(machine: Machine) -> None:
    vcpu = machine.vcpu(machine.vm())
    machine.arch.refuse["vcpu_run"] = errno.ENOEXEC
    assert machine.errno(vcpu, rq.KVM_RUN) == "ENOEXEC"
    object_ = machine.vcpu_of(vcpu)
    assert not object_.running
    assert not object_.mutex.locked()


def test_requests(machine: Machine) -> None:
    fd = machine.vm()
    vcpus = [machine.vcpu_of(machine.vcpu(fd, n)) for n in range(2)]
    machine.vm_of(fd).make_all_request(5)
    assert machine.arch.kicked.is_set()
    for vcpu in vcpus:
        assert not vcpu.check_request(4)
        assert vcpu.check_request(5)
        assert not vcpu.check_request(5)


def test_signal_mask(machine: Machine) -> None:
    vcpu = machine.vcpu(machine.vm())
    object_ = machine.vcpu_of(vcpu)

    class Mask(ctypes.Structure):
        _fields_ = (("len", ctypes.c_uint32), ("sigset", ctypes.c_uint8 * 8))

    assert ctypes.sizeof(KvmSignalMask) == 4
    mask = Mask(len=8)
    mask.sigset[1] = 0x80
    assert machine.errno(vcpu, rq.KVM_SET_SIGNAL_MASK, mask) == "0"
    assert object_.sigset == 0x8000
    mask.len = 128
    assert machine.errno(vcpu, rq.KVM_SET_SIGNAL_MASK, mask) == "EINVAL"
    assert object_.sigset == 0x8000
    assert machine.errno(vcpu, rq.KVM_SET_SIGNAL_MASK, 16) == "EFAULT"
    assert machine.errno(vcpu, rq.KVM_SET_SIGNAL_MASK, 0) == "0"
    assert object_.sigset is None


def test_one_reg_goes_to_the_architecture(machine: Machine) -> None:
    vcpu = machine.vcpu(machine.vm())
    value = ctypes.c_uint64(0x1122334455667788)
    reg = KvmOneReg(id=1, addr=ctypes.addressof(value))
    machine.ioctl(vcpu, rq.KVM_SET_ONE_REG, reg)
    value.value = 0
    machine.ioctl(vcpu, rq.KVM_GET_ONE_REG, reg)
    assert value.value == 0x1122334455667788
    reg.addr = 8
    assert machine.errno(vcpu, rq.KVM_GET_ONE_REG, reg) == "EFAULT"


def test_unknown_requests(machine: Machine) -> None:
    vm = machine.vm()
    vcpu = machine.vcpu(vm)
    for request in (0xAE7F, 0x4004AEFE, 0x5401, 0):
        assert machine.errno(machine.system, request) == "EINVAL"
        assert machine.errno(vm, request) == "ENOTTY"
        assert machine.errno(vcpu, request) == "EINVAL"


def test_a_request_sign_extended_by_its_caller(machine: Machine) -> None:
    vm = machine.vm()
    request = rq.KVM_CLEAR_DIRTY_LOG
    assert request >= 1 << 31
    assert machine.errno(vm, request - (1 << 32), 16) == "EFAULT"


def test_kicks_reach_the_hook(machine: Machine) -> None:
    vcpu: Any = machine.vcpu_of(machine.vcpu(machine.vm()))
    vcpu.kick()
    assert machine.arch.kicked.is_set()
