# SPDX-License-Identifier: GPL-2.0-only
"""Port I/O and device memory: each access exactly once, with its size, its value, and its privilege."""

from __future__ import annotations

import pytest
from x86_board import (
    CODE64U,
    DATA,
    DATAU,
    DEVICE,
    GP,
    LAST,
    PF,
    RAX,
    RCX,
    RDI,
    RDX,
    RSI,
    TSS64,
    TSS64_SEL,
    go,
)

from anykvm.engine import Event

R, W, MR, MW = Event.PIO_READ, Event.PIO_WRITE, Event.MMIO_READ, Event.MMIO_WRITE


def drive(c, answers=()):
    """Runs to a halt; gives the events, answering reads in order."""
    answers, events, value = list(answers), [], 0
    while (event := go(c, value)) != LAST:
        events.append(event)
        assert event[0] in (R, W, MR, MW), event
        value = answers.pop(0) if event[0] in (R, MR) else 0
        assert len(events) < 10000
    return events


@pytest.mark.parametrize(
    ("register", "size", "value", "after"),
    [
        ("al", 1, 0x1FF, 0x11223344_556677FF),
        ("ax", 2, 0x1FFFE, 0x11223344_5566FFFE),
        ("eax", 4, 0x1_89ABCDEF, 0x89ABCDEF),
    ],
)
@pytest.mark.parametrize("port", ["$0x71", "%dx"])
def test_in_and_out(x86, register, size, value, after, port):
    b = x86(
        f"""
        movabs $0x1122334455667788, %rax
        mov $0xabcd0071, %edx
        out %{register}, {port}
        in {port}, %{register}
        hlt
        """
    )
    c = b.long()
    mask = (1 << 8 * size) - 1
    assert drive(c, [value]) == [(W, 0x71, size, 0x55667788 & mask), (R, 0x71, size, 0)]
    assert c.gpr[RAX] == after


def test_the_state_while_parked_is_the_instructions_start(x86):
    b = x86("mov $5, %eax; mov $0x60, %edx; lea 1f(%rip), %r15; 1: in %dx, %al; add $1, %eax; hlt")
    c = b.long()
    assert go(c) == (R, 0x60, 1, 0)
    assert c.parked == R
    assert c.rip == c.gpr[15]
    assert c.gpr[RAX] == 5
    b.machine.invalidate(0x1000, 4096)
    assert go(c, 7) == LAST
    assert c.gpr[RAX] == 8


@pytest.mark.parametrize(
    ("instruction", "kind", "length"),
    [
        ("in %dx, %al", R, 1),
        ("out %al, %dx", W, 1),
        ("mov (%rdi), %al", MR, 2),
        ("mov %al, (%rdi)", MW, 2),
        ("addb $1, (%rdi)", MR, 3),
    ],
)
def test_finishing_an_access_runs_nothing_after_it(x86, instruction, kind, length):
    b = x86(
        f"mov $5, %eax; mov $0x60, %edx; mov ${DEVICE:#x}, %edi; lea 1f(%rip), %r15; 1: {instruction}; inc %ebx; hlt"
    )
    c = b.long()
    c.gpr[3] = 1
    assert go(c)[0] == kind
    before = c.rip
    assert before == c.gpr[15]
    c.set_irq(0, True)
    c.finish(7)
    assert c.parked in (None, Event.KICK)
    if instruction.startswith("addb"):
        # Its second access has not been answered: the whole instruction comes again.
        assert c.rip == before
        assert [go(c)[:2], go(c, 7)] == [(MR, DEVICE), (MW, DEVICE, 1, 8)]
    else:
        assert (c.rip, c.gpr[3]) == (before + length, 1)
        assert c.gpr[RAX] == (7 if kind in (R, MR) else 5)
    assert go(c) == LAST
    assert c.gpr[3] == 2
    with pytest.raises(RuntimeError):
        c.finish(0)


@pytest.mark.parametrize(("suffix", "size"), [("b", 1), ("w", 2), ("l", 4)])
@pytest.mark.parametrize("backwards", [0, 1], ids=["up", "down"])
def test_string_output_is_one_event_per_element(x86, suffix, size, backwards):
    b = x86(f"{'std' if backwards else 'cld'}; rep outs{suffix}; cld; hlt")
    n = 100
    start = DATA + (n - 1) * size if backwards else DATA
    data = [(0x01020304 * k) & ((1 << 8 * size) - 1) for k in range(1, n + 1)]
    for k, v in enumerate(data):
        b.set_word(DATA + k * size, v, size)
    c = b.long(rcx=n, rsi=start, rdx=0x3F8)
    order = data[::-1] if backwards else data
    assert drive(c) == [(W, 0x3F8, size, v) for v in order]
    assert (c.gpr[RCX], c.gpr[RSI]) == (0, start + (-n if backwards else n) * size)


