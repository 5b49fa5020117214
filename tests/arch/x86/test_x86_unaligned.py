# SPDX-License-Identifier: GPL-2.0-only
"""Accesses to devices that are not aligned: one exit for each page, as a kernel has it."""

from __future__ import annotations

import pytest
from x86_guest_board import DEVICE, SIZE, Board

from anykvm.api import Halt, MmioRead, MmioWrite, PioOut, Vcpu
from anykvm.uapi import x86 as X

VALUE = 0x1122334455667788
BYTES = VALUE.to_bytes(8, "little")
LINE = 0x1000
"""Where a page ends."""


def accesses(vcpu: Vcpu) -> list[tuple[str, int, bytes | int]]:
    """What the guest does to the device until it halts; each read is answered with 1, 2, 3 and so on."""
    seen: list[tuple[str, int, bytes | int]] = []
    while not isinstance(exit := vcpu.run(), Halt):
        match exit:
            case MmioWrite(address, data):
                seen.append(("write", address - DEVICE, data))
            case MmioRead(address, size) as read:
                seen.append(("read", address - DEVICE, size))
                read.reply(bytes(range(1, size + 1)))
            case _:
                raise AssertionError(exit)
    return seen


def program(board: Board, what: str) -> Vcpu:
    return board.long(f"mov ${VALUE:#x}, %rax; mov ${DEVICE:#x}, %rbx; xor %ecx, %ecx; {what}; hlt")


@pytest.mark.parametrize("offset", [1, 2, 3, 5, 6, 7, LINE - 1, LINE - 2, LINE - 3, LINE - 7])
@pytest.mark.parametrize(("register", "size"), [("ax", 2), ("eax", 4), ("rax", 8)])
def test_a_store(board: Board, register: str, size: int, offset: int) -> None:
    vcpu = program(board, f"mov %{register}, {offset}(%rbx)")
    first = min(size, LINE - offset)
    expected = [("write", offset, BYTES[:first])]
    if first < size:
        expected.append(("write", LINE, BYTES[first:size]))
    assert accesses(vcpu) == expected


@pytest.mark.parametrize("offset", [1, 2, 3, 5, 6, 7, LINE - 1, LINE - 2, LINE - 3, LINE - 7])
@pytest.mark.parametrize(("register", "size"), [("cx", 2), ("ecx", 4), ("rcx", 8)])
def test_a_load(board: Board, register: str, size: int, offset: int) -> None:
    """No byte is read that the instruction does not name."""
    vcpu = program(board, f"mov {offset}(%rbx), %{register}")
    first = min(size, LINE - offset)
    expected = [("read", offset, first)]
    if first < size:
        expected.append(("read", LINE, size - first))
    assert accesses(vcpu) == expected
    data = bytes(range(1, first + 1)) + bytes(range(1, size - first + 1))
    assert vcpu.get_regs().rcx == int.from_bytes(data, "little")


@pytest.mark.parametrize("what", ["addl $1, 6(%rbx)", "lock incl 6(%rbx)", "xchg %eax, 6(%rbx)"])
def test_a_load_and_a_store(board: Board, what: str) -> None:
    vcpu = program(board, what)
    new = BYTES[:4] if "xchg" in what else (0x04030201 + 1).to_bytes(4, "little")
    assert accesses(vcpu) == [("read", 6, 4), ("write", 6, new)]


def test_the_same_instruction_at_other_addresses(board: Board) -> None:
    """What one access got is not taken for the next."""
    loop = "1: mov (%rbx), %ecx; mov %eax, (%rbx); add $3, %rbx; cmp %rsi, %rbx; jne 1b"
    vcpu = program(board, f"lea 12(%rbx), %rsi; {loop}")
    expected = []
    for offset in (0, 3, 6, 9):
        expected += [("read", offset, 4), ("write", offset, BYTES[:4])]
    assert accesses(vcpu) == expected


def test_from_memory_into_a_device(board: Board) -> None:
    """The part in memory is there, the other comes out."""
    vcpu = board.long(f"mov ${VALUE:#x}, %rax; mov ${SIZE - 3:#x}, %rbx; mov %rax, (%rbx); mov (%rbx), %rcx; hlt")
    assert vcpu.run() == MmioWrite(SIZE, BYTES[3:])
    read = vcpu.run()
    assert isinstance(read, MmioRead) and (read.address, read.size) == (SIZE, 5)
    read.reply(b"\xa1\xa2\xa3\xa4\xa5")
    assert isinstance(vcpu.run(), Halt)
    assert board.memory.read(SIZE - 3, 3) == BYTES[:3]
    assert vcpu.get_regs().rcx.to_bytes(8, "little") == BYTES[:3] + b"\xa1\xa2\xa3\xa4\xa5"


def test_a_page_fault_on_the_way(board: Board) -> None:
    """An access that cannot be done whole is not begun; what follows it is served as ever."""
    board.gate(X.PF_VECTOR, 0x2000)
    board.load(".code64\nmov $0x66, %al; out %al, $0xe9; mov -6(%rbx), %ecx; hlt", 0x2000)
    vcpu = board.long("mov $0xffdffffe, %ebx; mov (%rbx), %ecx; hlt")
    # The last two megabytes of the gigabyte that the device is in are not mapped.
    board.memory.write(0x13000 + 8 * 511, bytes(8))
    assert isinstance(exit := vcpu.run(), PioOut) and exit.data == b"\x66"
    read = vcpu.run()
    assert isinstance(read, MmioRead) and (read.address, read.size) == (0xFFDFFFF8, 4)
    read.reply(b"\1\2\3\4")
    assert isinstance(vcpu.run(), Halt)
    assert vcpu.get_regs().rcx == 0x04030201


@pytest.mark.parametrize("offset", [4, LINE - 4])
def test_16_bytes(board: Board, offset: int) -> None:
    if not board.software:
        pytest.skip("this machine's KVM emulates these guests, and not SSE")
    vcpu = program(board, f"movq %rax, %xmm0; punpcklqdq %xmm0, %xmm0; movdqu %xmm0, {offset}(%rbx)")
    sregs = vcpu.get_sregs()
    sregs.cr4 |= X.X86_CR4_OSFXSR
    vcpu.set_sregs(sregs)
    first = [("write", 4, BYTES)] if offset == 4 else [("write", LINE - 4, BYTES[:4]), ("write", LINE, BYTES[4:])]
    assert accesses(vcpu) == [*first, ("write", offset + 8, BYTES)]
