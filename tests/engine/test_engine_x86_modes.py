# SPDX-License-Identifier: GPL-2.0-only
"""Real, protected, long and compatibility mode, and the ways between them."""

from __future__ import annotations

import pytest
from x86_board import (
    CODE32,
    CODE64,
    CS,
    DATA,
    DATA0,
    GDT,
    GP,
    IDT32,
    IDT64,
    LAST,
    PML4,
    RAX,
    RBX,
    RCX,
    RDI,
    RDX,
    RSI,
    RSP,
    SS,
    UD,
    go,
)


def test_reset_is_the_reset_vector_in_real_mode(x86):
    b = x86()
    c = b.real()
    c.reset()
    assert c.get_segment(CS)[:3] == (0xF000, 0xFFFF0000, 0xFFFF)
    assert (c.rip, c.rflags, c.efer, c.cr3, c.cr4, c.cr8) == (0xFFF0, 2, 0, 0, 0, 0)
    assert c.cr0 == 0x60000010
    assert go(c)[:2] == (9, 0xFFFF_FFF0)  # a fetch where no memory is


def test_real_mode_segments_wrap_and_halt(x86):
    b = x86(
        """
        mov $0x1234, %ax
        mov %ax, %ds
        movw $0xbeef, 0x10
        mov $0xf000, %bx
        mov %bx, %es
        mov %es:0x0, %cx
        push %cx
        pop %dx
        addr32 movb $0x5a, %ds:0x20
        mov $0x11223344, %eax
        hlt
        """,
        bits=16,
    )
    b.set_word(0xF0000, 0xCAFE, 2)
    c = b.real()
    b.end(c, 16)
    assert b.word(0x12350, 2) == 0xBEEF
    assert b.word(0x12360, 1) == 0x5A
    assert (c.gpr[RCX] & 0xFFFF, c.gpr[RDX] & 0xFFFF) == (0xCAFE, 0xCAFE)
    assert c.gpr[RAX] == 0x11223344
    assert c.get_segment(3)[:2] == (0x1234, 0x12340)


def test_real_mode_interrupts_go_through_the_vector_table(x86):
    b = x86("mov $1f, %bx\n sti\n int $0x21\n 1: hlt", bits=16)
    c = b.real()
    t = b.fault(c, 16)
    assert (t.vector, t.ip, t.cs) == (0x21, c.gpr[RBX] & 0xFFFF, 0)
    assert t.flags & 0x200
    assert not c.rflags & 0x200
    b.end(c, 16)
    assert c.rflags & 0x200
    assert c.gpr[RSP] & 0xFFFF == 0x8000


@pytest.mark.parametrize(
    ("code", "vector"),
    [("xor %cx,%cx\n 1: div %cx", 0), ("1: ud2", UD), ("1: .byte 0x0f,0x00,0xd8", UD), ("1: int3", 3)],
    ids=["div", "ud2", "ltr", "int3"],
)
def test_real_mode_exceptions(x86, code, vector):
    b = x86(f"mov $1f, %bp\n {code}\n hlt", bits=16)
    c = b.real()
    t = b.fault(c, 16)
    assert (t.vector, t.ip) == (vector, (c.gpr[5] & 0xFFFF) + (vector == 3))