@pytest.mark.parametrize(("suffix", "size"), [("b", 1), ("w", 2), ("l", 4)])
def test_string_input_is_one_event_per_element(x86, suffix, size):
    b = x86(f"cld; rep ins{suffix}; hlt")
    n = 100
    c = b.long(rcx=n, rdi=DATA, rdx=0x1F0)
    data = [(0x11121314 * k) & ((1 << 8 * size) - 1) for k in range(1, n + 1)]
    assert drive(c, data) == [(R, 0x1F0, size, 8)] * n
    assert [b.word(DATA + k * size, size) for k in range(n)] == data
    assert (c.gpr[RCX], c.gpr[RDI]) == (0, DATA + n * size)


def test_string_io_with_count_zero_does_nothing(x86):
    b = x86("rep outsb; rep insb; hlt")
    assert drive(b.long(rcx=0, rsi=DATA, rdi=DATA)) == []


def test_string_io_survives_kicks_between_elements(x86):
    n = 50
    b = x86(f"rep outsb; mov ${n}, %ecx; rep insb; hlt")
    b.ram[DATA : DATA + n] = bytes(range(n))
    c = b.long(rcx=n, rsi=DATA, rdi=DATA + 0x1000, rdx=0x3F8)
    out, reads, kicks, value = [], 0, 0, 0
    while (event := go(c, value)) != LAST:
        value = 0
        if event[0] == Event.KICK:
            kicks += 1
            continue
        if event[0] == W:
            out.append(event[3])
        else:
            value, reads = 100 + reads, reads + 1
        c.kick()
    assert out == list(range(n))
    assert bytes(b.ram[DATA + 0x1000 : DATA + 0x1000 + n]) == bytes(range(100, 100 + n))
    assert kicks > n


def test_string_output_from_a_device_reads_it_once(x86):
    b = x86("outsb; hlt")
    c = b.long(rsi=DEVICE + 8, rdx=0x80)
    assert drive(c, [0x5A]) == [(MR, DEVICE + 8, 1, 0), (W, 0x80, 1, 0x5A)]


def test_string_input_to_an_absent_page_faults_before_the_port_is_read(x86):
    b = x86("insb; hlt")
    b.map_page(DATA, DATA, 0)
    c = b.long(rdi=DATA, rdx=0x80)
    t = b.fault(c)
    assert (t.vector, t.error, c.cr2) == (PF, 2, DATA)
    b.map_page(DATA, DATA)
    assert drive(c, [0x77]) == [(R, 0x80, 1, 0)]
    assert b.word(DATA, 1) == 0x77


def test_port_io_at_every_mode(x86):
    for bits, make in ((16, "real"), (32, "protected"), (64, "long")):
        b = x86("mov $0x1234, %dx; in %dx, %al; inc %al; out %al, %dx; hlt", bits=bits)
        assert drive(getattr(b, make)(), [9]) == [(R, 0x1234, 1, 0), (W, 0x1234, 1, 10)]


