# SPDX-License-Identifier: GPL-2.0-only
"""Virtual-8086 mode: into it by IRET, out by faults and interrupts, what its programs may not (SDM volume 3, 21)."""

from __future__ import annotations

import pytest
from x86_board import (
    CODE32,
    CODE32U,
    CS,
    DB,
    DS,
    ES,
    FS,
    GP,
    GS,
    LAST,
    RAX,
    RBX,
    RSP,
    SS,
    STACK0,
    TSS32,
    UD,
    X86Board,
    go,
)

from anykvm.engine import Event, X86Cpu

VM, IF, TF, RF = 1 << 17, 1 << 9, 1 << 8, 1 << 16
BASE = 0x7000
"""Where its code segment begins; its program is at the start of that."""
SEGMENTS = {CS: BASE >> 4, SS: 0x5000, DS: 0x1234, ES: 0x2345, FS: 0x3456, GS: 0x1111}
TOP = 0xFFE0


def virtual(x86, source: str, *, iopl: int = 0, flags: int = 0) -> tuple[X86Board, X86Cpu]:
    """A cpu at an IRET to the program, in protected mode at ring 0."""
    b = x86("iret", bits=32)
    b.load(source, bits=16, at=BASE)
    c = b.protected()
    frame = (0, SEGMENTS[CS], VM | 2 | iopl << 12 | flags, TOP, *(SEGMENTS[n] for n in (SS, ES, DS, FS, GS)))
    for n, value in enumerate(frame):
        b.set_word(c.gpr[RSP] + 4 * n, value, 4)
    return b, c


def frame(b: X86Board, c: X86Cpu, *, error: bool = False) -> tuple[int, ...]:
    """What an entry from the mode leaves on the stack: EIP, CS, EFLAGS, ESP, SS, ES, DS, FS, GS."""
    return tuple(b.word(c.gpr[RSP] + 4 * (n + error), 4) for n in range(9))


def test_a_fault_saves_the_segments_and_clears_them(x86):
    b, c = virtual(x86, "mov $7,%ax; ud2")
    t = b.fault(c, 32)
    assert (t.vector, c.gpr[RAX] & 0xFFFF, c.gpr[RSP]) == (UD, 7, STACK0 - 36)
    saved = frame(b, c)
    assert saved[:2] == (3, SEGMENTS[CS])
    assert saved[2] & ~RF & 0x3F7FFF & ~0xD5 == VM | 2
    assert saved[3:] == (TOP, *(SEGMENTS[n] for n in (SS, ES, DS, FS, GS)))
    assert [c.get_segment(n)[0] & 0xFFFF for n in (ES, DS, FS, GS)] == [0, 0, 0, 0]
    assert (c.get_segment(CS)[0], c.rflags & VM) == (CODE32, 0)


def test_and_goes_on_after_iret(x86):
    b, c = virtual(x86, "ud2; mov %ds,%ax; mov %ss,%bx; ud2")
    t = b.fault(c, 32)
    b.set_trap_ip(t, 2, 32)
    t = b.fault(c, 32)
    assert (t.ip, c.gpr[RAX] & 0xFFFF, c.gpr[RBX] & 0xFFFF) == (6, SEGMENTS[DS], SEGMENTS[SS])


def test_segments_are_paragraphs_and_offsets_wrap_at_a_fault(x86):
    b, c = virtual(x86, "mov $0x2000,%ax; mov %ax,%es; movb $5,%es:(0x21); ud2")
    assert b.fault(c, 32).vector == UD
    assert b.word(0x20021, 1) == 5


@pytest.mark.parametrize("code", ["cli", "sti", "pushf", "popf", "int $0x21", "iret", "pushfl", "iretl"])
@pytest.mark.parametrize("iopl", [0, 2])
def test_what_needs_the_highest_io_privilege(x86, code, iopl):
    b, c = virtual(x86, f"nop; {code}", iopl=iopl)
    t = b.fault(c, 32)
    assert (t.vector, t.error) == (GP, 0)
    assert frame(b, c, error=True)[0] == 1


@pytest.mark.parametrize("code", ["hlt", "mov %cr0,%eax", "lmsw %ax", "clts", "invlpg (0)", "wrmsr", "lgdtl (0)"])
def test_what_is_ring_0s(x86, code):
    b, c = virtual(x86, code, iopl=3)
    t = b.fault(c, 32)
    assert (t.vector, t.error) == (GP, 0)


