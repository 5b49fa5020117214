# SPDX-License-Identifier: GPL-2.0-only
"""KVM's paravirtual features and hypercalls, KVM_TRANSLATE and events with payloads, by guests, on both backends."""

from __future__ import annotations

import os
import struct
import threading
import time

import pytest
from x86_guest_board import CODE, Board

from anykvm.api import Halt, Hypercall, PioOut, Vcpu
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

PAGE = 0x30000
CALL = "vmcall; out %eax, $0xe9;"


def only_here(board: Board) -> None:
    if not board.software:
        pytest.skip("this machine's KVM answers VMCALL in its guests by itself")


def call(board: Board, number: int, *args: int) -> int:
    """What a hypercall answers, as a signed number of 32 bits."""
    registers = "".join(f"mov ${arg}, %{name};" for arg, name in zip(args, ("rbx", "rcx", "rdx", "rsi"), strict=False))
    vcpu = board.long(f"mov ${number}, %eax; {registers} {CALL} mov $0x99, %dx; out %al, %dx")
    answer = 0
    while not isinstance(exit := vcpu.run(), PioOut) or exit.port != 0x99:
        assert isinstance(exit, PioOut), exit
        answer = int.from_bytes(exit.data, "little", signed=True)
    return answer


def test_stolen_time_is_what_the_thread_waited(board: Board) -> None:
    if not board.vm.check_extension(C.KVM_CAP_STEAL_TIME):
        pytest.skip("this KVM has no stolen time")
    vcpu = board.long("1: out %al, $0xe9; jmp 1b")
    assert vcpu.set_msrs({X.MSR_KVM_STEAL_TIME: PAGE | 1}) == 1
    assert vcpu.set_msrs({X.MSR_KVM_STEAL_TIME: PAGE | 3}) == 0

    def read() -> X.KvmStealTime:
        assert isinstance(vcpu.run(), PioOut)
        return X.KvmStealTime.from_buffer_copy(board.memory.read(PAGE, 64))

    first = read()
    assert first.version % 2 == 0 and first.flags == 0
    # Somebody else on the same CPU, until this thread has had to wait.
    mask = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mask)})
    end = threading.Event()

    def spin() -> None:
        while not end.is_set():
            sum(range(10_000))

    thread = threading.Thread(target=spin)
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while (last := read()).steal < first.steal + 1_000_000 and time.monotonic() < deadline:
            sum(range(10_000))
    finally:
        end.set()
        thread.join()
        os.sched_setaffinity(0, mask)
    assert last.steal >= first.steal + 1_000_000
    assert last.version > first.version and last.version % 2 == 0


def test_an_ipi_by_hypercall(board: Board) -> None:
    only_here(board)
    board.vm.create_irqchip()
    board.load(".code64\npush %rax; mov $0x77, %al; out %al, $0xe9; pop %rax; iretq", 0x2000)
    board.gate(0x50, 0x2000)
    code = (
        f"mov ${X.KVM_HC_SEND_IPI}, %eax; mov $5, %ebx; xor %ecx, %ecx; xor %edx, %edx; mov $0x50, %esi; sti; vmcall;"
    )
    enable = "mov $0xfee000f0, %edi; movl $0x1ff, (%rdi);"
    vcpu = board.long(f"{enable} {code} nop; cli; out %eax, $0xe9; mov $0x99, %dx; out %al, %dx")
    while not isinstance(exit := vcpu.run(), PioOut) or exit.port != 0x99:
        assert isinstance(exit, PioOut)
        board.seen.append(int.from_bytes(exit.data, "little"))
    # Of the two that are named, one is there.
    assert board.seen == [0x77, 1]