@pytest.mark.parametrize(("size", "register"), [(1, "al"), (2, "ax"), (4, "eax")])
@pytest.mark.parametrize("how", ["ltr", "set"])
def test_user_port_io_needs_every_bit_of_the_bitmap(x86, size, register, how):
    b = x86(f"""
        lea 1f(%rip),%r15
        cmp $0, %rbx
        je 1f
        ltr %bx
        pushq ${DATAU}
        pushq $0xb0000
        pushq $2
        pushq ${CODE64U}
        pushq %r15
        iretq
    1:  out %{register},%dx
        cli
        """)
    c = b.long(user=how == "set", rdx=0x3F6, rax=0x01020304, rbx=0 if how == "set" else TSS64_SEL)
    bitmap = TSS64 + 0x68
    for port in range(0x3F6, 0x3F6 + size):
        t = b.fault(c)
        assert (t.vector, t.error, t.ip, t.cs & 3) == (GP, 0, c.gpr[15], 3)
        b.ram[bitmap + port // 8] &= ~(1 << port % 8)
    assert go(c) == (W, 0x3F6, size, 0x01020304 & (1 << 8 * size) - 1)
    t = b.fault(c)  # the CLI
    assert (t.vector, t.error) == (GP, 0)


def test_user_port_io_without_a_bitmap_or_beyond_its_limit(x86):
    for limit, base in ((0x67, 0x68), (0x2068, 0xFFF0), (0x68 + 0x7F, 0x68)):
        b = x86("lea 1f(%rip),%r15; 1: in %dx,%al; hlt")
        b.ram[TSS64 + 0x68 : TSS64 + 0x2068] = bytes(0x2000)
        b.set_word(TSS64 + 0x66, base, 2)
        c = b.long(user=True, rdx=0x3FF)
        c.set_segment(7, (0x50, TSS64, limit, 0x8B))
        t = b.fault(c)
        assert (t.vector, t.error, t.ip) == (GP, 0, c.gpr[15]), limit


def test_iopl_gives_user_code_all_ports(x86):
    b = x86("in %dx,%al; cli; sti; lea 1f(%rip),%r15; 1: hlt")
    c = b.long(user=True, rdx=0x70)
    c.rflags = 0x3002
    assert go(c) == (R, 0x70, 1, 0)
    assert go(c, 0x99) == LAST
    t = b.trap(c)
    assert (t.vector, t.ip, t.flags & 0x3200) == (GP, c.gpr[15], 0x3200)
    assert c.gpr[RAX] & 0xFF == 0x99


def test_user_string_io_faults_at_its_first_element(x86):
    b = x86("lea 1f(%rip),%r15; 1: rep outsb; hlt")
    c = b.long(user=True, rdx=0x70, rcx=5, rsi=DATA)
    t = b.fault(c)
    assert (t.vector, t.error, t.ip, c.gpr[RCX], c.gpr[RSI]) == (GP, 0, c.gpr[15], 5, DATA)


def test_port_io_can_be_given_up_or_made_to_fault(x86):
    b = x86("lea 1f(%rip),%r15; mov $3, %eax; 1: in $0x60, %al; hlt")
    c = b.long()
    assert go(c) == (R, 0x60, 1, 0)
    c.abandon()
    assert c.rip == c.gpr[15]
    assert c.parked is None or c.parked != R
    assert go(c) == (R, 0x60, 1, 0)
    c.raise_exception(GP, 0)
    t = b.fault(c)
    assert (t.vector, t.error, t.ip, c.gpr[RAX]) == (GP, 0, c.gpr[15], 3)
    assert go(c) == (R, 0x60, 1, 0)  # the handler returned to it
    assert go(c, 8) == LAST
    assert c.gpr[RAX] == 8


# Device memory.


@pytest.mark.parametrize(
    ("load", "size", "answer", "want"),
    [
        ("mov (%rbx), %al", 1, 0x1FF, 0x11223344_556677FF),
        ("mov (%rbx), %ax", 2, 0x1FFFE, 0x11223344_5566FFFE),
        ("mov (%rbx), %eax", 4, 0xFEDCBA98, 0xFEDCBA98),
        ("mov (%rbx), %rax", 8, 0xFEDCBA9876543210, 0xFEDCBA9876543210),
        ("movzbl (%rbx), %eax", 1, 0x80, 0x80),
        ("movsbq (%rbx), %rax", 1, 0x80, 0xFFFFFFFF_FFFFFF80),
        ("movswl (%rbx), %eax", 2, 0x8000, 0xFFFF8000),
        ("movslq (%rbx), %rax", 4, 0x80000000, 0xFFFFFFFF_80000000),
    ],
)
def test_device_loads(x86, load, size, answer, want):
    b = x86(f"movabs $0x1122334455667788, %rax; {load}; hlt")
    c = b.long(rbx=DEVICE + 0x10)
    assert drive(c, [answer]) == [(MR, DEVICE + 0x10, size, 0)]
    assert c.gpr[RAX] == want


@pytest.mark.parametrize(
    ("store", "size", "value"),
    [
        ("mov %al, (%rbx)", 1, 0x88),
        ("mov %ax, (%rbx)", 2, 0x7788),
        ("mov %eax, (%rbx)", 4, 0x55667788),
        ("mov %rax, (%rbx)", 8, 0x1122334455667788),
        ("movb $0x12, (%rbx)", 1, 0x12),
        ("movq $-2, (%rbx)", 8, 0xFFFFFFFFFFFFFFFE),
        ("push (%rcx); pop (%rbx)", 8, 0x99),
    ],
)
def test_device_stores(x86, store, size, value):
    b = x86(f"movabs $0x1122334455667788, %rax; {store}; hlt")
    b.set_word(DATA, 0x99)
    c = b.long(rbx=DEVICE + 0x18, rcx=DATA)
    assert drive(c) == [(MW, DEVICE + 0x18, size, value)]


RMW = {
    "add %eax,(%rbx)": (4, 0x10, 0x15),
    "lock add %eax,(%rbx)": (4, 0x10, 0x15),
    "incq (%rbx)": (8, 0xFFFF_FFFF, 0x1_0000_0000),
    "lock incw (%rbx)": (2, 0xFFFF, 0),
    "xorb $0xf,(%rbx)": (1, 0xF0, 0xFF),
    "notl (%rbx)": (4, 0, 0xFFFFFFFF),
    "lock orl %eax,(%rbx)": (4, 2, 7),
    "xchg %eax,(%rbx)": (4, 9, 5),
    "lock xadd %eax,(%rbx)": (4, 9, 14),
    "shll $4,(%rbx)": (4, 0x11, 0x110),
    "btsl $3,(%rbx)": (4, 0, 8),
    "lock btsl $3,(%rbx)": (4, 0, 8),
}


@pytest.mark.parametrize("code", RMW)
def test_read_modify_write_of_a_device_is_one_read_and_one_write(x86, code):
    size, old, new = RMW[code]
    b = x86(f"mov $5, %eax; {code}; hlt")
    c = b.long(rbx=DEVICE + 0x20)
    assert drive(c, [old]) == [(MR, DEVICE + 0x20, size, 0), (MW, DEVICE + 0x20, size, new)]


@pytest.mark.parametrize("prefix", ["", "lock "])
def test_compare_exchange_of_a_device(x86, prefix):
    for old, writes in ((5, [7]), (6, [6])):
        b = x86(f"mov $5, %eax; mov $7, %ecx; {prefix}cmpxchg %ecx, (%rbx); hlt")
        c = b.long(rbx=DEVICE)
        events = drive(c, [old])
        assert events[0] == (MR, DEVICE, 4, 0)
        assert events[1:] == [(MW, DEVICE, 4, v) for v in writes]
        assert c.gpr[RAX] == old


def test_string_moves_to_a_device_are_one_event_per_element(x86):
    b = x86("rep movsl; hlt")
    for k in range(64):
        b.set_word(DATA + 4 * k, 0x1000 + k, 4)
    c = b.long(rsi=DATA, rdi=DEVICE, rcx=64)
    assert drive(c) == [(MW, DEVICE + 4 * k, 4, 0x1000 + k) for k in range(64)]
    b = x86("rep movsw; hlt")
    c = b.long(rsi=DEVICE, rdi=DATA, rcx=64)
    assert drive(c, range(64)) == [(MR, DEVICE + 2 * k, 2, 0) for k in range(64)]
    assert [b.word(DATA + 2 * k, 2) for k in range(64)] == list(range(64))


def test_sse_accesses_of_a_device_cover_their_bytes_once(x86):
    b = x86("movups (%rbx), %xmm0; movups %xmm0, 0x40(%rbx); hlt")
    c = b.long(rbx=DEVICE)
    events = drive(c, [0x1111111111111111, 0x2222222222222222])
    assert events == [
        (MR, DEVICE, 8, 0),
        (MR, DEVICE + 8, 8, 0),
        (MW, DEVICE + 0x40, 8, 0x1111111111111111),
        (MW, DEVICE + 0x48, 8, 0x2222222222222222),
    ]


def test_a_device_access_made_to_fault_leaves_no_trace(x86):
    b = x86("lea 1f(%rip),%r15; mov $5, %eax; 1: add (%rbx), %eax; hlt")
    c = b.long(rbx=DEVICE)
    assert go(c)[0] == MR
    assert c.rip == c.gpr[15]
    c.abandon()
    assert (c.rip, c.gpr[RAX]) == (c.gpr[15], 5)
    c.gpr[RAX] = 100
    assert drive(c, [11]) == [(MR, DEVICE, 4, 0)]
    assert c.gpr[RAX] == 111


def test_flags_survive_a_device_access(x86):
    b = x86("mov $0x7fffffff, %eax; add $1, %eax; mov (%rbx), %ecx; pushf; pop %rdx; sbb %eax, %eax; hlt")
    c = b.long(rbx=DEVICE)
    assert drive(c, [3]) == [(MR, DEVICE, 4, 0)]
    assert c.gpr[RDX] & 0x8D5 == 0x894  # overflow, sign, adjust, parity
    assert c.gpr[RCX] == 3
    assert c.gpr[RAX] == 0


def test_a_load_across_memory_and_device(x86):
    b = x86("mov (%rbx), %rax; hlt")
    top = 4 << 20
    b.set_word(top - 4, 0x44332211, 4)
    c = b.long(rbx=top - 4)
    events, value, total = [], 0, 0
    while (event := go(c, value)) != LAST:
        assert event[0] == MR
        assert event[1] >= top
        events.append(event)
        value = int.from_bytes(bytes(0x50 + event[1] - top + k for k in range(event[2])), "little")
        total += event[2]
    assert total in (4, 8)
    assert c.gpr[RAX] == 0x53525150_44332211


def test_code_in_a_device_is_a_fetch_event(x86):
    b = x86("jmp *%rbx")
    c = b.long(rbx=DEVICE + 0x123)
    assert go(c) == (Event.FETCH, DEVICE + 0x123, 0, 0)
    assert c.rip == DEVICE + 0x123
    b.load("mov $0x77, %eax; hlt", at=0x8000)
    c.rip = 0x8000
    b.end(c)
    assert c.gpr[RAX] == 0x77
