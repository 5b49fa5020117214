# SPDX-License-Identifier: GPL-2.0-only
"""Every exception with its vector, error code and saved state; segment limits; triple faults."""

from __future__ import annotations

import pytest
from x86_board import (
    ABSENT,
    AC,
    BP,
    CODE64,
    CODE64U,
    CODE_ABSENT,
    DATA,
    DATA0,
    DB,
    DE,
    DF,
    DOWN,
    EXEC_ONLY,
    GP,
    IDT64,
    MF,
    NM,
    NP,
    OF,
    PF,
    RAX,
    RCX,
    READONLY,
    SMALL,
    SSF,
    STACK0,
    TS,
    TSS64,
    UD,
    USTACK,
    XM,
    go,
)

from anykvm.engine import Event

AT = "lea 1f(%rip), %r15\n"

# code (the faulting instruction is at 1:), vector, error code
FAULTS = {
    "division by zero": ("xor %ecx,%ecx; 1: div %ecx", DE, None),
    "quotient too big": ("mov $2,%edx; mov $1,%ecx; 1: div %ecx", DE, None),
    "signed quotient too big": ("mov $0x80000000,%eax; cdq; mov $-1,%ecx; 1: idiv %ecx", DE, None),
    "64-bit signed quotient too big": ("mov $1,%eax; ror $1,%rax; cqo; mov $-1,%rcx; 1: idiv %rcx", DE, None),
    "ud2": ("1: ud2", UD, None),
    "lock of a register": ("1: .byte 0xf0,0x01,0xc0", UD, None),
    "lock of a move": ("1: .byte 0xf0,0x89,0x03", UD, None),
    "rsm outside SMM": ("1: rsm", UD, None),
    "mov to CS": ("1: .byte 0x8e,0xc8", UD, None),
    "x87 with TS": ("mov %cr0,%rax; or $8,%rax; mov %rax,%cr0; 1: fld1", NM, None),
    "x87 with EM": ("mov %cr0,%rax; or $4,%rax; mov %rax,%cr0; 1: fld1", NM, None),
    "SSE with TS": ("mov %cr0,%rax; or $8,%rax; mov %rax,%cr0; 1: addps %xmm0,%xmm1", NM, None),
    "SSE with EM": ("mov %cr0,%rax; or $4,%rax; mov %rax,%cr0; 1: addps %xmm0,%xmm1", UD, None),
    "SSE without OSFXSR": ("mov %cr4,%rax; btr $9,%rax; mov %rax,%cr4; 1: addps %xmm0,%xmm1", UD, None),
    "wait with MP and TS": ("mov %cr0,%rax; or $0xa,%rax; mov %rax,%cr0; 1: fwait", NM, None),
    "data segment absent": (f"mov ${ABSENT},%eax; 1: mov %eax,%ds", NP, ABSENT),
    "stack segment absent": (f"mov ${ABSENT},%eax; 1: mov %eax,%ss", SSF, ABSENT),
    "null stack segment at ring 3": ("xor %eax,%eax; mov $3,%al; 1: mov %eax,%ss", GP, 0),
    "selector beyond the table": ("mov $0x1000,%eax; 1: mov %eax,%ds", GP, 0x1000),
    "selector in no LDT": ("mov $0x14,%eax; 1: mov %eax,%ds", GP, 0x14),
    "execute-only as data": (f"mov ${EXEC_ONLY},%eax; 1: mov %eax,%ds", GP, EXEC_ONLY),
    "read-only as stack": (f"mov ${READONLY},%eax; 1: mov %eax,%ss", GP, READONLY),
    "far return to absent code": (f"pushq ${CODE_ABSENT}; lea 2f(%rip),%rax; push %rax; 1: lretq; 2:", NP, CODE_ABSENT),
    "far return to data": (f"pushq ${DATA0}; lea 2f(%rip),%rax; push %rax; 1: lretq; 2:", GP, DATA0),
    "far return to null": ("pushq $0; pushq $0; 1: lretq", GP, 0),
    "address not canonical": ("mov $1,%eax; shl $47,%rax; 1: mov (%rax),%ecx", GP, 0),
    "stack address not canonical": ("mov $1,%eax; shl $47,%rax; mov %rax,%rbp; 1: mov (%rbp),%ecx", SSF, 0),
    "SSE operand not aligned": (f"mov ${DATA + 8},%eax; 1: movaps (%rax),%xmm0", GP, 0),
    "FXSAVE area not aligned": (f"mov ${DATA + 8},%eax; 1: fxsave (%rax)", GP, 0),
    "MXCSR with a reserved bit": ("movl $0x10000,-8(%rsp); 1: ldmxcsr -8(%rsp)", GP, 0),
    "wrmsr not canonical": ("mov $0xc0000082,%ecx; mov $0x8000,%edx; 1: wrmsr", GP, 0),
    "interrupt beyond the table": ("lidt 9f(%rip); jmp 1f; 9: .word 0xff0; .quad 0x20000; 1: int $0xff", GP, 0x7FA),
    "empty gate": ("int $0x99", GP, 0x99 * 8 + 2),
    "task register busy": ("mov $0x50,%eax; ltr %ax; 1: ltr %ax", GP, 0x50),
    "x87 error pending": ("fninit; fldz; movw $0x37b,-8(%rsp); fldcw -8(%rsp); fld1; fdivp; 1: fwait", MF, None),
    "SSE division by zero": (
        "movl $0x1d80,-8(%rsp); ldmxcsr -8(%rsp); mov $1,%eax; cvtsi2ss %eax,%xmm0; xorps %xmm1,%xmm1; "
        "1: divss %xmm1,%xmm0",
        XM,
        None,
    ),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_and_its_error_code(x86, what):
    code, vector, error = FAULTS[what]
    b = x86(f"{AT}{code if '1:' in code else '1: ' + code}\nhlt")
    if what == "empty gate":
        b.set_word(IDT64 + 0x99 * 16, 0)
    c = b.long()
    c.cr0 |= 0x20
    t = b.fault(c)
    assert (t.vector, t.error, t.ip) == (vector, error, c.gpr[15])
    assert (t.cs, t.ss) == (CODE64, DATA0)
    assert not c.rflags & 0x200


PRIVILEGED = (
    "hlt;cli;sti;clts;invd;wbinvd;lgdt (%rax);lidt (%rax);lldt %ax;ltr %ax;lmsw %ax;mov %cr0,%rax;mov %rax,%cr0;"
    "mov %cr2,%rax;mov %rax,%cr3;mov %rax,%cr4;mov %cr8,%rax;mov %rax,%cr8;mov %dr7,%rax;mov %rax,%dr7;invlpg (%rax);"
    "rdmsr;wrmsr;swapgs;sysretq;sysexit;in $0x60,%al;out %al,$0x60;rdpmc"
)


@pytest.mark.parametrize("code", PRIVILEGED.split(";"))
def test_user_code_may_not(x86, code):
    b = x86(f"{AT}1: {code}")
    c = b.long(user=True)
    t = b.fault(c)
    assert (t.vector, t.error, t.ip) == (GP, 0, c.gpr[15])
    assert (t.cs, t.ss, t.sp, t.at) == (CODE64U, 0x23, USTACK, STACK0 - 40)


@pytest.mark.parametrize(("code", "vector", "dpl"), [("int3", BP, 3), ("int $3", BP, 3), ("int $0x80", 0x80, 3)])
def test_software_interrupts_save_the_next_instruction(x86, code, vector, dpl):
    b = x86(f"{AT}{code}; 1: hlt")
    for user in (False, True):
        c = b.long(user=user)
        t = b.fault(c)
        assert (t.vector, t.error, t.ip, t.cs & 3) == (vector, None, c.gpr[15], 3 if user else 0)
        if not user:
            b.end(c)


def test_a_gate_of_higher_privilege_is_refused_to_int_but_not_to_faults(x86):
    b = x86(f"{AT}1: int $14")
    t = b.fault(c := b.long(user=True))
    assert (t.vector, t.error, t.ip) == (GP, 14 * 8 + 2, c.gpr[15])
    b = x86(f"{AT}1: ud2")
    t = b.fault(c := b.long(user=True))
    assert (t.vector, t.ip, t.cs) == (UD, c.gpr[15], CODE64U)


def test_an_absent_gate_is_np_and_a_data_gate_gp(x86):
    b = x86(f"{AT}1: int $0x50")
    b.set_word(IDT64 + 0x50 * 16, b.word(IDT64 + 0x50 * 16) & ~(1 << 47))
    t = b.fault(c := b.long())
    assert (t.vector, t.error, t.ip) == (NP, 0x50 * 8 + 2, c.gpr[15])
    b.gate(0x50, 0x9500, cs=DATA0)
    t = b.fault(c := b.long())
    assert (t.vector, t.error, t.ip) == (GP, DATA0, c.gpr[15])


def test_into_and_bound_in_32_bits(x86):
    b = x86("mov $1f,%ebp; mov $0x7fffffff,%eax; inc %eax; into; 1: hlt", bits=32)
    t = b.fault(c := b.protected(), 32)
    assert (t.vector, t.error, t.ip) == (OF, None, c.gpr[5])
    b.end(c, 32)
    b = x86(f"mov $1f,%ebp; mov $9,%eax; 1: bound %eax,{DATA}; hlt", bits=32)
    b.set_word(DATA, 1, 4)
    b.set_word(DATA + 4, 8, 4)
    t = b.fault(c := b.protected(), 32)
    assert (t.vector, t.error, t.ip) == (5, None, c.gpr[5])


def test_a_trap_gate_keeps_interrupts_on(x86):
    b = x86("sti; int $0x70")
    b.gate(0x70, 0x9700, kind=0xF)
    b.fault(c := b.long())
    assert c.rflags & 0x200


def test_int_with_a_tss_without_a_stack_in_it(x86):
    b = x86(f"{AT}1: ud2")
    b.set_word(TSS64 + 4, 1 << 47)  # RSP0 not canonical
    b.gate(SSF, 0x9000 + 16 * SSF, ist=1)
    t = b.fault(c := b.long(user=True))
    assert (t.vector, t.error, t.ip) == (SSF, 0, c.gpr[15])


# Debug exceptions.


def test_single_step_traps_after_every_instruction(x86):
    b = x86(f"{AT}pushfq; orl $0x100,(%rsp); popfq; 1: mov $1,%eax; mov $2,%ecx; lea 5(%rax),%edx; nop; hlt")
    c = b.long()
    at = []
    for _ in range(4):
        t = b.fault(c)
        assert (t.vector, t.flags & 0x100) == (DB, 0x100)
        assert c.get_dr(6) & 0x4000
        assert not c.rflags & 0x100
        c.set_dr(6, 0xFFFF0FF0)
        at.append(t.ip - c.gpr[15])
    assert at == [5, 10, 13, 14]

    assert c.gpr[RCX] == 2


def test_single_step_over_a_loop_counts_each_iteration(x86):
    b = x86("pushfq; orl $0x100,(%rsp); mov $10,%ecx; popfq; 1: dec %ecx; jnz 1b; nop")
    c = b.long()
    steps = 0
    while c.gpr[RCX] or not steps:
        assert b.fault(c).vector == DB
        steps += 1
    assert steps == 19


def test_mov_ss_holds_the_single_step_off_for_an_instruction(x86):
    b = x86(f"mov %ss,%edx; pushfq; orl $0x100,(%rsp); popfq; {AT}mov %edx,%ss; nop; 1: nop")
    c = b.long()
    t = b.fault(c)  # after LEA
    t = b.fault(c)  # after the NOP behind MOV SS
    assert (t.vector, t.ip) == (DB, c.gpr[15])


def test_icebp_is_a_trap(x86):
    b = x86(f"{AT}.byte 0xf1; 1: hlt")
    t = b.fault(c := b.long())
    assert (t.vector, t.ip) == (DB, c.gpr[15])


def test_an_execution_breakpoint_faults_before_its_instruction(x86):
    b = x86("lea 1f(%rip),%r15; mov %r15,%dr0; mov $0x402,%eax; mov %rax,%dr7; mov $5,%ecx; 1: mov $6,%ecx; hlt")
    c = b.long()
    t = b.fault(c)
    assert (t.vector, t.ip, c.gpr[RCX]) == (DB, c.gpr[15], 5)
    assert c.get_dr(6) & 0xF == 1
    b.set_word(t.at + 16, t.flags | 0x10000)  # RF: once over it
    b.end(c)
    assert c.gpr[RCX] == 6


def test_a_data_breakpoint_traps_after_the_store(x86):
    b = x86(
        f"mov ${DATA},%eax; mov %rax,%dr1; mov $0xd0408,%eax; mov %rax,%dr7; "
        f"mov {DATA},%ecx; movl $1,{DATA + 4}; {AT}movl $7,{DATA}; 1: nop; hlt"
    )
    c = b.long()
    t = b.fault(c)
    assert (t.vector, t.ip, b.word(DATA, 4)) == (DB, c.gpr[15], 7)
    assert c.get_dr(6) & 0xF == 2
    b.end(c)


def test_general_detect(x86):
    b = x86("mov $0x2400,%eax; mov %rax,%dr7; lea 1f(%rip),%r15; 1: mov %dr6,%rax; hlt")
    c = b.long()
    t = b.fault(c)
    assert (t.vector, t.ip) == (DB, c.gpr[15])
    assert c.get_dr(6) & 0x2000


def test_alignment_checks_at_ring_3_only(x86):
    b = x86(f"{AT}1: mov {DATA + 1},%eax; hlt")
    for user in (True, False):
        c = b.long(user=user)
        c.cr0 |= 0x40000
        c.rflags = 0x40002
        if user:
            t = b.fault(c)
            assert (t.vector, t.error, t.ip) == (AC, 0, c.gpr[15])
        else:
            b.end(c)


# Page faults.

P, W, U, RSVD, I = 1, 2, 4, 8, 16
NX = 1 << 63
PAGE = DATA + 0x5000

PAGE_FAULTS = {
    # name: (user, entry's flags, code, error code)
    "supervisor read of nothing": (0, 0, "mov (%rbx),%eax", 0),
    "supervisor write to nothing": (0, 0, "mov %eax,(%rbx)", W),
    "supervisor fetch of nothing": (0, 0, "jmp *%rbx", I),
    "supervisor write of read-only": (0, 5, "mov %eax,(%rbx)", W | P),
    "supervisor read-modify-write of read-only": (0, 5, "lock incl (%rbx)", W | P),
    "supervisor fetch of no-execute": (0, 7 | NX, "jmp *%rbx", I | P),
    "user read of nothing": (1, 0, "mov (%rbx),%eax", U),
    "user write to nothing": (1, 0, "mov %eax,(%rbx)", U | W),
    "user read-modify-write of nothing": (1, 0, "addl $1,(%rbx)", U | W),
    "user fetch of nothing": (1, 0, "jmp *%rbx", U | I),
    "user read of supervisor's": (1, 3, "mov (%rbx),%eax", U | P),
    "user write of supervisor's": (1, 3, "mov %eax,(%rbx)", U | W | P),
    "user fetch of supervisor's": (1, 3, "jmp *%rbx", U | I | P),
    "user write of read-only": (1, 5, "mov %eax,(%rbx)", U | W | P),
    "user fetch of no-execute": (1, 7 | NX, "jmp *%rbx", U | I | P),
    "a reserved bit": (0, 7 | 1 << 51, "mov (%rbx),%eax", RSVD | P),
    "user and a reserved bit": (1, 7 | 1 << 51, "mov %eax,(%rbx)", RSVD | P | U | W),
}


@pytest.mark.parametrize("what", PAGE_FAULTS)
def test_page_fault_error_codes(x86, what):
    user, flags, code, error = PAGE_FAULTS[what]
    b = x86(f"{AT}1: {code}; hlt")
    b.map_page(PAGE, PAGE, flags)
    c = b.long(user=bool(user), rbx=PAGE + 0x120)
    t = b.fault(c)
    assert (t.vector, t.error, c.cr2) == (PF, error, PAGE + 0x120)
    assert t.ip == (PAGE + 0x120 if code == "jmp *%rbx" else c.gpr[15])
    # The cause removed, the instruction runs.
    b.map_page(PAGE, PAGE, 7)
    b.ram[PAGE + 0x120 : PAGE + 0x122] = b"\xf4\xf4"
    if user:
        t = b.fault(c)
        assert (t.vector, t.cs) == (GP, CODE64U)  # HLT
    else:
        b.end(c)


@pytest.mark.parametrize(("flags", "wp", "faults"), [(5, 1, 1), (5, 0, 0), (1, 1, 1), (1, 0, 0), (7, 1, 0)])
def test_write_protection_of_the_supervisor(x86, flags, wp, faults):
    b = x86(f"{AT}1: movl $7,(%rbx); hlt")
    b.map_page(PAGE, PAGE, flags)
    c = b.long(rbx=PAGE)
    c.cr0 = c.cr0 & ~0x10000 | wp << 16
    if faults:
        assert b.fault(c).error == W | P
    else:
        b.end(c)
        assert b.word(PAGE, 4) == 7


def test_no_execute_off_makes_its_bit_reserved(x86):
    b = x86("mov (%rbx),%eax; hlt")
    b.map_page(PAGE, PAGE, 7 | NX)
    c = b.long(rbx=PAGE)
    c.efer = c.efer & ~0x800
    t = b.fault(c)
    assert (t.vector, t.error) == (PF, RSVD | P)


@pytest.mark.parametrize(("bit", "code", "error"), [(20, "jmp *%rbx", I | P), (21, "mov (%rbx),%eax", P)])
def test_smep_and_smap_if_offered(x86, bit, code, error):
    b = x86(f"{code}; hlt")
    b.map_page(PAGE, PAGE, 7)
    b.ram[PAGE : PAGE + 1] = b"\xf4"
    for n in range(0x400):
        if n != PAGE >> 12:
            b.map_page(n << 12, n << 12, 3)
    c = b.long(rbx=PAGE)
    offered = c.supported_cpuid(7)[1] >> (7 if bit == 20 else 20) & 1
    if not offered:
        pytest.skip("the engine's CPU has it not")
    c.cr4 |= 1 << bit
    t = b.fault(c)
    assert (t.vector, t.error, c.cr2) == (PF, error, PAGE)


def test_stac_opens_what_smap_closes(x86):
    b = x86("stac; mov (%rbx),%eax; clac; mov (%rbx),%eax; hlt")
    for n in range(0x400):
        b.map_page(n << 12, n << 12, 7 if n == PAGE >> 12 else 3)
    b.set_word(PAGE, 0x55, 4)
    c = b.long(rbx=PAGE)
    if not c.supported_cpuid(7)[1] >> 20 & 1:
        pytest.skip("the engine's CPU has no SMAP")
    c.cr4 |= 1 << 21
    t = b.fault(c)
    assert (t.vector, t.error, c.gpr[RAX]) == (PF, P, 0x55)


def test_a_store_over_two_pages_is_whole_or_not_at_all(x86):
    b = x86("mov %rax,-4(%rbx); hlt")
    b.map_page(PAGE, PAGE, 5)
    c = b.long(rbx=PAGE, rax=0x1122334455667788)
    t = b.fault(c)
    assert (t.vector, t.error, c.cr2) == (PF, W | P, PAGE)
    assert b.word(PAGE - 4) == 0
    b.map_page(PAGE, PAGE)
    b.end(c)
    assert b.word(PAGE - 4) == 0x1122334455667788


def test_a_fault_in_a_repeated_move_leaves_the_rest_to_do(x86):
    b = x86("rep movsb; hlt")
    b.map_page(PAGE, PAGE, 5)
    c = b.long(rsi=DATA, rdi=PAGE - 100, rcx=300)
    b.ram[DATA : DATA + 300] = bytes(k % 251 for k in range(300))
    t = b.fault(c)
    assert (t.vector, c.cr2, c.gpr[RCX], c.gpr[7], c.gpr[6]) == (PF, PAGE, 200, PAGE, DATA + 100)
    b.map_page(PAGE, PAGE)
    b.end(c)
    assert bytes(b.ram[PAGE - 100 : PAGE + 200]) == bytes(k % 251 for k in range(300))


def test_accessed_and_dirty_bits(x86):
    b = x86("mov (%rbx),%eax; hlt; mov %eax,(%rbx); hlt")
    c = b.long(rbx=PAGE)
    entry = b.pte(PAGE)
    b.end(c)
    assert b.word(entry) == PAGE | 0x27
    b.end(c)
    assert b.word(entry) == PAGE | 0x67


def test_invlpg_and_cr3_forget_a_translation_but_not_a_global_one(x86):
    b = x86(
        """
        mov (%rbx),%eax
        mov %rdi,(%rsi)           # map the page elsewhere
        invlpg (%rbx)
        mov (%rbx),%ecx
        hlt
        mov %r8,(%rsi)
        mov %cr3,%rdx
        mov %rdx,%cr3
        mov (%rbx),%edx
        hlt
        """
    )
    b.set_word(PAGE, 1, 4)
    b.set_word(PAGE + 0x1000, 2, 4)
    c = b.long(rbx=PAGE, rsi=b.pte(PAGE), rdi=PAGE + 0x1007, r8=PAGE | 7)
    b.end(c)
    assert (c.gpr[RAX], c.gpr[RCX]) == (1, 2)
    b.end(c)
    assert c.gpr[2] == 1


def test_a_new_table_of_the_host_takes_effect(x86):
    b = x86("mov (%rbx),%eax; hlt; jmp .-3; .balign 16; mov (%rbx),%eax; hlt")
    b.set_word(PAGE, 1, 4)
    b.set_word(PAGE + 0x1000, 2, 4)
    c = b.long(rbx=PAGE)
    b.end(c)
    assert c.gpr[RAX] == 1
    b.map_page(PAGE, PAGE + 0x1000)
    c.cr3 = c.cr3
    c.rip = 0x1010
    b.end(c)
    assert c.gpr[RAX] == 2


def test_page_faults_in_32_bits(x86):
    b = x86(f"mov $1f,%ebp; 1: movl $5,{0x40_0000 + 0x120:#x}; hlt", bits=32)
    c = b.protected(paging=True, user=True)
    b.set_word(0x38000 + 4, 0x40_0000 | 0x85, 4)  # 4 MB page, read-only
    t = b.fault(c, 32)
    assert (t.vector, t.error, c.cr2, t.ip, t.cs & 3) == (PF, U | W | P, 0x40_0120, c.gpr[5], 3)


# Segment limits (32 bits).

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


@pytest.mark.parametrize(("offset", "faults"), [(0x1000, 0), (0xFFF, 1), (0, 1), (0xFFFFFFFC - 0x100000, 0)])
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
        # The fault's frame needs a stack: a task gate would do, a wider limit does too.
        b.load(f"mov $1f,%ebp; {code}; hlt", bits=32)
        c = b.protected(user=False)
        assert go(c)[0] == Event.SHUTDOWN
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


# Double and triple faults.


def test_a_fault_in_delivering_one_is_a_double_fault(x86):
    b = x86(f"{AT}1: mov (%rbx),%eax")
    b.set_word(IDT64 + 16 * PF, 0)
    t = b.fault(c := b.long(rbx=1 << 46))
    assert (t.vector, t.error, t.ip, c.cr2) == (DF, 0, c.gpr[15], 1 << 46)


def test_a_benign_exception_in_delivering_one_is_not(x86):
    b = x86(f"{AT}1: ud2")
    b.set_word(IDT64 + 16 * UD, 0)
    t = b.fault(c := b.long())
    assert (t.vector, t.error, t.ip) == (GP, UD * 8 + 2, c.gpr[15])


@pytest.mark.parametrize("mode", ["long", "protected", "real"])
def test_a_triple_fault_is_a_shutdown(x86, mode):
    b = x86("ud2", bits={"long": 64, "protected": 32, "real": 16}[mode])
    c = getattr(b, mode)()
    c.set_table(1, 0, 0)
    assert go(c) == (Event.SHUTDOWN, 0, 0, 0)
    assert c.parked in (None, Event.SHUTDOWN)
    # A reset brings it back.
    c.reset()
    b.load("mov $0x1234,%ax; hlt", bits=16, at=0x2000)
    for n in range(6):
        c.set_segment(n, (0, 0, 0xFFFF, 0x9B if n == 1 else 0x93))
    c.rip = 0x2000
    b.end(c, 16)
    assert c.gpr[RAX] & 0xFFFF == 0x1234


def test_a_stack_that_is_not_there_is_a_shutdown(x86):
    b = x86("xor %esp,%esp; sub $0x1000,%rsp; shl $20,%rsp; push %rax")
    assert go(b.long())[0] == Event.SHUTDOWN


def test_pending_exceptions_come_before_the_next_instruction(x86):
    b = x86("nop; hlt")
    c = b.long()
    c.raise_exception(GP, 0x18)
    t = b.fault(c)
    assert (t.vector, t.error, t.ip) == (GP, 0x18, 0x1000)
    c = b.long()
    c.raise_exception(UD)
    t = b.fault(c)
    assert (t.vector, t.error, t.ip) == (UD, None, 0x1000)
    b.end(c)


@pytest.mark.parametrize("code", ["vmcall", "vmmcall"])
def test_hypercalls_are_events(x86, code):
    b = x86(f"{AT}mov $9,%eax; {code}; 1: hlt")
    c = b.long()
    assert go(c)[0] == Event.HVC
    assert (c.rip, c.gpr[RAX]) == (c.gpr[15], 9)
    c.gpr[RAX] = 3
    b.end(c)
    assert c.gpr[RAX] == 3
