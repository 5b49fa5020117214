# SPDX-License-Identifier: GPL-2.0-only
"""A debugger outside the guest: single steps, INT3, and breakpoints of its own; data breakpoints of the guest's."""

from __future__ import annotations

import pytest
from x86_board import BP, CODE, DATA, DB, KSTACK, LAST, RAX, RCX, RDI, RSI, Runner, go

from anykvm.engine import Event

STEP = (Event.BREAK, 0x4000, 0, 0)
DR7 = 0x400


def test_single_steps_stop_behind_each_instruction(x86):
    b = x86("mov $5,%eax; add $6,%eax; nop; jmp 1f; nop; 1: mov %eax,%ecx; hlt")
    c = b.long()
    c.set_debug(step=True)
    seen = []
    while (event := go(c)) == STEP:
        seen.append((c.rip - CODE, c.gpr[RAX]))
    assert event == LAST
    assert seen == [(5, 5), (8, 11), (9, 11), (12, 11), (14, 11)]
    assert not c.rflags & 0x100
    c.set_debug()
    c.rip = CODE
    assert go(c) == LAST


def test_steps_of_a_loop_and_of_a_repeated_instruction(x86):
    b = x86("mov $3,%ecx; 1: dec %ecx; jnz 1b; mov $4,%ecx; rep movsb; hlt")
    c = b.long(rsi=DATA, rdi=DATA + 64)
    c.set_debug(step=True)
    steps = 0
    while go(c) == STEP:
        steps += 1
    assert c.gpr[RSI] == DATA + 4
    assert steps in (1 + 6 + 1 + 4, 1 + 6 + 1 + 5)  # with the last look at RCX, or without


def test_a_step_into_an_exception_stops_at_its_handler(x86):
    b = x86("ud2")
    c = b.long()
    c.set_debug(step=True)
    assert go(c) == STEP
    assert (c.rip, b.word(c.gpr[4])) == (0x9000 + 16 * 6, CODE)


def test_steps_over_devices(x86):
    b = x86("out %al,$0x80; nop; mov %eax,(%rbx); hlt")
    c = b.long(rbx=0xD0000000)
    c.set_debug(step=True)
    kinds = []
    while (event := go(c)) != LAST:
        kinds.append(Event(event[0]).name)
    assert kinds == ["PIO_WRITE", "BREAK", "BREAK", "MMIO_WRITE", "BREAK"]


def test_a_step_takes_an_interrupt_unless_they_are_held_off(x86):
    b = x86("sti; nop; nop; nop; hlt")
    c = b.long()
    c.rflags = 0x202
    c.set_debug(step=True, block_irq=True)
    c.set_irq(0, 1)
    assert go(c) == STEP
    assert go(c) == STEP
    assert c.rip == CODE + 2
    c.set_debug(step=True)
    assert go(c)[0] == Event.IRQ_ACK
    assert go(c, 0x40) == STEP
    assert c.rip == 0x9000 + 16 * 0x40


def test_another_cpu_does_not_disturb_steps(x86):
    b = x86("mov $50,%ecx; 1: lock incl (%rbx); dec %ecx; jnz 1b; hlt")
    b.load(f"mov $200000,%ecx; 1: lock incl {DATA}; dec %ecx; jnz 1b; hlt", at=0x7000)
    r = Runner(b.long(rip=0x7000))
    c = b.long(rbx=DATA)
    c.set_debug(step=True)
    steps = 0
    while go(c) == STEP:
        steps += 1
    assert r.result() == LAST
    assert steps == 151
    assert b.word(DATA, 4) == 200050


def test_int3_stops_before_it_and_can_be_given_to_the_guest(x86):
    b = x86("mov $1,%eax; int3; hlt")
    c = b.long()
    c.set_debug(int3=True)
    assert go(c) == (Event.BREAK, 0, 0, 0)
    assert (c.rip, c.gpr[RAX]) == (CODE + 5, 1)
    assert go(c) == (Event.BREAK, 0, 0, 0)  # it is still there
    c.rip = CODE + 6
    c.raise_exception(BP)
    t = b.fault(c)
    assert (t.vector, t.ip) == (BP, CODE + 6)
    c.set_debug()
    c.rip = CODE
    assert b.fault(c).vector == BP


def test_a_breakpoint_of_the_debugger_on_code(x86):
    b = x86("mov $3,%ecx; 1: nop; dec %ecx; jnz 1b; hlt")
    c = b.long()
    for _ in range(2):  # translated or not
        c.set_debug(dr=(0, CODE + 5, 0, 0, 0, 0, 0, DR7 | 8))
        c.rip = CODE
        for n in (3, 2, 1):
            assert go(c) == (Event.BREAK, 2, 0, 0)
            assert (c.rip, c.gpr[RCX]) == (CODE + 5, n)
            c.set_debug(step=True)
            assert go(c) == STEP
            c.set_debug(dr=(0, CODE + 5, 0, 0, 0, 0, 0, DR7 | 8))
        assert go(c) == LAST
        c.set_debug()
        c.rip = CODE
        assert go(c) == LAST


RF = 0x10000


