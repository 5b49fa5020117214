# SPDX-License-Identifier: GPL-2.0-only
"""Xen's interface: hypercall pages, calls that userspace serves, pages with clocks, states and attributes."""

from __future__ import annotations

import ctypes
import errno
import struct
import time

import pytest
from x86_fake import errno_of
from x86_guest_board import Board
from x86_hyperv_rig import DONE, FAULT, finish, leaves, wrmsr
from x86_xen_rig import (
    CALLS,
    INFO,
    INTERCEPT,
    MSR,
    SHARED,
    STATE,
    call,
    configure,
    get_own,
    guest,
    hvm,
    only_here,
    own,
    set_hvm,
    set_own,
)

from anykvm.api import Vcpu
from anykvm.api.exits import ArchExit
from anykvm.api.x86 import xen_exit
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

NS = 1_000_000_000


@pytest.fixture
def board(board: Board) -> Board:
    only_here(board).vm.create_irqchip()
    return board


def hcall(vcpu: Vcpu, answer: int) -> X.KvmXenExit:
    """KVM_EXIT_XEN for a call, and its answer."""
    exit = vcpu.run()
    assert isinstance(exit, ArchExit) and exit.reason == C.KVM_EXIT_XEN
    told = xen_exit(exit)
    assert told.type == X.KVM_EXIT_XEN_HCALL
    X.KvmXenExit.from_buffer(vcpu.run_page, C.KvmRun.hw.offset).u.hcall.result = answer
    return told


# The hypercall page.


def test_a_call_through_the_page(board: Board) -> None:
    configure(board)
    operands = "mov $1, %edi; mov $2, %esi; mov $3, %edx; mov $4, %r10d; mov $5, %r8d; mov $6, %r9d;"
    page = f"{wrmsr(MSR, CALLS)} {operands} mov ${CALLS + 17 * 32}, %ebx; call *%rbx; out %eax, $0xe9; {DONE}"
    vcpu = board.long(page)
    told = hcall(vcpu, 0x1234).u.hcall
    assert (told.longmode, told.cpl, told.input) == (1, 0, 17)
    assert list(told.params) == [1, 2, 3, 4, 5, 6]
    assert finish(board, vcpu) == [0x1234]


def test_a_call_of_32_bits(board: Board) -> None:
    configure(board)
    code = "mov $7, %eax; mov $1, %ebx; mov $2, %ecx; mov $3, %edx; mov $4, %esi; mov $5, %edi; mov $6, %ebp; vmcall;"
    board.load(f".code32\n{code} out %eax, $0xe9; {DONE}", 0x3000)
    vcpu = board.long("pushq $0x18; pushq $0x3000; lretq")
    board.memory.write(0x14018, struct.pack("<Q", 0x00CF9B000000FFFF))
    sregs = vcpu.get_sregs()
    sregs.gdt.limit = 31
    vcpu.set_sregs(sregs)
    told = hcall(vcpu, 0x99).u.hcall
    assert (told.longmode, told.input, list(told.params)) == (0, 7, [1, 2, 3, 4, 5, 6])
    assert finish(board, vcpu) == [0x99]


def test_pages_of_userspaces_own(board: Board) -> None:
    pages = ctypes.create_string_buffer(b"\x11" * 4096 + b"\x22" * 4096, 8192)
    board.load(FAULT, 0x2800)
    board.gate(X.GP_VECTOR, 0x2800)
    configure(board, 0, blob_addr_64=ctypes.addressof(pages), blob_size_64=2)
    vcpu = board.long(wrmsr(MSR, CALLS | 1) + "out %al, $0xe9;" + wrmsr(MSR, CALLS | 2) + DONE)
    assert finish(board, vcpu)[1:] == [0xD]
    assert board.memory.read(CALLS, 4096) == b"\x22" * 4096


@pytest.mark.parametrize("value", [CALLS | 1, 0x7000_0000])
def test_pages_that_cannot_be(board: Board, value: int) -> None:
    board.load(FAULT, 0x2800)
    board.gate(X.GP_VECTOR, 0x2800)
    configure(board)
    assert finish(board, board.long(wrmsr(MSR, value) + DONE)) == [0xD]


