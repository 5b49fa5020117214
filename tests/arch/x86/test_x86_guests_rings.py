# SPDX-License-Identifier: GPL-2.0-only
"""Changes of privilege, and the stacks that come with them, as small guests of both backends make them."""

from __future__ import annotations

import pytest
from x86_guest_board import CODE, STACK, Board
from x86_ring_board import (
    CODE32U,
    CODE64,
    CODE64U,
    DATAU,
    HANDLERS,
    IST1,
    STACK0,
    USER,
    USER_STACK,
    gate,
    kernel,
    needs_processor,
    trap,
    user,
)

from anykvm.api import Halt, PioOut
from anykvm.uapi import x86 as X

SYSTEM_CALL = 0x80


@pytest.mark.parametrize("selector", [CODE64U, CODE32U])
def test_iret_to_user_code_and_a_fault_back(board: Board, selector: int) -> None:
    push = f"push ${DATAU}; push ${USER_STACK}; push $2; push ${selector}; push ${USER}; iretq"
    vcpu = kernel(board, push)
    board.load("inc %eax; ud2" if selector == CODE64U else ".code32; inc %eax; ud2", USER)
    frame = trap(board, vcpu)
    length = 2 if selector == CODE64U else 1
    assert (frame.vector, frame.rip, frame.cs) == (X.UD_VECTOR, USER + length, selector)
    assert (frame.rsp, frame.ss, frame.at) == (USER_STACK, DATAU, STACK0 - 40)
    assert vcpu.get_sregs().cs.selector == CODE64


@pytest.mark.parametrize(
    "code", ["cli", "hlt", "mov %cr0, %rax", "out %al, $0xe9", "wrmsr", "lgdt 0xc0000", "int $0x81"]
)
def test_user_code_may_not(board: Board, code: str) -> None:
    if code.startswith("int"):
        needs_processor(board, "INT outside of real mode")
    frame = trap(board, user(board, code))
    error = 0x81 * 8 + 2 if code.startswith("int") else 0
    assert (frame.vector, frame.error, frame.rip, frame.at) == (X.GP_VECTOR, error, USER, STACK0 - 40)


def test_a_system_call_by_interrupt_and_back(board: Board) -> None:
    needs_processor(board, "INT outside of real mode")
    vcpu = user(board, "mov $5, %ebx; int $0x80; inc %ebx; int $0x80")
    gate(board, SYSTEM_CALL, dpl=3)
    first = trap(board, vcpu)
    assert (first.vector, first.rip, first.cs, first.rsp) == (SYSTEM_CALL, USER + 7, CODE64U, USER_STACK)
    assert trap(board, vcpu).rip == USER + 11
    assert vcpu.get_regs().rbx == 6


def test_syscall_and_sysret(board: Board) -> None:
    needs_processor(board, "SYSCALL in all of its versions")
    vcpu = user(board, "mov $1, %ebx; syscall; 1: inc %ebx; ud2")
    board.load(".code64\nmov %rcx, %rsi; mov %r11, %rdi; sysretq", 0x4000)
    # SYSRET's selectors are 16 and 8 behind what is there; SYSCALL clears the interrupt flag.
    assert vcpu.set_msrs({X.MSR_STAR: (CODE32U & ~3) << 48 | CODE64 << 32, X.MSR_LSTAR: 0x4000, 0xC0000084: 0x200}) == 3
    vcpu.set_regs(X.KvmRegs(rip=USER, rsp=USER_STACK, rflags=0x202))
    frame = trap(board, vcpu)
    regs = vcpu.get_regs()
    assert (frame.vector, frame.cs, frame.rflags & 0x200) == (X.UD_VECTOR, CODE64U, 0x200)
    assert (regs.rbx, regs.rsi, regs.rdi & 0x200) == (2, USER + 7, 0x200)


def test_sysenter_and_sysexit(board: Board) -> None:
    needs_processor(board, "SYSEXIT")
    vcpu = user(board, "mov $1, %ebx; sysenter; 1: inc %ebx; ud2")
    board.load(f".code64\nmov %rsp, %rdi; mov ${USER + 7}, %edx; mov ${USER_STACK - 64}, %ecx; sysexitq", 0x4000)
    # 64-bit SYSEXIT takes the code selector at 32 behind SYSENTER's, the stack at 40.
    assert vcpu.set_msrs({0x174: CODE64, 0x175: STACK0, 0x176: 0x4000}) == 3
    frame = trap(board, vcpu)
    regs = vcpu.get_regs()
    assert (frame.vector, frame.cs, frame.rsp) == (X.UD_VECTOR, CODE64 + 32 | 3, USER_STACK - 64)
    assert (regs.rbx, regs.rdi) == (2, STACK0)


