# SPDX-License-Identifier: GPL-2.0-only
"""Hyper-V's hypercalls, its crash and reset, a debugger's registers, and a CPUID that counts."""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import replace

import pytest
from x86_guest_board import Board
from x86_hyperv_rig import APIC_ON, DONE, FAULT, OPEN, PAGE, call, finish, hyperv, leaves, only_here, rdmsr, wrmsr

from anykvm.api import SystemEvent, SystemEventType, Vcpu
from anykvm.api.exits import ArchExit
from anykvm.api.x86 import hyperv_exit, msr_exit
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

INPUT = 0x40000
VECTOR = 0x51
FAST = X.HV_HYPERCALL_FAST
BAD = X.HV_STATUS_INVALID_HYPERCALL_INPUT


@pytest.fixture
def board(board: Board) -> Board:
    only_here(board).vm.create_irqchip()
    board.load(
        ".code64\npush %rax; mov $0x77, %al; out %al, $0xe9; mov $0xfee000b0, %eax; movl $0, (%rax);pop %rax; iretq",
        0x2000,
    )
    board.gate(VECTOR, 0x2000)
    return board


def var(count: int) -> int:
    return count << X.HV_HYPERCALL_VARHEAD_SHIFT


def rep(count: int) -> int:
    return count << X.HV_HYPERCALL_REP_COMP_SHIFT


# TLB flushes: the guest reads a page, changes its entry without a word, reads, flushes by a call, and reads again.


def xmm(number: int, low: int, high: int = 0) -> str:
    one = "movabs ${}, %rax; push %rax;"
    return f"{one.format(high)} {one.format(low)} movdqu (%rsp), %xmm{number}; add $16, %rsp;"


@pytest.mark.parametrize(
    ("control", "operands", "block", "before"),
    [
        (X.HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE, (INPUT, 0), (0, 0, 1), ""),
        (X.HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE, (INPUT, 0), (0, 1, 0), ""),
        (X.HVCALL_FLUSH_VIRTUAL_ADDRESS_LIST | rep(1), (INPUT, 0), (0, 0, 1, 0x600000), ""),
        (X.HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE_EX | var(1), (INPUT, 0), (0, 0, 0, 1, 1), ""),
        (X.HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE | FAST, (0, 0), (), xmm(0, 1)),
        (X.HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE_EX | FAST | var(1), (0, 0), (), xmm(0, 0, 1) + xmm(1, 1)),
    ],
)
def test_flushes(board: Board, control: int, operands: tuple[int, int], block: tuple[int, ...], before: str) -> None:
    read = "mov 0x600000, %eax; out %eax, $0xe9;"
    board.memory.write(0x16000, struct.pack("<Q", 0x50003))
    board.memory.write(0x50000, struct.pack("<I", 0xA))
    board.memory.write(0x51000, struct.pack("<I", 0xB))
    board.memory.write(INPUT, struct.pack(f"<{len(block)}Q", *block))
    vcpu = hyperv(board, f"{OPEN} {read} movl $0x51003, 0x16000; {before} {call(control, *operands)} {read} {DONE}")
    board.memory.write(0x12000 + 8 * 3, struct.pack("<Q", 0x16003))
    sregs = vcpu.get_sregs()
    sregs.cr4 |= 0x600
    vcpu.set_sregs(sregs)
    assert finish(board, vcpu) == [0xA, 0, 0xB]


@pytest.mark.parametrize(
    "control",
    [
        X.HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE | rep(1),
        X.HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE | var(1),
        X.HVCALL_FLUSH_VIRTUAL_ADDRESS_LIST,
        X.HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE_EX | var(2),
        X.HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE_EX | FAST | var(1),
        X.HVCALL_SEND_IPI | rep(1),
        X.HVCALL_SEND_IPI | 1 << 27,
        X.HVCALL_SEND_IPI_EX | var(3),
    ],
)
def test_calls_that_cannot_be(board: Board, control: int) -> None:
    board.memory.write(INPUT, struct.pack("<5Q", 0, 0, 0, 1, 1))
    vcpu = hyperv(board, OPEN + call(control, INPUT) + DONE)
    sregs = vcpu.get_sregs()
    sregs.cr4 |= 0x600
    vcpu.set_sregs(sregs)
    assert finish(board, vcpu) == [BAD]


