# SPDX-License-Identifier: GPL-2.0-only
"""Rings, stacks and 4 KiB pages for the small guests: what a kernel sets up before it lets user code run.

Guest memory: program 0x1000 (64-bit), user code 0x3000, GDT 0x14000, IDT 0x15000, TSS 0x16000, page table of the first
2 MiB 0x17000. Each handler is a HLT at 0x2000 + 16 * vector: the test reads the frame from the stack that it is on.
Stacks (tops): 0x8000 kernel, 0x9000 ring 0 from the TSS, 0xa000 IST 1, 0xb000 user.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import pytest
from x86_guest_board import Board

from anykvm.api import Halt, Vcpu
from anykvm.host import virtualises
from anykvm.uapi import x86 as X

GDT, IDT, TSS, TABLE = 0x14000, 0x15000, 0x16000, 0x17000
HANDLERS, USER = 0x2000, 0x3000
STACK0, IST1, USER_STACK = 0x9000, 0xA000, 0xB000
CODE64, DATA, CODE32U, DATAU, CODE64U, TSS_SEL, SMALL = 0x08, 0x10, 0x1B, 0x23, 0x2B, 0x30, 0x43
WITH_CODE = (8, 10, 11, 12, 13, 14, 17)
PRESENT, WRITE, ANY_RING, RESERVED, NX = 1, 2, 4, 1 << 51, 1 << 63


@dataclass(frozen=True)
class Frame:
    """What a handler of 64-bit mode has on its stack."""

    vector: int
    error: int | None
    rip: int
    cs: int
    rflags: int
    rsp: int
    ss: int
    at: int
    """Where it lies, the error code excluded."""


def kernel(board: Board, source: str) -> Vcpu:
    """A vCPU in 64-bit mode at ring 0, everything set up for user code; NX, SYSCALL and SSE are on."""
    vcpu = board.long(source)
    write = board.memory.write
    write(0x10000, struct.pack("<Q", 0x11007))
    write(0x11000, struct.pack("<Q", 0x12007))
    write(0x12000, struct.pack("<Q", TABLE | 7))
    write(TABLE, b"".join(struct.pack("<Q", page << 12 | 7) for page in range(512)))
    selectors = {
        CODE64: 0x00AF9B000000FFFF,
        DATA: 0x00CF93000000FFFF,
        CODE32U: 0x00CFFB000000FFFF,
        DATAU: 0x00CFF3000000FFFF,
        CODE64U: 0x00AFFB000000FFFF,
        TSS_SEL: 0x67 | TSS << 16 | 0x8B << 40,
        SMALL: 0x0040F30C00000FFF,  # 4 KiB from 0xc0000 on
    }
    for selector, value in selectors.items():
        write(GDT + (selector & ~7), struct.pack("<Q", value))
    write(TSS, struct.pack("<4xQ24xQ", STACK0, IST1))
    write(TSS + 0x66, struct.pack("<H", 0x68))  # no map of ports
    for vector in range(256):
        write(HANDLERS + 16 * vector, b"\xf4" + (b"\x48\x83\xc4\x08" if vector in WITH_CODE else b"") + b"\x48\xcf")
        gate(board, vector)
    sregs = vcpu.get_sregs()
    sregs.gdt.limit = 0x4F
    sregs.tr = X.KvmSegment(TSS, 0x67, TSS_SEL, 11, 1, 0, 0, 0, 0, 0)
    sregs.efer |= X.EFER_SCE | X.EFER_NX
    sregs.cr4 |= X.X86_CR4_OSFXSR
    vcpu.set_sregs(sregs)
    return vcpu


def user(board: Board, source: str, *, bits: int = 64) -> Vcpu:
    """The same at ring 3, in 64-bit or compatibility mode."""
    vcpu = kernel(board, "hlt")
    board.load(f".code{bits}\n{source}", USER)
    sregs = vcpu.get_sregs()
    sregs.cs = X.KvmSegment(0, 0xFFFFFFFF, CODE64U if bits == 64 else CODE32U, 11, 1, 3, bits == 32, 1, bits == 64, 1)
    sregs.ss = sregs.ds = sregs.es = X.KvmSegment(0, 0xFFFFFFFF, DATAU, 3, 1, 3, 1, 1, 0, 1)
    vcpu.set_sregs(sregs)
    vcpu.set_regs(X.KvmRegs(rip=USER, rsp=USER_STACK, rflags=2))
    return vcpu


def gate(board: Board, vector: int, *, dpl: int = 0, ist: int = 0) -> None:
    """The gate to a vector's handler."""
    address = HANDLERS + 16 * vector
    board.memory.write(IDT + 16 * vector, struct.pack("<HHBBHII", address, CODE64, ist, 0x8E | dpl << 5, 0, 0, 0))


def page(board: Board, address: int, flags: int) -> None:
    """The flags of a page below 2 MiB."""
    board.memory.write(TABLE + 8 * (address >> 12), struct.pack("<Q", address & ~0xFFF | flags))


def needs_processor(board: Board, what: str) -> None:
    """Skip where the machine's KVM emulates its guests, for what its emulator has not."""
    if not board.software and not virtualises():
        pytest.skip(f"this machine's KVM emulates its guests, and not {what}")


def trap(board: Board, vcpu: Vcpu) -> Frame:
    """Run to a handler's HLT."""
    board.until(vcpu, Halt)
    regs = vcpu.get_regs()
    vector, inside = divmod(regs.rip - HANDLERS, 16)
    assert inside == 1, f"halted at {regs.rip:#x}"
    error, at = None, regs.rsp
    if vector in WITH_CODE:
        (error,) = struct.unpack("<Q", board.memory.read(at, 8))
        at += 8
    rip, cs, rflags, rsp, ss = struct.unpack("<5Q", board.memory.read(at, 40))
    return Frame(vector, error, rip, cs, rflags, rsp, ss, at)
