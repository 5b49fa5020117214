# SPDX-License-Identifier: GPL-2.0-only
"""Guests that make no sense, through the typed API: KVM_RUN ends in an exit or is interrupted, and nothing else."""

from __future__ import annotations

import contextlib
import random
import threading
from collections import Counter

import pytest
from x86_guest_board import CODE, Board

from anykvm.api import Halt, InternalError, Interrupted, MmioRead, MmioWrite, PioIn, PioOut, Shutdown, Vcpu
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

STARTS = "0f01 0f20 0f22 0f30 0f32 0f05 0f07 0f34 0fa2 0fae 0fc7 0f0b 8e 9a ea cf cb cc ce f1 6c 6e ec ee fa fb f4"
PREFIXES = [bytes.fromhex(text) for text in STARTS.split()]


def code(r: random.Random, size: int) -> bytes:
    out = bytearray()
    while len(out) < size:
        if r.random() < 0.5:
            out += r.choice(PREFIXES)
        out += r.randbytes(r.randrange(1, 6))
    return bytes(out[:size])


def make(board: Board, r: random.Random) -> Vcpu:
    """A vCPU in any mode at random code, with some of its state and its tables spoilt."""
    vcpu = board.long("nop") if r.random() < 0.7 else board.real("nop")
    board.memory.write(CODE, code(r, 0x800))
    regs = vcpu.get_regs()
    for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp"):
        setattr(regs, name, r.choice((r.getrandbits(64), r.randrange(1 << 20), 0xC0000080, 0x277, 0)))
    vcpu.set_regs(regs)
    sregs = vcpu.get_sregs()
    if r.random() < 0.3:
        segment = getattr(sregs, r.choice(("cs", "ds", "ss", "es", "fs", "gs", "tr", "ldt")))
        segment.base, segment.limit, segment.type = r.getrandbits(32), r.getrandbits(32), r.getrandbits(4)
        segment.db, segment.g, segment.dpl = r.getrandbits(1), r.getrandbits(1), r.getrandbits(2)
    if r.random() < 0.3:
        sregs.idt.base, sregs.idt.limit = r.randrange(1 << 20), r.getrandbits(16)
    if r.random() < 0.2:
        sregs.cr3 = r.randrange(1 << 20)
    with contextlib.suppress(OSError):  # some of it is refused, as by the kernel
        vcpu.set_sregs(sregs)
    for _ in range(r.choice((0, 4, 40))):
        board.memory.write(0x10000 + 8 * r.randrange(0x800), r.randbytes(8))
    if r.random() < 0.2:
        control = r.choice((C.KVM_GUESTDBG_SINGLESTEP, X.KVM_GUESTDBG_USE_SW_BP, X.KVM_GUESTDBG_USE_HW_BP))
        vcpu.set_guest_debug(C.KVM_GUESTDBG_ENABLE | control, debugreg=[r.getrandbits(20)] * 7 + [r.getrandbits(32)])
    return vcpu


@pytest.mark.parametrize("chip", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_any_guest_ends_in_an_exit(board: Board, seed: int, chip: bool) -> None:
    if not board.software:
        pytest.skip("what the machine's own KVM does with them is its own affair")
    r = random.Random(seed)
    if chip:
        board.vm.create_irqchip()
    vcpu = make(board, r)
    seen: Counter[str] = Counter()
    for _ in range(60):
        timer = threading.Timer(0.05, vcpu.kick)
        timer.start()
        exit = vcpu.run()
        timer.cancel()
        seen[type(exit).__name__] += 1
        match exit:
            case MmioRead() | PioIn():
                exit.reply(r.getrandbits(8 * exit.size))
            case Interrupted() | Halt() | Shutdown() | InternalError() if seen[type(exit).__name__] > 2:
                break
            case MmioWrite() | PioOut():
                board.memory.write(CODE + r.randrange(0x7FC), r.randbytes(4))
            case _:
                pass
        if r.random() < 0.1:
            vcpu.nmi()
    assert seen