def test_input_that_is_not_there(board: Board) -> None:
    calls = (X.HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE, X.HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE_EX, X.HVCALL_SEND_IPI)
    code = "".join(call(code, 0x7000_0000) for code in (*calls, X.HVCALL_SEND_IPI_EX))
    assert finish(board, hyperv(board, OPEN + code + DONE)) == [BAD] * 4


# IPIs.


@pytest.mark.parametrize(
    ("control", "operands", "block", "seen"),
    [
        (X.HVCALL_SEND_IPI, (INPUT, 0), (VECTOR, 1), [0, 0x77]),
        (X.HVCALL_SEND_IPI, (INPUT, 0), (VECTOR, 2), [0]),
        (X.HVCALL_SEND_IPI, (INPUT, 0), (5, 1), [BAD]),
        (X.HVCALL_SEND_IPI | FAST, (VECTOR, 1), (), [0, 0x77]),
        (X.HVCALL_SEND_IPI_EX | var(1), (INPUT, 0), (VECTOR, 0, 1, 1), [0, 0x77]),
        (X.HVCALL_SEND_IPI_EX | var(1), (INPUT, 0), (VECTOR, 0, 2, 1), [0]),
        (X.HVCALL_SEND_IPI_EX, (INPUT, 0), (VECTOR, 1, 0), [0, 0x77]),
        (X.HVCALL_SEND_IPI_EX, (INPUT, 0), (VECTOR, 0, 0), [0]),
    ],
)
def test_ipis(board: Board, control: int, operands: tuple[int, int], block: tuple[int, ...], seen: list[int]) -> None:
    board.memory.write(INPUT, struct.pack(f"<{len(block)}Q", *block))
    vcpu = hyperv(board, f"{APIC_ON} {OPEN} {call(control, *operands)} sti; nop; nop; cli; {DONE}")
    assert finish(board, vcpu) == seen


def test_an_ipi_goes_by_the_index_that_userspace_set(board: Board) -> None:
    board.memory.write(INPUT, struct.pack("<4Q", VECTOR, 0, 1 << 2, 1 << 3))
    code = call(X.HVCALL_SEND_IPI_EX | var(1), INPUT)
    vcpu = hyperv(board, f"{APIC_ON} {OPEN} {code} sti; nop; nop; cli; {DONE}")
    assert vcpu.set_msrs({X.HV_X64_MSR_VP_INDEX: 2 * 64 + 3}) == 1
    assert finish(board, vcpu) == [0, 0x77]


# What userspace serves.


def hcall(vcpu: Vcpu, answer: int) -> X.KvmHypervExit:
    """KVM_EXIT_HYPERV for a call, and its answer."""
    exit = vcpu.run()
    assert isinstance(exit, ArchExit) and exit.reason == C.KVM_EXIT_HYPERV
    told = hyperv_exit(exit)
    assert told.type == X.KVM_EXIT_HYPERV_HCALL
    X.KvmHypervExit.from_buffer(vcpu.run_page, C.KvmRun.hw.offset).u.hcall.result = answer
    return told


def test_messages_are_userspaces(board: Board) -> None:
    vcpu = hyperv(board, OPEN + call(X.HVCALL_POST_MESSAGE, INPUT, 7) + DONE)
    vcpu.enable_cap(C.KVM_CAP_HYPERV_SYNIC2)
    told = hcall(vcpu, 0x13)
    assert (told.u.hcall.input, *told.u.hcall.params) == (X.HVCALL_POST_MESSAGE, INPUT, 7)
    assert finish(board, vcpu) == [0x13]


