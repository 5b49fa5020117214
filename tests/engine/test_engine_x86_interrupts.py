# SPDX-License-Identifier: GPL-2.0-only
"""External interrupts, their window and shadow; NMIs; halts; interrupt stacks; the task priority."""

from __future__ import annotations

import threading
import time

import pytest
from x86_board import CODE64U, DATA, IST1, KSTACK, LAST, NMI, PF, RAX, RBX, RCX, RSP, STACK0, UD, USTACK, Runner, go

from anykvm.engine import Event

ACK = (Event.IRQ_ACK, 0, 0, 0)
WINDOW = (Event.IRQ_WINDOW, 0, 0, 0)
AT = "lea 1f(%rip), %r15\n"


@pytest.mark.parametrize(("mode", "bits"), [("long", 64), ("protected", 32), ("real", 16)])
def test_an_interrupt_asks_for_its_vector_once_the_guest_is_open(x86, mode, bits):
    b = x86("mov $1,%cx; nop; sti; mov $2,%cx; mov $3,%cx; hlt", bits=bits)
    c = getattr(b, mode)()
    c.set_irq(0, True)
    assert go(c) == ACK
    assert c.gpr[RCX] & 0xFFFF == 2  # one instruction after STI
    assert c.parked == Event.IRQ_ACK
    c.set_irq(0, False)
    assert go(c, 0x41) == LAST
    t = b.trap(c, bits)
    assert t is not None
    assert t.vector == 0x41
    assert t.flags & 0x200
    assert not c.rflags & 0x200
    b.end(c, bits)
    assert c.gpr[RCX] & 0xFFFF == 3


def test_a_spurious_acknowledge_delivers_nothing(x86):
    b = x86("sti; mov $1000,%ecx; 1: dec %ecx; jnz 1b; cli; hlt")
    c = b.long()
    c.set_irq(0, True)
    assert go(c) == ACK
    c.set_irq(0, False)
    assert go(c, 256) == LAST
    assert b.trap(c) is None
    assert c.gpr[RCX] == 0


def test_a_line_that_stays_high_asks_again_after_the_handler(x86):
    b = x86("sti; mov $1,%eax; nop; jmp .")
    c = b.long()
    c.set_irq(0, True)
    for n in range(50):
        assert go(c) == ACK
        assert go(c, 0x30 + n) == LAST
        t = b.trap(c)
        assert t is not None
        assert (t.vector, c.gpr[RSP]) == (0x30 + n, KSTACK - 40)


def test_a_masked_line_asks_nothing(x86):
    b = x86("mov $100000,%ecx; 1: dec %ecx; jnz 1b; hlt")
    c = b.long()
    c.set_irq(0, True)
    b.end(c)


def test_interrupts_interrupt_a_loop_and_lose_nothing(x86):
    b = x86(f"sti; 1: incq {DATA}; dec %rcx; jnz 1b; cli; hlt")
    n = 20_000_000
    c = b.long(rcx=n)
    taken = 0
    pester = True

    def raise_line() -> None:
        while pester:
            c.set_irq(0, True)
            time.sleep(0.0005)

    thread = threading.Thread(target=raise_line)
    thread.start()
    value = 0
    while (event := c.run(value)) != LAST or b.trap(c) is not None:
        value = 0
        if event == ACK:
            c.set_irq(0, False)
            value = 0x55
        elif event == LAST:
            t = b.trap(c)
            assert t is not None
            assert t.vector == 0x55
            taken += 1
    pester = False
    thread.join()
    assert taken > 3
    assert (b.word(DATA), c.gpr[RCX]) == (n, 0)


def test_the_line_reaches_a_guest_that_runs(x86):
    b = x86("sti; jmp .")
    c = b.long()
    r = Runner(c)
    time.sleep(0.05)
    c.set_irq(0, True)
    assert r.result() == ACK


def test_halt_waits_for_an_interrupt_and_goes_on_after_it(x86):
    b = x86(f"sti; hlt; {AT} 1: mov $7,%eax; cli; hlt")
    c = b.long()
    assert go(c) == LAST
    assert c.rflags & 0x200
    c.set_irq(0, True)
    assert go(c) == ACK
    c.set_irq(0, False)
    assert go(c, 0x20) == LAST
    t = b.trap(c)
    assert t is not None
    b.end(c)
    assert c.gpr[RAX] == 7
    assert b.ram[t.ip - 1 : t.ip] == b"\xf4"


