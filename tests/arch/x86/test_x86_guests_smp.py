# SPDX-License-Identifier: GPL-2.0-only
"""Small guests with several vCPUs, on both backends: the lock prefix, and code that somebody else writes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from x86_guest_board import CODE, STACK, Board
from x86_ring_board import kernel

from anykvm.api import Halt, PioOut, Vcpu
from anykvm.uapi import x86 as X

COUNTER, FLAG, PATCHED, SAID = 0xC0000, 0xC0040, 0x5000, 0xC0080


def another(board: Board, first: Vcpu, rip: int) -> Vcpu:
    """A vCPU with the same tables, at `rip` with a stack of its own."""
    vcpu = board.vcpu()
    vcpu.set_sregs(first.get_sregs())
    vcpu.set_regs(X.KvmRegs(rip=rip, rsp=STACK - 0x1000 * (len(board.vcpus) - 1), rflags=2))
    return vcpu


@pytest.mark.parametrize(
    "code",
    [
        "lock incl 0xc0000",
        "mov $1, %eax; lock xadd %eax, 0xc0000",
        "2: mov 0xc0000, %eax;lea 1(%rax), %ebx; lock cmpxchg %ebx, 0xc0000; jne 2b",
    ],
)
def test_the_lock_prefix_across_vcpus(board: Board, code: str) -> None:
    rounds = 100_000 if board.software else 3_000
    loop = f"lock incl {FLAG}; 1: cmpl $2, {FLAG}; jb 1b; mov ${rounds}, %ecx; 3: {code}; dec %ecx; jnz 3b; hlt"
    first = kernel(board, loop)
    second = another(board, first, CODE)
    with ThreadPoolExecutor(2) as pool:
        assert all(isinstance(exit, Halt) for exit in pool.map(Vcpu.run, (first, second)))
    assert int.from_bytes(board.memory.read(COUNTER, 4), "little") == 2 * rounds


def test_a_vcpu_writes_the_code_that_another_runs(board: Board) -> None:
    """Each waits until the other has seen what it did: never an old instruction after its new one was seen."""
    rounds = 300
    board.load(".code64\nmov $0, %eax; ret", PATCHED)
    runs = f"2: call {PATCHED:#x}; mov %eax, {SAID}; cmp ${rounds}, %eax; jb 2b; hlt"
    writes = f"""
        mov $1, %ecx; 1: mov %ecx, {PATCHED + 1}; 2: pause; cmp %ecx, {SAID}; jne 2b
        inc %ecx; cmp ${rounds}, %ecx; jbe 1b; hlt
    """
    first = kernel(board, runs)
    board.load(f".code64\n{writes}", 0x6000)
    second = another(board, first, 0x6000)
    with ThreadPoolExecutor(2) as pool:
        assert all(isinstance(exit, Halt) for exit in pool.map(Vcpu.run, (first, second)))
    assert board.memory.read(SAID, 4) == rounds.to_bytes(4, "little")


def test_a_guest_writes_its_own_next_instruction(board: Board) -> None:
    vcpu = kernel(board, "mov $50, %ecx; 1: mov %cl, 2f+1; jmp 2f; 2: mov $0, %al; out %al, $0xe9; loop 1b; hlt")
    board.until(vcpu, Halt)
    assert board.seen == list(range(50, 0, -1))


def test_a_device_writes_code_and_interrupts(board: Board) -> None:
    """As a disk does: the handler calls what the device wrote, which has run before with other bytes."""
    board.vm.create_irqchip()
    board.load(".code64\nmov $0, %al; ret", PATCHED)
    vcpu = kernel(
        board,
        f"mov $0xfee00000, %esi; movl $0x1ff, 0xf0(%rsi); call {PATCHED:#x}; out %al, $0xe9; sti;1: hlt; jmp 1b",
    )
    board.load(f".code64\ncall {PATCHED:#x}; movl $0, 0xb0(%rsi); out %al, $0xe9; iretq", 0x6000)
    board.gate(0x41, 0x6000)

    def device(value: int) -> None:
        board.memory.write(PATCHED + 1, bytes((value,)))
        board.vm.signal_msi(0xFEE00000, 0x41)

    for value in range(1, 20):
        exit = vcpu.run()
        assert isinstance(exit, PioOut)
        board.seen.append(exit.data[0])
        timer = threading.Timer(0.01, device, (value,))
        timer.start()
    last = vcpu.run()
    timer.join()
    assert isinstance(last, PioOut)
    assert [*board.seen, last.data[0]] == list(range(20))
