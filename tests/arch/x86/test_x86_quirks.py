# SPDX-License-Identifier: GPL-2.0-only
"""The MSR filter over the engine's own registers, quirks, and time as the host has it, by guests."""

from __future__ import annotations

import pytest
from x86_guest_board import CODE, Board

from anykvm.api import ArchExit, Halt, PioOut, Vcpu
from anykvm.api.x86_vm import MsrRange
from anykvm.engine import host_has_tsc, host_tick_khz, host_ticks
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

VMCALL, VMMCALL = b"\x0f\x01\xc1", b"\x0f\x01\xd9"


@pytest.fixture
def board(board: Board) -> Board:
    if not board.software:
        pytest.skip("the kernel's emulator, which runs these guests here, knows no such instructions")
    return board


def vector_of(board: Board, vector: int) -> None:
    """Let an exception's handler write its number and end the guest."""
    board.load(f".code64\nmov ${vector}, %al; out %al, $0xe9; hlt", 0x2000)
    board.gate(vector, 0x2000)


@pytest.mark.parametrize(
    ("index", "value"),
    [
        *((X.MSR_LSTAR, 0x1234), (X.MSR_STAR, 0x5678), (X.MSR_KERNEL_GS_BASE, 0x9ABC), (X.MSR_TSC_AUX, 7)),
        *((X.MSR_IA32_SYSENTER_EIP, 0x1111), (X.MSR_SYSCALL_MASK, 0x200), (X.MSR_FS_BASE, 0x4444)),
    ],
)
def test_what_a_filter_lets_through_is_as_ever(board: Board, index: int, value: int) -> None:
    board.vm.set_msr_filter([MsrRange(X.KVM_MSR_FILTER_READ | X.KVM_MSR_FILTER_WRITE, 0x999, [False])])
    vcpu = board.long(
        f"mov ${index}, %ecx; mov ${value}, %eax; xor %edx, %edx; wrmsr; xor %eax, %eax; rdmsr; out %eax, $0xe9; hlt"
    )
    board.until(vcpu, Halt)
    assert board.seen == [value]
    assert vcpu.get_msrs([index]) == {index: value}


@pytest.mark.parametrize("index", [X.MSR_LSTAR, X.MSR_EFER, X.MSR_GS_BASE, X.MSR_IA32_CR_PAT, X.MSR_IA32_SYSENTER_CS])
def test_a_filter_sees_the_engines_registers(board: Board, index: int) -> None:
    vector_of(board, X.GP_VECTOR)
    vcpu = board.long(f"mov ${index}, %ecx; rdmsr; out %al, $0x80; rdmsr; out %al, $0x80; hlt")
    assert vcpu.run().port == 0x80  # type: ignore[union-attr]
    board.vm.set_msr_filter([MsrRange(X.KVM_MSR_FILTER_READ, index, [False])])
    board.until(vcpu, Halt)
    assert board.seen == [X.GP_VECTOR]


def test_userspace_answers_for_them(board: Board) -> None:
    board.vm.enable_cap(C.KVM_CAP_X86_USER_SPACE_MSR, X.KVM_MSR_EXIT_REASON_FILTER)
    board.vm.set_msr_filter([MsrRange(X.KVM_MSR_FILTER_WRITE, X.MSR_LSTAR, [False])])
    vcpu = board.long(f"mov ${X.MSR_LSTAR}, %ecx; mov $0x42, %eax; xor %edx, %edx; wrmsr; rdmsr; out %eax, $0xe9; hlt")
    exit = vcpu.run()
    assert isinstance(exit, ArchExit) and exit.reason == C.KVM_EXIT_X86_WRMSR
    board.until(vcpu, Halt)
    assert board.seen == [0]


def monitor(board: Board) -> Vcpu:
    vector_of(board, X.UD_VECTOR)
    return board.long(
        "lea (%rip), %rax; xor %ecx, %ecx; xor %edx, %edx; monitor; mwait; mov $1, %al; out %al, $0xe9; hlt"
    )


def test_monitor_and_mwait_do_nothing(board: Board) -> None:
    board.until(monitor(board), Halt)
    assert board.seen == [1]