def test_sti_hlt_with_the_line_high_does_not_sleep(x86):
    b = x86("sti; hlt; cli; mov $9,%eax; hlt")
    c = b.long()
    c.set_irq(0, True)
    events = [go(c)]
    if events[0] == LAST:  # halted first; the line then wakes it
        events.append(go(c))
    assert events[-1] == ACK
    c.set_irq(0, False)
    assert go(c, 0x22) == LAST
    t = b.trap(c)
    assert t is not None
    assert b.ram[t.ip - 1 : t.ip] == b"\xf4"


def test_mov_ss_holds_interrupts_off_for_one_instruction(x86):
    b = x86("mov %ss,%edx; sti; nop; in $0x10,%al; mov %edx,%ss; mov $5,%ecx; mov $6,%ecx; hlt")
    c = b.long()
    assert go(c)[0] == Event.PIO_READ
    c.set_irq(0, True)
    event = go(c)
    assert event == ACK
    assert c.gpr[RCX] in (0, 5)  # before MOV SS or one instruction after it, never between


def test_the_shadow_is_seen_and_kept_over_a_port_access(x86):
    b = x86("sti; in $0x10,%al; mov $1,%ecx; nop; hlt")
    c = b.long()
    assert go(c)[0] == Event.PIO_READ
    assert c.shadow
    assert not c.interruptible
    c.set_irq(0, True)
    assert go(c, 0) == ACK
    assert c.interruptible
    c.set_irq(0, False)
    assert go(c, 0x60) == LAST
    t = b.trap(c)
    assert t is not None
    assert t.ip == 0x1003


def test_a_shadow_that_is_set_holds_one_instruction(x86):
    b = x86("mov $1,%ecx; mov $2,%ecx; hlt")
    c = b.long()
    c.rflags = 0x202
    c.shadow = True
    assert not c.interruptible
    c.set_irq(0, True)
    assert go(c) == ACK
    assert c.gpr[RCX] == 1
    assert not c.shadow


def test_the_window_opens_when_the_guest_can_take_an_interrupt(x86):
    b = x86("mov $1,%ecx; sti; mov $2,%ecx; mov $3,%ecx; hlt")
    c = b.long()
    c.want_window = True
    assert go(c) == WINDOW
    assert c.gpr[RCX] == 2
    assert c.interruptible
    c.want_window = False
    c.inject(0x77)
    t = b.fault(c)
    assert (t.vector, t.flags & 0x200) == (0x77, 0x200)
    assert c.injected == -1
    b.end(c)
    assert c.gpr[RCX] == 3


def test_an_injected_vector_waits_for_the_guest_to_open(x86):
    b = x86("mov $1,%ecx; nop; sti; nop; mov $2,%ecx; hlt")
    c = b.long()
    c.inject(0x99)
    assert c.injected == 0x99
    t = b.fault(c)
    assert (t.vector, c.gpr[RCX]) == (0x99, 1)
    b.end(c)
    for bad in (256, -2):
        with pytest.raises(ValueError, match="vector"):
            c.inject(bad)


def test_an_injected_vector_is_delivered_before_the_first_instruction(x86):
    b = x86("mov $2,%ecx; hlt")
    c = b.long()
    c.rflags = 0x202
    c.inject(0x30)
    t = b.fault(c)
    assert (t.vector, t.ip, c.gpr[RCX]) == (0x30, 0x1000, 0)


# NMIs.


def test_an_nmi_comes_though_interrupts_are_off_and_masks_the_next_until_iret(x86):
    b = x86("mov $1,%ecx; nop; hlt; mov $2,%ecx; hlt")
    c = b.long()
    c.nmi()
    assert c.nmi_pending
    t = b.fault(c)
    assert (t.vector, t.ip, c.nmi_masked) == (NMI, 0x1000, True)
    c.nmi()
    event = go(c)  # IRET unmasks; then the second comes before anything else
    assert event == LAST
    t = b.trap(c)
    assert t is not None
    assert (t.vector, t.ip, c.gpr[RCX]) == (NMI, 0x1000, 0)
    b.end(c)
    assert not c.nmi_masked
    assert c.gpr[RCX] == 1


def test_an_nmi_wakes_a_halt(x86):
    b = x86("hlt; mov $2,%ecx; hlt")
    c = b.long()
    assert go(c) == LAST
    c.nmi()
    t = b.fault(c)
    assert (t.vector, t.ip) == (NMI, 0x1001)
    b.end(c)
    assert c.gpr[RCX] == 2