def test_from_real_to_protected_to_long_to_compatibility_and_back(x86):
    b = x86(
        f"""
        .set DATA, {DATA}
        cli
        lgdtl 9f
        lidtl 8f
        mov %cr0, %eax
        or $1, %al
        mov %eax, %cr0
        ljmp ${CODE32}, $1f
        .balign 4
    9:  .word 0xff
        .long {GDT}
    8:  .word 0x7ff
        .long {IDT32}
    7:  .word 0xfff
        .long {IDT64}
    6:  .word 0x3ff
        .long 0
        .code32
    1:  mov ${DATA0}, %ax
        mov %ax, %ds
        mov %ax, %es
        mov %ax, %ss
        mov $0x80000, %esp
        movl $0x32323232, DATA
        hlt
        mov %cr4, %eax
        or $0x20, %eax
        mov %eax, %cr4
        mov ${PML4}, %eax
        mov %eax, %cr3
        mov $0xc0000080, %ecx
        rdmsr
        or $0x100, %eax
        wrmsr
        mov %cr0, %eax
        or $0x80000000, %eax
        mov %eax, %cr0
        hlt                       # compatibility mode: LMA, but CS.L is clear
        lidt 7b
        ljmp ${CODE64}, $2f
        .code64
    2:  movabs $0x1122334455667788, %rax
        mov %rax, DATA
        hlt
        ljmp *3f
    3:  .long 4f
        .word {CODE32}
        .code32
    4:  mov %cr0, %eax
        and $0x7fffffff, %eax
        mov %eax, %cr0
        mov $0xc0000080, %ecx
        rdmsr
        and $~0x100, %eax
        wrmsr
        hlt
        lidt 6b
        ljmp $0x40, $5f
        .code16
    5:  mov $0x48, %ax
        mov %ax, %ds
        mov %ax, %ss
        mov %cr0, %eax
        and $~1, %al
        mov %eax, %cr0
        ljmp $0, $1f
    1:  xor %ax, %ax
        mov %ax, %ss
        mov %ax, %ds
        mov $0x7000, %sp
        int $0x40
        hlt
        """,
        bits=16,
    )
    c = b.real()
    assert go(c) == LAST
    assert b.word(DATA, 4) == 0x32323232
    assert (c.cr0 & 0x80000001, c.get_segment(CS)[0]) == (1, CODE32)
    assert go(c) == LAST
    assert c.efer & 0x500 == 0x500
    assert c.cr0 & 0x80000001 == 0x80000001
    assert c.get_segment(CS)[3] & 0x6000 == 0x4000
    assert go(c) == LAST
    assert b.word(DATA) == 0x1122334455667788
    assert (c.get_segment(CS)[0], c.get_segment(CS)[3] & 0x6000) == (CODE64, 0x2000)
    assert go(c) == LAST
    assert c.efer & 0x500 == 0
    assert c.cr0 & 0x80000001 == 1
    t = b.fault(c, 16)
    assert (t.vector, t.cs) == (0x40, 0)
    assert not c.cr0 & 1
    b.end(c, 16)


def test_upper_halves_of_registers(x86):
    b = x86(
        """
        mov $-1, %rax
        mov %rax, %rbx
        mov %rax, %rcx
        mov %rax, %rdx
        mov $5, %ebx
        mov $5, %cx
        mov $5, %dh
        hlt
        """
    )
    c = b.long()
    b.end(c)
    m = (1 << 64) - 1
    assert (c.gpr[RAX], c.gpr[RBX], c.gpr[RCX], c.gpr[RDX]) == (m, 5, m & ~0xFFFF | 5, m & ~0xFF00 | 0x500)


def test_compatibility_mode_truncates_addresses_and_has_old_encodings(x86):
    b = x86(
        f"""
        mov $0xffffffff, %esi
        movl $0x1234, {DATA}+1(%esi)
        mov $7, %al
        inc %eax                  # 0x40: a REX prefix in 64-bit mode
        daa
        pushal
        popal
        hlt
        """,
        bits=32,
    )
    c = b.long(compat=True)
    b.end(c)
    assert b.word(DATA, 4) == 0x1234
    assert c.gpr[RAX] & 0xFF == 8


@pytest.mark.parametrize("byte", [0x06, 0x27, 0x37, 0x60, 0x61, 0x62, 0x82, 0x9A, 0xCE, 0xD4, 0xD6, 0xEA])
def test_encodings_that_64_bit_mode_has_not(x86, byte):
    b = x86()
    c = b.long()
    b.ram[0x1000:0x1008] = bytes([byte, 0xC0, 0, 0, 0, 0, 0, 0xF4])
    assert b.fault(c).vector == UD


