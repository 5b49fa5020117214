# SPDX-License-Identifier: GPL-2.0-only
"""The dirty log; read-only memory; a map that changes while a cpu runs."""

from __future__ import annotations

import ctypes
import mmap
import time

import pytest
from x86_board import DATA, DEVICE, LAST, PF, PT, RAX, RBX, RCX, RSI, SIZE, Runner, go

from anykvm.engine import Event

OTHER = 0x1000_0000  # a second region
FUNCTION = 0x5000


def second(b, pages, **options):
    ram = mmap.mmap(-1, pages * 4096)
    b.kept.append(ram)
    b.machine.map(OTHER, pages * 4096, ctypes.addressof(ctypes.c_char.from_buffer(ram)), **options)
    return ram


# The dirty log.


def test_the_dirty_log_has_exactly_the_pages_written(x86):
    b = x86("1: mov %rcx,(%rbx); add $8192,%rbx; dec %ecx; jnz 1b; mov (%rsi),%rax; hlt")
    bitmap = (ctypes.c_uint64 * 1)()
    second(b, 64, dirty=ctypes.addressof(bitmap))
    c = b.long(rbx=OTHER, rcx=5, rsi=OTHER + 4096)
    b.end(c)
    assert bitmap[0] == 0b101010101
    assert b.machine.harvest_dirty(OTHER) == (0b101010101).to_bytes(8, "little")
    assert bitmap[0] == 0
    c.rip, c.gpr[RBX], c.gpr[RCX] = 0x1000, OTHER, 2
    b.end(c)
    assert bitmap[0] == 0b101
    bitmap[0] = 0
    b.machine.reprotect(OTHER, 0, 64)
    c.rip, c.gpr[RBX], c.gpr[RCX] = 0x1000, OTHER, 1
    b.end(c)
    assert bitmap[0] == 1


@pytest.mark.parametrize(
    "code",
    [
        "movb $1,(%rbx)",
        "lock incl (%rbx)",
        "xchg %eax,(%rbx)",
        "lock cmpxchg16b (%rbx)",
        "movups %xmm0,(%rbx)",
        "fxsave (%rbx)",
        "lea 8(%rbx),%rsp; push %rax",
        "mov %rbx,%rdi; stosb",
        "fstpt (%rbx)",
        "sgdt (%rbx)",
        "lea 64(%rbx),%rsp; int $0x21",
        "bts $0,(%rbx)".replace("bts", "btsl"),
    ],
)
def test_every_kind_of_store_is_logged(x86, code):
    b = x86(f"mov (%rbx),%rax; mov 4096(%rbx),%rdx; xor %edx,%edx; xor %eax,%eax; {code}; hlt")
    bitmap = (ctypes.c_uint64 * 1)()
    second(b, 4, dirty=ctypes.addressof(bitmap))
    c = b.long(rbx=OTHER + 4096)
    assert go(c) == LAST
    assert bitmap[0] == 0b10


def test_a_store_over_two_pages_is_logged_in_both(x86):
    b = x86("mov %rax,-4(%rbx); hlt")
    bitmap = (ctypes.c_uint64 * 1)()
    second(b, 4, dirty=ctypes.addressof(bitmap))
    b.end(b.long(rbx=OTHER + 8192))
    assert bitmap[0] == 0b110


