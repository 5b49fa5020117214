# SPDX-License-Identifier: GPL-2.0-only
"""Segment limits and types in 32 bits."""

from __future__ import annotations

import pytest
from x86_board import (
    BP,
    CODE32,
    CODE_ABSENT,
    CS,
    DATA,
    DATA0,
    DF,
    DOWN,
    DS,
    EXEC_ONLY,
    GATE32,
    GDT,
    GP,
    IDT32,
    LAST,
    NP,
    RAX,
    RBP,
    RBX,
    RCX,
    RDI,
    RDX,
    READONLY,
    RSP,
    SMALL,
    SS,
    SSF,
    TASK2,
    TR,
    TS,
    TSS32,
    TSS32_SEL,
    UD,
    descriptor,
    go,
    second_task,
)

from anykvm.engine import Event

GATE_CODE = 0xC8

LIMITS = {
    "byte at the limit": ("mov %ds:0xfff,%al", None),
    "byte over the limit": ("mov %ds:0x1000,%al", GP),
    "word over the limit": ("mov %ds:0xfff,%ax", GP),
    "dword over the limit": ("mov %ds:0xffd,%eax", GP),
    "dword at the limit": ("mov %ds:0xffc,%eax", None),
    "store over the limit": ("mov %eax,%ds:0x2000", GP),
    "locked at the limit": ("lock incl %ds:0xffc", None),
    "locked over the limit": ("lock incl %ds:0xffd", GP),
    "exchange over the limit": ("xchg %eax,%ds:0xffd", GP),
    "unlocked compare and exchange over the limit": ("cmpxchg %eax,%ds:0xffd", GP),
    "eight bytes compared at the limit": ("lock cmpxchg8b %ds:0xff8", None),
    "eight bytes compared over the limit": ("lock cmpxchg8b %ds:0xff9", GP),
    "x87's 80 bits at the limit": ("fldt %ds:0xff6", None),
    "x87's 80 bits over the limit": ("fldt %ds:0xff7", GP),
    "x87's 80 bits stored over the limit": ("fldz; mov $1f,%ebp; 1: fstpt %ds:0xff7", GP),
    "x87's environment at the limit": ("fnstenv %ds:0xfe4", None),
    "x87's environment over the limit": ("fnstenv %ds:0xfe5", GP),
    "x87's environment of 16 bits at the limit": ("data16 fnstenv %ds:0xff2", None),
    "x87's environment of 16 bits over the limit": ("data16 fnstenv %ds:0xff3", GP),
    "x87's state over the limit": ("fnsave %ds:0xf95", GP),
    "FXSAVE at the limit": ("fxsave %ds:0xe00", None),
    "FXSAVE over the limit": ("fxsave %ds:0xe10", GP),
    "a table's register over the limit": ("sgdt %ds:0xffb", GP),
    "a far pointer over the limit": ("lds %ds:0xffb,%eax", GP),
    "bounds over the limit": ("bound %eax,%ds:0xff9", GP),
}


@pytest.mark.parametrize("what", LIMITS)
def test_segment_limits(x86, what):
    code, vector = LIMITS[what]
    b = x86(f"mov ${SMALL},%eax; mov %eax,%ds; mov $1f,%ebp; 1: {code}; hlt", bits=32)
    c = b.protected()
    if vector is None:
        b.end(c, 32)
    else:
        t = b.fault(c, 32)
        assert (t.vector, t.error, t.ip) == (vector, 0, c.gpr[5])


@pytest.mark.parametrize(
    ("offset", "faults"),
    [
        (0x1000, 0),
        (0xFFFFFFFC - 0x100000, 0),
        (0xFFF, 1),
        (0, 1),
    ],
)
def test_expand_down_segments(x86, offset, faults):
    b = x86(f"mov ${DOWN},%eax; mov %eax,%ds; mov $1f,%ebp; 1: mov %ds:{offset},%eax; hlt", bits=32)
    c = b.protected()
    if faults:
        t = b.fault(c, 32)
        assert (t.vector, t.error, t.ip) == (GP, 0, c.gpr[5])
    else:
        event = go(c)
        assert event[0] in (Event.HLT, Event.MMIO_READ)
        assert b.trap(c, 32) is None


