# SPDX-License-Identifier: GPL-2.0-only
"""Privilege changes and system calls."""

from __future__ import annotations

import pytest
from x86_board import (
    CODE,
    CODE16,
    CODE32,
    CODE32U,
    CODE64,
    CODE64U,
    CONFORMING,
    CS,
    DATA,
    DATA0,
    DATA16,
    DATAU,
    DATAU2,
    GATE32,
    GATE64,
    GDT,
    GP,
    LAST,
    RAX,
    RBX,
    RCX,
    RDX,
    RSP,
    SS,
    STACK0,
    UD,
    USTACK,
    go,
)

from anykvm.engine import Event

AT = "lea 1f(%rip), %r15\n"
STAR, LSTAR, CSTAR, FMASK = 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084
FS_BASE, GS_BASE, KERNEL_GS_BASE, TSC_AUX = 0xC0000100, 0xC0000101, 0xC0000102, 0xC0000103
SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP = 0x174, 0x175, 0x176
ENTRY, KERNEL = 0x5000, 0x6000


def syscalls(c):
    c.set_msr(STAR, (CODE64 << 32) | ((CODE32U & ~3) | 3) << 48)
    c.set_msr(LSTAR, ENTRY)
    c.set_msr(CSTAR, ENTRY + 0x100)
    c.set_msr(FMASK, 0x47700)
    return c


def test_iretq_goes_to_user_code_and_an_interrupt_comes_back(x86):
    b = x86(
        f"""
        pushq ${DATAU}
        pushq ${USTACK}
        pushq $0x3202
        pushq ${CODE64U}
        lea 1f(%rip), %rax
        push %rax
        mov ${DATAU}, %eax
        mov %eax, %ds
        iretq
    1:  mov $7, %ebx
        push %rbx
        int $0x80
        """
    )
    c = b.long()
    t = b.fault(c)
    assert (t.vector, t.cs, t.ss, t.sp, t.flags & 0x3200) == (0x80, CODE64U, DATAU, USTACK - 8, 0x3200)
    assert (c.get_segment(CS)[0], c.get_segment(SS)[0], c.gpr[RSP]) == (CODE64, 0, STACK0 - 40)
    assert b.word(USTACK - 8) == 7


def test_iretq_to_user_clears_data_segments_of_the_kernel(x86):
    b = x86(
        f"""
        mov ${DATA0},%eax; mov %eax,%ds; mov ${DATAU2},%eax; mov %eax,%es
        pushq ${DATAU}; pushq ${USTACK}; pushq $2; pushq ${CODE64U}; lea 1f(%rip),%rax; push %rax; iretq
    1:  mov %ds,%ecx; mov %es,%edx; int $0x80
        """
    )
    c = b.long()
    b.fault(c)
    assert (c.gpr[RCX], c.gpr[RDX]) == (0, DATAU2)


def test_user_code_cannot_change_if_and_iopl_with_popf_or_iret(x86):
    b = x86(
        f"""
        pushq $0x3ed7; popfq
        pushfq; pop %rbx
        pushq ${DATAU}; pushq ${USTACK}; pushq $0x3202; pushq ${CODE64U}; lea 1f(%rip),%rax; push %rax; iretq
    1:  pushfq; pop %rcx; int $0x80
        """
    )
    c = b.long(user=True)
    t = b.fault(c)
    while t.vector == 1:  # TF of the first POPF is not in the mask's low byte here
        t = b.fault(c)
    assert t.vector == 0x80
    assert c.gpr[RBX] & 0x3200 == 0
    assert c.gpr[RCX] & 0x3200 == 0
    assert c.gpr[RBX] & 0x8D5 == 0x8D5 & 0x3ED7


@pytest.mark.parametrize("selector", [CODE32, CONFORMING])
def test_far_call_and_return_between_widths(x86, selector):
    b = x86(
        f"""
        lcall *1f
        mov $9, %ecx
        hlt
    1:  .long 2f
        .word {selector}
        .code32
    2:  mov $0xffffffff, %eax
        inc %eax
        mov (%esp), %ebx
        lret
        """
    )
    c = b.long()
    b.end(c)
    assert (c.gpr[RCX], c.gpr[RAX], c.get_segment(CS)[0], c.gpr[RSP]) == (9, 0, CODE64, 0x80000)


