# SPDX-License-Identifier: GPL-2.0-only
"""Every exception with its vector, error code and saved state; debug exceptions; triple faults."""

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
    EXEC_ONLY,
    GP,
    IDT64,
    MF,
    NM,
    NP,
    OF,
    PF,
    RAX,
    RBX,
    RCX,
    READONLY,
    SSF,
    STACK0,
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
    "lock of a compare": ("1: .byte 0xf0,0x39,0x03", UD, None),
    "lock of a bit test": ("1: .byte 0xf0,0x0f,0xa3,0x03", UD, None),
    "lock of SSE": ("1: .byte 0xf0,0x0f,0x58,0x03", UD, None),
    "AVX": ("1: .byte 0xc5,0xf0,0x58,0xc2", UD, None),
    "AVX in three bytes": ("1: .byte 0xc4,0xe2,0x71,0x00,0xc2", UD, None),
    "vzeroupper": ("1: .byte 0xc5,0xf8,0x77", UD, None),
    "lock of BMI": ("1: .byte 0xf0,0xc4,0xe2,0x78,0xf2,0x03", UD, None),
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
    "selector in no LDT": ("xor %eax,%eax; lldt %ax; mov $0x14,%eax; 1: mov %eax,%ds", GP, 0x14),
    "execute-only as data": (f"mov ${EXEC_ONLY},%eax; 1: mov %eax,%ds", GP, EXEC_ONLY),
    "read-only as stack": (f"mov ${READONLY},%eax; 1: mov %eax,%ss", GP, READONLY),
    "far return to absent code": (f"pushq ${CODE_ABSENT}; lea 2f(%rip),%rax; push %rax; 1: lretq; 2:", NP, CODE_ABSENT),
    "far return to data": (f"pushq ${DATA0}; lea 2f(%rip),%rax; push %rax; 1: lretq; 2:", GP, DATA0),
    "far return to null": ("pushq $0; pushq $0; 1: lretq", GP, 0),
    "address not canonical": ("mov $1,%eax; shl $47,%rax; 1: mov (%rax),%ecx", GP, 0),
    "stack address not canonical": ("mov $1,%eax; shl $47,%rax; mov %rax,%rbp; 1: mov (%rbp),%ecx", SSF, 0),
    "SSE operand not aligned": (f"mov ${DATA + 8},%eax; 1: movaps (%rax),%xmm0", GP, 0),
    "SSE store not aligned": (f"mov ${DATA + 8},%eax; 1: movdqa %xmm0,(%rax)", GP, 0),
    "operand of SSE2 not aligned": (f"mov ${DATA + 1},%eax; 1: pxor (%rax),%xmm0", GP, 0),
    "operand of SSSE3 not aligned": (f"mov ${DATA + 1},%eax; 1: pshufb (%rax),%xmm0", GP, 0),
    "operand of SSE4.1 not aligned": (f"mov ${DATA + 4},%eax; 1: roundps $1,(%rax),%xmm0", GP, 0),
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
    "SSE invalid operation to a register": (
        "movl $0x1f00,-8(%rsp); ldmxcsr -8(%rsp); mov $0x7f800001,%eax; movd %eax,%xmm0; 1: cvtss2si %xmm0,%ecx",
        XM,
        None,
    ),
    "SSE exception that the system does not take": (
        "mov %cr4,%rax; btr $10,%rax; mov %rax,%cr4; movl $0,-8(%rsp); ldmxcsr -8(%rsp); mov $3,%eax; "
        "cvtsi2ss %eax,%xmm0; movaps %xmm0,%xmm1; divss %xmm1,%xmm1; mov $1,%eax; cvtsi2ss %eax,%xmm1; "
        "1: divss %xmm0,%xmm1",
        UD,
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


UNALIGNED = (
    "movups (%rax),%xmm0;movdqu %xmm0,(%rax);movupd (%rax),%xmm0;lddqu (%rax),%xmm0;addss (%rax),%xmm0;"
    "addsd (%rax),%xmm0;movq (%rax),%xmm0;movq %xmm0,(%rax);movhps (%rax),%xmm0;cvtdq2pd (%rax),%xmm0;"
    "cvtps2pd (%rax),%xmm0;pmovzxbw (%rax),%xmm0;pcmpistri $0,(%rax),%xmm0;roundss $1,(%rax),%xmm0;paddb (%rax),%mm0;"
    "pinsrd $1,(%rax),%xmm0;insertps $1,(%rax),%xmm0;movss (%rax),%xmm0;cvttsd2si (%rax),%ecx;movdqa %xmm0,-1(%rax)"
)


@pytest.mark.parametrize("code", UNALIGNED.split(";"))
def test_sse_that_needs_no_alignment(x86, code):
    b = x86(f"mov ${DATA + 1},%eax; {code}; hlt")
    b.end(b.long())


LOCKED = (
    "addl $1,(%rax);xorb %cl,(%rax);subq $2,(%rax);notl (%rax);negw (%rax);incb (%rax);decq (%rax);xchg %ecx,(%rax);"
    "cmpxchg %ecx,(%rax);cmpxchgb %cl,(%rax);xadd %rcx,(%rax);btsl $1,(%rax);btr %ecx,(%rax);btcq $3,(%rax);"
    "cmpxchg8b (%rax);cmpxchg16b (%rax)"
)


@pytest.mark.parametrize("code", LOCKED.split(";"))
def test_lock_where_it_is_allowed(x86, code):
    b = x86(f"mov ${DATA},%eax; lock {code}; hlt")
    b.end(b.long())


@pytest.mark.parametrize("code", ["andn %ecx,%edx,%eax", "blsr %ecx,%eax", "rorx $3,%rcx,%rax", "shlx %ecx,%edx,%eax"])
def test_bmi_needs_no_avx(x86, code):
    b = x86(f"{code}; hlt")
    b.end(b.long())


def test_an_sse_exception_leaves_its_destination_and_says_so_in_mxcsr(x86):
    b = x86(
        f"movl $0x1d80,{DATA}; ldmxcsr {DATA}; mov $5,%eax; cvtsi2ss %eax,%xmm0; xorps %xmm1,%xmm1; divss %xmm1,%xmm0; "
        f"stmxcsr {DATA}; cvtss2si %xmm0,%ebx; hlt"
    )
    c = b.long()
    t = b.fault(c)
    assert t.vector == XM
    b.set_trap_ip(t, t.ip + 4)
    b.end(c)
    assert (b.word(DATA, 4), c.gpr[RBX]) == (0x1D84, 5)


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
    b.set_word(TSS64 + 4, 0x1000 + (1 << 47))  # RSP0 not canonical
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
        f"mov ${DATA},%eax; mov %rax,%dr1; mov $0xd00408,%eax; mov %rax,%dr7; "
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


@pytest.mark.parametrize(
    ("code", "faults"),
    [
        ("lock incl 2(%rbx)", True),
        ("lock incb 1(%rbx)", False),
        ("lock xaddq %rcx,4(%rbx)", True),
        ("xchg %cx,1(%rbx)", True),
        ("lock cmpxchg8b 4(%rbx)", True),
        ("lock cmpxchg8b 8(%rbx)", False),
        ("fldt 4(%rbx)", True),
        ("fldt 8(%rbx)", False),
        ("fnstenv 2(%rbx)", True),
        ("fnstenv 4(%rbx)", False),
        ("data16 fnstenv 2(%rbx)", False),
        ("fnsave 2(%rbx)", True),
        ("fxsave 16(%rbx)", False),
    ],
)
def test_alignment_of_locked_and_wide_accesses(x86, code, faults):
    b = x86(f"{AT}1: {code}; hlt")
    c = b.long(user=True, rbx=DATA)
    c.cr0 |= 0x40000
    c.rflags = 0x40002
    t = b.fault(c)
    assert (t.vector, t.error) == ((AC, 0) if faults else (GP, 0))  # GP: HLT
    assert (t.ip == c.gpr[15]) == faults


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
    assert go(c) == (Event.HYPERCALL, 0xC1 if code == "vmcall" else 0xD9, 0, 0)
    assert (c.rip, c.gpr[RAX]) == (c.gpr[15], 9)
    c.gpr[RAX] = 3
    b.end(c)
    assert c.gpr[RAX] == 3
