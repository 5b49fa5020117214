# SPDX-License-Identifier: GPL-2.0-only
"""Code that is written while it runs: by itself, by another cpu, by the host."""

from __future__ import annotations

import time

import pytest
from x86_board import DATA, DEVICE, KSTACK, LAST, RAX, RBX, RCX, RDX, RSI, RSP, SIZE, Runner, go

from anykvm.engine import Event

FUNCTION = 0x5000


def test_a_write_to_the_next_instruction_takes_effect_at_once(x86):
    b = x86(
        """
        movb $0x22, 1f+1(%rip)
    1:  mov $0x11, %al
        movb $0x44, 2f+1(%rip)
        nop
        nop
    2:  mov $0x33, %bl
        hlt
        """
    )
    c = b.long()
    b.end(c)
    assert (c.gpr[RAX] & 0xFF, c.gpr[RBX] & 0xFF) == (0x22, 0x44)


@pytest.mark.parametrize(("mode", "bits"), [("real", 16), ("protected", 32)])
def test_a_write_to_the_next_instruction_in_other_modes(x86, mode, bits):
    b = x86("movb $0x22, 1f+1\n 1: mov $0x11, %al\n hlt", bits=bits)
    c = getattr(b, mode)()
    b.end(c, bits)
    assert c.gpr[RAX] & 0xFF == 0x22


def test_a_loop_that_changes_its_own_instruction_each_time_round(x86):
    b = x86(
        """
        mov $100, %ecx
        xor %edx, %edx
    1:  incb 2f+1(%rip)
    2:  mov $0, %al
        movzbl %al, %eax
        add %eax, %edx
        dec %ecx
        jnz 1b
        hlt
        """
    )
    c = b.long()
    b.end(c)
    assert c.gpr[RDX] == sum(range(1, 101))


def test_a_function_on_another_page_is_rewritten_many_times(x86):
    b = x86(
        f"""
        mov ${FUNCTION}, %ebx
        mov $200, %ecx
    1:  mov %cl, 1(%rbx)
        call *%rbx
        movzbl %al, %eax
        add %rax, %rdx
        dec %ecx
        jnz 1b
        hlt
        """
    )
    b.load("mov $0, %al; ret", at=FUNCTION)
    c = b.long()
    b.end(c)
    assert c.gpr[RDX] == sum(range(1, 201))


def test_code_is_written_through_an_alias(x86):
    b = x86("call *%rbx; mov %eax, %esi; movl $77, 1(%rdx); call *%rbx; hlt")
    b.load("mov $1, %eax; ret", at=FUNCTION)
    b.map_page(DATA, FUNCTION)
    c = b.long(rbx=FUNCTION, rdx=DATA)
    b.end(c)
    assert (c.gpr[RSI], c.gpr[RAX]) == (1, 77)


def test_code_is_run_through_an_alias_and_written_at_home(x86):
    b = x86("call *%rbx; mov %eax, %esi; movl $77, 1(%rdx); call *%rbx; hlt")
    b.load("mov $1, %eax; ret", at=FUNCTION)
    b.map_page(DATA, FUNCTION)
    c = b.long(rbx=DATA, rdx=FUNCTION)
    b.end(c)
    assert (c.gpr[RSI], c.gpr[RAX]) == (1, 77)


def test_code_over_two_pages_is_watched_in_both(x86):
    for offset in (-1, 0, 2):
        b = x86("call *%rbx; mov %eax, %esi; movb $0x55, (%rdx); call *%rbx; hlt")
        b.load("mov $0x01010101, %eax; ret", at=0x6000 - 2)  # its immediate is on both sides
        c = b.long(rbx=0x6000 - 2, rdx=0x6000 + offset)
        b.end(c)
        assert c.gpr[RSI] == 0x01010101
        assert c.gpr[RAX] == 0x01010101 & ~(0xFF << 8 * (offset + 1)) | 0x55 << 8 * (offset + 1)


