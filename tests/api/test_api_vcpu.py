# SPDX-License-Identifier: GPL-2.0-only
"""The vCPU handle: registers, state, run and kick."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import struct
import threading

import pytest
from fake_backend import FakeBackend

from anykvm.api import GuestMemory, Interrupted, MemoryFault, MmioRead, MmioWrite, Vcpu, Vm
from anykvm.uapi import arm64, common


def raising(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def test_run_returns_the_exit(fake: FakeBackend, vcpu: Vcpu) -> None:
    def run(fd: int, arg: int) -> int:
        assert (fd, arg) == (vcpu.fd, 0)
        page = vcpu.run_page
        page.exit_reason = common.KVM_EXIT_MMIO
        page.mmio.phys_addr, page.mmio.len, page.mmio.is_write = 0x900_0000, 1, 1
        page.mmio.data[0] = ord("A")
        return 0

    fake.answers[common.KVM_RUN] = run
    match vcpu.run():
        case MmioWrite(address, data):
            assert (address, data) == (0x900_0000, b"A")
        case other:
            pytest.fail(f"{other}")


def test_a_read_is_answered_in_the_run_page(fake: FakeBackend, vcpu: Vcpu) -> None:
    page = vcpu.run_page
    page.exit_reason = common.KVM_EXIT_MMIO
    page.mmio.phys_addr, page.mmio.len = 0x900_0018, 4
    match vcpu.run():
        case MmioRead(0x900_0018, 4) as read:
            read.reply(0x90)
        case other:
            pytest.fail(f"{other}")
    assert bytes(page.mmio.data) == b"\x90" + bytes(7)


def test_eintr_is_an_exit(fake: FakeBackend, vcpu: Vcpu) -> None:
    fake.answers[common.KVM_RUN] = raising(errno.EINTR)
    vcpu.immediate_exit = True
    assert vcpu.run() == Interrupted()
    assert vcpu.immediate_exit  # only a kick is taken back


def test_kick(fake: FakeBackend, vcpu: Vcpu) -> None:
    fake.answers[common.KVM_RUN] = lambda fd, arg: 0
    vcpu.kick()
    assert vcpu.run_page.immediate_exit == 1
    assert fake.interrupted == [vcpu.fd]
    fake.answers[common.KVM_RUN] = raising(errno.EINTR)
    assert vcpu.run() == Interrupted()
    assert vcpu.run_page.immediate_exit == 0


def test_a_memory_fault_is_an_exit(fake: FakeBackend, vcpu: Vcpu) -> None:
    fake.answers[common.KVM_RUN] = raising(errno.EFAULT)
    with pytest.raises(OSError) as caught:
        vcpu.run()
    assert caught.value.errno == errno.EFAULT
    page = vcpu.run_page
    page.exit_reason = common.KVM_EXIT_MEMORY_FAULT
    page.memory_fault.gpa, page.memory_fault.size = 0x1000, 0x1000
    assert vcpu.run() == MemoryFault(0, 0x1000, 0x1000)


@pytest.mark.parametrize("number", [errno.ENOEXEC, errno.EIO, errno.ENOSYS])
def test_other_errors_are_raised(fake: FakeBackend, vcpu: Vcpu, number: int) -> None:
    fake.answers[common.KVM_RUN] = raising(number)
    with pytest.raises(OSError) as caught:
        vcpu.run()
    assert caught.value.errno == number


def test_run_when_closed(fake: FakeBackend, vm: Vm) -> None:
    vcpu = vm.create_vcpu(1)
    page = vcpu.run_page
    vcpu.close()
    with pytest.raises(OSError) as caught:
        vcpu.run()
    assert caught.value.errno == errno.EBADF
    assert page.exit_reason == 0  # a view taken before stays readable


def test_closed_while_it_runs(fake: FakeBackend, vm: Vm, memory: GuestMemory) -> None:
    entered, leave = threading.Event(), threading.Event()
    outcome: list[int | None] = []

    def run(fd: int, arg: int) -> int:
        entered.set()
        assert leave.wait(10)
        raise raising(errno.EINTR)

    def runner() -> None:
        try:
            vcpu.run()
        except OSError as error:
            outcome.append(error.errno)

    fake.answers[common.KVM_RUN] = run
    vcpu = vm.create_vcpu(1)
    fd = vcpu.fd
    vm.set_user_memory_region(0, 0, memory)
    thread = threading.Thread(target=runner)
    thread.start()
    assert entered.wait(10)
    vcpu.close()
    vm.close()
    assert fake.interrupted == [fd]
    with pytest.raises(OSError) as caught:
        memory.close()  # the guest may still be writing to it
    assert caught.value.errno == errno.EBUSY
    leave.set()
    thread.join(10)
    assert outcome == [errno.EBADF]
    memory.close()
    assert memory.closed


def test_an_exit_outlives_its_vcpu(fake: FakeBackend, vm: Vm) -> None:
    vcpu = vm.create_vcpu(1)
    vcpu.run_page.exit_reason = common.KVM_EXIT_MMIO
    vcpu.run_page.mmio.len = 4
    read = vcpu.run()
    vcpu.close()
    assert isinstance(read, MmioRead)
    with pytest.raises(ValueError):
        read.reply(1)


def test_registers(fake: FakeBackend, vcpu: Vcpu) -> None:
    store: dict[int, bytes] = {}

    def put(fd: int, arg: int) -> int:
        reg = common.KvmOneReg.from_address(arg)
        store[reg.id] = ctypes.string_at(reg.addr, common.reg_size(reg.id))
        return 0

    def get(fd: int, arg: int) -> int:
        reg = common.KvmOneReg.from_address(arg)
        if reg.id not in store:
            raise raising(errno.ENOENT)
        ctypes.memmove(reg.addr, store[reg.id], len(store[reg.id]))
        return 0

    fake.answers |= {common.KVM_SET_ONE_REG: put, common.KVM_GET_ONE_REG: get}
    vcpu.set_one_reg(arm64.REG_PC, 0x4000_0000)
    assert store[arm64.REG_PC] == (0x4000_0000).to_bytes(8, "little")
    assert vcpu.get_one_reg(arm64.REG_PC) == 0x4000_0000
    vcpu.set_one_reg(arm64.v_reg(1), 1 << 127)
    assert vcpu.get_one_reg(arm64.v_reg(1)) == 1 << 127
    with pytest.raises(OverflowError):
        vcpu.set_one_reg(arm64.REG_FPSR, 1 << 32)
    with pytest.raises(OverflowError):
        vcpu.set_one_reg(arm64.REG_PC, -1)
    with pytest.raises(OSError) as caught:
        vcpu.get_one_reg(arm64.REG_SP)
    assert caught.value.errno == errno.ENOENT


def test_reg_list_asks_until_it_fits(fake: FakeBackend, vcpu: Vcpu) -> None:
    registers = [3, 1]

    def answer(fd: int, arg: int) -> int:
        room = ctypes.c_uint64.from_address(arg)
        asked, room.value = room.value, len(registers)
        if asked < len(registers):
            if len(registers) == 2 and asked == 0:
                registers.append(4)  # one more appears between the two calls
            raise raising(errno.E2BIG)
        ctypes.memmove(arg + 8, struct.pack(f"={len(registers)}Q", *registers), 8 * len(registers))
        return 0

    fake.answers[common.KVM_GET_REG_LIST] = answer
    assert vcpu.reg_list() == [3, 1, 4]


def test_reg_list_gives_up_on_nonsense(fake: FakeBackend, vcpu: Vcpu) -> None:
    fake.answers[common.KVM_GET_REG_LIST] = raising(errno.E2BIG)
    with pytest.raises(OSError) as caught:
        vcpu.reg_list()
    assert caught.value.errno == errno.E2BIG


def test_init(fake: FakeBackend, vcpu: Vcpu) -> None:
    vcpu.init(5, [arm64.KVM_ARM_VCPU_PSCI_0_2, 33])
    init = fake.last(arm64.KVM_ARM_VCPU_INIT, arm64.KvmVcpuInit)
    assert (init.target, init.features[0], init.features[1]) == (5, 4, 2)


def test_init_leaves_the_callers_structure_alone(fake: FakeBackend, vcpu: Vcpu) -> None:
    preferred = arm64.KvmVcpuInit(target=5)
    vcpu.init(preferred, [0])
    assert fake.last(arm64.KVM_ARM_VCPU_INIT, arm64.KvmVcpuInit).features[0] == 1
    assert preferred.features[0] == 0


def test_finalize(fake: FakeBackend, vcpu: Vcpu) -> None:
    vcpu.finalize(arm64.KVM_ARM_VCPU_SVE)
    assert fake.last(arm64.KVM_ARM_VCPU_FINALIZE) == b"\x04\0\0\0"


def test_mp_state(fake: FakeBackend, vcpu: Vcpu) -> None:
    def answer(fd: int, arg: int) -> int:
        common.KvmMpState.from_address(arg).mp_state = common.KVM_MP_STATE_STOPPED
        return 0

    fake.answers[common.KVM_GET_MP_STATE] = answer
    assert vcpu.mp_state == common.KVM_MP_STATE_STOPPED
    vcpu.mp_state = common.KVM_MP_STATE_RUNNABLE
    assert fake.last(common.KVM_SET_MP_STATE, common.KvmMpState).mp_state == 0


def test_events(fake: FakeBackend, vcpu: Vcpu) -> None:
    events = vcpu.events
    events.exception.serror_pending = 1
    vcpu.events = events
    assert fake.last(arm64.KVM_SET_VCPU_EVENTS, arm64.KvmVcpuEvents).exception.serror_pending == 1


def test_signal_mask(fake: FakeBackend, vcpu: Vcpu) -> None:
    seen = []

    def look(fd: int, arg: int) -> int:
        seen.append(ctypes.string_at(arg, 12) if arg else None)
        return 0

    fake.answers[common.KVM_SET_SIGNAL_MASK] = look
    vcpu.set_signal_mask([signal.SIGUSR1, 64])
    vcpu.set_signal_mask(None)
    assert seen == [b"\x08\0\0\0" + (1 << 9 | 1 << 63).to_bytes(8, "little"), None]
    with pytest.raises(ValueError, match="there is no 65"):
        vcpu.set_signal_mask([65])