def test_a_call_gate_to_the_kernel_in_long_mode(x86):
    b = x86(f"{AT}lcall *2f; 1: int $0x80; 2: .long 0; .word {GATE64 | 3}")
    b.load("mov %rsp,%rbx; mov (%rsp),%rcx; mov 8(%rsp),%rdx; hlt; lretq", at=KERNEL)
    b.set_word(GDT + GATE64, KERNEL & 0xFFFF | CODE64 << 16 | 0xEC << 40)
    b.set_word(GDT + GATE64 + 8, 0)
    c = b.long(user=True)
    assert go(c) == LAST
    assert (c.gpr[RBX], c.gpr[RCX], c.gpr[RDX]) == (STACK0 - 32, c.gpr[15], CODE64U)
    assert c.get_segment(CS)[0] == CODE64
    t = b.fault(c)
    assert (t.vector, t.cs, t.sp) == (0x80, CODE64U, USTACK)


def test_a_call_gate_with_parameters_in_32_bits(x86):
    b = x86(f"push $0x11; push $0x22; mov $1f,%ebp; lcall ${GATE32 | 3},$0; 1: mov %esp,%esi; int $0x80", bits=32)
    b.load("mov 8(%esp),%ebx; mov 12(%esp),%ecx; mov %esp,%edx; hlt; lret $8", bits=32, at=KERNEL)
    b.set_word(GDT + GATE32, KERNEL & 0xFFFF | CODE32 << 16 | 2 << 32 | 0xEC << 40)
    c = b.protected(user=True)
    assert go(c) == LAST
    assert (c.gpr[RBX], c.gpr[RCX], c.gpr[RDX]) == (0x22, 0x11, STACK0 - 24)
    t = b.fault(c, 32)
    assert (t.vector, t.cs, t.sp, c.gpr[6]) == (0x80, CODE32U, USTACK, USTACK)


def test_a_gate_its_caller_may_not_use(x86):
    b = x86(f"{AT}1: lcall *2f; 2: .long 0; .word {GATE64 | 3}")
    b.set_word(GDT + GATE64, KERNEL & 0xFFFF | CODE64 << 16 | 0x8C << 40)
    b.set_word(GDT + GATE64 + 8, 0)
    t = b.fault(c := b.long(user=True))
    assert (t.vector, t.error, t.ip) == (GP, GATE64, c.gpr[15])


def test_16_bit_protected_mode(x86):
    b = x86(f"ljmp ${CODE16},$1f\n .code16\n 1: mov ${DATA16},%ax; mov %ax,%ds; mov $-1,%ax; inc %ax; hlt", bits=32)
    c = b.protected(rax=0x12340000)
    b.end(c, 32)
    assert c.gpr[RAX] == 0x12340000
    assert c.get_segment(CS)[0] == CODE16


# System calls.


def test_syscall_and_sysret(x86):
    b = x86(f"{AT}syscall; 1: mov %rsp,%rbx; pushfq; pop %rdx; int $0x80")
    b.load("mov %cs,%eax; mov %ss,%edi; mov %rsp,%rsi; pushfq; pop %r8; hlt; sysretq", at=ENTRY)
    c = syscalls(b.long(user=True))
    c.rflags = 0x10AD7 & ~0x100
    assert go(c) == LAST
    assert (c.gpr[RAX], c.gpr[7], c.gpr[6]) == (CODE64, DATA0, USTACK)
    assert c.gpr[RCX] == c.gpr[15]
    assert c.gpr[11] == 0xAD7 & ~0x100
    assert c.gpr[8] & 0x47700 == 0
    assert c.get_segment(CS)[1:3] == (0, 0xFFFFFFFF)
    t = b.fault(c)
    assert (t.vector, t.cs, t.ss, c.gpr[RBX]) == (0x80, CODE64U, DATAU, USTACK)
    assert c.gpr[RDX] & 0xAD7 == 0xAD7 & ~0x100


def test_syscall_from_compatibility_mode_and_sysret_to_it(x86):
    b = x86("mov $1f,%ebp; syscall; 1: mov $-1,%eax; inc %eax; int $0x80", bits=32)
    b.load("mov %cs,%ebx; hlt; sysretl", at=ENTRY + 0x100)
    c = syscalls(b.long(user=True, compat=True))
    if go(c) == LAST and (t := b.trap(c)) is not None:
        assert t.vector == UD  # as Intel's
        return
    assert (c.gpr[RBX], c.gpr[RCX]) == (CODE64, c.gpr[5])
    t = b.fault(c)
    assert (t.vector, t.cs, t.ss) == (0x80, CODE32U, DATAU)


@pytest.mark.parametrize("code", ["syscall", "sysretq"])
def test_system_calls_that_are_off(x86, code):
    b = x86(f"{AT}1: {code}; hlt")
    c = syscalls(b.long())
    c.efer = c.efer & ~1
    t = b.fault(c)
    assert (t.vector, t.error, t.ip) == (UD, None, c.gpr[15])