def test_code_copied_over_code(x86):
    b = x86(f"call *%rbx; push %rax; mov ${FUNCTION},%edi; mov ${DATA},%esi; mov $6,%ecx; rep movsb; call *%rbx; hlt")
    b.load("mov $1, %eax; ret", at=FUNCTION)
    b.load("mov $2, %eax; ret", at=DATA)
    c = b.long(rbx=FUNCTION)
    b.end(c)
    assert (b.word(KSTACK - 8), c.gpr[RAX]) == (1, 2)


@pytest.mark.parametrize(
    "store",
    ["mov %rsi,(%rdx)", "lock xchg %rsi,(%rdx)", "movq %xmm0,(%rdx)", "lock xadd %rdi,(%rdx)"],
)
def test_every_kind_of_store_is_noticed(x86, store):
    b = x86(f"call *%rbx; movq %rsi,%xmm0; {store}; call *%rbx; hlt")
    old, new = bytes.fromhex("b8010000 00c39090"), bytes.fromhex("b8090000 00c39090")
    b.ram[FUNCTION : FUNCTION + 8] = old
    difference = int.from_bytes(new, "little") - int.from_bytes(old, "little")
    c = b.long(rbx=FUNCTION, rdx=FUNCTION, rsi=int.from_bytes(new, "little"), rdi=difference)
    b.end(c)
    assert c.gpr[RAX] == 9


def test_a_push_over_code_is_noticed(x86):
    b = x86("call *%rbx; mov %rbx,%rsp; add $8,%rsp; push %rsi; mov $0x80000,%esp; call *%rbx; hlt")
    b.load("mov $1,%eax; ret; nop; nop", at=FUNCTION)
    c = b.long(rbx=FUNCTION, rsi=int.from_bytes(bytes.fromhex("b805000000c39090"), "little"))
    b.end(c)
    assert c.gpr[RAX] == 5


def test_an_exception_frame_over_code_is_noticed(x86):
    b = x86("call *%rbx; lea 40(%rbx),%rsp; int $0x21; mov $0x80000,%esp; call *%rbx; hlt")
    b.load("mov $1,%eax; ret", at=FUNCTION)
    b.load("movl $0xc308b0, (%rsp); hlt; iretq", at=0x7000)  # mov $8,%al; ret
    b.gate(0x21, 0x7000)
    c = b.long(rbx=FUNCTION)
    assert go(c) == LAST
    # The frame is where the function was; the host returns for the guest.
    c.gpr[4], c.rip = KSTACK, FUNCTION
    b.load("hlt", at=0x7800)
    b.set_word(KSTACK, 0x7800)
    b.end(c)
    assert c.gpr[RAX] & 0xFF == 8


def test_data_beside_code_is_written_without_harm(x86):
    b = x86(f"mov $200000,%ecx; 1: incq {FUNCTION + 0x800}; call *%rbx; dec %ecx; jnz 1b; hlt")
    b.load("inc %rdx; ret", at=FUNCTION)
    c = b.long(rbx=FUNCTION)
    b.end(c)
    assert (c.gpr[RDX], b.word(FUNCTION + 0x800)) == (200000, 200000)


def test_another_cpu_patches_code_that_runs(x86):
    runs = """
    1:  call *%rbx
        cmp $0, (%rdx)
        je 1b
        call *%rbx
        hlt
    """.replace("cmp $0", "cmpq $0")
    for n in range(2, 32):
        b = x86(runs)
        b.load("mov $1, %eax; ret", at=FUNCTION)
        b.load("mov %esi, 1(%rbx); movq $1, (%rdx); hlt", at=0x7000)
        a = b.long(rbx=FUNCTION, rdx=DATA)
        r = Runner(a)
        while a.stats()["blocks"] < 2:
            time.sleep(0.0005)
        b.end(b.long(rip=0x7000, rbx=FUNCTION, rdx=DATA, rsi=n))
        assert r.result() == LAST
        assert a.gpr[RAX] == n
        b.close()