AVX = ("vzeroupper", "vpxor %xmm0,%xmm0,%xmm0", "vaddps %ymm0,%ymm1,%ymm2", "xgetbv")


@pytest.mark.parametrize("code", AVX)
def test_avx_is_not_there(x86, code):
    b = x86(f"xor %ecx,%ecx; lea 1f(%rip), %r15; 1: {code}; hlt")
    c = b.long()
    t = b.fault(c)
    assert (t.vector, t.ip) == (UD, c.gpr[15])


REFUSED = {
    "PG without PE": "mov %cr0,%rax; btr $0,%rax; 1: mov %rax,%cr0",
    "PAE cleared in long mode": "mov %cr4,%rax; btr $5,%rax; 1: mov %rax,%cr4",
    "LME changed with paging": "mov $0xc0000080,%ecx; rdmsr; btr $8,%eax; 1: wrmsr",
    "a high bit of CR0": "mov %cr0,%rax; bts $32,%rax; 1: mov %rax,%cr0",
    "NW without CD": "mov %cr0,%rax; bts $29,%rax; btr $30,%rax; 1: mov %rax,%cr0",
    "a reserved bit of CR4": "mov %cr4,%rax; bts $31,%rax; 1: mov %rax,%cr4",
    "VMXE, which the CPU has not": "mov %cr4,%rax; bts $13,%rax; 1: mov %rax,%cr4",
    "PCIDE, which the CPU has not": "mov %cr4,%rax; bts $17,%rax; 1: mov %rax,%cr4",
    "a reserved bit of EFER": "mov $0xc0000080,%ecx; rdmsr; bts $20,%eax; 1: wrmsr",
    "a reserved bit of CR8": "mov $0x10,%eax; 1: mov %rax,%cr8",
    "a reserved bit of CR3": "mov %cr3,%rax; bts $60,%rax; 1: mov %rax,%cr3",
    "a high bit of DR7": "xor %eax,%eax; bts $33,%rax; 1: mov %rax,%dr7",
    "a high bit of DR6": "xor %eax,%eax; bts $33,%rax; 1: mov %rax,%dr6",
}


@pytest.mark.parametrize("what", REFUSED)
def test_control_register_values_the_processor_refuses(x86, what):
    b = x86(f"lea 1f(%rip), %r15; {REFUSED[what]}; hlt")
    c = b.long()
    t = b.fault(c)
    assert (t.vector, t.error, t.ip) == (GP, 0, c.gpr[15])


def test_control_registers_that_are_not_there(x86):
    for code in ("mov %cr1, %rax", "mov %cr5,%rax", "mov %rax,%cr7"):
        b = x86(f"lea 1f(%rip), %r15; 1: {code}; hlt")
        c = b.long()
        t = b.fault(c)
        assert (t.vector, t.ip) == (UD, c.gpr[15]), code


def test_strings_and_direction(x86):
    b = x86(
        f"""
        mov ${DATA}, %esi
        mov ${DATA + 0x100}, %edi
        mov $16, %ecx
        rep movsq
        std
        mov ${DATA + 0x200 + 7}, %edi
        mov $0x41, %al
        mov $8, %ecx
        rep stosb
        cld
        mov ${DATA + 0x200}, %edi
        mov $0x40, %al
        mov $100, %ecx
        repne scasb
        hlt
        """
    )
    b.ram[DATA : DATA + 128] = bytes(range(128))
    b.set_word(DATA + 0x208, 0x40, 1)
    c = b.long()
    b.end(c)
    assert b.ram[DATA + 0x100 : DATA + 0x180] == bytes(range(128))
    assert b.ram[DATA + 0x200 : DATA + 0x209] == b"AAAAAAAA@"
    assert (c.gpr[RCX], c.gpr[RDI], c.gpr[RSI]) == (91, DATA + 0x209, DATA + 128)
    assert c.get_segment(SS)[0] == DATA0