def test_sysret_to_an_address_that_is_not_canonical(x86):
    b = x86(f"{AT}1: sysretq")
    c = syscalls(b.long(rcx=1 << 47))
    t = b.fault(c)
    assert (t.vector, t.error) == (GP, 0)


def test_sysenter_and_sysexit(x86):
    b = x86("lea 1f(%rip),%rdx; mov %rsp,%rcx; sysenter; 1: mov %rsp,%rbx; int $0x80")
    b.load("mov %cs,%eax; mov %ss,%edi; mov %rsp,%rsi; hlt; sysexitq", at=ENTRY)
    c = b.long(user=True)
    c.rflags = 0x202
    c.set_msr(SYSENTER_CS, CODE64)
    c.set_msr(SYSENTER_ESP, 0x88000)
    c.set_msr(SYSENTER_EIP, ENTRY)
    assert go(c) == LAST
    assert (c.gpr[RAX], c.gpr[7], c.gpr[6], c.rflags & 0x200) == (CODE64, DATA0, 0x88000, 0)
    t = b.fault(c)
    assert (t.vector, t.cs, t.ss, c.gpr[RBX]) == (0x80, CODE64U, DATAU2, USTACK)


def test_sysenter_and_sysexit_in_32_bits(x86):
    b = x86("mov $1f,%edx; mov %esp,%ecx; sysenter; 1: mov %esp,%ebx; int $0x80", bits=32)
    b.load("mov %esp,%esi; hlt; sysexit", bits=32, at=ENTRY)
    c = b.protected(user=True)
    c.set_msr(SYSENTER_CS, CODE64)
    c.set_msr(SYSENTER_ESP, 0x88000)
    c.set_msr(SYSENTER_EIP, ENTRY)
    assert go(c) == LAST
    assert c.gpr[6] == 0x88000
    t = b.fault(c, 32)
    assert (t.vector, t.cs, t.ss, c.gpr[RBX]) == (0x80, CODE32U, DATAU, USTACK)


@pytest.mark.parametrize(
    ("code", "user"),
    [("sysenter", True), ("sysexit", False)],
)
def test_sysenter_without_its_segment(x86, code, user):
    b = x86(f"{AT}1: {code}")
    c = b.long(user=user)
    c.set_msr(SYSENTER_CS, 0)
    t = b.fault(c)
    assert (t.vector, t.error, t.ip) == (GP, 0, c.gpr[15])


def test_swapgs_and_segment_bases(x86):
    b = x86("mov %gs:0,%rax; swapgs; mov %gs:0,%rbx; mov %fs:8,%rcx; hlt")
    b.set_word(DATA, 1)
    b.set_word(DATA + 0x100, 2)
    b.set_word(DATA + 0x208, 3)
    c = b.long()
    c.set_msr(GS_BASE, DATA)
    c.set_msr(KERNEL_GS_BASE, DATA + 0x100)
    c.set_msr(FS_BASE, DATA + 0x200)
    b.end(c)
    assert (c.gpr[RAX], c.gpr[RBX], c.gpr[RCX]) == (1, 2, 3)
    assert (c.get_msr(GS_BASE), c.get_msr(KERNEL_GS_BASE)) == (DATA + 0x100, DATA)
    assert c.get_segment(5)[1] == DATA + 0x100


# System management mode: the engine knows RSM, and nothing else of it.


def test_rsm_is_an_event_where_it_is_asked_for(x86):
    """What replaces the state does so while it is parked; elsewhere it is undefined."""
    b = x86("rsm; hlt")
    c = b.long()
    assert go(c) == LAST
    assert b.trap(c).vector == UD
    c = b.long()
    c.smm = True
    assert c.run()[0] == Event.RSM
    assert c.rip == CODE
    c.rip = CODE + 2
    c.smm = False
    assert c.run() == LAST
    assert c.rip == CODE + 3


def test_an_exception_that_waits_can_be_asked_for(x86):
    b = x86("nop; hlt")
    c = b.long()
    assert c.raised == -1
    c.raise_exception(UD)
    assert c.raised == UD
    assert go(c) == LAST
    assert b.trap(c).vector == UD
    assert c.raised == -1


def test_an_nmi_that_waits_can_be_taken_back(x86):
    b = x86("hlt")
    c = b.long()
    c.nmi_masked = True
    c.nmi()
    assert c.nmi_pending
    c.nmi_pending = False
    c.nmi_masked = False
    assert c.run() == LAST
