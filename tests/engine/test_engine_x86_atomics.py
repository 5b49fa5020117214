# SPDX-License-Identifier: GPL-2.0-only
"""Atomics between cpus that meet; kicks that lose nothing."""

from __future__ import annotations

import threading
import time

import pytest
from x86_board import DATA, LAST, RAX, RCX, RDX, Runner, go

from anykvm.engine import Event

# Between cpus. They start together, so that they meet.

BARRIER = f"""
        lock incl {DATA + 128}
    9:  cmpl $3, {DATA + 128}
        jb 9b
"""


@pytest.mark.parametrize(
    "code", ["lock incq (%rbx)", "lock addq $1,(%rbx)", "mov $1,%eax; lock xadd %rax,(%rbx)", "lock subq $-1,(%rbx)"]
)
def test_the_lock_prefix_across_cpus(x86, code):
    n, cpus = 300_000, 3
    b = x86(f"{BARRIER} 1: {code}; dec %rcx; jnz 1b; hlt")
    runners = [Runner(b.long(rbx=DATA, rcx=n)) for _ in range(cpus)]
    for r in runners:
        assert r.result() == LAST
    assert b.word(DATA) == n * cpus


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16])
def test_compare_exchange_across_cpus(x86, size):
    register = {1: "cl", 2: "cx", 4: "ecx", 8: "rcx"}.get(size)
    accumulator = {1: "al", 2: "ax", 4: "eax", 8: "rax"}.get(size)
    one = (
        f"mov (%rsi),%{accumulator}; 2: mov %rax,%rcx; inc %rcx; lock cmpxchg %{register},(%rsi); jne 2b"
        if size < 16
        else "mov (%rsi),%rax; mov 8(%rsi),%rdx; 2: lea 1(%rax),%rbx; lea -1(%rdx),%rcx; lock cmpxchg16b (%rsi); jne 2b"
    )
    n, cpus = 100_000, 3
    b = x86(f"{BARRIER} 1: {one}; dec %rdi; jnz 1b; hlt")
    runners = [Runner(b.long(rsi=DATA, rdi=n)) for _ in range(cpus)]
    for r in runners:
        assert r.result() == LAST
    total = n * cpus
    assert b.word(DATA, min(size, 8)) == total & (1 << 8 * min(size, 8)) - 1
    if size == 16:
        assert b.word(DATA + 8) == -total & (1 << 64) - 1


@pytest.mark.parametrize(("register", "size"), [("al", 1), ("ax", 2), ("eax", 4), ("rax", 8)])
def test_xchg_across_cpus(x86, register, size):
    """Tokens are exchanged through one place: none is lost, none is doubled."""
    n = 1_000_000
    b = x86(f"{BARRIER} 1: xchg %{register},(%rbx); dec %rcx; jnz 1b; hlt")
    b.set_word(DATA, 1, size)
    runners = [Runner(b.long(rbx=DATA, rcx=n, rax=2 + k)) for k in range(3)]
    for r in runners:
        assert r.result() == LAST
    mask = (1 << 8 * size) - 1
    assert sorted([b.word(DATA, size), *(r.cpu.gpr[RAX] & mask for r in runners)]) == [1, 2, 3, 4]


def test_a_lock_of_xchg_keeps_a_plain_counter(x86):
    n = 500_000
    b = x86(
        f"""
        {BARRIER}
    1:  mov $1, %eax
        xchg %eax, {DATA}
        test %eax, %eax
        jz 2f
        pause
        jmp 1b
    2:  incq {DATA + 64}
        movl $0, {DATA}
        dec %rcx
        jnz 1b
        hlt
        """
    )
    runners = [Runner(b.long(rcx=n)) for _ in range(3)]
    for r in runners:
        assert r.result(20) == LAST
    assert b.word(DATA + 64) == 3 * n


def test_a_locked_operation_over_two_cache_lines(x86):
    n = 50_000
    b = x86("1: lock incq (%rbx); dec %rcx; jnz 1b; hlt")
    runners = [Runner(b.long(rbx=DATA + 61, rcx=n)) for _ in range(2)]
    for r in runners:
        assert r.result() == LAST
    assert b.word(DATA + 61) == 2 * n


def test_cmpxchg16b_of_what_is_not_aligned_is_refused(x86):
    b = x86("lea 1f(%rip),%r15; 1: lock cmpxchg16b (%rsi); hlt")
    c = b.long(rsi=DATA + 8)
    t = b.fault(c)
    assert (t.vector, t.error, t.ip) == (13, 0, c.gpr[15])


def test_a_store_is_seen_by_a_cpu_that_spins(x86):
    b = x86("1: pause; cmpq $0,(%rbx); je 1b; mov 8(%rbx),%rax; hlt")
    b.load("movq $99, 8(%rbx); movq $1, (%rbx); hlt", at=0x7000)
    r = Runner(b.long(rbx=DATA))
    time.sleep(0.02)
    b.end(b.long(rip=0x7000, rbx=DATA))
    assert r.result() == LAST
    assert r.cpu.gpr[RAX] == 99


# Kicks.


@pytest.mark.parametrize("code", ["incq (%rbx)", "lock incq (%rbx)", "incq (%rbx); push (%rbx); pop %rax"])
def test_thousands_of_kicks_corrupt_nothing(x86, code):
    n = 2_000_000
    b = x86(f"1: {code}; dec %rcx; jnz 1b; hlt")
    c = b.long(rbx=DATA)
    kicks = rounds = 0
    while kicks < 2000:
        c.rip, c.gpr[RCX] = 0x1000, n
        r = Runner(c)
        while r.is_alive():
            c.kick()
            time.sleep(20e-6)
        assert r.result() == LAST
        kicks += r.kicks
        rounds += 1
    assert b.word(DATA) == n * rounds


def test_flags_survive_kicks(x86):
    """A 128-bit counter by ADD and ADC: a lost carry shows."""
    n = 1_000_000
    b = x86("1: add %rsi,%rax; adc $0,%rdx; dec %rcx; jnz 1b; hlt")
    step = (1 << 64) - 12345
    c = b.long(rsi=step)
    kicks = 0
    while kicks < 300:
        c.rip, c.gpr[RAX], c.gpr[RDX], c.gpr[RCX] = 0x1000, 0, 0, n
        r = Runner(c)
        while r.is_alive():
            c.kick()
            time.sleep(20e-6)
        assert r.result() == LAST
        assert c.gpr[RAX] | c.gpr[RDX] << 64 == n * step
        kicks += r.kicks


def test_kicks_lines_and_nmis_from_many_threads(x86):
    b = x86("1: incq (%rbx); dec %rcx; jnz 1b; in $0x99,%al")
    b.ram[0x9020:0x9022] = b"\x48\xcf"  # the NMI handler only returns
    n = 2_000_000
    c = b.long(rbx=DATA, rcx=n)
    r = Runner(c)

    def pester() -> None:
        while r.is_alive():
            c.kick()
            c.set_irq(0, True)
            c.set_irq(0, False)
            c.nmi()
            time.sleep(50e-6)

    threads = [threading.Thread(target=pester) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert r.result()[0] == Event.PIO_READ
    assert b.word(DATA) == n


def test_a_kick_is_kept_for_the_next_run(x86):
    b = x86("mov $1,%eax; hlt")
    c = b.long()
    c.kick()
    assert go(c)[0] == Event.KICK
    assert c.gpr[RAX] == 0
    b.end(c)