def test_a_result_of_32_bits_is_in_two_registers(board: Board) -> None:
    page = f"mov ${PAGE}, %ebx; call *%ebx; out %eax, $0xe9; mov %edx, %eax; out %eax, $0xe9;"
    compat = f"xor %edx, %edx; mov ${X.HVCALL_POST_MESSAGE}, %eax; xor %ecx, %ecx; xor %edi, %edi; {page} {DONE}"
    board.load(f".code32\n{compat}", 0x3000)
    board.memory.write(0x14018, struct.pack("<Q", 0x00CF9B000000FFFF))
    vcpu = hyperv(board, f"{OPEN} pushq $0x18; pushq $0x3000; lretq")
    sregs = vcpu.get_sregs()
    sregs.gdt.limit = 31
    vcpu.set_sregs(sregs)
    vcpu.enable_cap(C.KVM_CAP_HYPERV_SYNIC2)
    hcall(vcpu, 5 << 32 | 0x13)
    assert finish(board, vcpu) == [0x13, 5]


def test_without_synthetic_interrupts_nobody_takes_messages(board: Board) -> None:
    assert finish(board, hyperv(board, OPEN + call(X.HVCALL_POST_MESSAGE, INPUT) + DONE)) == [BAD]


def connect(board: Board, connection: int, fd: int, flags: int = 0) -> int:
    try:
        board.vm.ioctl(X.KVM_HYPERV_EVENTFD, X.KvmHypervEventfd(conn_id=connection, fd=fd, flags=flags))
    except OSError as error:
        return error.errno or -1
    return 0


def test_an_event_signals_its_eventfd(board: Board) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        assert connect(board, 5, fd) == 0
        assert connect(board, 5, fd) == errno.EEXIST
        assert connect(board, 1 << 24, fd) == connect(board, 6, fd, 2) == errno.EINVAL
        assert connect(board, 6, 1000) == errno.EBADF
        assert connect(board, 6, 0, X.KVM_HYPERV_EVENTFD_DEASSIGN) == errno.ENOENT
        board.memory.write(INPUT, struct.pack("<Q", 5))
        signal = X.HVCALL_SIGNAL_EVENT
        code = call(signal | FAST, 5) + call(signal, INPUT) + call(signal, INPUT + 1) + call(signal | FAST, 1 << 25)
        vcpu = hyperv(board, f"{OPEN} {code} {DONE}")
        assert finish(board, vcpu) == [0, 0, X.HV_STATUS_INVALID_ALIGNMENT, BAD]
        assert os.eventfd_read(fd) == 2
        assert connect(board, 5, 0, X.KVM_HYPERV_EVENTFD_DEASSIGN) == 0
        assert connect(board, 5, fd) == 0
    finally:
        os.close(fd)


def test_a_connection_that_userspace_may_know(board: Board) -> None:
    vcpu = hyperv(board, OPEN + call(X.HVCALL_SIGNAL_EVENT | FAST, 9) + DONE)
    vcpu.enable_cap(C.KVM_CAP_HYPERV_SYNIC2)
    told = hcall(vcpu, X.HV_STATUS_INVALID_PORT_ID)
    assert told.u.hcall.params[0] == 9
    assert finish(board, vcpu) == [X.HV_STATUS_INVALID_PORT_ID]


def test_undefined_in_user_mode(board: Board) -> None:
    board.load(FAULT.replace("0xd", "0x6"), 0x2800)
    board.gate(X.UD_VECTOR, 0x2800)
    # Ring 3 by SYSRET's kin: IRETQ to selectors of privilege 3.
    board.load(".code64\nvmcall", 0x3000)
    board.memory.write(0x14018, struct.pack("<2Q", 0x00AFFB000000FFFF, 0x00CFF3000000FFFF))
    board.memory.write(0x14028, struct.pack("<2Q", 0x0000890180000067, 0))
    board.memory.write(0x18000 + 4, struct.pack("<Q", 0x7000))
    frame = "pushq $0x23; pushq $0x7800; pushq $2; pushq $0x1b; pushq $0x3000; iretq"
    vcpu = hyperv(board, f"{OPEN} mov $0x28, %ax; ltr %ax; {frame}")
    user_pages(board)
    sregs = vcpu.get_sregs()
    sregs.gdt.limit = 0x37
    vcpu.set_sregs(sregs)
    assert finish(board, vcpu) == [6]


