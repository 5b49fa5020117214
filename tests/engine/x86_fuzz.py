# SPDX-License-Identifier: GPL-2.0-only
"""Guests that make no sense: random code, registers, page tables and descriptor tables, in every mode.

Whatever such a guest does, the host process goes on: each run ends in an event, or in a kick. ``python x86_fuzz.py
FIRST COUNT`` runs that many seeds and prints each before it runs, so that the last line names the one that broke.
"""

from __future__ import annotations

import random
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from x86_board import CODE, DATA, GDT, IDT32, IDT64, LDT, PD, PD32, PDPT, PML4, PT, SIZE, TR, TSS32, TSS64, X86Board

from anykvm.engine import Event, X86Cpu
from anykvm.guests.tools import Toolchain, assembler

MODES = ("real", "protected", "paging", "long", "compat", "user", "user32")
TABLES = (PML4, PDPT, PT, PD, PD32, IDT64, GDT, TSS64, TSS32, IDT32, 0)
# Opcodes that reach far: system instructions, segments, far transfers, strings, the FPU.
STARTS_TEXT = """
    0f00 0f01 0f20 0f22 0f21 0f23 0f30 0f32 0f05 0f07 0f34 0f35 0f06 0f08 0fa2 0fae 0fc7 0f02 0f03 0fb2 0fb4
    0fb5 8e 8c 9a ea cf ca cb cd cc ce f1 62 c4 c5 f3a4 f3aa f2ae a5 6c 6e f36e e4 e6 ec ee fa fb f4 9c 9d c8 c9
    ff d9 db dd df f0 660f f30f f20f 0f38 0f3a 0fc1 f00fb1 f086 d6 27 37 d4 63 48 4c 0f18 0f0b 0fb9 0fff 9b 07
    1f 17 0fa1 0fa9
"""
STARTS = [bytes.fromhex(text) for text in STARTS_TEXT.split()]
NUMBERS = (0, 1, 0xFF, 0x7FFF, 0xFFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 47, (1 << 64) - 1, 0xD000_0000, DATA)
REGISTERS = (0x10, 0x1B, 0xC000_0080, 0xC000_0081, 0xC000_0101, 0x174, 0x277, 0x8001_0033, 0x620, PML4, PD32)
HALF_DONE = {
    *(Event.MMIO_READ, Event.MMIO_WRITE, Event.PIO_READ, Event.PIO_WRITE, Event.MSR_READ, Event.MSR_WRITE),
    Event.CR8_WRITE,
}


