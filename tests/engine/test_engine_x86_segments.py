# SPDX-License-Identifier: GPL-2.0-only
"""Segment limits and types in 32 bits."""

from __future__ import annotations

import pytest
from x86_board import (
    CODE_ABSENT,
    DATA0,
    DOWN,
    EXEC_ONLY,
    GP,
    NP,
    READONLY,
    SMALL,
    SSF,
    TS,
    go,
)

from anykvm.engine import Event

LIMITS = {
    "byte at the limit": ("mov %ds:0xfff,%al", None),
    "byte over the limit": ("mov %ds:0x1000,%al", GP),
    "word over the limit": ("mov %ds:0xfff,%ax", GP),
    "dword over the limit": ("mov %ds:0xffd,%eax", GP),
    "dword at the limit": ("mov %ds:0xffc,%eax", None),
    "store over the limit": ("mov %eax,%ds:0x2000", GP),
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


def test_a_user_stack_over_its_limit(x86):
    b = x86("mov $1f,%ebp; 1: push %eax; hlt", bits=32)
    c = b.protected(user=True, rsp=0x2000)
    c.set_segment(2, (0x23, 0, 0xFFF, 0x40F3))
    t = b.fault(c, 32)
    assert (t.vector, t.error, t.ip, t.sp) == (SSF, 0, c.gpr[5], 0x2000)


def test_a_jump_over_the_code_limit(x86):
    b = x86("1: jmp 0x3000", bits=32)
    c = b.protected()
    c.set_segment(1, (0x38, 0, 0x1FFF, 0x409B))
    t = b.fault(c, 32)
    assert (t.vector, t.error) == (GP, 0)