def test_without_that_quirk_they_are_undefined(board: Board) -> None:
    board.vm.enable_cap(C.KVM_CAP_DISABLE_QUIRKS2, X.KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS)
    board.until(monitor(board), Halt)
    assert board.seen == [X.UD_VECTOR]


def test_cpuid_follows_the_bit_for_them(board: Board) -> None:
    quirks = X.KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS | X.KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT
    board.vm.enable_cap(C.KVM_CAP_DISABLE_QUIRKS2, quirks)
    vcpu = monitor(board)
    assert vcpu.set_msrs({X.MSR_IA32_MISC_ENABLE: 1 | X.MSR_IA32_MISC_ENABLE_MWAIT}) == 1
    leaf = next(entry for entry in vcpu.get_cpuid2() if entry.function == 1)
    assert leaf.ecx & X.CPUID_1_ECX_MWAIT
    board.until(vcpu, Halt)
    assert board.seen == [1]


def test_the_other_vendors_hypercall_is_replaced(board: Board) -> None:
    vcpu = board.long("mov $11, %eax; call: vmmcall; out %eax, $0xe9; hlt")
    board.until(vcpu, Halt)
    assert board.memory.read(CODE + 5, 3) == VMCALL


def test_without_that_quirk_it_is_undefined(board: Board) -> None:
    board.vm.enable_cap(C.KVM_CAP_DISABLE_QUIRKS2, X.KVM_X86_QUIRK_FIX_HYPERCALL_INSN)
    vector_of(board, X.UD_VECTOR)
    vcpu = board.long("mov $11, %eax; vmmcall; hlt")
    board.until(vcpu, Halt)
    assert board.seen == [X.UD_VECTOR]
    assert board.memory.read(CODE + 5, 3) == VMMCALL
    assert board.memory.read(0x8000 - 40, 8) == (CODE + 5).to_bytes(8, "little")


def test_it_is_undefined_before_anything_after_it(board: Board) -> None:
    """The handler goes on behind the instruction, and not from wherever the guest was by then."""
    board.vm.enable_cap(C.KVM_CAP_DISABLE_QUIRKS2, X.KVM_X86_QUIRK_FIX_HYPERCALL_INSN)
    board.load(".code64\naddq $3, (%rsp); mov $0x66, %ebx; iretq", 0x2000)
    board.gate(X.UD_VECTOR, 0x2000)
    vcpu = board.long("mov $11, %eax; vmmcall; mov %bl, %al; out %al, $0xe9; hlt")
    board.until(vcpu, Halt)
    assert board.seen == [0x66]


def test_the_tsc_is_the_hosts_and_an_offset(board: Board) -> None:
    if not host_has_tsc():
        pytest.skip("this host's time-stamp counter is no clock")
    vcpu = board.long("rdtsc; shl $32, %rdx; or %rdx, %rax; mov %rax, 0x3000; out %al, $0xe9; hlt")
    assert vcpu.get_tsc_khz() == host_tick_khz()
    vcpu.set_attr(X.KVM_VCPU_TSC_CTRL, X.KVM_VCPU_TSC_OFFSET, (1 << 40).to_bytes(8, "little"))
    before = host_ticks()
    assert isinstance(vcpu.run(), PioOut)
    seen = int.from_bytes(board.memory.read(0x3000, 8), "little")
    assert before <= seen - (1 << 40) <= host_ticks()
    clock = board.vm.get_clock()
    assert clock.flags & X.KVM_CLOCK_HOST_TSC and before < clock.host_tsc <= host_ticks()


def test_registers_of_the_run_page_with_immediate_exit(board: Board) -> None:
    vcpu = board.real("in $0x60, %al; 1: jmp 1b")
    page = vcpu.run_page
    page.kvm_valid_regs = X.KVM_SYNC_X86_REGS
    vcpu.run().reply(0x77)  # type: ignore[union-attr]
    vcpu.immediate_exit = True
    vcpu.run()
    assert X.KvmSyncRegs.from_buffer(page.s).regs.rax & 0xFF == 0x77
