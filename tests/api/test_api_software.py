# SPDX-License-Identifier: GPL-2.0-only
"""The typed API on the software backend: a guest that runs, answers and is kicked."""

from __future__ import annotations

import errno
import gc
import os
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from anykvm.api import (
    BackendUnavailable,
    GuestMemory,
    Interrupted,
    Kvm,
    MmioRead,
    MmioWrite,
    UnsupportedArchitecture,
    Vcpu,
    Vm,
)
from anykvm.uapi.arm64 import REG_PC, x_reg

pytestmark = pytest.mark.timeout(60)

RAM = 0x4000_0000
DEVICE = 0x0900_0000
LDR_W2_X1 = 0xB9400022
STR_W2_X1_4 = 0xB9000422
ADD_X0_1 = 0x91000400
BRANCH_BACK_1 = 0x17FFFFFF
BRANCH_SELF = 0x14000000


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    try:
        kvm = Kvm("software", arch="arm64")
    except (BackendUnavailable, UnsupportedArchitecture) as error:
        pytest.skip(str(error))
    with kvm:
        yield kvm


@pytest.fixture
def vm(kvm: Kvm) -> Iterator[Vm]:
    with GuestMemory(1 << 20) as memory, kvm.create_vm() as vm:
        vm.set_user_memory_region(0, RAM, memory)
        yield vm


def guest(vm: Vm, *code: int) -> Vcpu:
    """A vCPU about to run these instructions, x1 pointing at a device."""
    vm._slots.memory[0][0].write(0, struct.pack(f"<{len(code)}I", *code))
    vcpu = vm.create_vcpu(0)
    vcpu.init(vm.preferred_target())
    vcpu.set_one_reg(REG_PC, RAM)
    vcpu.set_one_reg(x_reg(1), DEVICE)
    return vcpu


def test_a_device_read_and_written(vm: Vm) -> None:
    with guest(vm, LDR_W2_X1, STR_W2_X1_4, BRANCH_SELF) as vcpu:
        read = vcpu.run()
        assert isinstance(read, MmioRead)
        assert (read.address, read.size) == (DEVICE, 4)
        read.reply(0x1234_5678)
        assert vcpu.run() == MmioWrite(DEVICE + 4, b"\x78\x56\x34\x12")
        assert vcpu.get_one_reg(x_reg(2)) == 0x1234_5678


def test_immediate_exit_completes_the_read(vm: Vm) -> None:
    with guest(vm, LDR_W2_X1, BRANCH_SELF) as vcpu:
        read = vcpu.run()
        assert isinstance(read, MmioRead)
        read.reply(7)
        vcpu.immediate_exit = True
        assert vcpu.run() == Interrupted()
        assert vcpu.get_one_reg(x_reg(2)) == 7


def test_kicks_from_another_thread_are_not_lost(vm: Vm) -> None:
    with guest(vm, ADD_X0_1, BRANCH_BACK_1) as vcpu:
        kicks = 200
        done: list[object] = []

        def runner() -> None:
            while len(done) < kicks:
                done.append(vcpu.run())

        thread = threading.Thread(target=runner)
        thread.start()
        for count in range(1, kicks + 1):
            vcpu.kick()
            deadline = time.monotonic() + 10
            while len(done) < count and time.monotonic() < deadline:
                time.sleep(0)
            assert len(done) >= count, f"kick {count} was lost"
        thread.join(10)
        assert set(map(type, done)) == {Interrupted}
        assert vcpu.get_one_reg(x_reg(0)) > 0


def test_closing_a_running_vcpu(vm: Vm) -> None:
    vcpu = guest(vm, BRANCH_SELF)
    outcome: list[object] = []

    def runner() -> None:
        try:
            while True:
                outcome.append(vcpu.run())
        except OSError as error:
            outcome.append(error.errno)

    thread = threading.Thread(target=runner)
    thread.start()
    time.sleep(0.05)
    vcpu.close()
    thread.join(10)
    assert not thread.is_alive()
    assert outcome[-1] == errno.EBADF


def test_a_vcpu_takes_one_descriptor_and_one_mapping(vm: Vm) -> None:
    def held() -> tuple[int, int]:
        with open("/proc/self/maps") as maps:
            return len(os.listdir("/proc/self/fd")), sum("kvm-vcpu" in line for line in maps)

    gc.collect()
    fds, mappings = held()
    vcpus = [vm.create_vcpu(number) for number in range(8)]
    assert held() == (fds + 8, mappings + 8)
    page = vcpus[0].run_page
    for vcpu in vcpus:
        vcpu.close()
    assert held()[0] == fds
    assert page.exit_reason == 0


@pytest.mark.parametrize("address", [-1, 1 << 64, 1 << 70])
def test_an_address_beyond_64_bits_is_not_cut_short(address: int) -> None:
    with GuestMemory(4096) as memory, Kvm("software", arch="arm64") as kvm, kvm.create_vm() as vm:
        with pytest.raises(ValueError, match="does not fit 64 bits"):
            vm.set_user_memory_region(0, address, memory)
        vm.set_user_memory_region(0, 0, memory)