def test_two_cpus_patch_and_run_the_same_function(x86):
    """Each cpu writes a function of its own on a page that both run code of."""
    b = x86(
        """
    1:  mov %cl, 1(%rbx)
        call *%rbx
        cmp %cl, %al
        jne 2f
        dec %ecx
        jnz 1b
        hlt
    2:  mov $-1, %rdx
        hlt
        """
    )
    runners = []
    for n in range(2):
        b.load("mov $0, %al; ret", at=FUNCTION + 64 * n)
    for n in range(2):
        runners.append(Runner(b.long(rbx=FUNCTION + 64 * n, rcx=3000)))
    for r in runners:
        assert r.result() == LAST
        assert r.cpu.gpr[RDX] == 0
        assert r.cpu.gpr[RCX] == 0


def test_the_host_writes_code(x86):
    b = x86("call *%rbx; hlt; jmp .-3")
    b.load("mov $1, %eax; ret", at=FUNCTION)
    c = b.long(rbx=FUNCTION)
    b.end(c)
    for n in range(2, 20):
        b.set_word(FUNCTION + 1, n, 4)
        b.machine.invalidate(FUNCTION, 8)
        c.rip = 0x1000
        b.end(c)
        assert c.gpr[RAX] == n


def test_the_host_writes_code_that_runs(x86):
    b = x86("1: call *%rbx; cmp $1,%eax; je 1b; hlt")
    b.load("mov $1, %eax; ret", at=FUNCTION)
    c = b.long(rbx=FUNCTION)
    r = Runner(c)
    time.sleep(0.05)
    b.set_word(FUNCTION + 1, 42, 4)
    b.machine.invalidate(FUNCTION, 8)
    assert r.result(10) == LAST
    assert c.gpr[RAX] == 42


def test_the_host_writes_code_and_says_only_that_it_may_have(x86):
    b = x86("call *%rbx; hlt; jmp .-3")
    b.load("mov $1, %eax; ret", at=FUNCTION)
    c = b.long(rbx=FUNCTION)
    b.end(c)
    for n in range(2, 20):
        b.set_word(FUNCTION + 1, n, 4)
        b.machine.distrust()
        c.rip = 0x1000
        b.end(c)
        assert c.gpr[RAX] == n


