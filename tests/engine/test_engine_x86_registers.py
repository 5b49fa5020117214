# SPDX-License-Identifier: GPL-2.0-only
"""MSRs, CPUID, the time-stamp counter."""

from __future__ import annotations

import time

import pytest
from x86_board import (
    GP,
    LAST,
    RAX,
    RBX,
    RCX,
    RDX,
    go,
)

from anykvm.engine import Event

AT = "lea 1f(%rip), %r15\n"
STAR, LSTAR, CSTAR, FMASK = 0xC0000081, 0xC0000082, 0xC0000083, 0xC0000084
FS_BASE, GS_BASE, KERNEL_GS_BASE, TSC_AUX = 0xC0000100, 0xC0000101, 0xC0000102, 0xC0000103
SYSENTER_CS, SYSENTER_ESP, SYSENTER_EIP = 0x174, 0x175, 0x176


@pytest.mark.parametrize(
    ("index", "value"),
    [
        (STAR, 0x0011223344556677),
        (LSTAR, 0xFFFFFFFF81000000),
        (CSTAR, 0xFFFFFFFF81000000),
        (FMASK, 0x47700),
        (FS_BASE, 0x7FFF12345678),
        (GS_BASE, 0xFFFF888000000000),
        (KERNEL_GS_BASE, 0xFFFF888000000000),
        (TSC_AUX, 0x1001),
        (SYSENTER_CS, 0x10),
        (SYSENTER_ESP, 0xFFFF888000000000),
        (SYSENTER_EIP, 0xFFFF888000000000),
        (0x277, 0x0407050600070106),
    ],
)
def test_native_msrs_keep_what_the_guest_and_the_host_write(x86, index, value):
    b = x86("wrmsr; xor %eax,%eax; xor %edx,%edx; rdmsr; hlt; rdmsr; hlt")
    c = b.long(rcx=index, rax=value & 0xFFFFFFFF, rdx=value >> 32)
    b.end(c)
    assert c.gpr[RAX] | c.gpr[RDX] << 32 == value
    assert c.get_msr(index) == value
    c.set_msr(index, value & ~0x10)
    b.end(c)
    assert c.gpr[RAX] | c.gpr[RDX] << 32 == value & ~0x10


def test_other_msrs_are_events(x86):
    b = x86("mov $0x1234,%ecx; rdmsr; mov $0x4321,%ecx; wrmsr; hlt")
    c = b.long()
    assert go(c) == (Event.MSR_READ, 0x1234, 0, 0)
    assert go(c, 0x1122334455667788) == (Event.MSR_WRITE, 0x4321, 0, 0x1122334455667788)
    assert go(c) == LAST
    assert (c.gpr[RAX], c.gpr[RDX]) == (0x55667788, 0x11223344)
    for access in (c.get_msr, lambda n: c.set_msr(n, 0)):
        with pytest.raises(KeyError):
            access(0x1234)


@pytest.mark.parametrize("code", ["rdmsr", "wrmsr"])
def test_an_msr_access_answered_with_an_exception(x86, code):
    b = x86(f"mov $0x1234,%ecx; mov $5,%eax; mov $6,%edx; {AT}1: {code}; mov $7,%ebx; hlt")
    c = b.long()
    assert go(c)[:2] == (Event.MSR_READ if code == "rdmsr" else Event.MSR_WRITE, 0x1234)
    c.raise_exception(GP, 0)
    t = b.fault(c)
    assert (t.vector, t.error, t.ip) == (GP, 0, c.gpr[15])
    assert (c.gpr[RAX], c.gpr[RDX], c.gpr[RBX]) == (5, 6, 0)
    b.set_trap_ip(t, t.ip + 2)
    b.end(c)
    assert c.gpr[RBX] == 7


def test_a_rdmsr_can_be_given_up_and_comes_again(x86):
    b = x86(f"mov $0x1b,%ecx; {AT}1: rdmsr; hlt")
    c = b.long()
    assert go(c)[0] == Event.MSR_READ
    c.abandon()
    assert c.rip == c.gpr[15]
    assert go(c) == (Event.MSR_READ, 0x1B, 0, 0)
    assert go(c, 3) == LAST
    assert c.gpr[RAX] == 3


# CPUID.


