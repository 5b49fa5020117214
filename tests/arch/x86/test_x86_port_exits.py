# SPDX-License-Identifier: GPL-2.0-only
"""Port I/O as exits: string input in one exit, and registers that userspace writes while an access is half done."""

from __future__ import annotations

import pytest
from x86_guest_board import CODE, Board

from anykvm.api import Halt, PioIn, PioOut, Vcpu
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

INS = "cld; mov ${start}, %rdi; mov ${count}, %ecx; mov $0x80, %edx; rep ins{width}; mov %ecx, %eax; out %eax, $0xe9;"
ECHO = "mov %edi, %eax; out %eax, $0xe9; hlt"


def inputs(vcpu: Vcpu) -> list[int]:
    """Answer what is read from port 0x80 with 1, 2, 3...; how many items each exit asked for."""
    counts, number = [], 0
    while isinstance(exit := vcpu.run(), PioIn):
        assert exit.port == 0x80
        counts.append(exit.count)
        items = range(number + 1, number + 1 + exit.count)
        exit.reply(b"".join((item & 0xFF).to_bytes(exit.size, "little") for item in items))
        number += exit.count
    assert exit == PioOut(0xE9, 4, bytes(4))
    return counts


@pytest.mark.parametrize(
    ("start", "count", "width", "expected"),
    [
        (0x3000, 5, "b", [5]),
        (0x3000, 1024, "b", [1024]),
        (0x3000, 1025, "b", [1024, 1]),
        (0x3FF0, 40, "b", [16, 24]),
        (0x3000, 300, "l", [256, 44]),
        (0x3000, 3, "w", [3]),
    ],
)
def test_string_input_is_one_exit(board: Board, start: int, count: int, width: str, expected: list[int]) -> None:
    size = {"b": 1, "w": 2, "l": 4}[width]
    vcpu = board.long(INS.format(start=start, count=count, width=width) + ECHO)
    assert inputs(vcpu) == expected
    board.until(vcpu, Halt)
    assert board.seen == [start + count * size]
    assert list(board.memory.read(start, count * size)[::size]) == [(item + 1) & 0xFF for item in range(count)]


def test_without_rep_it_is_one_item(board: Board) -> None:
    vcpu = board.long(
        "cld; mov $0x3000, %rdi; mov $0x80, %edx; mov $7, %ecx; insb; xor %eax, %eax; out %eax, $0xe9; hlt"
    )
    assert inputs(vcpu) == [1]


def test_a_shorter_count_ends_it(board: Board) -> None:
    if not board.software:
        pytest.skip("this machine's kernel does not take the registers into account")
    vcpu = board.long(INS.format(start=0x3000, count=9, width="b") + ECHO)
    exit = vcpu.run()
    assert isinstance(exit, PioIn) and exit.count == 9
    exit.reply(b"abcdefghi")
    regs = vcpu.get_regs()
    regs.rcx = 2
    vcpu.set_regs(regs)
    assert vcpu.run() == PioOut(0xE9, 4, bytes(4))
    board.until(vcpu, Halt)
    assert board.seen == [0x3002]
    assert board.memory.read(0x3000, 4) == b"ab\0\0"


def everything(vcpu: Vcpu, regs: X.KvmRegs) -> None:
    """Write back what was read, in QEMU's order."""
    sregs = X.KvmSregs2()
    vcpu.ioctl(X.KVM_GET_SREGS2, sregs)
    events, debugregs, xcrs, xsave = vcpu.get_vcpu_events(), vcpu.get_debugregs(), vcpu.get_xcrs(), vcpu.get_xsave()
    msrs = vcpu.get_msrs([X.MSR_STAR, X.MSR_LSTAR, X.MSR_KERNEL_GS_BASE, X.MSR_IA32_CR_PAT, X.MSR_IA32_MISC_ENABLE])
    vcpu.ioctl(X.KVM_SET_SREGS2, sregs)
    vcpu.set_regs(regs)
    vcpu.set_xsave(xsave)
    vcpu.ioctl(X.KVM_SET_XCRS, xcrs)
    assert vcpu.set_msrs(msrs) == len(msrs)
    vcpu.set_vcpu_events(events)
    vcpu.set_debugregs(debugregs)


def test_a_state_written_back_in_the_middle_of_an_access(board: Board) -> None:
    """The access is done once, and the instruction behind it sees what userspace put into the registers."""
    vcpu = board.long(
        "mov $0x510, %dx; out %al, %dx; mov %ebx, %eax; out %eax, $0xe9;"
        "mov $0x511, %dx; in %dx, %al; add %ebx, %eax; out %eax, $0xe9; hlt"
    )
    assert isinstance(exit := vcpu.run(), PioOut) and exit.port == 0x510
    regs = vcpu.get_regs()
    regs.rbx = 0x1234
    everything(vcpu, regs)
    exit = vcpu.run()
    assert exit == PioOut(0xE9, 4, b"\x34\x12\0\0")
    everything(vcpu, vcpu.get_regs())
    exit = vcpu.run()
    assert isinstance(exit, PioIn) and exit.port == 0x511
    if not board.software:
        pytest.skip("this machine's kernel loses the answer when the registers are written")
    regs = vcpu.get_regs()
    regs.rax, regs.rbx = 0xAA00, 0x10000
    everything(vcpu, regs)
    exit.reply(0x77)
    board.until(vcpu, Halt)
    assert board.seen == [0x1AA77]


@pytest.mark.parametrize(("code", "length"), [("out %al, $0x7e", 2), ("mov $0x7e, %dx; out %ax, %dx", 2)])
def test_rip_is_behind_an_access_to_port_7e(board: Board, code: str, length: int) -> None:
    at = 0 if "dx" not in code else 4
    vcpu = board.long(f"{code}; mov $5, %al; out %al, $0xe9; hlt")
    assert isinstance(exit := vcpu.run(), PioOut) and exit.port == 0x7E
    regs = vcpu.get_regs()
    assert regs.rip == CODE + at + length
    everything(vcpu, regs)
    board.until(vcpu, Halt)
    assert board.seen == [5]


def test_that_quirk_can_be_disabled(board: Board) -> None:
    if not board.software:
        pytest.skip("this machine's kernel emulates the whole instruction first in any case")
    board.vm.enable_cap(C.KVM_CAP_DISABLE_QUIRKS2, X.KVM_X86_QUIRK_OUT_7E_INC_RIP)
    vcpu = board.long("out %al, $0x7e; mov $5, %al; out %al, $0xe9; hlt")
    assert isinstance(vcpu.run(), PioOut)
    assert vcpu.get_regs().rip == CODE
    board.until(vcpu, Halt)
    assert board.seen == [5]
