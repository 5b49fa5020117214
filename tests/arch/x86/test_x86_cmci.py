# SPDX-License-Identifier: GPL-2.0-only
"""Machine-check errors that need no action, and the interrupt that tells of them (CMCI)."""

from __future__ import annotations

import ctypes

import pytest
from x86_guest_board import Board

from anykvm.api import PioOut, Vcpu
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

UCNA = 1 << 63 | 1 << 61 | 1 << 60 | 1 << 58 | 0x10090
ENABLE = 1 << 30
CMCI_P = 1 << 10
SVR, LVT = "movl $0x1ff, 0xf0(%rdi);", "movl $0x41, 0x2f0(%rdi);"


@pytest.fixture
def board(board: Board) -> Board:
    cap = ctypes.c_uint64()
    board.kvm.ioctl(X.KVM_X86_GET_MCE_CAP_SUPPORTED, ctypes.addressof(cap))
    if not cap.value & CMCI_P:
        pytest.skip("this KVM has no CMCI")
    board.vm.create_irqchip()
    return board


def prepared(board: Board, cap: int) -> Vcpu:
    board.load(".code64\npush %rax; mov $0x41, %al; out %al, $0xe9; pop %rax; iretq", 0x2000)
    board.gate(0x41, 0x2000)
    vcpu = board.long(
        f"mov $0xfee00000, %edi; {SVR} {LVT} sti; out %al, $0x80; mov $100, %ecx; 1: loop 1b; cli;"
        "mov 0x2f0(%rdi), %eax; out %eax, $0x99"
    )
    vcpu.setup_mce(cap)
    return vcpu


def run(board: Board, vcpu: Vcpu, bank: int = 2) -> int:
    """Inject an error where the guest waits for it; LVTCMCI in the end."""
    assert vcpu.run() == PioOut(0x80, 1, b"\0")
    vcpu.ioctl(X.KVM_X86_SET_MCE, X.KvmX86Mce(status=UCNA, addr=0x1234, misc=0x8C, bank=bank))
    while not isinstance(exit := vcpu.run(), PioOut) or exit.port != 0x99:
        assert isinstance(exit, PioOut)
        board.seen.append(exit.data[0])
    return int.from_bytes(exit.data, "little")


def test_an_error_that_needs_no_action_is_signalled(board: Board) -> None:
    vcpu = prepared(board, CMCI_P | 10)
    assert vcpu.set_msrs({X.MSR_IA32_MC0_CTL2 + 2: ENABLE | 1}) == 1
    assert run(board, vcpu) == 0x41
    assert board.seen == [0x41]
    status, address = X.MSR_IA32_MC0_CTL + 9, X.MSR_IA32_MC0_CTL + 10
    assert vcpu.get_msrs([status, address]) == {status: UCNA, address: 0x1234}


def test_a_bank_that_does_not_want_it_stays_quiet(board: Board) -> None:
    vcpu = prepared(board, CMCI_P | 10)
    assert vcpu.set_msrs({X.MSR_IA32_MC0_CTL2 + 3: ENABLE}) == 1
    run(board, vcpu)
    assert board.seen == []


def test_without_the_capability_there_is_none_of_it(board: Board) -> None:
    vcpu = prepared(board, 10)
    assert vcpu.set_msrs({X.MSR_IA32_MC0_CTL2: ENABLE}) == 0
    assert vcpu.set_msrs({X.MSR_IA32_MC0_CTL2: 0}) == 1
    assert run(board, vcpu) == 0
    assert board.seen == []
    assert int.from_bytes(bytes(vcpu.get_lapic())[0x30:0x34], "little") >> 16 == 5


def test_the_bits_it_takes(board: Board) -> None:
    vcpu = prepared(board, CMCI_P | 10)
    assert vcpu.set_msrs({X.MSR_IA32_MC0_CTL2: 1 << 31}) == 0
    assert vcpu.set_msrs({X.MSR_IA32_MC0_CTL2 + 10: 0}) == 0
    assert board.kvm.check_extension(C.KVM_CAP_MCE) == 32