def test_configurations_that_cannot_be(board: Board) -> None:
    for flags, blob in ((1 << 6, 0), (INTERCEPT, 0x1000)):
        with pytest.raises(OSError, match="Errno 22"):
            configure(board, flags, blob_addr_64=blob, blob_size_64=bool(blob))
    with pytest.raises(OSError, match="Errno 22"):
        board.vm.ioctl(X.KVM_XEN_HVM_CONFIG, X.KvmXenHvmConfig(msr=X.MSR_STAR))


def test_beside_hypervs(board: Board) -> None:
    configure(board)
    hyperv = wrmsr(X.HV_X64_MSR_GUEST_OS_ID, 0x5A) + wrmsr(X.HV_X64_MSR_HYPERCALL, CALLS + 0x1001)
    spin = f"mov ${X.HVCALL_NOTIFY_LONG_SPIN_WAIT}, %ecx; mov ${CALLS + 0x1000}, %ebx; xor %eax, %eax; call *%rbx;"
    vcpu = board.long(f"{hyperv} {call(9)} {spin} out %eax, $0xe9; {DONE}")
    vcpu.set_cpuid2(leaves(board))
    assert hcall(vcpu, 5).u.hcall.input == 9
    assert finish(board, vcpu) == [5, 0]


def test_what_is_answered_here(board: Board) -> None:
    vcpu = guest(board, call(17, 1) + call(17, 0) + call(29, 0) + DONE)
    set_hvm(board, X.KVM_XEN_ATTR_TYPE_XEN_VERSION, xen_version=0x4000D)
    assert hcall(vcpu, 3).u.hcall.params[0] == 1
    assert finish(board, vcpu) == [3, 0x4000D, 0]


# Attributes.


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (X.KVM_XEN_ATTR_TYPE_LONG_MODE, "long_mode", 1),
        (X.KVM_XEN_ATTR_TYPE_SHARED_INFO, "shared_info__gfn", SHARED >> 12),
        (X.KVM_XEN_ATTR_TYPE_SHARED_INFO, "shared_info__gfn", X.XEN_INVALID),
        (X.KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, "vector", 0xF3),
        (X.KVM_XEN_ATTR_TYPE_XEN_VERSION, "xen_version", 0x40011),
    ],
)
def test_what_is_set_is_read(board: Board, kind: int, name: str, value: int) -> None:
    set_hvm(board, kind, **{name: value})
    request = hvm(kind)
    board.vm.ioctl(X.KVM_XEN_HVM_GET_ATTR, request)
    found = request.u.shared_info.gfn if "__" in name else getattr(request.u, name)
    assert found == value


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        (X.KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, "gpa", INFO),
        (X.KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, "gpa", X.XEN_INVALID),
        (X.KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, "gpa", INFO + 64),
        (X.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, "gpa", STATE),
        (X.KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, "vcpu_id", 7),
        (X.KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, "vector", 0x20),
    ],
)
def test_what_a_vcpu_is_set_is_read(board: Board, kind: int, name: str, value: int) -> None:
    vcpu = board.vcpu()
    set_own(vcpu, kind, **{name: value})
    assert getattr(get_own(vcpu, kind), name) == value


def test_attributes_that_cannot_be(board: Board) -> None:
    vcpu = board.vcpu()

    def vm_errno(kind: int, **values: int) -> int:
        return errno_of(set_hvm, board, kind, **values)

    def vcpu_errno(kind: int, **values: int) -> int:
        return errno_of(set_own, vcpu, kind, **values)

    assert vm_errno(99) == vcpu_errno(99) == errno.ENOENT
    assert vm_errno(X.KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, vector=0xF) == errno.EINVAL
    assert vm_errno(X.KVM_XEN_ATTR_TYPE_SHARED_INFO, shared_info__gfn=0x70000) == errno.EFAULT
    assert vcpu_errno(X.KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, vector=1) == errno.EINVAL
    assert vcpu_errno(X.KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, gpa=0x7000_0000) == errno.EFAULT
    assert vcpu_errno(X.KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, vcpu_id=1024) == errno.EINVAL
    assert vcpu_errno(X.KVM_XEN_VCPU_ATTR_TYPE_TIMER, timer__port=1, timer__priority=0) == errno.EINVAL
    assert vcpu_errno(X.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT, runstate__state=4) == errno.EINVAL
    for request, attr, handle in (
        (X.KVM_XEN_HVM_GET_ATTR, hvm(X.KVM_XEN_ATTR_TYPE_EVTCHN), board.vm),
        (X.KVM_XEN_VCPU_GET_ATTR, own(X.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR), vcpu),
    ):
        assert errno_of(handle.ioctl, request, attr) == errno.ENOENT
    adjust = own(X.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST)
    assert errno_of(vcpu.ioctl, X.KVM_XEN_VCPU_GET_ATTR, adjust) == errno.EINVAL