def test_an_nmi_reaches_a_guest_that_runs(x86):
    b = x86("jmp .")
    c = b.long()
    r = Runner(c)
    time.sleep(0.05)
    c.nmi()
    assert r.result() == LAST
    t = b.trap(c)
    assert t is not None
    assert (t.vector, t.ip) == (NMI, 0x1000)


def test_a_masked_nmi_stays_pending(x86):
    b = x86("mov $1,%ecx; hlt")
    c = b.long()
    c.nmi_masked = True
    c.nmi()
    b.end(c)
    assert c.nmi_pending
    c.nmi_masked = False
    assert b.fault(c).vector == NMI


def test_many_nmis_to_a_running_guest_lose_nothing_of_it(x86):
    b = x86(f"1: incq {DATA}; dec %rcx; jnz 1b; in $0x99,%al")
    b.ram[0x9020:0x9022] = b"\x48\xcf"  # the NMI handler only returns
    n = 10_000_000
    c = b.long(rcx=n)
    r = Runner(c)
    sent = 0
    while r.is_alive():
        c.nmi()
        sent += 1
        time.sleep(50e-6)
    assert r.result()[0] == Event.PIO_READ
    assert sent > 3
    assert b.word(DATA) == n


# Interrupt stacks, levels.


def test_ist_gives_a_stack_from_any_level(x86):
    for user in (False, True):
        b = x86(f"{AT}1: ud2")
        b.gate(UD, 0x9000 + 16 * UD, ist=1)
        c = b.long(user=user)
        t = b.fault(c)
        assert (t.at, t.sp) == (IST1 - 40, USTACK if user else KSTACK)
        assert c.gpr[RSP] == IST1 - 40


def test_an_ist_stack_is_aligned_and_its_error_code_too(x86):
    b = x86("mov (%rbx),%eax")
    b.set_word(0x22000 + 0x24, IST1 - 3)
    b.gate(PF, 0x9000 + 16 * PF, ist=1)
    c = b.long(rbx=1 << 40)
    t = b.fault(c)
    assert c.gpr[RSP] == IST1 - 16 - 48
    assert (t.error, t.sp) == (0, KSTACK)


def test_the_kernel_stack_is_aligned_in_long_mode(x86):
    b = x86("ud2")
    c = b.long(rsp=KSTACK - 5)
    t = b.fault(c)
    assert (t.sp, t.at) == (KSTACK - 5, KSTACK - 16 - 40)


def test_an_interrupt_of_user_code_changes_to_the_tss_stack_and_iret_back(x86):
    b = x86("1: inc %ecx; jmp 1b")
    c = b.long(user=True)
    c.rflags = 0x202
    c.set_irq(0, True)
    assert go(c) == ACK
    c.set_irq(0, False)
    assert go(c, 0x31) == LAST
    t = b.trap(c)
    assert t is not None
    assert (t.cs, t.ss, t.sp, t.at) == (CODE64U, 0x23, USTACK, STACK0 - 40)
    threading.Timer(0.05, c.kick).start()
    assert go(c)[0] == Event.KICK
    assert (c.get_segment(1)[0], c.gpr[RSP]) == (CODE64U, USTACK)


# The task priority.


def test_cr8_writes_are_events_and_reads_are_not(x86):
    b = x86("mov $5,%eax; mov %rax,%cr8; mov %cr8,%rbx; lea 1f(%rip),%r15; mov $3,%eax; 1: mov %rax,%cr8; hlt")
    c = b.long()
    assert go(c) == (Event.CR8_WRITE, 5, 0, 0)
    assert c.cr8 == 5
    assert go(c) == (Event.CR8_WRITE, 3, 0, 0)
    assert (c.gpr[RBX], c.cr8) == (5, 3)
    b.end(c)
    c.cr8 = 9
    assert c.cr8 == 9


def test_a_cr8_write_can_raise_the_line_at_once(x86):
    b = x86("sti; mov $9,%eax; mov %rax,%cr8; xor %eax,%eax; mov %rax,%cr8; mov $1,%ecx; hlt")
    c = b.long()
    assert go(c) == (Event.CR8_WRITE, 9, 0, 0)
    assert go(c) == (Event.CR8_WRITE, 0, 0, 0)
    c.set_irq(0, True)
    assert go(c) == ACK
    assert c.gpr[RCX] == 0  # right after the write
    c.set_irq(0, False)
    t_event = go(c, 0x40)
    assert t_event == LAST
    b.end(c)
    assert c.gpr[RCX] == 1
