# SPDX-License-Identifier: GPL-2.0-only
"""Tasks switched by the hardware: jumps, calls and their return, through a task gate, and what goes wrong."""

from __future__ import annotations

import pytest
from x86_board import (
    CODE32,
    DATA,
    DATA0,
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
)

NESTED = 0x4000
BUSY = 2


def second_task(b: X86Board, *, access: int = 0x89, limit: int = 0x67) -> None:
    """A task at 0x7000 with a stack at 0x70000, and ECX = 5."""
    b.set_word(GDT + TASK2, descriptor(DATA, limit, access))
    for at, value in ((0x20, 0x7000), (0x24, 2), (0x2C, 5), (0x38, 0x70000), (0x4C, CODE32), (0x60, 0)):
        b.set_word(DATA + at, value, 4)
    for at in (0x48, 0x50, 0x54, 0x58, 0x5C):
        b.set_word(DATA + at, DATA0, 4)
    b.set_word(DATA + 0x66, 0x68, 2)


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