def user_pages(board: Board) -> None:
    """Let ring 3 use the first 2 MiB."""
    for address, entry in ((0x10000, 0x11007), (0x11000, 0x12007), (0x12000, 0x87)):
        board.memory.write(address, struct.pack("<Q", entry))


# Crash, reset, debugging.


def test_a_crash_is_reported(board: Board) -> None:
    params = "".join(wrmsr(X.HV_X64_MSR_CRASH_P0 + n, n + 10) for n in range(5))
    crash = wrmsr(X.HV_X64_MSR_CRASH_CTL, X.HV_CRASH_CTL_CRASH_NOTIFY)
    vcpu = hyperv(board, params + crash + DONE)
    assert vcpu.set_msrs({X.HV_X64_MSR_CRASH_CTL: X.HV_CRASH_CTL_CRASH_NOTIFY | 1}) == 1
    assert vcpu.run() == SystemEvent(SystemEventType.CRASH, ())
    read = [X.HV_X64_MSR_CRASH_P0 + n for n in range(6)]
    assert list(vcpu.get_msrs(read).values()) == [10, 11, 12, 13, 14, X.HV_CRASH_CTL_CRASH_NOTIFY]
    finish(board, vcpu)


def test_a_reset_is_asked_for(board: Board) -> None:
    vcpu = hyperv(board, wrmsr(X.HV_X64_MSR_RESET, 0) + wrmsr(X.HV_X64_MSR_RESET, 1) + rdmsr(X.HV_X64_MSR_RESET) + DONE)
    assert vcpu.run() == SystemEvent(SystemEventType.RESET, ())
    assert finish(board, vcpu) == [0]


def test_a_debuggers_transport(board: Board) -> None:
    control, status = X.HV_X64_MSR_SYNDBG_CONTROL, X.HV_X64_MSR_SYNDBG_STATUS
    code = wrmsr(X.HV_X64_MSR_SYNDBG_SEND_BUFFER, 0x5000) + wrmsr(control, 3) + rdmsr(status)
    vcpu = hyperv(board, OPEN + code + call(X.HVCALL_RESET_DEBUG_SESSION) + DONE)
    exit = vcpu.run()
    assert isinstance(exit, ArchExit)
    told = X.KvmHypervExit.from_buffer_copy(exit.payload)
    assert (told.type, told.u.syndbg.msr, told.u.syndbg.control) == (X.KVM_EXIT_HYPERV_SYNDBG, control, 3)
    assert told.u.syndbg.send_page == 0x5000
    at = C.KvmRun.mmio.offset + X.KvmHypervExit.u.offset + 16
    vcpu.mapped_page(0)[at : at + 8] = struct.pack("<Q", 0x42)
    # The calls are there only for a debugger that asked for them.
    assert finish(board, vcpu) == [0x42, X.HV_STATUS_OPERATION_DENIED]


def test_a_debugger_by_calls(board: Board) -> None:
    vcpu = hyperv(board, OPEN + call(X.HVCALL_POST_DEBUG_DATA, INPUT, 3) + DONE)
    options = {X.HV_X64_MSR_SYNDBG_OPTIONS: X.HV_X64_SYNDBG_OPTION_USE_HCALLS}
    assert vcpu.set_msrs(options) == 1
    assert hcall(vcpu, 0).u.hcall.input == X.HVCALL_POST_DEBUG_DATA
    assert finish(board, vcpu) == [0]


# A CPUID that counts.

BARE = (
    X.HYPERV_CPUID_FEATURES,
    X.HYPERV_CPUID_ENLIGHTMENT_INFO,
    X.HYPERV_CPUID_SYNDBG_PLATFORM_CAPABILITIES,
)


