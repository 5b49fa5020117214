# SPDX-License-Identifier: GPL-2.0-only
"""Code where no memory is: what userspace sees of it, and what the guest gets."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from x86_guest_board import CODE, SIZE, STACK, Board, software

from anykvm.api import GuestMemory, Halt, InternalError
from anykvm.guests.tools import Toolchain
from anykvm.uapi import caps
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

NOWHERE = 0x500000
LAST = SIZE - 4
"""Four bytes before the memory ends."""
UD_SEEN = "mov $0x6a, %al; out %al, $0xe9; hlt"


@pytest.fixture
def board(tools: Toolchain) -> Iterator[Board]:
    one = Board(software(), tools)
    yield one
    one.close()


def enable(board: Board) -> None:
    board.vm.enable_cap(caps.KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1)


def test_a_jump_to_where_nothing_is(board: Board) -> None:
    """At ring 0 userspace sees it; if it goes on, the guest gets #UD."""
    board.gate(X.UD_VECTOR, 0x2000)
    board.load(f".code64\n{UD_SEEN}", 0x2000)
    vcpu = board.long(f"mov ${NOWHERE:#x}, %eax; jmp *%rax")
    exit = vcpu.run()
    assert exit == InternalError(C.KVM_INTERNAL_ERROR_EMULATION, (0, 0, 0, NOWHERE, 0, 0))
    assert isinstance(exit, InternalError) and exit.instruction == b""
    assert vcpu.get_regs().rip == NOWHERE
    events = vcpu.get_vcpu_events()
    assert (events.exception.injected, events.exception.nr) == (1, X.UD_VECTOR)
    board.until(vcpu, Halt)
    assert board.seen == [0x6A]


@pytest.mark.parametrize("before", ["", "nop; nop; inc %rbx;"])
def test_an_instruction_that_runs_over_the_end(board: Board, before: str) -> None:
    """Its bytes are told as far as there are any; what is before it has run."""
    code = board.tools.assemble(f".code64\n{before} movabs $0x1122334455667788, %rax; hlt", base=CODE)
    start = LAST - len(code) + 11
    board.memory.write(start, code[: SIZE - start])
    enable(board)
    vcpu = board.long(f"mov ${start:#x}, %eax; jmp *%rax")
    exit = vcpu.run()
    assert isinstance(exit, InternalError) and exit.suberror == C.KVM_INTERNAL_ERROR_EMULATION
    assert exit.instruction == b"\x48\xb8\x88\x77"
    assert exit.data[0] == C.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES and exit.data[3:] == (0, 0, SIZE, 0, 0)
    failure = vcpu.run_page.emulation_failure
    assert (failure.insn_size, bytes(failure.insn_bytes)) == (4, b"\x48\xb8\x88\x77".ljust(15, b"\x90"))
    assert (vcpu.get_regs().rip, vcpu.get_regs().rbx) == (LAST, 1 if before else 0)
    assert not vcpu.get_vcpu_events().exception.injected


def test_userspace_puts_memory_there(board: Board) -> None:
    """With KVM_CAP_EXIT_ON_EMULATION_FAILURE nothing has happened to the guest."""
    enable(board)
    vcpu = board.long(f"mov ${NOWHERE:#x}, %eax; jmp *%rax")
    assert isinstance(vcpu.run(), InternalError)
    assert isinstance(vcpu.run(), InternalError)
    with GuestMemory(0x1000) as more:
        more.write(0, board.tools.assemble(".code64\nmov $7, %al; out %al, $0xe9; hlt", base=NOWHERE))
        board.vm.set_user_memory_region(1, NOWHERE, more)
        board.until(vcpu, Halt)
        board.vm.set_user_memory_region(1, 0, None)
    assert board.seen == [7]


@pytest.mark.parametrize("exits", [False, True])
def test_at_ring_3(board: Board, exits: bool) -> None:
    """A program of the guest gets #UD, and userspace hears of it only if it wants to."""
    if exits:
        enable(board)
    board.gate(X.UD_VECTOR, 0x2000)
    board.load(f".code64\n{UD_SEEN}", 0x2000)
    vcpu = board.long(f"mov ${NOWHERE:#x}, %eax; jmp *%rax")
    for table in (0x10000, 0x11000, *range(0x12000, 0x13000, 8)):
        board.memory.write(table, bytes([board.memory.read(table, 1)[0] | 4]))
    board.memory.write(0x16004, struct.pack("<Q", STACK))
    sregs = vcpu.get_sregs()
    sregs.cs.dpl = sregs.ss.dpl = 3
    sregs.cs.selector, sregs.ss.selector = 0x1B, 0x23
    sregs.tr.base, sregs.tr.limit, sregs.tr.type, sregs.tr.present = 0x16000, 0x67, 11, 1
    vcpu.set_sregs(sregs)
    if exits:
        assert isinstance(vcpu.run(), InternalError)
    else:
        board.until(vcpu, Halt)
        assert board.seen == [0x6A]


def test_in_real_mode(board: Board) -> None:
    vcpu = board.real("ljmp $0xffff, $0xfff0")
    exit = vcpu.run()
    assert exit == InternalError(C.KVM_INTERNAL_ERROR_EMULATION, (0, 0, 0, 0x10FFE0, 0, 0))
