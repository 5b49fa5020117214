# SPDX-License-Identifier: GPL-2.0-only
"""NMIs and their mask, the interrupt window, CR8 and the task priority, as small guests of both backends see them."""

from __future__ import annotations

import pytest
from x86_guest_board import Board
from x86_ring_board import gate, kernel, needs_processor, trap, user

from anykvm.api import ArchExit, Halt, IrqWindowOpen, PioOut, Vcpu
from anykvm.uapi import x86 as X

ASK = "out %al, $0x99;"
"""The test sends an NMI."""
EACH = "a look for events before each instruction"


def say(value: int) -> str:
    return f"mov ${value}, %al; out %al, $0xe9;"


def handler(board: Board, vector: int, source: str, at: int) -> None:
    board.load(f".code64\n{source}", at)
    board.gate(vector, at)


def run(board: Board, vcpu: Vcpu) -> None:
    """To a HLT; an NMI for each write to port 0x99."""
    while isinstance(exit := vcpu.run(), PioOut):
        if exit.port == 0x99:
            vcpu.nmi()
        else:
            board.seen.append(exit.data[0])
    assert isinstance(exit, Halt), exit


def test_an_nmi_masks_the_next_until_iret(board: Board) -> None:
    needs_processor(board, EACH)
    vcpu = kernel(board, f"xor %ebx, %ebx; {ASK} nop; {say(9)} cli; hlt")
    # Only the first NMI asks for another.
    handler(board, 2, f"{say(1)} inc %ebx; cmp $1, %ebx; jne 1f; {ASK} nop; 1: {say(2)} iretq", 0x4000)
    run(board, vcpu)
    assert board.seen == [1, 2, 1, 2, 9]


def test_of_those_that_come_meanwhile_one_is_kept(board: Board) -> None:
    needs_processor(board, EACH)
    vcpu = kernel(board, f"xor %ebx, %ebx; {ASK} nop; {say(9)} cli; hlt")
    asks = f"{ASK} nop; " * 3
    handler(board, 2, f"{say(1)} inc %ebx; cmp $1, %ebx; jne 1f; {asks} 1: {say(2)} iretq", 0x4000)
    run(board, vcpu)
    assert board.seen == [1, 2, 1, 2, 9]


def test_the_iret_of_a_fault_within_opens_it_for_the_next(board: Board) -> None:
    needs_processor(board, EACH)
    vcpu = kernel(board, f"xor %ebx, %ebx; {ASK} nop; {say(9)} cli; hlt")
    code = f"{say(1)} inc %ebx; cmp $1, %ebx; jne 1f; {ASK} nop; {say(3)} ud2; {say(4)} 1: {say(2)} iretq"
    handler(board, 2, code, 0x4000)
    handler(board, X.UD_VECTOR, f"{say(6)} addq $2, (%rsp); iretq", 0x4800)
    run(board, vcpu)
    assert board.seen == [1, 3, 6, 1, 2, 4, 2, 9]


def test_the_mask_is_seen_and_set_from_outside(board: Board) -> None:
    vcpu = kernel(board, f"{ASK} nop; {say(9)} {ASK} nop; cli; hlt")
    gate(board, 2)
    assert isinstance(vcpu.run(), PioOut)
    vcpu.nmi()
    assert trap(board, vcpu).vector == 2
    events = vcpu.get_vcpu_events()
    assert (events.nmi.masked, events.nmi.pending) == (1, 0)
    vcpu.nmi()
    assert vcpu.get_vcpu_events().nmi.pending == 1
    events.nmi.masked = events.nmi.pending = 0
    vcpu.set_vcpu_events(events)
    run(board, vcpu)
    assert vcpu.get_vcpu_events().nmi.masked == 1  # by the NMI of the second request, whose handler halted
    assert board.seen == [9]


def test_an_nmi_ends_a_halt(board: Board) -> None:
    vcpu = kernel(board, f"cli; hlt; {say(9)} hlt")
    handler(board, 2, f"{say(1)} iretq", 0x4000)
    assert isinstance(vcpu.run(), Halt)
    vcpu.nmi()
    run(board, vcpu)
    assert board.seen == [1, 9]


