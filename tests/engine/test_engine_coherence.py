# SPDX-License-Identifier: GPL-2.0-only
"""Kicks that lose nothing, atomics, TLB and code maintenance between cpus, dirty logs, a memory map that changes."""

from __future__ import annotations

import ctypes
import mmap
import threading
import time

import pytest
from engine_board import RAM

from anykvm.engine import Event

COUNTER = 0x8000
MOV_X9 = {n: 0xD2800009 | n << 5 for n in range(1, 100)}  # mov x9, #n


@pytest.mark.parametrize("plain", [0, 1], ids=["exclusive", "plain"])
def test_thousands_of_kicks_corrupt_nothing(board, runner, plain):
    n = 5_000_000
    b = board("count")
    c = b.cpu()
    rounds = kicks = 0
    while kicks < 3000:
        c.pc, c.gpr[0], c.gpr[1], c.gpr[2] = RAM, RAM + COUNTER, n, plain
        r = runner(c)
        while r.is_alive():
            c.kick()
            time.sleep(20e-6)
        assert r.result()[0] == Event.HVC
        rounds += 1
        kicks += r.kicks
    assert b.word(COUNTER) == n * rounds
    if plain:
        assert b.word(COUNTER + 8) == 3 * n * rounds


def test_kicks_and_interrupt_lines_from_many_threads(board, runner):
    n = 4_000_000
    b = board("count")
    c = b.cpu(x0=RAM + COUNTER, x1=n, x2=1)
    r = runner(c)

    def pester() -> None:
        while r.is_alive():
            c.kick()
            c.set_irq(0, True)
            c.set_irq(0, False)
            time.sleep(20e-6)

    threads = [threading.Thread(target=pester) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    r.result()
    assert b.word(COUNTER) == n


def test_atomics_are_atomic_across_cpus(board, runner):
    n, cpus = 1_000_000, 3
    b = board("count")
    runners = [runner(b.cpu(x0=RAM + COUNTER, x1=n)) for _ in range(cpus)]
    for r in runners:
        assert r.result()[0] == Event.HVC
    assert b.word(COUNTER) == n * cpus


def test_an_exclusive_store_to_a_device(board):
    b = board("count")
    c = b.cpu(pc=RAM + 0x1000, x0=0x900_0000)
    value, events = 41, []
    while (event := c.run(value))[0] != Event.HVC:
        events.append(event)
    assert events[0] == (Event.MMIO_READ, 0x900_0000, 8, 0)
    assert events[-1] == (Event.MMIO_WRITE, 0x900_0000, 8, 42)
    assert c.gpr[4] == 0
    assert c.gpr[3] == 42
    c.pc, c.gpr[0], c.gpr[1], c.gpr[2] = RAM, RAM + COUNTER, 1000, 0
    assert c.run()[0] == Event.HVC
    assert b.word(COUNTER) == 1000


@pytest.mark.parametrize("whole", [0, 1], ids=["ic ivau", "ic iallu"])
def test_a_guest_patches_its_own_code(board, whole):
    b = board("patch")
    c = b.cpu(pc=RAM + 0x3000, x0=RAM + 0x1000, x1=MOV_X9[42], x2=whole)
    assert c.run() == (Event.HVC, 3, 0, 0)
    assert (c.gpr[11], c.gpr[9]) == (1, 42)


def test_a_guest_patches_code_another_cpu_runs(board, runner):
    for n in range(2, 30):
        b = board("patch")
        flag = RAM + COUNTER
        r = runner(b.cpu(x0=RAM + 0x1000, x1=1000, x3=flag))
        while not b.cpus[0].stats()["blocks"]:
            time.sleep(0.001)
        patcher = b.cpu(pc=RAM + 0x2000, x0=RAM + 0x1000, x1=MOV_X9[n], x2=flag)
        assert patcher.run() == (Event.HVC, 2, 0, 0)
        r.result()
        assert b.cpus[0].gpr[9] == n
        b.close()


def test_a_device_writes_code(board):
    b = board("patch")
    c = b.cpu(x0=RAM + 0x1000, x1=10)
    c.run()
    assert c.gpr[10] == 10
    b.set_word(0x1000, MOV_X9[7], 4)
    b.machine.invalidate(RAM + 0x1000, 4)
    c.pc, c.gpr[1], c.gpr[10] = RAM, 10, 0
    c.run()
    assert c.gpr[10] == 70


def _table(b, va, pa):
    """Identity-maps RAM's first gigabyte block and maps one page at va; gives the page descriptor's offset."""
    level1, level2, level3 = 0x100000, 0x101000, 0x102000
    block = 0x401 | 1 << 10  # valid block, access flag
    b.set_word(level1 + 8 * (RAM >> 30), RAM | block)
    b.set_word(level1 + 8 * (va >> 30), RAM + level2 | 3)
    b.set_word(level2 + 8 * (va >> 21 & 511), RAM + level3 | 3)
    entry = level3 + 8 * (va >> 12 & 511)
    b.set_word(entry, pa | 0x403)
    return level1, entry


def test_tlb_invalidation_reaches_a_running_cpu(board, runner):
    va = 0x8040_3000
    for _ in range(20):
        b = board("mmu")
        level1, entry = _table(b, va, RAM + 0x200000)
        b.set_word(0x201000, 99)
        r = runner(b.cpu(x0=RAM + level1, x1=va, x2=99))
        while b.cpus[0].stats()["blocks"] < 4:
            time.sleep(0.001)
        changer = b.cpu(x1=va, x3=RAM + entry, x4=RAM + 0x201000 | 0x403)
        assert changer.run() == (Event.HVC, 2, 0, 0)
        assert r.result(10) == (Event.HVC, 1, 0, 0)
        b.close()


FLOOD = 100
"""More operations than a cpu's queue holds."""


def test_a_full_queue_of_tlb_operations_loses_none_and_costs_no_code(board):
    va = 0x8040_3000
    b = board("mmu")
    level1, entry = _table(b, va, RAM + 0x200000)
    b.set_word(0x200000, 5)
    b.set_word(0x201000, 99)
    c = b.cpu(x0=RAM + level1, x1=va, x2=5)
    assert c.run() == (Event.HVC, 1, 0, 0)
    changer = b.cpu()
    for n in range(FLOOD):
        page = va if n == FLOOD - 1 else va + 0x2000
        target = RAM + (entry if page == va else entry + 16)
        changer.pc = RAM
        changer.gpr[1], changer.gpr[3], changer.gpr[4] = page, target, RAM + 0x201000 | 0x403
        assert changer.run() == (Event.HVC, 2, 0, 0)
    translated = c.stats()["blocks"]
    c.pc, c.gpr[2], c.gpr[5] = RAM, 99, 0
    assert c.run() == (Event.HVC, 1, 0, 0)
    assert c.gpr[5] == 99
    assert c.stats()["blocks"] == translated


def test_what_a_full_queue_leaves_out_of_code_is_translated_again(board):
    b = board("patch")
    c = b.cpu(x0=RAM + 0x1000, x1=10)
    c.run()
    b.set_word(0x1000, MOV_X9[7], 4)
    for n in range(FLOOD):
        b.machine.invalidate(RAM + (0x1000 if n == FLOOD - 1 else 0x100000 + 4096 * n), 4)
    c.pc, c.gpr[1], c.gpr[10] = RAM, 10, 0
    c.run()
    assert c.gpr[10] == 70


def test_dirty_log_has_exactly_the_pages_written(board):
    b = board("memory")
    size = 64 * 4096
    ram = mmap.mmap(-1, size)
    bitmap = (ctypes.c_uint64 * 1)()
    b.machine.map(
        RAM + 0x1000_0000, size, ctypes.addressof(ctypes.c_char.from_buffer(ram)), dirty=ctypes.addressof(bitmap)
    )
    c = b.cpu(x0=RAM + 0x1000_0000, x1=5, x2=8192, x3=RAM + 0x1000_0000 + 4096)
    c.run()
    assert bitmap[0] == 0b101010101
    assert b.machine.harvest_dirty(RAM + 0x1000_0000) == (0b101010101).to_bytes(8, "little")
    assert bitmap[0] == 0
    c.pc, c.gpr[0], c.gpr[1] = RAM, RAM + 0x1000_0000, 2
    c.run()
    assert bitmap[0] == 0b101
    bitmap[0] = 0
    b.machine.reprotect(RAM + 0x1000_0000, 0, 64)
    c.pc, c.gpr[0], c.gpr[1] = RAM, RAM + 0x1000_0000, 1
    c.run()
    assert bitmap[0] == 1
    assert int.from_bytes(ram[8192:8200], "little") == 1


def test_no_write_is_lost_between_harvests(board, runner):
    b = board("memory")
    pages = 512
    ram = mmap.mmap(-1, pages * 4096)
    bitmap = (ctypes.c_uint64 * (pages // 64))()
    base = RAM + 0x1000_0000
    b.machine.map(base, pages * 4096, ctypes.addressof(ctypes.c_char.from_buffer(ram)), dirty=ctypes.addressof(bitmap))
    c = b.cpu(x0=base, x1=pages, x2=4096)
    seen = 0
    r = runner(c)
    while r.is_alive():
        seen |= int.from_bytes(b.machine.harvest_dirty(base), "little")
    seen |= int.from_bytes(b.machine.harvest_dirty(base), "little")
    assert seen == (1 << pages) - 1


def test_read_only_memory_reads_and_its_writes_are_events(board):
    b = board("memory")
    ram = mmap.mmap(-1, 8192)
    ram[4096:4104] = (0x1234).to_bytes(8, "little")
    base = RAM + 0x1000_0000
    b.machine.map(base, 8192, ctypes.addressof(ctypes.c_char.from_buffer(ram)), readonly=True)
    c = b.cpu(x0=base + 8, x1=2, x2=4096, x3=base + 4096)
    assert c.run() == (Event.MMIO_WRITE, base + 8, 8, 2)
    assert c.run() == (Event.MMIO_WRITE, base + 8 + 4096, 8, 1)
    assert c.run() == (Event.HVC, 1, 0, 0)
    assert c.gpr[4] == 0x1234
    assert ram[8:16] == bytes(8)


def test_the_map_changes_under_a_running_cpu(board, runner):
    b = board("count")
    c = b.cpu(x0=RAM + COUNTER, x1=30_000_000, x2=1)
    r = runner(c)
    extra = mmap.mmap(-1, 1 << 20)
    hva = ctypes.addressof(ctypes.c_char.from_buffer(extra))
    changes = 0
    while r.is_alive() and changes < 300:
        b.machine.map(RAM + 0x1000_0000, 1 << 20, hva)
        b.machine.unmap(RAM + 0x1000_0000)
        changes += 1
    r.result()
    assert changes > 20
    assert b.word(COUNTER) == 30_000_000


def test_a_stopped_machine_runs_nothing(board, runner):
    b = board("count")
    r = runner(b.cpu(x0=RAM + COUNTER, x1=100_000_000, x2=1))
    while not b.word(COUNTER):
        time.sleep(0.001)
    with b.machine.stopped():
        with b.machine.stopped():
            before = b.word(COUNTER)
        b.machine.map(RAM + 0x1000_0000, 4096, b.hva)
        b.machine.unmap(RAM + 0x1000_0000)
        time.sleep(0.02)
        assert b.word(COUNTER) == before
        late = b.cpu(x0=RAM + COUNTER + 64, x1=1)  # made while stopped: waits to run
        other = runner(late)
        time.sleep(0.02)
        assert other.is_alive()
    assert other.result()[0] == Event.HVC
    r.result()
    assert b.word(COUNTER) == 100_000_000


def test_unmapped_memory_is_a_hole_again(board):
    b = board("memory")
    ram = mmap.mmap(-1, 4096)
    base = RAM + 0x1000_0000
    b.machine.map(base, 4096, ctypes.addressof(ctypes.c_char.from_buffer(ram)))
    c = b.cpu(x0=base, x1=1)
    assert c.run()[0] == Event.HVC
    b.machine.unmap(base)
    c.pc, c.gpr[0], c.gpr[1] = RAM, base, 1
    assert c.run() == (Event.MMIO_WRITE, base, 8, 1)


def test_bad_maps_are_refused(board):
    b = board("memory")
    for gpa, size, hva in ((1, 4096, b.hva), (0, 100, b.hva), (0, 0, b.hva), (0, 4096, b.hva + 8)):
        with pytest.raises(ValueError, match="multiples of 4096"):
            b.machine.map(gpa, size, hva)
    with pytest.raises(ValueError, match="overlaps"):
        b.machine.map(RAM + 4096, 4096, b.hva)
    with pytest.raises(ValueError, match="no region"):
        b.machine.unmap(0)
    with pytest.raises(ValueError, match="dirty log"):
        b.machine.harvest_dirty(RAM)