@pytest.mark.parametrize(
    ("number", "args", "answer"),
    [
        (X.KVM_HC_VAPIC_POLL_IRQ, (), 0),
        (X.KVM_HC_SEND_IPI, (1, 0, 0, 0x40041), -X.KVM_EINVAL),
        (X.KVM_HC_SCHED_YIELD, (0,), 0),
        (X.KVM_HC_KICK_CPU, (0, 0), 0),
        (X.KVM_HC_CLOCK_PAIRING, (PAGE, 1), -X.KVM_EOPNOTSUPP),
        (X.KVM_HC_CLOCK_PAIRING, (0x70000000, 0), -X.KVM_EFAULT),
        (X.KVM_HC_MAP_GPA_RANGE, (0x1000, 1, 0), -X.KVM_ENOSYS),
        (99, (), -X.KVM_ENOSYS),
    ],
)
def test_hypercalls(board: Board, number: int, args: tuple[int, ...], answer: int) -> None:
    only_here(board)
    board.vm.create_irqchip()
    assert call(board, number, *args) == answer


def test_the_time_of_day_by_hypercall(board: Board) -> None:
    only_here(board)
    assert call(board, X.KVM_HC_CLOCK_PAIRING, PAGE, 0) == 0
    seconds, nanoseconds, tsc = struct.unpack("<qqQ", board.memory.read(PAGE, 24))
    assert abs(seconds - time.time()) < 10 and 0 <= nanoseconds < 10**9 and tsc > 0


def test_a_hypercall_that_userspace_serves(board: Board) -> None:
    only_here(board)
    board.vm.enable_cap(C.KVM_CAP_EXIT_HYPERCALL, 1 << X.KVM_HC_MAP_GPA_RANGE)
    vcpu = board.long(f"mov ${X.KVM_HC_MAP_GPA_RANGE}, %eax; mov $0x5000, %ebx; mov $3, %ecx; mov $7, %edx; {CALL} hlt")
    exit = vcpu.run()
    assert isinstance(exit, Hypercall)
    assert (exit.nr, exit.args[:3], exit.flags & 1) == (X.KVM_HC_MAP_GPA_RANGE, (0x5000, 3, 7), 1)
    assert vcpu.get_regs().rip == CODE + 20
    exit.reply(0x123)
    board.until(vcpu, Halt)
    assert board.seen == [0x123]
    with pytest.raises(OSError, match="Errno 22"):
        board.vm.enable_cap(C.KVM_CAP_EXIT_HYPERCALL, 1)


def test_a_hypercall_that_userspace_would_not_understand(board: Board) -> None:
    only_here(board)
    board.vm.enable_cap(C.KVM_CAP_EXIT_HYPERCALL, 1 << X.KVM_HC_MAP_GPA_RANGE)
    assert call(board, X.KVM_HC_MAP_GPA_RANGE, 0x5001, 1, 0) == -X.KVM_EINVAL


@pytest.mark.parametrize(
    "index",
    [
        *(X.MSR_KVM_SYSTEM_TIME, X.MSR_KVM_WALL_CLOCK, X.MSR_KVM_SYSTEM_TIME_NEW, X.MSR_KVM_WALL_CLOCK_NEW),
        *(X.MSR_KVM_ASYNC_PF_EN, X.MSR_KVM_STEAL_TIME, X.MSR_KVM_PV_EOI_EN, X.MSR_KVM_POLL_CONTROL),
        *(X.MSR_KVM_ASYNC_PF_INT, X.MSR_KVM_ASYNC_PF_ACK),
    ],
)
def test_features_that_cpuid_lacks_can_be_enforced(board: Board, index: int) -> None:
    board.vm.create_irqchip()
    vcpu = board.vcpu()
    assert vcpu.set_msrs({index: 0}) == 1
    vcpu.set_cpuid2([entry for entry in vcpu.get_cpuid2() if entry.function != X.KVM_CPUID_FEATURES])
    assert vcpu.set_msrs({index: 0}) == 1
    vcpu.enable_cap(C.KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1)
    assert vcpu.set_msrs({index: 0}) == 1
    assert vcpu.get_msrs([index]) == {index: 0}
    assert vcpu.set_msrs({index: 1}) == 0


def test_a_guest_finds_no_feature_that_is_enforced_away(board: Board) -> None:
    only_here(board)
    board.load(".code64\nmov $0xd, %al; out %al, $0xe9; hlt", 0x2000)
    board.gate(X.GP_VECTOR, 0x2000)
    vcpu = board.long(f"mov ${X.MSR_KVM_POLL_CONTROL}, %ecx; rdmsr; out %eax, $0xe9; hlt")
    vcpu.set_cpuid2([entry for entry in vcpu.get_cpuid2() if entry.function != X.KVM_CPUID_FEATURES])
    vcpu.enable_cap(C.KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1)
    board.until(vcpu, Halt)
    assert board.seen == [0xD]