def test_cpuid_table(x86):
    b = x86("cpuid; hlt; jmp 0x1000")
    c = b.long()
    c.set_cpuid(
        [
            (0, 0, 0, 7, 0x11, 0x22, 0x33),
            (1, 0, 0, 0x600, 0x44, 0xFFFFFFFF, 0x55),
            (4, 0, 1, 0x40, 0, 0, 0),
            (4, 1, 1, 0x41, 0, 0, 0),
            (7, 0, 1, 0, 0x77, 0, 0),
            (0x40000000, 0, 0, 0x40000001, 1, 2, 3),
            (0x80000000, 0, 0, 0x80000008, 4, 5, 6),
        ]
    )

    def ask(function, index=0):
        c.gpr[RAX], c.gpr[RCX], c.rip = function | 0xDEAD << 32, index, 0x1000
        b.end(c)
        return tuple(c.gpr[n] for n in (RAX, RBX, RCX, RDX))

    assert ask(0) == (7, 0x11, 0x22, 0x33)
    assert ask(0, 99) == (7, 0x11, 0x22, 0x33)
    assert ask(1) == (0x600, 0x44, 0xF7FFFFFF, 0x55)  # OSXSAVE is CR4's
    assert ask(4) == (0x40, 0, 0, 0)
    assert ask(4, 1) == (0x41, 0, 0, 0)
    assert ask(4, 2) == (0, 0, 0, 0)
    assert ask(5) == (0, 0, 0, 0)
    assert ask(0x40000000) == (0x40000001, 1, 2, 3)
    assert ask(0x80000000) == (0x80000008, 4, 5, 6)
    assert ask(0x80000001) == (0, 0, 0, 0)
    c.set_cpuid([(0, 0, 0, 1, 1, 1, 1)])
    assert ask(0) == (1, 1, 1, 1)


def test_cpuid_without_a_table_is_what_the_engine_supports(x86):
    b = x86("cpuid; hlt")
    c = b.long(rax=0)
    b.end(c)
    assert tuple(c.gpr[n] for n in (RAX, RBX, RCX, RDX)) == c.supported_cpuid(0)
    assert c.supported_cpuid(1)[2] & (1 << 28 | 1 << 12) == 0  # no AVX, no FMA
    assert c.supported_cpuid(1)[2] & (1 << 17 | 1 << 21 | 1 << 24) == 0  # no PCID, x2APIC, TSC deadline
    assert c.supported_cpuid(1)[3] & (1 << 26 | 1 << 25 | 1) == 1 << 26 | 1 << 25 | 1  # SSE2, SSE, x87
    assert c.supported_cpuid(7)[1] & (1 << 5 | 1 << 10 | 1 << 16) == 0  # no AVX2, INVPCID, AVX-512


def test_cpuid_refuses_bad_tables(x86):
    c = x86().long()
    with pytest.raises(TypeError):
        c.set_cpuid([(1, 2, 3)])
    with pytest.raises(TypeError):
        c.set_cpuid(5)


# The time-stamp counter.


def test_rdtsc_goes_on_and_can_be_set(x86):
    b = x86(
        """
        mov $1000,%esi
    1:  rdtsc; shl $32,%rdx; or %rdx,%rax; cmp %rbx,%rax; jb 2f
        mov %rax,%rbx; dec %esi; jnz 1b
        hlt
    2:  mov $1,%edi; hlt
        """
    )
    c = b.long()
    c.tsc = 1 << 40
    b.end(c)
    assert c.gpr[7] == 0
    assert 1 << 40 < c.gpr[RBX] < (1 << 40) + 10**10
    c.tsc = 0
    assert 0 <= c.tsc < 10**9


def test_the_counters_rate(x86):
    c = x86().long()
    for khz in (1_000_000, 2_500_000, 1000):
        c.tsc_khz = khz
        begin, t = c.tsc, time.monotonic()
        time.sleep(0.05)
        ticks, elapsed = c.tsc - begin, time.monotonic() - t
        assert ticks == pytest.approx(elapsed * khz * 1000, rel=0.3)
    for bad in (0, 10**10):
        with pytest.raises(ValueError, match="tsc_khz"):
            c.tsc_khz = bad


def test_tsd_keeps_the_counter_from_user_code(x86):
    for code in ("rdtsc", "rdtscp"):
        b = x86(f"{AT}1: {code}; hlt")
        for user, faults in ((True, True), (False, False)):
            c = b.long(user=user)
            c.cr4 |= 4
            if faults:
                t = b.fault(c)
                assert (t.vector, t.error, t.ip) == (GP, 0, c.gpr[15])
            else:
                b.end(c)


def test_rdtscp_gives_the_cpu(x86):
    b = x86("rdtscp; hlt")
    c = b.long()
    c.set_msr(TSC_AUX, 0x3002)
    b.end(c)
    assert c.gpr[RCX] == 0x3002
