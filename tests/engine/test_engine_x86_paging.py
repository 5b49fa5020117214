# SPDX-License-Identifier: GPL-2.0-only
"""Page protections, page faults and their error codes, accessed and dirty bits, forgotten translations."""

from __future__ import annotations

import pytest
from x86_board import (
    CODE64U,
    DATA,
    GP,
    PF,
    RAX,
    RCX,
)

AT = "lea 1f(%rip), %r15\n"

P, W, U, RSVD, ID = 1, 2, 4, 8, 16
NX = 1 << 63
PAGE = DATA + 0x5000

PAGE_FAULTS = {
    # name: (user, entry's flags, code, error code)
    "supervisor read of nothing": (0, 0, "mov (%rbx),%eax", 0),
    "supervisor write to nothing": (0, 0, "mov %eax,(%rbx)", W),
    "supervisor fetch of nothing": (0, 0, "jmp *%rbx", ID),
    "supervisor write of read-only": (0, 5, "mov %eax,(%rbx)", W | P),
    "supervisor read-modify-write of read-only": (0, 5, "lock incl (%rbx)", W | P),
    "supervisor fetch of no-execute": (0, 7 | NX, "jmp *%rbx", ID | P),
    "user read of nothing": (1, 0, "mov (%rbx),%eax", U),
    "user write to nothing": (1, 0, "mov %eax,(%rbx)", U | W),
    "user read-modify-write of nothing": (1, 0, "addl $1,(%rbx)", U | W),
    "a shift of nothing": (0, 0, "shll $1,(%rbx)", W),
    "a shift by two registers of supervisor's": (1, 3, "shld %cl,%eax,(%rbx)", U | W | P),
    "an exchange and add of nothing": (0, 0, "xadd %r8,(%rbx)", W),
    "a bit set in nothing": (1, 0, "btsl $1,(%rbx)", U | W),
    "a comparison with nothing": (1, 0, "cmpl $1,(%rbx)", U),
    "a bit tested of nothing": (1, 0, "btl $1,(%rbx)", U),
    "a sum with nothing in a register": (1, 0, "addl (%rbx),%eax", U),
    "user fetch of nothing": (1, 0, "jmp *%rbx", U | ID),
    "user read of supervisor's": (1, 3, "mov (%rbx),%eax", U | P),
    "user write of supervisor's": (1, 3, "mov %eax,(%rbx)", U | W | P),
    "user fetch of supervisor's": (1, 3, "jmp *%rbx", U | ID | P),
    "user write of read-only": (1, 5, "mov %eax,(%rbx)", U | W | P),
    "user fetch of no-execute": (1, 7 | NX, "jmp *%rbx", U | ID | P),
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


@pytest.mark.parametrize(("bit", "code", "error"), [(20, "jmp *%rbx", ID | P), (21, "mov (%rbx),%eax", P)])
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