@pytest.mark.parametrize(
    "code", ["lldt %ax", "ltr %ax", "sldt %ax", "str %ax", "verr %ax", "lar %ax,%ax", "arpl %ax,%ax"]
)
def test_instructions_of_protected_mode_are_undefined(x86, code):
    b, c = virtual(x86, code, iopl=3)
    assert b.fault(c, 32).vector == UD


def test_with_it_the_flags_are_its_own_but_not_their_privilege(x86):
    b, c = virtual(x86, "sti; pushf; pop %ax; push $0x0; popf; pushf; pop %bx; ud2", iopl=3)
    assert b.fault(c, 32).vector == UD
    assert (c.gpr[RAX] & 0x3200, c.gpr[RBX] & 0x3200) == (0x3200, 0x3000)


def test_an_interrupt_instruction_goes_through_a_gate_of_its_level_to_ring_0(x86):
    b, c = virtual(x86, "nop; int $0x80", iopl=3, flags=IF)
    t = b.fault(c, 32)
    assert (t.vector, c.gpr[RSP]) == (0x80, STACK0 - 36)
    assert frame(b, c)[:2] == (3, SEGMENTS[CS])
    assert frame(b, c)[2] & (VM | IF) == VM | IF
    assert c.rflags & IF == 0
    b, c = virtual(x86, "nop; int $0x81", iopl=3)
    t = b.fault(c, 32)
    assert (t.vector, t.error) == (GP, 0x81 * 8 + 2)


def test_int3_and_into_do_not_look_at_the_io_privilege(x86):
    b, c = virtual(x86, "int3")
    assert b.fault(c, 32).vector == 3
    b, c = virtual(x86, "mov $0x7f,%al; add $1,%al; into")
    assert b.fault(c, 32).vector == 4


def test_an_interrupt_from_outside(x86):
    b, c = virtual(x86, "1: jmp 1b", flags=IF)
    c.set_irq(0, True)
    assert go(c)[0] == Event.IRQ_ACK
    c.set_irq(0, False)
    assert go(c, 0x41) == LAST
    t = b.trap(c, 32)
    assert t is not None
    assert (t.vector, c.gpr[RSP]) == (0x41, STACK0 - 36)
    assert frame(b, c)[4] == SEGMENTS[SS]


@pytest.mark.parametrize(("iopl", "allowed"), [(0, True), (3, True), (0, False), (3, False)])
def test_ports_are_a_matter_of_the_bitmap_alone(x86, iopl, allowed):
    b, c = virtual(x86, "mov $5,%al; out %al,$0x60; ud2", iopl=iopl)
    if allowed:
        b.set_word(TSS32 + 0x68 + 0x60 // 8, 0xFE, 1)
        assert go(c)[0] == Event.PIO_WRITE
        assert go(c) == LAST
        t = b.trap(c, 32)
        assert t is not None
        assert t.vector == UD
    else:
        t = b.fault(c, 32)
        assert (t.vector, t.error) == (GP, 0)


def test_single_steps(x86):
    b, c = virtual(x86, "nop; nop; ud2", flags=TF)
    t = b.fault(c, 32)
    assert (t.vector, frame(b, c)[0]) == (DB, 1)
    t = b.fault(c, 32)
    assert (t.vector, frame(b, c)[0]) == (DB, 2)


def test_a_handler_has_to_be_of_ring_0(x86):
    """A conforming code segment would run at ring 3: #GP with its selector."""
    b, c = virtual(x86, "ud2")
    handler = b.word(0x28000 + 8 * UD)
    b.set_word(0x28000 + 8 * UD, handler & ~(0xFFFF << 16) | 0xA0 << 16)
    t = b.fault(c, 32)
    assert (t.vector, t.error) == (GP, 0xA0)


@pytest.mark.parametrize("how", ["protected", "compatibility", "compatibility, ring 0"])
def test_only_ring_0_of_legacy_mode_enters_it(x86, how):
    """IRET and POPF of others leave the flag as it is, and the frame, too."""
    kernel = how.endswith("0")
    selector = CODE32 if kernel else CODE32U
    b = x86(
        f"pushfl; orl $0x20000,(%esp); pushl ${selector}; pushl $1f; iret; 1: pushfl; orl $0x20000,(%esp); popfl;"
        "mov -4(%esp),%eax; ud2",
        bits=32,
    )
    c = b.protected(user=True) if how == "protected" else b.long(compat=True, user=not kernel)
    bits = 32 if how == "protected" else 64
    t = b.fault(c, bits)
    assert (t.vector, t.cs, t.flags & VM, c.gpr[RAX] & VM) == (UD, selector, 0, VM)
