# SPDX-License-Identifier: GPL-2.0-only
"""A PC without devices for small assembled guests: tables for every mode, and handlers that halt at each exception.

Guest memory (gpa 0 to 4 MB; identity-mapped, user-accessible, in 4 KB pages, then 2 MB pages up to 4 GB)::

    0x00000 IVT           0x01000 program        0x09000/0x0a000/0x0b000 handlers (64/32/16 bits)
    0x20000 IDT64         0x21000 GDT            0x22000 TSS64 + I/O bitmap   0x25000 TSS32 + I/O bitmap
    0x28000 IDT32         0x30000 page tables    0x100000 data
    stacks (tops): 0x80000 kernel, 0x90000 TSS RSP0/ESP0, 0xa0000 IST1, 0xb0000 user

Each handler is ``hlt``, then drops the error code, then returns: the test sees the halt, may edit the frame, goes on.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Container, Iterable
from dataclasses import dataclass
from functools import cache

import pytest

from anykvm.engine import Cpu, Event, Machine, X86Cpu
from anykvm.guests.tools import Toolchain

SIZE = 4 << 20
CODE = 0x1000
HANDLERS = {64: 0x9000, 32: 0xA000, 16: 0xB000}
IDT64, GDT, TSS64, TSS32, IDT32 = 0x20000, 0x21000, 0x22000, 0x25000, 0x28000
PML4, PDPT, PT, PD, PD32 = 0x30000, 0x31000, 0x32000, 0x34000, 0x38000
KSTACK, STACK0, IST1, USTACK = 0x80000, 0x90000, 0xA0000, 0xB0000
DATA = 0x100000
DEVICE = 0xD000_0000
TR_TYPE = 0x8B  # busy, as KVM has it
LAST = (Event.HLT, 0, 0, 0)

ES, CS, SS, DS, FS, GS, LDT, TR = range(8)
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
DE, DB, NMI, BP, OF, BR, UD, NM, DF, _, TS, NP, SSF, GP, PF, _, MF, AC, MC, XM = range(20)
WITH_CODE = frozenset((DF, TS, NP, SSF, GP, PF, AC))

# Selectors of the GDT.
CODE64, DATA0, CODE32U, DATAU, CODE64U, DATAU2 = 0x08, 0x10, 0x1B, 0x23, 0x2B, 0x33
CODE32, CODE16, DATA16 = 0x38, 0x40, 0x48
TSS64_SEL, TSS32_SEL, SMALL, DOWN, ABSENT, READONLY = 0x50, 0x60, 0x68, 0x70, 0x78, 0x80
TASK2, CODE_ABSENT, GATE32, CONFORMING, GATE64, EXEC_ONLY = 0x88, 0x90, 0x98, 0xA0, 0xB0, 0xC0
GDT_LIMIT = 0xFF

_FLAT = {
    CODE64: 0x00AF9B00_0000FFFF,
    DATA0: 0x00CF9300_0000FFFF,
    CODE32U & ~3: 0x00CFFB00_0000FFFF,
    DATAU & ~3: 0x00CFF300_0000FFFF,
    CODE64U & ~3: 0x00AFFB00_0000FFFF,
    DATAU2 & ~3: 0x00CFF300_0000FFFF,
    CODE32: 0x00CF9B00_0000FFFF,
    CODE16: 0x00009B00_0000FFFF,
    DATA16: 0x00009300_0000FFFF,
    SMALL: 0x00409310_00000FFF,  # base 0x100000, limit 0xfff, 32 bits
    DOWN: 0x00409710_00000FFF,  # base 0x100000, expands down: offsets 0x1000 to 0xffffffff
    ABSENT: 0x00CF1300_0000FFFF,
    READONLY: 0x00CF9100_0000FFFF,
    CODE_ABSENT: 0x00CF1B00_0000FFFF,
    CONFORMING: 0x00CF9F00_0000FFFF,
    EXEC_ONLY: 0x00CF9900_0000FFFF,
}


def descriptor(base: int, limit: int, access: int, flags: int = 0) -> int:
    """A segment descriptor: `access` is byte 5, `flags` the high nibble of byte 6."""
    return (
        limit & 0xFFFF | (base & 0xFFFFFF) << 16 | access << 40 | (limit >> 16) << 48 | flags << 52 | (base >> 24) << 56
    )


@dataclass(frozen=True)
class Trap:
    """An exception or interrupt as its handler found it."""

    vector: int
    error: int | None
    ip: int
    cs: int
    flags: int
    sp: int | None
    ss: int | None
    at: int
    """Where the frame (after the error code) is."""


@cache
def _assemble(tools: Toolchain, source: str, base: int) -> bytes:
    return tools.assemble(source, base=base)


class X86Board:
    """RAM with one program at ``CODE``, tables for all modes, and as many cpus as asked for."""

    def __init__(self, tools: Toolchain, source: str = "", *, bits: int = 64) -> None:
        self.tools = tools
        self.ram = mmap.mmap(-1, SIZE)
        self.hva = ctypes.addressof(ctypes.c_char.from_buffer(self.ram))
        self.machine = Machine("x86")
        self.machine.map(0, SIZE, self.hva)
        self.cpus: list[X86Cpu] = []
        self.kept: list[mmap.mmap] = []
        self._tables()
        self.load(source, bits=bits)

    def load(self, source: str, *, bits: int = 64, at: int = CODE) -> bytes:
        """Assembles `source` and puts it at `at`."""
        image = _assemble(self.tools, f".code{bits}\n{source}\n", at) if source else b""
        self.ram[at : at + len(image)] = image
        return image

    def word(self, at: int, size: int = 8) -> int:
        return int.from_bytes(self.ram[at : at + size], "little")

    def set_word(self, at: int, value: int, size: int = 8) -> None:
        self.ram[at : at + size] = value.to_bytes(size, "little")

    def _tables(self) -> None:
        for n in range(256):
            error = n in WITH_CODE
            h64, h32, h16 = (HANDLERS[bits] + 16 * n for bits in (64, 32, 16))
            stub64 = b"\xf4" + (b"\x48\x83\xc4\x08" if error else b"") + b"\x48\xcf"
            stub32 = b"\xf4" + (b"\x83\xc4\x04" if error else b"") + b"\xcf"
            for at, stub in ((h64, stub64), (h32, stub32), (h16, b"\xf4\xcf")):
                self.ram[at : at + len(stub)] = stub
            dpl = 3 if n in (BP, OF, 0x80) else 0
            self.gate(n, h64, dpl=dpl)
            self.set_word(IDT32 + 8 * n, h32 & 0xFFFF | CODE32 << 16 | (0x8E | dpl << 5) << 40 | h32 >> 16 << 48)
            self.set_word(4 * n, h16, 4)
        for selector, value in _FLAT.items():
            self.set_word(GDT + selector, value)
        self.set_word(GDT + TSS64_SEL, descriptor(TSS64, 0x68 + 0x2000, 0x89))
        self.set_word(GDT + TSS64_SEL + 8, 0)
        self.set_word(GDT + TSS32_SEL, descriptor(TSS32, 0x68 + 0x2000, 0x89))
        self.set_word(TSS64 + 4, STACK0)
        self.set_word(TSS64 + 0x24, IST1)
        self.set_word(TSS64 + 0x66, 0x68, 2)
        self.set_word(TSS32 + 4, STACK0, 4)
        self.set_word(TSS32 + 8, DATA0, 4)
        self.set_word(TSS32 + 0x66, 0x68, 2)
        for tss in (TSS64, TSS32):
            self.ram[tss + 0x68 : tss + 0x68 + 0x2001] = b"\xff" * 0x2001
        self.set_word(PML4, PDPT | 7)
        for n in range(4):
            self.set_word(PDPT + 8 * n, PD + 4096 * n | 7)
        for n in range(2048):
            self.set_word(PD + 8 * n, n << 21 | 0x87)
        for n in range(1024):
            self.set_word(PT + 8 * n, n << 12 | 7)
            self.set_word(PD32 + 4 * n, n << 22 | 0x87, 4)
        for n in range(2):
            self.set_word(PD + 8 * n, PT + 4096 * n | 7)

    def gate(self, n: int, handler: int, *, dpl: int = 0, ist: int = 0, kind: int = 0xE, cs: int = CODE64) -> None:
        """Gate `n` of the long-mode IDT."""
        low = handler & 0xFFFF | cs << 16 | ist << 32 | (0x80 | dpl << 5 | kind) << 40 | (handler >> 16 & 0xFFFF) << 48
        self.set_word(IDT64 + 16 * n, low)
        self.set_word(IDT64 + 16 * n + 8, handler >> 32)

    def pte(self, va: int) -> int:
        """Where the long-mode page-table entry of an address below 4 MB is."""
        return PT + 8 * (va >> 12)

    def map_page(self, va: int, pa: int, flags: int = 7) -> None:
        self.set_word(self.pte(va), pa | flags)

    # Cpus, by mode.

    def _cpu(self, rip: int, **registers: int) -> X86Cpu:
        cpu: X86Cpu = Cpu(self.machine)
        self.cpus.append(cpu)
        cpu.rip = rip
        cpu.rflags = 2
        cpu.gpr[RDX] = 0  # a reset leaves the CPU's signature there
        cpu.gpr[RSP] = KSTACK - 0x2000 * (len(self.cpus) - 1)
        names = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
        for name, value in registers.items():
            cpu.gpr[names.index(name)] = value
        return cpu

    def real(self, *, rip: int = CODE, **registers: int) -> X86Cpu:
        """Real mode, all segments at 0."""
        cpu = self._cpu(rip, **{"rsp": 0x8000, **registers})
        for n in range(6):
            cpu.set_segment(n, (0, 0, 0xFFFF, 0x9B if n == CS else 0x93))
        cpu.set_table(1, 0, 0x3FF)
        return cpu

    def protected(self, *, rip: int = CODE, user: bool = False, paging: bool = False, **registers: int) -> X86Cpu:
        """32-bit protected mode, flat segments."""
        cpu = self._cpu(rip, **{**({"rsp": USTACK} if user else {}), **registers})
        cpu.set_table(0, GDT, GDT_LIMIT)
        cpu.set_table(1, IDT32, 0x7FF)
        if paging:
            cpu.cr4 = 0x10
            cpu.cr3 = PD32
        cpu.cr0 = 0x11 | (0x8001_0000 if paging else 0)
        cpu.set_segment(CS, (CODE32U, 0, 0xFFFFFFFF, 0xC0FB) if user else (CODE32, 0, 0xFFFFFFFF, 0xC09B))
        for n in (ES, SS, DS, FS, GS):
            cpu.set_segment(n, (DATAU, 0, 0xFFFFFFFF, 0xC0F3) if user else (DATA0, 0, 0xFFFFFFFF, 0xC093))
        cpu.set_segment(TR, (TSS32_SEL, TSS32, 0x2068, TR_TYPE))
        return cpu

    def long(self, *, rip: int = CODE, user: bool = False, compat: bool = False, **registers: int) -> X86Cpu:
        """Long mode (or compatibility mode), flat segments, NX, SYSCALL and SSE on."""
        cpu = self._cpu(rip, **{**({"rsp": USTACK} if user else {}), **registers})
        cpu.set_table(0, GDT, GDT_LIMIT)
        cpu.set_table(1, IDT64, 0xFFF)
        cpu.cr4 = 0x620
        cpu.cr3 = PML4
        cpu.efer = 0xD01
        cpu.cr0 = 0x8001_0033
        attributes = (0xC000 if compat else 0xA000) | (0xFB if user else 0x9B)
        selector = (CODE32U if compat else CODE64U) if user else (CODE32 if compat else CODE64)
        cpu.set_segment(CS, (selector, 0, 0xFFFFFFFF, attributes))
        for n in (ES, SS, DS, FS, GS):
            cpu.set_segment(n, (DATAU, 0, 0xFFFFFFFF, 0xC0F3) if user else (DATA0, 0, 0xFFFFFFFF, 0xC093))
        cpu.set_segment(TR, (TSS64_SEL, TSS64, 0x2068, TR_TYPE))
        return cpu

    # What a halted cpu shows.

    def trap(self, cpu: X86Cpu, bits: int = 64) -> Trap | None:
        """The exception whose handler `cpu` halted in; None if it halted elsewhere."""
        offset = cpu.rip - 1 - HANDLERS[bits]
        if not 0 <= offset < 0x1000 or offset % 16:
            return None
        vector, step = offset // 16, bits // 8
        at = cpu.gpr[RSP] + (cpu.get_segment(SS)[1] if bits < 64 else 0)
        error = None
        if bits > 16 and vector in WITH_CODE:
            error = self.word(at, step)
            at += step
        ip, cs, flags = (self.word(at + step * n, step) for n in range(3))
        cs &= 0xFFFF
        sp = ss = None
        if bits == 64 or (bits == 32 and cs & 3 > cpu.get_segment(CS)[0] & 3):
            sp, ss = self.word(at + 3 * step, step), self.word(at + 4 * step, step) & 0xFFFF
        return Trap(vector, error, ip, cs, flags, sp, ss, at)

    def set_trap_ip(self, trap: Trap, ip: int, bits: int = 64) -> None:
        """Where the handler returns to when the cpu runs on."""
        self.set_word(trap.at, ip, bits // 8)

    def fault(self, cpu: X86Cpu, bits: int = 64) -> Trap:
        """Runs to a handler's halt."""
        assert go(cpu) == LAST
        trap = self.trap(cpu, bits)
        assert trap is not None, f"halted at {cpu.rip:#x}, not in a handler"
        return trap

    def end(self, cpu: X86Cpu, bits: int = 64) -> None:
        """Runs to the program's own halt."""
        assert go(cpu) == LAST
        assert self.trap(cpu, bits) is None, f"{self.trap(cpu, bits)} cr2={cpu.cr2:#x}"

    def close(self) -> None:
        for cpu in self.cpus:
            Runner.end(cpu)
            cpu.close()
        self.machine.close()