def only(board: Board, source: str, **features: int) -> Vcpu:
    """A guest that may use what is named of Hyper-V's features (leaf 0x40000003) and nothing else."""
    vcpu = board.long(source)
    cpuid = [entry for entry in leaves(board) if entry.function not in BARE]
    vcpu.set_cpuid2([*cpuid, replace(cpuid[0], function=X.HYPERV_CPUID_FEATURES, **{**ZERO, **features})])
    vcpu.enable_cap(C.KVM_CAP_HYPERV_ENFORCE_CPUID, 1)
    return vcpu


ZERO = {"eax": 0, "ebx": 0, "ecx": 0, "edx": 0}


@pytest.mark.parametrize(
    ("index", "features"),
    [
        (X.HV_X64_MSR_GUEST_OS_ID, {"eax": X.HV_MSR_HYPERCALL_AVAILABLE}),
        (X.HV_X64_MSR_TIME_REF_COUNT, {"eax": X.HV_MSR_TIME_REF_COUNT_AVAILABLE}),
        (X.HV_X64_MSR_STIMER0_COUNT + 6, {"eax": X.HV_MSR_SYNTIMER_AVAILABLE}),
        (X.HV_X64_MSR_TPR, {"eax": X.HV_MSR_APIC_ACCESS_AVAILABLE}),
        (X.HV_X64_MSR_CRASH_P0, {"edx": X.HV_FEATURE_GUEST_CRASH_MSR_AVAILABLE}),
        (X.HV_X64_MSR_SYNDBG_STATUS, {"edx": X.HV_FEATURE_DEBUG_MSRS_AVAILABLE}),
    ],
)
@pytest.mark.parametrize("has", [False, True])
def test_an_msr_that_is_enforced(board: Board, index: int, features: dict[str, int], has: bool) -> None:
    board.load(FAULT, 0x2800)
    board.gate(X.GP_VECTOR, 0x2800)
    vcpu = only(board, f"mov ${index}, %ecx; rdmsr; {DONE}", **(features if has else {}))
    assert finish(board, vcpu) == ([] if has else [0xD])
    assert len(vcpu.get_msrs([index])) == 1


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (X.HVCALL_POST_MESSAGE, X.HV_STATUS_ACCESS_DENIED),
        (X.HVCALL_SEND_IPI, X.HV_STATUS_ACCESS_DENIED),
        (X.HVCALL_FLUSH_VIRTUAL_ADDRESS_LIST_EX, X.HV_STATUS_ACCESS_DENIED),
        (X.HVCALL_NOTIFY_LONG_SPIN_WAIT, X.HV_STATUS_ACCESS_DENIED),
        (X.HVCALL_RESET_DEBUG_SESSION, X.HV_STATUS_INVALID_HYPERCALL_CODE),
        (0x3FFF, X.HV_STATUS_INVALID_HYPERCALL_CODE),
    ],
)
def test_a_call_that_is_enforced(board: Board, code: int, status: int) -> None:
    vcpu = only(board, OPEN + call(code) + DONE, eax=X.HV_MSR_HYPERCALL_AVAILABLE)
    assert finish(board, vcpu) == [status]


@pytest.mark.parametrize("has", [False, True])
def test_the_reason_of_a_refusal(board: Board, has: bool) -> None:
    board.vm.enable_cap(C.KVM_CAP_X86_USER_SPACE_MSR, X.KVM_MSR_EXIT_REASON_INVAL | X.KVM_MSR_EXIT_REASON_UNKNOWN)
    code = f"mov ${X.HV_X64_MSR_GUEST_OS_ID}, %ecx; rdmsr; wrmsr; hlt"
    vcpu = only(board, code) if has else board.long(code)
    for number in (C.KVM_EXIT_X86_RDMSR, C.KVM_EXIT_X86_WRMSR):
        exit = vcpu.run()
        assert isinstance(exit, ArchExit) and exit.reason == number
        assert msr_exit(exit).reason == (X.KVM_MSR_EXIT_REASON_INVAL if has else X.KVM_MSR_EXIT_REASON_UNKNOWN)