@pytest.mark.parametrize("guests", [True, False])
@pytest.mark.parametrize("jump", ["", "jmp 1f; 1:"])
def test_rf_holds_breakpoints_on_code_off_for_one_instruction(x86, guests, jump):
    """The debugger's and the guest's: the next instruction's breakpoint, in the same block or another, is met."""
    b = x86(f"2: nop; nop; nop; dec %ecx; {jump} nop; jnz 2b; hlt")
    c = b.long(rcx=2)
    dr = (CODE, CODE + 1, CODE + 2, 0, 0, 0, 0, DR7 | 0x2A)
    if guests:
        for n, value in enumerate(dr):
            c.set_dr(n, value)
    else:
        c.set_debug(dr=dr)
    for count in (2, 1):
        for n in range(3):
            if guests:
                t = b.fault(c)
                assert (t.vector, t.ip, c.get_dr(6) & 0xF) == (DB, CODE + n, 1 << n)
                b.set_word(t.at + 16, t.flags | RF)
            else:
                assert go(c) == (Event.BREAK, 1 << n, 0, 0)
                assert (c.rip, c.gpr[RCX]) == (CODE + n, count)
                c.rflags |= RF
            c.set_dr(6, 0)
    b.end(c)
    assert not c.rflags & RF


@pytest.mark.parametrize(
    ("access", "kind", "size", "hit"),
    [
        ("mov %eax,(%rbx)", 1, 3, True),
        ("mov (%rbx),%eax", 1, 3, False),
        ("mov (%rbx),%eax", 3, 3, True),
        ("mov %al,3(%rbx)", 1, 3, True),
        ("mov %al,4(%rbx)", 1, 3, False),
        ("mov %rax,-4(%rbx)", 1, 0, True),
        ("mov %rax,-8(%rbx)", 1, 0, False),
        ("incl (%rbx)", 1, 3, True),
        ("lock incl (%rbx)", 1, 3, True),
        ("lock incb 4(%rbx)", 1, 3, False),
        ("xchg %ecx,(%rbx)", 3, 3, True),
        ("lock cmpxchg8b -4(%rbx)", 1, 3, True),
        ("push (%rbx)", 3, 3, True),
        ("mov %al,7(%rbx)", 1, 2, True),
        ("movups %xmm0,-8(%rbx)", 1, 0, True),
    ],
)
def test_a_watchpoint_of_the_debugger(x86, access, kind, size, hit):
    b = x86(f"{access}; 1: mov $9,%ecx; hlt")
    c = b.long(rbx=DATA, rax=7)
    c.set_debug(dr=(0, 0, DATA, 0, 0, 0, 0, DR7 | 0x20 | kind << 24 | size << 26))
    event = go(c)
    if hit:
        assert event == (Event.BREAK, 4, 0, 0)
        assert c.rip == CODE + len(b.tools.assemble(f".code64\n{access}\n", base=CODE))
        assert c.gpr[RCX] == 0
        event = go(c)
    assert event == LAST
    if access in ("incl (%rbx)", "lock incl (%rbx)"):
        assert b.word(DATA, 4) == 1
    if access.startswith("push"):
        assert c.gpr[4] == KSTACK - 8


def test_a_debuggers_registers_hide_the_guests(x86):
    b = x86("mov %eax,(%rbx); nop; hlt")
    c = b.long(rbx=DATA)
    c.set_dr(0, DATA)
    c.set_dr(1, CODE + 3 - 1)
    c.set_dr(7, DR7 | 0x2 | 1 << 16)
    c.set_debug(dr=(0,) * 7 + (DR7,))
    b.end(c)
    c.set_debug()
    c.rip = CODE
    t = b.fault(c)
    assert (t.vector, t.ip) == (DB, CODE + 2)
    assert (c.get_dr(6) & 0xF, c.get_dr(7)) == (1, DR7 | 0x2 | 1 << 16)


def test_a_locked_instruction_that_ran_before_meets_a_data_breakpoint(x86):
    b = x86("mov $2,%ecx; 1: lock incl (%rbx); dec %ecx; jnz 1b; mov %rbx,%dr0; mov %rax,%dr7; mov $2,%ecx; jmp 1b")
    c = b.long(rbx=DATA, rax=DR7 | 2 | 1 << 16 | 3 << 18)
    for n in (3, 4):
        t = b.fault(c)
        assert (t.vector, t.ip, c.get_dr(6) & 0xF) == (DB, CODE + 8, 1)
        assert b.word(DATA, 4) == n


def test_a_data_breakpoint_in_a_repeated_instruction(x86):
    b = x86("mov $8,%ecx; rep stosb; hlt")
    c = b.long(rdi=DATA)
    c.set_dr(3, DATA + 4)
    c.set_dr(7, DR7 | 0x80 | 1 << 28)
    t = b.fault(c)
    assert (t.vector, t.ip, c.get_dr(6) & 0xF) == (DB, CODE + 5, 8)
    assert (c.gpr[RCX], c.gpr[RDI]) == (3, DATA + 5)
    b.end(c)
    assert c.gpr[RDI] == DATA + 8


def test_debug_registers_from_outside_work_like_the_guests(x86):
    b = x86("nop; nop; hlt")
    c = b.long()
    b.end(c)
    c.set_dr(0, CODE + 1)
    c.set_dr(7, DR7 | 2)
    c.rip = CODE
    t = b.fault(c)
    assert (t.vector, t.ip) == (DB, CODE + 1)
    c.set_dr(7, DR7)
    c.rip = CODE
    b.end(c)


@pytest.mark.parametrize("dr", [(), (1,) * 7, (1,) * 9])
def test_there_are_eight_registers(x86, dr):
    c = x86("hlt").long()
    with pytest.raises(ValueError, match="8 debug registers"):
        c.set_debug(dr=dr)
    with pytest.raises(IndexError):
        c.set_dr(8, 0)