def second_task(
    b: X86Board, *, access: int = 0x89, limit: int = 0x67, at: int = DATA, selector: int = TASK2, rip: int = 0x7000
) -> None:
    """A task with a stack at 0x70000, and ECX = 5."""
    b.set_word(GDT + selector, descriptor(at, limit, access))
    for field, value in ((0x20, rip), (0x24, 2), (0x2C, 5), (0x38, 0x70000), (0x4C, CODE32), (0x60, 0)):
        b.set_word(at + field, value, 4)
    for field in (0x48, 0x50, 0x54, 0x58, 0x5C):
        b.set_word(at + field, DATA0, 4)
    b.set_word(at + 0x66, 0x68, 2)


def go(cpu: X86Cpu, value: int = 0, *, seconds: float = 20) -> tuple[int, int, int, int]:
    """``run(value)`` that a kick ends after `seconds`."""
    timer = threading.Timer(seconds, cpu.kick)
    timer.start()
    try:
        return cpu.run(value)
    finally:
        timer.cancel()


class Runner(threading.Thread):
    """Runs a cpu on a thread of its own to the first event that is not a kick; kicks are counted."""

    live: set[Runner] = set()

    @classmethod
    def end(cls, cpu: X86Cpu) -> None:
        """No runner of `cpu` is left."""
        for runner in [r for r in cls.live if r.cpu is cpu]:
            runner.stop = True
            while runner.is_alive():
                cpu.kick()
                runner.join(0.01)
            cls.live.discard(runner)

    def __init__(self, cpu: X86Cpu) -> None:
        super().__init__(daemon=True)
        self.cpu = cpu
        self.kicks = 0
        self.stop = False
        self.event: tuple[int, int, int, int] | None = None
        self.live.add(self)
        self.start()

    def run(self) -> None:
        while (event := self.cpu.run())[0] == Event.KICK and not self.stop:
            self.kicks += 1
        self.event = event

    def result(self, timeout: float = 60) -> tuple[int, int, int, int]:
        """Waits for the event."""
        self.join(timeout)
        late = self.is_alive()
        if late:
            self.stop = True
            self.cpu.kick()
            self.join(10)
        assert not late, f"the guest did not end: rip {self.cpu.rip:#x} {[hex(v) for v in self.cpu.gpr]}"
        assert self.event is not None
        return self.event


def bug(reason: str, *, always: bool = True) -> pytest.MarkDecorator:
    """What the engine does not do as the processor does, yet; a race does not show `always`."""
    return pytest.mark.xfail(strict=always, reason=reason)


def marked(values: Iterable[str], broken: Container[str], reason: str) -> list[object]:
    """Parameters, with those in `broken` marked as a bug."""
    return [pytest.param(v, marks=bug(reason)) if v in broken else v for v in values]