def translate(vcpu: Vcpu, address: int) -> int | None:
    request = C.KvmTranslation(linear_address=address)
    vcpu.ioctl(C.KVM_TRANSLATE, request)
    return request.physical_address if request.valid else None


def test_translation(board: Board) -> None:
    vcpu = board.long("hlt")
    board.memory.write(0x12000 + 8 * 3, struct.pack("<Q", 0x16003))
    board.memory.write(0x16000, struct.pack("<3Q", 0x5000 | 1, 0, 0x7000 | 3))
    for address, expected in (
        (0x1234, 0x1234),
        (0x2ABCDE, 0x2ABCDE),
        (0x600123, 0x5123),
        (0x601123, None),
        (0x602FFF, 0x7FFF),
        (0xC0000000 + 0x400001, 0xC0400001),
        (1 << 40, None),
        (1 << 62 | 0x1234, 0x1234),
    ):
        assert translate(vcpu, address) == expected, hex(address)


def test_translation_without_paging(board: Board) -> None:
    vcpu = board.real("hlt")
    assert translate(vcpu, 0xABCDEF) == 0xABCDEF


def test_an_exception_with_its_payload(board: Board) -> None:
    board.vm.enable_cap(C.KVM_CAP_EXCEPTION_PAYLOAD, 1)
    board.load(".code64\nmov %cr2, %rax; out %eax, $0xe9; pop %rax; out %eax, $0xe9; hlt", 0x2000)
    board.gate(X.PF_VECTOR, 0x2000)
    vcpu = board.long("1: jmp 1b")
    events = X.KvmVcpuEvents(flags=X.KVM_VCPUEVENT_VALID_PAYLOAD, exception_has_payload=1, exception_payload=0xABC123)
    events.exception.pending, events.exception.nr = 1, X.PF_VECTOR
    events.exception.has_error_code, events.exception.error_code = 1, 6
    vcpu.set_vcpu_events(events)
    read = vcpu.get_vcpu_events()
    assert (read.exception.pending, read.exception.injected, read.exception_payload) == (1, 0, 0xABC123)
    board.until(vcpu, Halt)
    assert board.seen == [0xABC123, 6]


def test_payloads_and_triple_faults_need_their_capabilities(board: Board) -> None:
    vcpu = board.long("hlt")
    for flag in (X.KVM_VCPUEVENT_VALID_PAYLOAD, X.KVM_VCPUEVENT_VALID_TRIPLE_FAULT):
        with pytest.raises(OSError, match="Errno 22"):
            vcpu.set_vcpu_events(X.KvmVcpuEvents(flags=flag))
    board.vm.enable_cap(C.KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1)
    events = vcpu.get_vcpu_events()
    assert events.flags & X.KVM_VCPUEVENT_VALID_TRIPLE_FAULT and not events.triple_fault.pending
    events.triple_fault.pending = 1
    vcpu.set_vcpu_events(events)
    assert vcpu.get_vcpu_events().triple_fault.pending == 1
    assert "Shutdown" in repr(vcpu.run())


def test_task_priority_accesses_are_reported(board: Board) -> None:
    only_here(board)
    board.vm.create_irqchip()
    vcpu = board.long("mov $0xfee00080, %ebx; movl $0x30, (%rbx); mov (%rbx), %eax; out %eax, $0xe9; hlt")
    vcpu.ioctl(X.KVM_TPR_ACCESS_REPORTING, X.KvmTprAccessCtl(enabled=1))
    for offset, write in ((5, True), (11, False)):
        assert "12" in repr(vcpu.run())
        assert struct.unpack_from("<QI", vcpu.mapped_page(0), 32) == (CODE + offset, write)
    assert vcpu.run() == PioOut(0xE9, 4, b"\x30\0\0\0")
    with pytest.raises(OSError, match="Errno 22"):
        vcpu.ioctl(X.KVM_TPR_ACCESS_REPORTING, X.KvmTprAccessCtl(flags=1))