SEGMENTS = {
    "stack over the limit": (f"mov ${SMALL},%eax; mov %eax,%ss; mov $0x2000,%esp; 1: mov (%esp),%eax", SSF, 0),
    "store to read-only": (f"mov ${READONLY},%eax; mov %eax,%ds; 1: mov %eax,%ds:0x100000", GP, 0),
    "load of a null segment": ("xor %eax,%eax; mov %eax,%ds; 1: mov %ds:0x100000,%eax", GP, 0),
    "locked access to read-only": (f"mov ${READONLY},%eax; mov %eax,%ds; 1: lock incl %ds:0x100000", GP, 0),
    "FXSAVE to code": ("1: fxsave %cs:0x100000", GP, 0),
    "store to code": ("1: mov %eax,%cs:0x100000", GP, 0),
    "load of execute-only code": (f"ljmp ${EXEC_ONLY},$2f; 2: 1: mov %cs:0x100000,%eax", GP, 0),
    "jump to absent code": (f"1: ljmp ${CODE_ABSENT},$0x1000", NP, CODE_ABSENT),
    "jump to data": (f"1: ljmp ${DATA0},$0x1000", GP, DATA0),
    "jump to null": ("1: ljmp $0,$0x1000", GP, 0),
    "call of ring 3 code": ("1: lcall $0x1b,$0x1000", GP, 0x18),
    "absent LDT": ("mov $0x68,%eax; 1: lldt %ax", GP, 0x68),
    "iret to another task with no link": (
        "pushf; orl $0x4000,(%esp); popf; 1: iret",
        TS,
        0,
    ),
}


@pytest.mark.parametrize("what", SEGMENTS)
def test_segment_faults(x86, what):
    code, vector, error = SEGMENTS[what]
    b = x86(f"mov $1f,%ebp; {code}; hlt", bits=32)
    if what == "stack over the limit":
        # The fault's frame finds no stack either, nor does the double fault's.
        assert go(b.protected())[0] == Event.SHUTDOWN
        return
    t = b.fault(c := b.protected(), 32)
    assert (t.vector, t.error, t.ip) == (vector, error, c.gpr[5])


def test_a_repeated_instruction_stops_at_the_limit(x86):
    b = x86(
        f"mov ${SMALL},%eax; mov %eax,%es; mov $0xff0,%edi; mov $0x20,%ecx; mov $1f,%ebp; 1: rep stosb; hlt", bits=32
    )
    t = b.fault(c := b.protected(), 32)
    assert (t.vector, t.ip) == (GP, c.gpr[RBP])
    assert (c.gpr[RDI], c.gpr[RCX]) == (0x1000, 0x10)
    assert b.ram[DATA + 0xFF0 : DATA + 0x1001] == bytes([SMALL]) * 16 + b"\0"


@pytest.mark.parametrize(
    "code",
    ["push %eax", "pusha", "lock incl (%esp)", "lcall $0x1b,$1b", "lret", "iret", "call 1b", "ret", "enter $0,$0"],
)
def test_a_user_stack_over_its_limit(x86, code):
    b = x86(f"mov $1f,%ebp; 1: {code}; hlt", bits=32)
    c = b.protected(user=True, rsp=0x2000)
    c.set_segment(SS, (0x23, 0, 0xFFF, 0x40F3))
    t = b.fault(c, 32)
    assert (t.vector, t.error, t.ip, t.sp) == (SSF, 0, c.gpr[5], 0x2000)


def test_far_transfers_on_the_last_of_the_stack(x86):
    b = x86("lcall $0x1b,$1f; mov $1,%ecx; hlt; 1: mov $2,%edx; lret", bits=32)
    c = b.protected(user=True, rsp=0x8000)
    c.set_segment(SS, (0x23, 0, 0x7FFF, 0x40F3))
    assert b.fault(c, 32).vector == GP  # HLT
    assert (c.gpr[RCX], c.gpr[RDX]) == (1, 2)


