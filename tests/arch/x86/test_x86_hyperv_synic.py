# SPDX-License-Identifier: GPL-2.0-only
"""Hyper-V's synthetic interrupts, messages and timers, by guests that use them."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import time
from collections.abc import Iterator

import pytest
from x86_fake import Rig, errno_of
from x86_guest_board import Board
from x86_hyperv_rig import APIC_ON, DONE, FAULT, OPEN, finish, hyperv, only_here, rdmsr, wrmsr

from anykvm.api import Vcpu
from anykvm.api.exits import ArchExit
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

MESSAGES, EVENTS = 0x40000, 0x41000
SINT, VECTOR = 2, 0x51
SLOT = MESSAGES + SINT * X.HV_MESSAGE_SIZE
CONFIG, COUNT = X.HV_X64_MSR_STIMER0_CONFIG, X.HV_X64_MSR_STIMER0_COUNT
ON, PERIODIC, AUTO, DIRECT = 1, 2, 8, 1 << 12
TO_SINT = SINT << 16
AUTO_EOI = X.HV_SYNIC_SINT_AUTO_EOI


@pytest.fixture
def board(board: Board) -> Board:
    only_here(board).vm.create_irqchip()
    return board


def synic(board: Board, source: str, *, keep_pages: bool = True) -> Vcpu:
    vcpu = hyperv(board, source)
    vcpu.enable_cap(C.KVM_CAP_HYPERV_SYNIC2 if keep_pages else C.KVM_CAP_HYPERV_SYNIC)
    return vcpu


def handler(board: Board, body: str) -> None:
    """What the guest does at the vector: its registers stay."""
    save, restore = "push %rax; push %rcx; push %rdx; push %rsi;", "pop %rsi; pop %rdx; pop %rcx; pop %rax; iretq"
    board.load(f".code64\n{save} {body} {restore}", 0x2000)
    board.gate(VECTOR, 0x2000)


def pages(board: Board, vcpu: Vcpu, sint: int = VECTOR) -> None:
    """The message page and the source, as userspace that restores them sets them."""
    values = {X.HV_X64_MSR_SIMP: MESSAGES | 1, X.HV_X64_MSR_SINT0 + SINT: sint}
    assert vcpu.set_msrs(values) == len(values)


HELLO = "mov $0x77, %al; out %al, $0xe9;"
EOI = wrmsr(X.HV_X64_MSR_EOI, 0)
TAKE = f"mov ${SLOT}, %esi; mov (%rsi), %eax; out %eax, $0xe9; mov 16(%rsi), %eax; out %eax, $0xe9; movl $0, (%rsi);"
EOM = wrmsr(X.HV_X64_MSR_EOM, 0)
WINDOW = "sti; nop; nop; cli;"


def test_what_it_takes(rig: Rig, chips: Rig) -> None:
    def enable(one: Rig, cap: int, value: int = 0) -> int:
        return one.ioctl(one.vcpus[0], C.KVM_ENABLE_CAP, C.KvmEnableCap(cap=cap, args=(value, 0, 0, 0)))

    for one in (rig, chips):
        one.create_vcpu()
    assert errno_of(enable, rig, C.KVM_CAP_HYPERV_SYNIC) == errno.EINVAL
    assert errno_of(enable, chips, C.KVM_CAP_HYPERV_SYNIC2, 1) == errno.EINVAL
    assert not chips.set_msr(X.HV_X64_MSR_SIMP, 1)
    assert chips.set_msr(X.HV_X64_MSR_SIMP, 0)
    assert enable(chips, C.KVM_CAP_HYPERV_SYNIC) == enable(chips, C.KVM_CAP_HYPERV_SYNIC2) == 0
    assert chips.set_msr(X.HV_X64_MSR_SIMP, 0x1001)
    assert chips.get_msr(X.HV_X64_MSR_SCONTROL) == 1
    assert chips.get_msr(X.HV_X64_MSR_SINT0 + 15) == X.HV_SYNIC_SINT_MASKED


def test_a_timer_with_a_vector_of_its_own(board: Board) -> None:
    handler(board, HELLO + EOI)
    once = wrmsr(COUNT, 1) + wrmsr(CONFIG, ON | DIRECT | VECTOR << 4)
    vcpu = synic(board, APIC_ON + once + WINDOW + rdmsr(CONFIG) + DONE)
    # It came at once, once, and is off.
    assert finish(board, vcpu) == [0x77, DIRECT | VECTOR << 4]


def test_a_timer_that_is_awaited(board: Board) -> None:
    handler(board, HELLO + EOI)
    now = f"mov ${X.HV_X64_MSR_TIME_REF_COUNT}, %ecx; rdmsr; add $200000, %eax; adc $0, %edx;"
    start = f"{wrmsr(CONFIG, AUTO | DIRECT | VECTOR << 4)} {now} mov ${COUNT}, %ecx; wrmsr;"
    vcpu = synic(board, f"{APIC_ON} {start} sti; hlt; cli; {DONE}")
    started = time.monotonic()
    assert finish(board, vcpu) == [0x77]
    assert 0.019 <= time.monotonic() - started < 5


def test_a_timer_tells_by_message(board: Board) -> None:
    handler(board, TAKE + EOI)
    vcpu = synic(board, APIC_ON + wrmsr(COUNT, 1) + wrmsr(CONFIG, ON | TO_SINT) + WINDOW + DONE)
    pages(board, vcpu)
    assert finish(board, vcpu) == [X.HVMSG_TIMER_EXPIRED, 0]
    _, length, flags, _, sender, _, _, expired, delivered = struct.unpack("<IBBHQIIQQ", board.memory.read(SLOT, 40))
    assert (length, flags, sender, expired) == (24, 0, 0, 1)
    assert delivered > expired


def test_ticks_go_on_and_need_no_eoi(board: Board) -> None:
    handler(board, TAKE + EOM)
    # Every 2 ms.
    start = wrmsr(COUNT, 20_000) + wrmsr(CONFIG, ON | PERIODIC | TO_SINT)
    vcpu = synic(board, f"{APIC_ON} {start} mov $5, %ebx; 1: sti; hlt; cli; dec %ebx; jnz 1b; {DONE}")
    pages(board, vcpu, VECTOR | AUTO_EOI)
    started = time.monotonic()
    assert finish(board, vcpu) == [X.HVMSG_TIMER_EXPIRED, 0] * 5
    assert time.monotonic() - started >= 0.009


def test_a_message_waits_for_its_slot(board: Board) -> None:
    handler(board, TAKE + EOI)
    start = wrmsr(COUNT, 1) + wrmsr(CONFIG, ON | TO_SINT)
    free = f"{WINDOW} mov ${SLOT}, %esi; movzbl 5(%rsi), %eax; out %eax, $0xe9; movl $0, (%rsi);"
    vcpu = synic(board, APIC_ON + start + free + EOM + WINDOW + DONE)
    pages(board, vcpu)
    board.memory.write(SLOT, struct.pack("<I", 1))
    # The guest is asked to say when the slot is free, and then gets the message.
    assert finish(board, vcpu) == [X.HV_MESSAGE_FLAG_PENDING, X.HVMSG_TIMER_EXPIRED, 0]


def test_a_timer_that_is_stopped_does_not_come(board: Board) -> None:
    handler(board, HELLO + EOI)
    soon = f"mov ${X.HV_X64_MSR_TIME_REF_COUNT}, %ecx; rdmsr; add $100000, %eax; adc $0, %edx;"
    start = f"{wrmsr(CONFIG, AUTO | DIRECT | VECTOR << 4)} {soon} mov ${COUNT}, %ecx; wrmsr; {wrmsr(COUNT, 0)}"
    vcpu = synic(board, f"{APIC_ON} {start} out %al, $0xe9; {WINDOW} {rdmsr(CONFIG)} {DONE}")
    assert "0xe9" in repr(vcpu.run())
    time.sleep(0.02)
    assert finish(board, vcpu) == [AUTO | DIRECT | VECTOR << 4]


def test_userspace_learns_of_the_pages(board: Board) -> None:
    board.memory.write(MESSAGES, b"\xff" * 4096)
    set_both = wrmsr(X.HV_X64_MSR_SIMP, MESSAGES | 1) + wrmsr(X.HV_X64_MSR_SIEFP, EVENTS | 1)
    vcpu = synic(board, set_both + DONE, keep_pages=False)
    for msr, events in ((X.HV_X64_MSR_SIMP, 0), (X.HV_X64_MSR_SIEFP, EVENTS | 1)):
        exit = vcpu.run()
        assert isinstance(exit, ArchExit) and exit.reason == C.KVM_EXIT_HYPERV
        told = X.KvmHypervExit.from_buffer_copy(exit.payload)
        assert told.type == X.KVM_EXIT_HYPERV_SYNIC
        assert (told.u.synic.msr, told.u.synic.control) == (msr, 1)
        assert (told.u.synic.evt_page, told.u.synic.msg_page) == (events, MESSAGES | 1)
    assert board.memory.read(MESSAGES, 4096) == bytes(4096)
    finish(board, vcpu)


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (X.HV_X64_MSR_SVERSION, 1),
        (X.HV_X64_MSR_SINT0, 5),
        (X.HV_X64_MSR_SIMP, 0x7000_0001),
        (X.HV_X64_MSR_SIEFP, 0x7000_0001),
    ],
)
def test_what_faults(board: Board, index: int, value: int) -> None:
    board.load(FAULT, 0x2000)
    board.gate(X.GP_VECTOR, 0x2000)
    assert finish(board, synic(board, wrmsr(index, value) + DONE, keep_pages=False)) == [0xD]


def test_without_it_the_timers_fault_too(board: Board) -> None:
    board.load(FAULT, 0x2000)
    board.gate(X.GP_VECTOR, 0x2000)
    assert finish(board, hyperv(board, wrmsr(CONFIG, ON) + DONE)) == [0xD]


@pytest.fixture
def eventfds() -> Iterator[tuple[int, int]]:
    pair = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    yield pair
    for fd in pair:
        os.close(fd)


def route(board: Board, gsi: int, vp_index: int, sint: int, flags: int = 0) -> None:
    entry = C.KvmIrqRoutingEntry(gsi=gsi, type=C.KVM_IRQ_ROUTING_HV_SINT, flags=flags)
    ctypes.memmove(ctypes.addressof(entry.u), bytes(X.KvmIrqRoutingHvSint(vp_index, sint)), 8)
    buffer = ctypes.create_string_buffer(bytes(C.KvmIrqRouting(nr=1)) + bytes(entry))
    board.vm.ioctl(C.KVM_SET_GSI_ROUTING, ctypes.addressof(buffer))


def test_an_irqfd_raises_a_source_and_hears_of_its_end(board: Board, eventfds: tuple[int, int]) -> None:
    handler(board, HELLO + EOI)
    vcpu = synic(board, f"{APIC_ON} out %al, $0xe9; sti; hlt; cli; {DONE}")
    pages(board, vcpu)
    assert vcpu.set_msrs({X.HV_X64_MSR_VP_INDEX: 9}) == 1
    route(board, 40, 9, SINT)
    fire, ended = eventfds
    board.vm.irqfd(fire, 40, resamplefd=ended)
    assert "0xe9" in repr(vcpu.run())
    os.eventfd_write(fire, 1)
    assert finish(board, vcpu) == [0x77]
    assert os.eventfd_read(ended) == 1


def test_routes_that_go_nowhere(board: Board) -> None:
    vcpu = synic(board, APIC_ON + WINDOW + DONE)
    with pytest.raises(OSError, match="Errno 22"):
        route(board, 40, 0, SINT, flags=1)
    for vp_index, sint in ((3, SINT), (0, 16), (0, SINT)):
        route(board, 40, vp_index, sint)
        board.vm.irq_line(40, 1)
    assert finish(board, vcpu) == []


def test_before_the_guest_says_what_it_is_all_works(board: Board) -> None:
    handler(board, HELLO + EOI)
    send = wrmsr(X.HV_X64_MSR_ICR, VECTOR | 1 << 18) + wrmsr(X.HV_X64_MSR_TPR, 0x40) + rdmsr(X.HV_X64_MSR_TPR)
    vcpu = synic(board, APIC_ON + OPEN + send + rdmsr(X.HV_X64_MSR_ICR) + WINDOW + DONE)
    assert finish(board, vcpu) == [0x40, VECTOR | 1 << 18, 0x77]