@pytest.mark.parametrize("ring", [0, 3])
def test_an_ist_stack_from_any_ring(board: Board, ring: int) -> None:
    vcpu = user(board, "ud2") if ring else kernel(board, "ud2")
    gate(board, X.UD_VECTOR, ist=1)
    frame = trap(board, vcpu)
    assert (frame.at, frame.rsp) == (IST1 - 40, USER_STACK if ring else STACK)


def test_an_nmi_on_its_ist_stack_and_back(board: Board) -> None:
    vcpu = kernel(board, "out %al, $0x99; nop; mov $1, %al; out %al, $0xe9; ud2")
    gate(board, 2, ist=1)
    assert isinstance(vcpu.run(), PioOut)
    vcpu.nmi()
    frame = trap(board, vcpu)
    assert (frame.vector, frame.at, frame.rsp) == (2, IST1 - 40, STACK)
    assert trap(board, vcpu).vector == X.UD_VECTOR
    assert board.seen == [1]


def test_a_fault_on_a_bad_user_stack_is_a_double_fault(board: Board) -> None:
    """The TSS has no good stack: what cannot be delivered becomes #DF, which has one of its own."""
    vcpu = user(board, "ud2")
    board.memory.write(0x16004, (1 << 62).to_bytes(8, "little"))
    gate(board, X.DF_VECTOR, ist=1)
    frame = trap(board, vcpu)
    assert (frame.vector, frame.error, frame.at) == (X.DF_VECTOR, 0, IST1 - 40)


def test_a_mode_at_a_time(board: Board) -> None:
    """From real mode through protected to 64-bit mode and through compatibility mode to ring 3."""
    long = kernel(board, "hlt")
    source = f"""
        cli; xor %ax, %ax; mov %ax, %ds; mov %ax, %ss; mov $0x10, %al; out %al, $0xe9
        lgdtl gdt; mov %cr0, %eax; or $1, %al; mov %eax, %cr0; ljmp $0x40, $protected
        gdt: .word 0x4f; .long 0x14000
        .code32
        protected: mov $0x10, %eax; mov %eax, %ds; mov %eax, %ss; mov $0x20, %al; out %al, $0xe9
        mov $0x20, %eax; mov %eax, %cr4; mov $0x10000, %eax; mov %eax, %cr3
        mov $0xc0000080, %ecx; xor %edx, %edx; mov $0x901, %eax; wrmsr
        mov %cr0, %eax; or $0x80000000, %eax; mov %eax, %cr0; mov $0x30, %al; out %al, $0xe9; ljmp ${CODE64}, $long
        .code64
        long: mov $0x40, %al; out %al, $0xe9; lidt idt
        push ${DATAU}; push ${USER_STACK}; push $2; push ${CODE32U}; push $compat; andl $0xfffffdff, 0x14034
        mov $0x30, %eax; ltr %ax; iretq
        idt: .word 0xfff; .quad 0x15000
        .code32
        compat: mov $0x50, %eax; ud2
    """
    assert long.run() == Halt()
    board.load(".code16\n" + source, CODE)
    board.memory.write(0x14040, (0x00CF9B000000FFFF).to_bytes(8, "little"))
    sregs, old = long.get_sregs(), board.vcpu().get_sregs()
    for name in ("cs", "ds", "es", "ss", "fs", "gs", "tr", "ldt", "cr0", "cr3", "cr4", "efer", "gdt", "idt"):
        setattr(sregs, name, getattr(old, name))
    sregs.cs.base = sregs.cs.selector = 0
    long.set_sregs(sregs)
    long.set_regs(X.KvmRegs(rip=CODE, rsp=STACK, rflags=2))
    frame = trap(board, long)
    assert board.seen == [0x10, 0x20, 0x30, 0x40]
    assert (frame.vector, frame.cs) == (X.UD_VECTOR, CODE32U)
    assert long.get_regs().rax == 0x50
    assert HANDLERS <= long.get_regs().rip < HANDLERS + 0x1000