def test_accessed_and_dirty_bits_of_page_tables_are_logged(x86):
    b = x86("mov (%rbx),%eax; hlt; mov %eax,(%rbx); hlt")
    b.machine.unmap(0)
    bitmap = (ctypes.c_uint64 * (SIZE // 4096 // 64))()
    b.machine.map(0, SIZE, b.hva, dirty=ctypes.addressof(bitmap))
    c = b.long(rbx=DATA)
    page = (PT + 8 * (DATA >> 12)) // 4096

    def logged(n):
        return bool(bitmap[n // 64] >> n % 64 & 1)

    b.end(c)
    assert logged(page)
    assert not logged(DATA >> 12)
    assert b.word(b.pte(DATA)) & 0x60 == 0x20
    b.machine.harvest_dirty(0)
    b.end(c)
    assert logged(page)
    assert logged(DATA >> 12)
    assert b.word(b.pte(DATA)) & 0x60 == 0x60


def test_no_write_is_lost_between_harvests(x86):
    pages = 512
    b = x86("1: mov %rcx,(%rbx); add $4096,%rbx; mov $200,%eax; 2: dec %eax; jnz 2b; dec %ecx; jnz 1b; hlt")
    bitmap = (ctypes.c_uint64 * (pages // 64))()
    second(b, pages, dirty=ctypes.addressof(bitmap))
    r = Runner(b.long(rbx=OTHER, rcx=pages))
    seen = 0
    while r.is_alive():
        seen |= int.from_bytes(b.machine.harvest_dirty(OTHER), "little")
    seen |= int.from_bytes(b.machine.harvest_dirty(OTHER), "little")
    assert r.result() == LAST
    assert seen == (1 << pages) - 1


def test_writes_to_logged_code_are_logged_and_noticed(x86):
    b = x86("call *%rbx; mov %eax,%esi; movl $9,1(%rbx); call *%rbx; hlt")
    bitmap = (ctypes.c_uint64 * 1)()
    ram = second(b, 4, dirty=ctypes.addressof(bitmap))
    ram[4096:4102] = bytes.fromhex("b801000000c3")
    for n in range(3):
        b.machine.harvest_dirty(OTHER)
        c = b.long(rbx=OTHER + 4096)
        b.end(c)
        assert (c.gpr[RSI], c.gpr[RAX]) == (9 if n else 1, 9)
        assert bitmap[0] == 0b10


# The map.


def test_read_only_memory_reads_and_its_writes_are_events(x86):
    b = x86("mov (%rbx),%rax; movl $5,(%rbx); lock incl 4(%rbx); hlt")
    ram = second(b, 2, readonly=True)
    ram[8:16] = (0x1122334455667788).to_bytes(8, "little")
    c = b.long(rbx=OTHER + 8)
    assert go(c) == (Event.MMIO_WRITE, OTHER + 8, 4, 5)
    assert c.gpr[RAX] == 0x1122334455667788
    event = go(c)
    if event[0] == Event.MMIO_READ:
        event = go(c, 0x11223344)
    assert event == (Event.MMIO_WRITE, OTHER + 12, 4, 0x11223345)
    assert go(c) == LAST
    assert ram[8:16] == (0x1122334455667788).to_bytes(8, "little")


def test_code_runs_in_read_only_memory(x86):
    b = x86("jmp *%rbx")
    ram = second(b, 1, readonly=True)
    ram[0:6] = bytes.fromhex("b805000000f4")
    c = b.long(rbx=OTHER)
    b.end(c)
    assert c.gpr[RAX] == 5


def test_page_tables_in_read_only_memory(x86):
    b = x86("mov (%rbx),%eax; hlt")
    ram = second(b, 1, readonly=True)
    ram[0:8] = (DATA | 0x67).to_bytes(8, "little")
    b.set_word(0x34000 + 8 * 3, OTHER | 0x67)  # 6 MB to 8 MB
    b.set_word(DATA, 0x42)
    c = b.long(rbx=6 << 20)
    b.end(c)
    assert c.gpr[RAX] == 0x42


def test_a_page_table_where_no_memory_is(x86):
    b = x86("lea 1f(%rip),%r15; 1: mov (%rbx),%eax; hlt")
    b.set_word(0x34000 + 8 * 3, DEVICE | 7)
    c = b.long(rbx=6 << 20)
    t = b.fault(c)
    assert (t.vector, t.ip, c.cr2) == (PF, c.gpr[15], 6 << 20)


def test_the_map_changes_under_a_running_cpu(x86):
    n = 60_000_000
    b = x86("1: incq (%rbx); dec %rcx; jnz 1b; hlt")
    r = Runner(b.long(rbx=DATA, rcx=n))
    extra = mmap.mmap(-1, 1 << 20)
    hva = ctypes.addressof(ctypes.c_char.from_buffer(extra))
    changes = 0
    while r.is_alive() and changes < 300:
        b.machine.map(OTHER, 1 << 20, hva)
        b.machine.unmap(OTHER)
        changes += 1
    assert r.result() == LAST
    assert changes > 5
    assert b.word(DATA) == n


def test_memory_that_is_unmapped_is_a_device_and_that_is_mapped_memory(x86):
    b = x86("mov (%rbx),%eax; hlt; jmp .-3; nop")
    c = b.long(rbx=OTHER)
    for n in range(5):
        assert go(c) == (Event.MMIO_READ, OTHER, 4, 0)
        assert go(c, 7) == LAST
        ram = second(b, 1)
        ram[0] = 0x40 + n
        c.rip = 0x1000
        b.end(c)
        assert c.gpr[RAX] == 0x40 + n
        b.machine.unmap(OTHER)
        c.rip = 0x1000


def test_code_in_memory_that_is_replaced(x86):
    b = x86("call *%rbx; hlt; jmp .-3")
    c = b.long(rbx=OTHER)
    for n in range(5):
        ram = second(b, 1)
        ram[0:6] = bytes([0xB8, n, 0, 0, 0, 0xC3])
        c.rip = 0x1000
        b.end(c)
        assert c.gpr[RAX] == n
        b.machine.unmap(OTHER)


def test_a_running_cpu_sees_memory_come(x86):
    b = x86("1: mov (%rbx),%eax; cmp $0x55,%al; jne 1b; hlt")
    c = b.long(rbx=OTHER)
    assert go(c)[0] == Event.MMIO_READ
    ram = second(b, 1)
    r = Runner(c)  # answers the read with 0 and goes on in memory
    time.sleep(0.02)
    ram[0] = 0x55
    assert r.result() == LAST


def test_a_tlb_entry_of_another_cpu_is_its_own(x86):
    """An x86 cpu forgets translations itself: INVLPG here says nothing to the other."""
    b = x86("1: mov (%rbx),%eax; cmp $2,%eax; je 2f; invlpg (%rbx); jmp 1b; 2: hlt")
    va = 0x180000
    b.set_word(DATA, 1, 4)
    b.set_word(DATA + 4096, 2, 4)
    b.map_page(va, DATA)
    r = Runner(b.long(rbx=va))
    time.sleep(0.02)
    b.load("mov %rsi,(%rdi); hlt", at=0x7000)
    b.end(b.long(rip=0x7000, rsi=DATA + 4096 | 7, rdi=b.pte(va)))
    assert r.result() == LAST
    assert r.cpu.gpr[RAX] == 2


def test_a_closed_cpu_and_machine_refuse(x86):
    b = x86("hlt")
    c = b.long()
    b.end(c)
    c.close()
    with pytest.raises(RuntimeError):
        c.run()


# Address spaces: a cpu sees the regions of one.


def test_a_cpu_sees_the_regions_of_its_space(x86):
    b = x86("mov (%rbx),%rax; add $1,%rax; mov %rax,(%rbx); hlt")
    ram = second(b, 1)
    other = second(b, 1, space=1)
    low = b.machine
    low.map(0, SIZE, b.hva, space=1)
    ram[:8], other[:8] = (0x10).to_bytes(8, "little"), (0x20).to_bytes(8, "little")
    c = b.long(rbx=OTHER)
    for space, value in ((0, 0x11), (1, 0x21), (0, 0x12), (1, 0x22)):
        c.space, c.rip = space, 0x1000
        assert c.run() == LAST
        assert c.gpr[RAX] == value
    assert (ram[0], other[0]) == (0x12, 0x22)
    low.unmap(OTHER, 1)
    c.rip = 0x1000
    assert c.run()[:2] == (Event.MMIO_READ, OTHER)
    with pytest.raises(RuntimeError, match="half done"):
        c.space = 0


def test_spaces_have_their_own_overlaps_and_logs(x86):
    b = x86("movb $1,(%rbx); hlt")
    bitmap = (ctypes.c_uint64 * 1)()
    second(b, 2)
    second(b, 2, space=1, dirty=ctypes.addressof(bitmap))
    b.machine.map(0, SIZE, b.hva, space=1)
    with pytest.raises(ValueError, match="overlaps"):
        second(b, 1, space=1)
    with pytest.raises(ValueError, match="no region"):
        b.machine.unmap(OTHER, 2)
    c = b.long(rbx=OTHER + 4096)
    assert c.run() == LAST
    c.space, c.rip = 1, 0x1000
    assert c.run() == LAST
    assert b.machine.harvest_dirty(OTHER, 1) == (2).to_bytes(8, "little")
    with pytest.raises(ValueError, match="dirty log"):
        b.machine.harvest_dirty(OTHER)


def test_code_is_that_of_the_space(x86):
    b = x86("nop; hlt")
    code = b.load("mov $1,%eax; hlt", at=FUNCTION)
    page = bytearray(b.ram[FUNCTION : FUNCTION + 4096])
    other = mmap.mmap(-1, SIZE)
    b.kept.append(other)
    other[:SIZE] = b.ram[:SIZE]
    other[FUNCTION : FUNCTION + len(code)] = code.replace(b"\x01", b"\x02", 1)
    b.machine.map(0, SIZE, ctypes.addressof(ctypes.c_char.from_buffer(other)), space=1)
    c = b.long()
    for space in (0, 1, 0, 1):
        c.space, c.rip = space, FUNCTION
        assert c.run() == LAST
        assert c.gpr[RAX] == space + 1
    assert bytes(page[: len(code)]) == code