@contextmanager
def kicked(cpu: X86Cpu, seconds: float) -> Iterator[None]:
    """A guest that loops is kicked again and again."""
    done = threading.Event()

    def kick() -> None:
        while not done.wait(seconds):
            cpu.kick()

    thread = threading.Thread(target=kick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _word(r: random.Random) -> int:
    kind = r.randrange(6)
    if kind == 0:
        return r.randrange(SIZE)
    if kind == 1:
        return r.choice(
            (0, 1, 0xFF, 0x7FFF, 0xFFFF, 0x8000_0000, 0xFFFF_FFFF, 1 << 47, (1 << 64) - 1, 0xD000_0000, DATA)
        )
    if kind == 2:
        return (1 << 64) - 1 - r.randrange(1 << 20)
    if kind == 3:
        return r.choice(
            (0x10, 0x1B, 0xC000_0080, 0xC000_0081, 0xC000_0101, 0x174, 0x277, 0x8001_0033, 0x620, PML4, PD32)
        )
    return r.getrandbits(r.choice((8, 16, 32, 64)))


def _code(r: random.Random, size: int) -> bytes:
    out = bytearray()
    while len(out) < size:
        if r.random() < 0.5:
            out += r.choice(STARTS)
        out += r.randbytes(r.randrange(1, 6))
    return bytes(out[:size])


def _make(b: X86Board, r: random.Random) -> X86Cpu:
    mode = r.choice(MODES)
    registers = {name: _word(r) for name in ("rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi")}
    if mode == "real":
        c = b.real(**registers)
    elif mode in ("protected", "paging", "user32"):
        c = b.protected(user=mode == "user32", paging=mode == "paging", **registers)
    else:
        c = b.long(user=mode == "user", compat=mode == "compat", **registers)
    return c


def _spoil(b: X86Board, c: X86Cpu, r: random.Random) -> None:
    """Tables, or registers that no instruction would leave so."""
    for _ in range(r.choice((0, 0, 1, 4, 40))):
        table = r.choice(TABLES)
        at = table + 8 * r.randrange(512 if table else 128)
        b.set_word(at, r.choice((0, r.getrandbits(64), b.word(at) ^ 1 << r.randrange(64), r.randrange(SIZE) | 7)))
    if r.random() < 0.3:
        for n in range(8):
            c.gpr[8 + n] = _word(r)
    if r.random() < 0.2:
        c.rflags = r.getrandbits(22) & ~0x100 | 2
    if r.random() < 0.2:
        n = r.randrange(8)
        c.set_segment(n, (r.getrandbits(16), _word(r), r.getrandbits(32), r.getrandbits(16)))
    if r.random() < 0.1:
        c.set_table(r.randrange(2), _word(r), r.getrandbits(16))
    if r.random() < 0.1:
        c.gpr[4] = _word(r)
    if r.random() < 0.1:
        c.cr3 = _word(r)
    if r.random() < 0.1:
        c.cr4 = r.getrandbits(23)
    if r.random() < 0.1:
        c.cr0 = r.getrandbits(32)
    if r.random() < 0.1:
        c.efer = r.choice((0, 1, 0x100, 0x500, 0xD01, 0x901))
    if r.random() < 0.1:
        c.set_segment(r.choice((LDT, TR)), (0x50, _word(r), r.getrandbits(16), r.getrandbits(16)))
    if r.random() < 0.1:
        for n in range(4):
            c.set_dr(n, _word(r))
        c.set_dr(7, r.getrandbits(32))
    if r.random() < 0.1:
        dr = (*(_word(r) for _ in range(7)), r.getrandbits(32)) if r.random() < 0.5 else None
        c.set_debug(step=r.random() < 0.5, int3=r.random() < 0.5, dr=dr, block_irq=r.random() < 0.2)


def run(tools: Toolchain, seed: int, *, events: int = 40) -> Counter[str]:
    """One guest; how often it came out, by event."""
    r = random.Random(seed)
    seen: Counter[str] = Counter()
    b = X86Board(tools)
    try:
        b.ram[CODE : CODE + 0x400] = _code(r, 0x400)
        b.ram[DATA : DATA + 0x1000] = r.randbytes(0x1000)
        c = _make(b, r)
        _spoil(b, c, r)
        value = 0
        with kicked(c, 0.02):
            for _ in range(events):
                event = Event(c.run(value)[0])
                seen[event.name] += 1
                value = (
                    256
                    if event is Event.IRQ_ACK and r.random() < 0.5
                    else r.getrandbits(8 if event is Event.IRQ_ACK else 64)
                )
                if event is Event.KICK and seen["KICK"] > 1:
                    break
                _between(b, c, r, event)
    finally:
        b.close()
    return seen


def _between(b: X86Board, c: X86Cpu, r: random.Random, event: Event) -> None:
    """What userspace may do at an exit."""
    half_done = event in HALF_DONE
    what = r.randrange(12)
    if what == 0:
        c.raise_exception(r.choice([n for n in range(32) if n != 2]), r.choice((-1, 0, 0x1234)))
    elif what == 1:
        c.nmi()
    elif what == 2:
        c.set_irq(0, r.randrange(2))
    elif what == 3:
        at = CODE + r.randrange(0x400)
        b.ram[at : at + 4] = r.randbytes(4)
        b.machine.distrust()
    elif what == 4:
        c.abandon()
    elif what == 5 and not half_done:
        c.rip = CODE + r.randrange(0x400)
    elif what == 6 and not half_done:
        c.inject(r.randrange(256))
    elif what == 7:
        c.want_window = r.random() < 0.5
    elif what == 8:
        b.map_page(r.randrange(0x100) << 12, r.randrange(0x400) << 12, r.choice((0, 1, 3, 7)))
    if event is Event.SHUTDOWN:
        c.reset()
        c.rip = r.randrange(0x400)


if __name__ == "__main__":
    first, count = int(sys.argv[1]), int(sys.argv[2])
    total: Counter[str] = Counter()
    for number in range(first, first + count):
        print(number, flush=True)
        total += run(assembler("amd64"), number)
    print(dict(total))