@pytest.mark.parametrize(
    ("code", "room", "vector", "error"),
    [
        ("int3", 20, BP, None),
        ("int3", 19, SSF, SMALL),
        ("ud2", 20, UD, None),
        ("ud2", 19, SSF, SMALL | 1),
        ("mov %ds:0xfff00000,%eax", 24, GP, None),
        ("mov %ds:0xfff00000,%eax", 23, DF, 0),
    ],
)
def test_the_frame_on_the_stack_of_a_ring(x86, code, room, vector, error):
    """The stack fault and the double fault have a task, so a stack, of their own."""
    b = x86(f"1: {code}; hlt", bits=32)
    second_task(b)
    b.load("pop %ebx; hlt", bits=32, at=0x7000)
    b.set_word(GDT + TSS32_SEL, descriptor(TSS32, 0x2068, 0x8B))
    if error is not None:
        b.set_word(IDT32 + 8 * vector, TASK2 << 16 | 0x85 << 40)
    b.set_word(GDT + SMALL, descriptor(DATA + 0x2000, room - 1, 0x93, 4))
    b.set_word(TSS32 + 4, room, 4)
    b.set_word(TSS32 + 8, SMALL, 4)
    c = b.protected(user=True)
    c.set_segment(DS, (0x23, 0, 0xFFFFF, 0x40F3))
    assert go(c) == LAST
    if error is None:
        assert c.get_segment(SS)[0] == SMALL
        assert c.gpr[RSP] == 0
        t = b.trap(c, 32)
        assert t is not None
        assert t.vector == vector
    else:
        assert (c.get_segment(TR)[0], c.gpr[RBX]) == (TASK2, error)


@pytest.mark.parametrize(("room", "fits"), [(24, True), (23, False)])
def test_the_arguments_of_a_call_gate_on_the_stack_of_a_ring(x86, room, fits):
    """Four words and two arguments; the stack fault has a task of its own."""
    b = x86(f"push $7; push $8; mov $0,%ebp; lcall ${GATE32 | 3},$0; hlt", bits=32)
    b.set_word(GDT + GATE32, 0x7200 & 0xFFFF | CODE32 << 16 | 2 << 32 | 0xEC << 40)
    b.load("mov 8(%esp),%ecx; hlt", bits=32, at=0x7200)
    second_task(b)
    b.load("pop %ebx; hlt", bits=32, at=0x7000)
    b.set_word(GDT + TSS32_SEL, descriptor(TSS32, 0x2068, 0x8B))
    b.set_word(IDT32 + 8 * SSF, TASK2 << 16 | 0x85 << 40)
    b.set_word(GDT + SMALL, descriptor(DATA + 0x2000, room - 1, 0x93, 4))
    b.set_word(TSS32 + 4, room, 4)
    b.set_word(TSS32 + 8, SMALL, 4)
    c = b.protected(user=True)
    assert go(c) == LAST
    if fits:
        assert (c.get_segment(SS)[0], c.gpr[RCX], c.gpr[RSP]) == (SMALL, 8, 0)
    else:
        assert (c.get_segment(TR)[0], c.gpr[RBX]) == (TASK2, SMALL)
        assert b.word(TSS32 + 0x20, 4) == 0x1009  # at the call


def limited_code(b, limit):
    c = b.protected()
    c.set_segment(CS, (0x38, 0, limit, 0x409B))
    return c


def test_a_jump_over_the_code_limit(x86):
    b = x86("1: jmp 0x3000", bits=32)
    t = b.fault(limited_code(b, 0x1FFF), 32)
    assert (t.vector, t.error) == (GP, 0)


@pytest.mark.parametrize("bytes_", range(6, 14))
def test_running_over_the_code_limit(x86, bytes_):
    """What lies over the limit is not run: not an instruction behind it, nor one across it."""
    b = x86("mov $1,%eax; nop; mov $2,%ebx; inc %ecx; nop; hlt", bits=32)
    for n in range(256):  # handlers within any limit
        b.set_word(IDT32 + 8 * n, b.word(IDT32 + 8 * n) & ~(0xFFFF << 16) | GATE_CODE << 16)
    b.set_word(GDT + GATE_CODE, descriptor(0, 0xFFFFF, 0x9B, 0xC))
    t = b.fault(c := limited_code(b, 0x1000 + bytes_ - 1), 32)
    starts = (6, 11, 12, 13, 14)
    ends = (11, 12, 13, 14, 15)
    at = next(s for s, e in zip(starts, ends, strict=True) if e > bytes_)
    assert (t.vector, t.error, t.ip) == (GP, 0, 0x1000 + at)
    assert (c.gpr[RAX], c.gpr[RBX], c.gpr[RCX]) == (1, 2 if at > 6 else 0, 1 if at > 11 else 0)
