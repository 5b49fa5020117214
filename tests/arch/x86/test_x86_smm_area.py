# SPDX-License-Identifier: GPL-2.0-only
"""System management mode: the save area, states that cannot be, and the memory of the second address space."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest
from x86_guest_board import CODE
from x86_smm_board import CALL, MARK, RSM, SMBASE, SMRAM_SLOT, SmmBoard

from anykvm.api import Halt, InternalError, Shutdown, dirty_pages
from anykvm.api.x86 import CpuidEntry
from anykvm.guests.tools import Toolchain
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

LM = 0x80000001


@pytest.fixture
def board(tools: Toolchain) -> Iterator[SmmBoard]:
    one = SmmBoard(tools)
    yield one
    one.close()


def test_the_save_area_of_amd64(board: SmmBoard) -> None:
    board.handler(f"{MARK} {RSM}")
    vcpu = board.long(f"mov $0x1111, %eax; mov $0x2222, %r8d; mov $0x3333, %edi; {CALL} hlt")
    sregs = vcpu.get_sregs()
    board.until_end(vcpu, Halt)
    area = board.area()
    word = lambda offset, size=8: int.from_bytes(area[offset : offset + size], "little")  # noqa: E731
    assert word(0x178) == vcpu.get_regs().rip - 1  # behind the OUT
    assert word(0x170) == 2
    assert [word(offset) for offset in (0x158, 0x150, 0x148, 0xD0)] == [sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer]
    assert [word(offset) for offset in (0x1F8, 0x1B8, 0x1C0)] == [0x1111, 0x2222, 0x3333]
    assert (word(0xFC, 4), word(0x100, 4)) == (0x20064, SMBASE)
    # CS: a selector, attributes, a limit and a base.
    assert struct.unpack_from("<HHIQ", area, 0x10) == (8, 0xA09B, 0xFFFFFFFF, 0)
    assert struct.unpack_from("<IQ", area, 0x64) == (23, 0x14000)
    assert word(0x168) == 0xFFFF0FF0 and word(0x160) == 0x400


def without_long_mode(entries: list[CpuidEntry]) -> list[CpuidEntry]:
    return [
        replace(entry, edx=entry.edx & ~X.CPUID_80000001_EDX_LM) if entry.function == LM else entry for entry in entries
    ]


def test_the_save_area_without_long_mode(board: SmmBoard) -> None:
    """A guest whose CPUID has no long mode has the older format."""
    board.handler(f"mov $0x66, %eax; {MARK} {RSM}")
    board.load(f".code16\nmov $0x12345678, %eax; mov $0x9abc, %esi; {CALL} {MARK} hlt")
    vcpu = board.vm.create_vcpu(0)
    board.vcpus.append(vcpu)
    vcpu.set_cpuid2(without_long_mode(board.kvm.get_supported_cpuid()))
    sregs = vcpu.get_sregs()
    sregs.cs.base, sregs.cs.selector = 0, 0
    sregs.fs.selector, sregs.fs.base = 0x77, 0x770
    vcpu.set_sregs(sregs)
    vcpu.set_regs(X.KvmRegs(rip=CODE, rsp=0x8000, rflags=2))
    board.until_end(vcpu, Halt)
    assert board.seen == [0x78, 0x66, 0x78]
    area = board.area()
    word = lambda offset: int.from_bytes(area[offset : offset + 4], "little")  # noqa: E731
    assert (word(0xFC), word(0xF8)) == (0x20000, SMBASE)
    assert (word(0x1FC), word(0x1D0), word(0x1E8)) == (sregs.cr0, 0x12345678, 0x9ABC)
    assert (word(0x1B8), word(0x138 + 8), word(0x1AC)) == (0x77, 0x770, 0)
    assert vcpu.get_sregs().fs.base == 0x770 and vcpu.get_regs().rsi == 0x9ABC


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (0x158, struct.pack("<Q", 0x80000000)),  # CR0: paging without protection
        (0x158, struct.pack("<Q", 1 << 32)),
        (0x148, struct.pack("<Q", 1 << 31)),  # CR4
        (0x0D0, struct.pack("<Q", 1 << 1)),  # EFER
        (0x160, struct.pack("<Q", 1 << 32)),  # DR7
    ],
)
def test_a_state_that_cannot_be_is_a_shutdown(board: SmmBoard, offset: int, data: bytes) -> None:
    board.handler(f"{MARK} {RSM}")
    vcpu = board.real(f"{CALL} hlt")
    vcpu.run()
    vcpu.smi()
    vcpu.run()
    board.patch(offset, data)
    assert isinstance(vcpu.run(), Shutdown)


def test_no_memory_for_the_state_is_a_shutdown(board: SmmBoard) -> None:
    board.handler(RSM, 0x50000)  # its area would be at 0x5fe00; the slot ends there
    board.vm.set_user_memory_region(SMRAM_SLOT, 0, None)
    board.vm.set_user_memory_region(SMRAM_SLOT, 0x20000, board.smram, size=0x3E000)
    vcpu = board.real(f"{CALL} hlt")
    vcpu.set_msrs({X.MSR_IA32_SMBASE: 0x4F000})
    board.smram.write(0x4F000 + 0x8000 - 0x20000, b"\x0f\xaa")
    board.until_end(vcpu, Shutdown)


def test_no_memory_at_all_is_seen_as_elsewhere(board: SmmBoard) -> None:
    """Address space 0 is not looked at: no code is where the handler should be."""
    board.vm.set_user_memory_region(SMRAM_SLOT, 0, None)
    board.memory.write(SMBASE + 0x8000, b"\x0f\xaa")
    board.until_end(board.real(f"{CALL} hlt"), InternalError)


def test_slots_of_both_address_spaces(board: SmmBoard) -> None:
    """They have their own numbers, may be at the same addresses, and log what is written through them."""
    log = C.KVM_MEM_LOG_DIRTY_PAGES
    with pytest.raises(FileExistsError):
        board.vm.set_user_memory_region(1 << 16 | 7, 0x30000, board.memory, size=0x1000)
    with pytest.raises(OSError, match="address space 2"):
        board.vm.set_user_memory_region(2 << 16, 0, board.memory)
    board.vm.set_user_memory_region(1 << 16 | 8, 0, board.memory, size=0x20000, flags=log)
    board.vm.set_user_memory_region(0, 0, board.memory, flags=log)
    board.handler(f"movb $7, %ds:0x5000; mov %ds:0x6000, %al; {MARK} {RSM}")
    vcpu = board.real(f"movb $8, 0x6000; mov $1, %al; {CALL} mov 0x5000, %al; {MARK} hlt")
    board.until_end(vcpu, Halt)
    assert board.seen == [1, 8, 7]
    assert list(dirty_pages(board.vm.get_dirty_log(1 << 16 | 8))) == [5]
    seen = list(dirty_pages(board.vm.get_dirty_log(0)))
    assert 6 in seen and 5 not in seen


def test_code_written_through_the_other_address_space(board: SmmBoard) -> None:
    """Firmware writes a handler where both see it, and writes it anew: what runs is what is there."""
    board.vm.set_user_memory_region(SMRAM_SLOT, 0, None)
    board.vm.set_user_memory_region(1 << 16 | 2, 0, board.memory)
    for value in (0x31, 0x32, 0x33):
        code = board.tools.assemble(f".code16\nmov ${value}, %al; {MARK} {RSM}\n", base=0x8000)
        board.memory.write(0x3000 + 16 * (value - 0x31), code.ljust(16, b"\x90"))
    copy = "mov $0x3000, %si; 1: mov $0x3800, %ax; mov %ax, %es; xor %di, %di; mov $16, %cx; rep movsb;"
    vcpu = board.real(f"cld; {copy} {CALL} cmp $0x3030, %si; jne 1b; hlt")
    board.until_end(vcpu, Halt)
    assert [value for value, inside in zip(board.seen, board.inside, strict=True) if inside] == [0x31, 0x32, 0x33]


def test_a_vcpu_goes_on_in_another_vm(board: SmmBoard, tools: Toolchain) -> None:
    """Saved and restored in the middle of a handler."""
    board.handler(f"mov $1, %al; {MARK} mov $2, %al; {MARK} {RSM}")
    program = f"{CALL} mov $3, %al; {MARK} hlt"
    first = board.real(program)
    first.run()
    first.smi()
    first.run()
    first.immediate_exit = True
    with pytest.raises(InterruptedError):
        first.ioctl(C.KVM_RUN)
    other = SmmBoard(tools)
    try:
        other.memory.write(0, board.memory.read(0, 1 << 20))
        other.smram.write(0, board.smram.read(0, 0x40000))
        second = other.vcpu()
        second.set_sregs(first.get_sregs())
        second.set_regs(first.get_regs())
        second.set_vcpu_events(first.get_vcpu_events())
        second.set_msrs(first.get_msrs([X.MSR_IA32_SMBASE]))
        other.until_end(second, Halt)
        assert other.seen == [2, 3] and other.inside == [True, False]
    finally:
        other.close()