def test_a_window_opens_after_sti_and_its_shadow(board: Board) -> None:
    needs_processor(board, EACH)
    vcpu = kernel(board, f"cli; out %al, $0x99; sti; mov $1, %ebx; mov $2, %ebx; {say(9)} cli; hlt")
    handler(board, 0x31, "mov %bl, %al; out %al, $0xe9; iretq", 0x4000)
    page = vcpu.run_page
    assert isinstance(vcpu.run(), PioOut)
    page.request_interrupt_window = 1
    board.until(vcpu, IrqWindowOpen)
    assert (page.ready_for_interrupt_injection, page.if_flag) == (1, 1)
    page.request_interrupt_window = 0
    vcpu.interrupt(0x31)
    board.until(vcpu, Halt)
    assert board.seen == [1, 9]


def test_an_interrupt_within_a_handler_waits_for_its_end(board: Board) -> None:
    needs_processor(board, EACH)
    vcpu = kernel(board, f"sti; out %al, $0x99; nop; {say(9)} cli; hlt")
    handler(board, 0x31, f"{say(1)} out %al, $0x98; nop; {say(2)} iretq", 0x4000)
    page = vcpu.run_page
    assert isinstance(vcpu.run(), PioOut)
    vcpu.interrupt(0x31)
    exit = board.until(vcpu, PioOut)
    assert isinstance(exit, PioOut) and (exit.port, page.if_flag, page.ready_for_interrupt_injection) == (0x98, 0, 0)
    page.request_interrupt_window = 1
    board.until(vcpu, IrqWindowOpen)
    assert board.seen == [1, 2]
    page.request_interrupt_window = 0
    board.until(vcpu, Halt)
    assert board.seen == [1, 2, 9]


# CR8 and the task priority.


def test_cr8_holds_interrupts_of_its_class_and_below(board: Board) -> None:
    needs_processor(board, EACH)
    board.vm.create_irqchip()
    cr8 = "mov ${0}, %eax; mov %rax, %cr8;"
    vcpu = kernel(
        board,
        "mov $0xfee00000, %esi; movl $0x1ff, 0xf0(%rsi); " + cr8.format(5) + "sti; out %al, $0x99;"
        f"nop; {say(1)} {cr8.format(4)} nop; {say(2)} {cr8.format(0)} nop; {say(3)} out %al, $0x98; 1: jmp 1b",
    )
    for vector, at in ((0x41, 0x4000), (0x5F, 0x4100), (0x60, 0x4200)):
        handler(board, vector, f"push %rax; {say(vector)} movl $0, 0xb0(%rsi); pop %rax; iretq", at)
    assert isinstance(vcpu.run(), PioOut)
    for vector in (0x41, 0x5F, 0x60):
        board.vm.signal_msi(0xFEE00000, vector)
    while isinstance(exit := vcpu.run(), PioOut) and exit.port == 0xE9:
        board.seen.append(exit.data[0])
    assert board.seen == [0x60, 1, 0x5F, 2, 0x41, 3]


def test_the_task_priority_register_is_cr8(board: Board) -> None:
    board.vm.create_irqchip()
    vcpu = kernel(
        board,
        "mov $0xfee00000, %esi; movl $0x1ff, 0xf0(%rsi); movl $0x73, 0x80(%rsi); mov %cr8, %rax; out %al, $0xe9;"
        "mov $10, %eax; mov %rax, %cr8; mov 0x80(%rsi), %eax; out %al, $0xe9; out %al, $0x98",
    )
    while isinstance(exit := vcpu.run(), PioOut) and exit.port == 0xE9:
        board.seen.append(exit.data[0])
    assert board.seen == [7, 0xA0]
    assert vcpu.get_sregs().cr8 == 10


def test_userspaces_task_priority(board: Board) -> None:
    """Without local APICs CR8 is userspace's: an exit when it gets lower, and in the run page both ways."""
    needs_processor(board, "exits for CR8")
    vcpu = kernel(
        board, "mov $9, %eax; mov %rax, %cr8; mov $4, %eax; mov %rax, %cr8; mov %cr8, %rax; out %al, $0xe9; hlt"
    )
    exit = board.until(vcpu, ArchExit)
    assert isinstance(exit, ArchExit) and exit.name == "KVM_EXIT_SET_TPR"
    assert vcpu.run_page.cr8 == 4
    vcpu.run_page.cr8 = 6
    board.until(vcpu, Halt)
    assert board.seen == [6]


@pytest.mark.parametrize("value", [16, 1 << 63])
def test_a_priority_there_is_not(board: Board, value: int) -> None:
    frame = trap(board, kernel(board, f"mov ${value}, %rax; mov %rax, %cr8; hlt"))
    assert (frame.vector, frame.error) == (X.GP_VECTOR, 0)


def test_user_code_has_no_cr8(board: Board) -> None:
    assert trap(board, user(board, "mov %cr8, %rax")).vector == X.GP_VECTOR