# Clocks.


@pytest.mark.parametrize(("long_mode", "clock", "high"), [(1, 0xC00, 0xC0C), (0, 0x900, 0x924)])
def test_the_time_of_day_is_in_the_shared_page(board: Board, long_mode: int, clock: int, high: int) -> None:
    set_hvm(board, X.KVM_XEN_ATTR_TYPE_LONG_MODE, long_mode=long_mode)
    before = time.time_ns()
    set_hvm(board, X.KVM_XEN_ATTR_TYPE_SHARED_INFO, shared_info__gfn=SHARED >> 12)
    version, seconds, nanoseconds = struct.unpack("<3I", board.memory.read(SHARED + clock, 12))
    assert version and not version & 1 and board.memory.read(SHARED + high, 4) == bytes(4)
    # When the VM's clock was zero.
    started = seconds * NS + nanoseconds
    assert before - 60 * NS < started <= time.time_ns()


def test_a_vcpus_pages_have_clocks(board: Board) -> None:
    vcpu = guest(board, DONE)
    set_own(vcpu, X.KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, gpa=STATE)
    finish(board, vcpu)
    for address in (INFO + 32, STATE):
        page = X.PvclockVcpuTimeInfo.from_buffer_copy(board.memory.read(address, 32))
        assert page.version and not page.version & 1
        assert page.tsc_timestamp and page.system_time and page.tsc_to_system_mul


# How long a vCPU was in which state.


def times(vcpu: Vcpu) -> tuple[int, ...]:
    state = get_own(vcpu, X.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA).runstate
    found = (state.time_running, state.time_runnable, state.time_blocked, state.time_offline)
    assert state.state_entry_time == sum(found)
    return found


def test_times_are_counted_by_state(board: Board) -> None:
    vcpu = guest(board, "1: out %al, $0xe9; jmp 1b")
    set_own(vcpu, X.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, gpa=STATE)
    vcpu.run()
    state, _, since, *written = struct.unpack("<IIQ4Q", board.memory.read(STATE, 48))
    assert state == X.XEN_RUNSTATE_RUNNING and since == sum(written)
    # All before it first ran.
    assert written[X.XEN_RUNSTATE_OFFLINE] == since
    for kind in (X.XEN_RUNSTATE_BLOCKED, X.XEN_RUNSTATE_OFFLINE):
        before = times(vcpu)
        set_own(vcpu, X.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT, runstate__state=kind)
        assert get_own(vcpu, X.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT).runstate.state == kind
        vcpu.run()
        after = times(vcpu)
        assert after[kind] > before[kind]
        assert struct.unpack("<4Q", board.memory.read(STATE + 16, 32)) == after


def test_times_are_set_and_adjusted(board: Board) -> None:
    vcpu = guest(board, DONE)
    data = X.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA
    adjust = X.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST
    wrong = {"runstate__state_entry_time": 5, "runstate__time_blocked": 4}
    late = {"runstate__state_entry_time": 1 << 60, "runstate__time_blocked": 1 << 60}
    for values in (wrong, late, {"runstate__state": 4}):
        for kind in (data, adjust):
            assert errno_of(set_own, vcpu, kind, **values) == errno.EINVAL
    set_own(vcpu, data, runstate__state=1, runstate__state_entry_time=30, runstate__time_blocked=10,
            runstate__time_offline=20)  # fmt: skip
    assert times(vcpu) == (0, 0, 10, 20)
    more = {"runstate__state_entry_time": 0, "runstate__time_blocked": 5, "runstate__time_offline": (1 << 64) - 5}
    set_own(vcpu, adjust, runstate__state=X.XEN_INVALID, **more)
    assert times(vcpu) == (0, 0, 15, 15)
    assert get_own(vcpu, data).runstate.state == 1