@pytest.mark.parametrize("pages", [1, 8, 60])
def test_any_page_of_many_that_ran_may_be_rewritten(x86, pages):
    """A few are compared at once, many when they are next fetched from."""
    b = x86("xor %eax,%eax; lea (%rbx),%rdx; mov %esi,%ecx; 1: call *%rdx; add $0x1000,%rdx; dec %ecx; jnz 1b; hlt")
    for n in range(pages):
        b.load("add $1, %eax; ret", at=DATA + 0x1000 * n)
    c = b.long(rbx=DATA, rsi=pages)
    b.end(c)
    assert c.gpr[RAX] == pages
    for n in (0, pages // 2, pages - 1):
        b.ram[DATA + 0x1000 * n + 2] = 5
        b.machine.distrust()
        c = b.cpus[0]
        c.rip, c.gpr[RSI] = 0x1000, pages
        b.end(c)
        assert c.gpr[RAX] == sum(b.ram[DATA + 0x1000 * m + 2] for m in range(pages))


@pytest.mark.parametrize("pages", [2, 40])
def test_the_host_writes_code_of_memory_that_is_in_two_places(x86, pages):
    """The same pages are run in both."""
    b = x86("xor %eax,%eax; lea (%rbx),%rdx; mov %esi,%ecx; 1: call *%rdx; add $0x1000,%rdx; dec %ecx; jnz 1b; hlt")
    for n in range(pages):
        b.load("add $1, %eax; ret", at=DATA + 0x1000 * n)
    b.machine.map(0x1000_0000, SIZE, b.hva)
    c = b.long(rsi=pages)
    for _ in range(3):
        for place in (DATA, 0x1000_0000 + DATA):
            b.ram[DATA + 0x1000 + 2] += 1
            b.machine.distrust()
            c.rip, c.gpr[RBX], c.gpr[RSI] = 0x1000, place, pages
            b.end(c)
            assert c.gpr[RAX] == pages - 1 + b.ram[DATA + 0x1000 + 2]


def test_the_host_writes_code_over_two_pages(x86):
    b = x86("call *%rbx; hlt")
    b.load("mov $0x01010101, %eax; ret", at=0x6000 - 2)
    c = b.long(rbx=0x6000 - 2)
    b.end(c)
    for at in (0x6000 - 1, 0x6000):
        b.ram[at] = 0x55
        b.machine.distrust()
        c.rip = 0x1000
        b.end(c)
        assert c.gpr[RAX] == b.word(0x6000 - 1, 4)


def test_the_host_writes_code_of_cpus_that_run(x86):
    """As a device does that then interrupts: each cpu compares at its next way out of the code that it is in."""
    b = x86("1: call *%rbx; cmp $1,%eax; je 1b; hlt")
    b.load("mov $1, %eax; ret", at=FUNCTION)
    cpus = [b.long(rbx=FUNCTION) for _ in range(2)]
    runners = [Runner(c) for c in cpus]
    time.sleep(0.05)
    b.set_word(FUNCTION + 1, 42, 4)
    b.machine.distrust()
    for c in cpus:
        c.set_irq(0, 1)
    for c, r in zip(cpus, runners, strict=True):
        assert r.result(10) == LAST
        assert c.gpr[RAX] == 42


@pytest.mark.parametrize("pages", [1, 40])
@pytest.mark.parametrize("access", ["mov (%rdi),%eax", "incl (%rdi)", "mov %ecx,(%rdi)", "push (%rdi)"])
@pytest.mark.parametrize("linked", ["", "cmp %eax,%edx; jmp 2f; 2:"])
def test_the_host_writes_the_code_behind_a_device_access(x86, pages, access, linked):
    """The rest of the block that asked is not run: it is what the host wrote. The access is done once."""
    b = x86(
        f"""
        mov %rsi,%rcx
        lea (%rbx),%rdx
    1:  call *%rdx
        add $0x1000,%rdx
        dec %ecx
        jnz 1b
        nop
        {access}
        {linked}
        mov $0x11,%r8d
        hlt
        """
    )
    for n in range(pages):
        b.load("ret", at=DATA + 0x1000 * n)
    place = b.ram.find(b"\x41\xb8\x11", 0x1000) + 2
    c = b.long(rbx=DATA, rsi=pages, rdi=DEVICE)
    for value in (0x11, 0x22, 0x33):
        accesses = 0
        event = go(c)
        while event != LAST:
            if event[0] in (Event.MMIO_READ, Event.MMIO_WRITE):
                accesses += 1
                b.ram[place] = value
                b.machine.distrust()
            event = go(c, 7)
        assert (accesses, c.gpr[8]) == (2 if access.startswith("incl") else 1, value)
        if access.startswith("mov (%rdi)"):
            assert c.gpr[RAX] == 7
        c.rip, c.gpr[RSP] = 0x1000, KSTACK


def test_a_new_mapping_of_rewritten_code_needs_no_word(x86):
    """A page that is entered into the TLB to fetch from it is compared: what a guest does with what a disk has read."""
    b = x86("call *%rbx; mov %eax,%esi; mov %rdi,%cr3; call *%rbx; hlt")
    b.load("mov $1, %eax; out %al, $0x80; ret", at=FUNCTION)
    c = b.long(rbx=FUNCTION, rdi=0x30000)
    assert go(c)[0] == Event.PIO_WRITE
    b.set_word(FUNCTION + 1, 7, 4)
    assert go(c)[0] == Event.PIO_WRITE
    b.end(c)
    assert (c.gpr[RSI], c.gpr[RAX]) == (1, 7)
