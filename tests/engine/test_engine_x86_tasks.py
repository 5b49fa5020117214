# SPDX-License-Identifier: GPL-2.0-only
"""Tasks switched by the hardware: jumps, calls and their return, through a task gate, and what goes wrong."""

from __future__ import annotations

import pytest
from x86_board import (
    CODE32,
    DATA,
    DATA0,
    EXEC_ONLY,
    GDT,
    GP,
    IDT32,
    NP,
    RAX,
    RBX,
    RCX,
    TASK2,
    TR,
    TS,
    TSS32,
    TSS32_SEL,
    X86Board,
    descriptor,
    second_task,
)

NESTED = 0x4000
BUSY = 2


def access(b: X86Board, selector: int) -> int:
    return b.word(GDT + selector + 5, 1)


def test_a_jump_to_a_task(x86):
    b = x86(f"mov $1,%eax; mov $9,%ecx; ljmp ${TASK2},$0; hlt", bits=32)
    second_task(b)
    b.load("mov $2,%ebx; push %ecx; hlt", bits=32, at=0x7000)
    b.set_word(GDT + TSS32_SEL, descriptor(TSS32, 0x2068, 0x8B))
    c = b.protected()
    b.end(c, 32)
    assert (c.gpr[RAX], c.gpr[RBX], c.gpr[RCX]) == (0, 2, 5)
    assert b.word(0x70000 - 4, 4) == 5
    assert c.get_segment(TR)[0] == TASK2
    assert not c.rflags & NESTED
    assert (access(b, TASK2) & BUSY, access(b, TSS32_SEL) & BUSY) == (BUSY, 0)
    # What the first task was is in its segment, with the address behind the jump.
    assert (b.word(TSS32 + 0x28, 4), b.word(TSS32 + 0x2C, 4), b.word(TSS32 + 0x20, 4)) == (1, 9, 0x1000 + 17)


@pytest.mark.parametrize("how", ["call", "gate"])
def test_a_call_of_a_task_and_its_return(x86, how):
    enter = f"lcall ${TASK2},$0" if how == "call" else "int $0x60"
    b = x86(f"mov $1,%eax; {enter}; mov $3,%ebx; hlt", bits=32)
    second_task(b)
    b.load("pushf; pop %edx; mov %edx,0x100800; iret", bits=32, at=0x7000)
    b.set_word(GDT + TSS32_SEL, descriptor(TSS32, 0x2068, 0x8B))
    b.set_word(IDT32 + 8 * 0x60, TASK2 << 16 | 0x85 << 40)
    c = b.protected()
    b.end(c, 32)
    assert (c.gpr[RAX], c.gpr[RBX]) == (1, 3)
    assert b.word(DATA + 0x800, 4) & NESTED
    assert b.word(DATA, 2) == TSS32_SEL
    assert c.get_segment(TR)[0] == TSS32_SEL
    assert (access(b, TASK2) & BUSY, access(b, TSS32_SEL) & BUSY) == (0, BUSY)


@pytest.mark.parametrize(
    ("given", "vector", "error"),
    [
        ({"access": 0x8B}, GP, TASK2),
        ({"access": 0x09}, NP, TASK2),
        ({"limit": 0x50}, TS, TASK2),
    ],
    ids=["busy", "absent", "too small"],
)
def test_tasks_that_cannot_be_entered(x86, given, vector, error):
    b = x86(f"mov $1f,%ebp; 1: ljmp ${TASK2},$0; hlt", bits=32)
    second_task(b, **given)
    b.set_word(GDT + TSS32_SEL, descriptor(TSS32, 0x2068, 0x8B))
    t = b.fault(c := b.protected(), 32)
    assert (t.vector, t.error, t.ip) == (vector, error, c.gpr[5])
    assert c.get_segment(TR)[0] == TSS32_SEL


@pytest.mark.parametrize(
    ("at", "selector", "vector", "error"),
    [
        (0x4C, DATA0, TS, DATA0),
        (0x4C, 0, TS, 0),
        (0x50, CODE32, TS, CODE32),
        (0x50, 0, TS, 0),
        (0x54, EXEC_ONLY, TS, EXEC_ONLY),
    ],
    ids=["data as code", "no code", "code as stack", "no stack", "execute-only code as data"],
)
def test_a_task_with_a_segment_that_is_wrong(x86, at, selector, vector, error):
    """It is the new task's fault, before its first instruction: its handler has a task of its own."""
    b = x86(f"ljmp ${TASK2},$0; hlt", bits=32)
    second_task(b)
    b.set_word(DATA + at, selector, 4)
    b.set_word(GDT + TSS32_SEL, descriptor(TSS32, 0x2068, 0x8B))
    second_task(b, at=DATA + 0x1000, selector=0xC8, rip=0x7100)
    b.set_word(IDT32 + 8 * vector, 0xC8 << 16 | 0x85 << 40)
    b.load("pop %ebx; hlt", bits=32, at=0x7100)
    c = b.protected()
    b.end(c, 32)
    assert (c.get_segment(TR)[0], c.gpr[RBX]) == (0xC8, error)
    assert b.word(DATA + 0x1000, 2) == TASK2
    assert b.word(DATA + 0x20, 4) == 0x7000
