# SPDX-License-Identifier: GPL-2.0-only
"""x2APIC mode and the TSC deadline, by guests, on both backends."""

from __future__ import annotations

from dataclasses import replace

import pytest
from x86_guest_board import Board

from anykvm.api import PioOut, Shutdown, Vcpu
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

ENABLE = "mov $0x1b, %ecx; rdmsr; or $0x400, %eax; wrmsr; mov $0x80f, %ecx; xor %edx, %edx; mov $0x1ff, %eax; wrmsr;"
READ = "rdmsr; out %eax, $0xe9;"
PUSH, POP = "push %rax; push %rcx; push %rdx;", "pop %rdx; pop %rcx; pop %rax;"
HANDLER = (
    f".code64\n{PUSH} movb $1, 0x3000; mov $0x41, %al; out %al, $0xe9;"
    f"xor %eax, %eax; xor %edx, %edx; mov $0x80b, %ecx; wrmsr; {POP} iretq"
)
WAIT = "mov $1000, %r8d; 1: dec %r8d; jnz 1b;"
STOP = "mov $0x99, %dx; out %al, %dx"
VECTOR = 0x41


def prepared(board: Board, code: str) -> Vcpu:
    board.vm.create_irqchip()
    board.load(HANDLER, 0x2000)
    board.gate(VECTOR, 0x2000)
    return board.long(ENABLE + code + STOP)


def finish(board: Board, vcpu: Vcpu) -> list[int]:
    while not isinstance(exit := vcpu.run(), PioOut) or exit.port != 0x99:
        assert isinstance(exit, PioOut), exit
        board.seen.append(int.from_bytes(exit.data, "little"))
    return board.seen


def test_registers_are_msrs(board: Board) -> None:
    vcpu = prepared(
        board,
        f"mov $0x802, %ecx; {READ} mov $0x80d, %ecx; {READ} mov $0x803, %ecx; {READ}"
        f"mov $0x808, %ecx; mov $0x20, %eax; wrmsr; {READ} mov $0x80f, %ecx; {READ}",
    )
    identity, logical, version, priority, spurious = finish(board, vcpu)
    assert (identity, logical, version & 0xFF, priority, spurious) == (0, 1, 0x14, 0x20, 0x1FF)
    assert vcpu.get_sregs().apic_base & 0xC00 == 0xC00


@pytest.mark.parametrize(
    "code",
    [
        "mov $0x802, %ecx; xor %edx, %edx; wrmsr;",
        "mov $0x80e, %ecx; rdmsr;",
        "mov $0x831, %ecx; rdmsr;",
        "mov $0x808, %ecx; mov $1, %edx; wrmsr;",
        "mov $0x83f, %ecx; rdmsr;",
        "mov $0x83f, %ecx; xor %edx, %edx; mov $0x141, %eax; wrmsr;",
    ],
    ids=["id-write", "dfr-read", "icr2-read", "upper-half", "self-ipi-read", "self-ipi-bits"],
)
def test_what_faults(board: Board, code: str) -> None:
    vcpu = prepared(board, code)
    assert isinstance(vcpu.run(), Shutdown)


def test_an_ipi_to_itself(board: Board) -> None:
    vcpu = prepared(
        board,
        f"sti; mov $0x83f, %ecx; xor %edx, %edx; mov ${VECTOR}, %eax; wrmsr; {WAIT}"
        f"mov $0x830, %ecx; xor %edx, %edx; mov $0x{0x4000 + VECTOR:x}, %eax; wrmsr; {WAIT} cli;",
    )
    assert finish(board, vcpu) == [0x41, 0x41]
    state = vcpu.get_lapic()
    icr = int.from_bytes(bytes(state)[0x300:0x304], "little")
    assert icr == 0x4041


def test_the_deadline(board: Board) -> None:
    vcpu = prepared(
        board,
        f"mov $0x832, %ecx; xor %edx, %edx; mov $0x{0x40000 + VECTOR:x}, %eax; wrmsr;"
        "rdtsc; add $2000000, %eax; adc $0, %edx; mov $0x6e0, %ecx; wrmsr; sti; 1: cmpb $0, 0x3000; jne 2f; pause;"
        "rdmsr; or %edx, %eax; jnz 1b; 2: nop; cli; rdmsr; out %eax, $0xe9;",
    )
    assert finish(board, vcpu) == [0x41, 0]


def test_a_deadline_in_another_mode_is_ignored(board: Board) -> None:
    vcpu = prepared(board, f"mov $0x6e0, %ecx; mov $5, %eax; mov $5, %edx; wrmsr; {READ}")
    assert finish(board, vcpu) == [0]


def test_leaving_it_needs_a_stop_in_between(board: Board) -> None:
    vcpu = prepared(board, "mov $0x1b, %ecx; rdmsr; and $~0x400, %eax; wrmsr;")
    assert isinstance(vcpu.run(), Shutdown)


def test_without_it_in_cpuid_there_is_no_mode(board: Board) -> None:
    board.vm.create_irqchip()
    vcpu = board.vcpu()
    without = []
    for entry in vcpu.get_cpuid2():
        without.append(replace(entry, ecx=entry.ecx & ~X.CPUID_1_ECX_X2APIC) if entry.function == 1 else entry)
    vcpu.set_cpuid2(without)
    base = vcpu.get_msrs([X.MSR_IA32_APICBASE])[X.MSR_IA32_APICBASE]
    assert vcpu.set_msrs({X.MSR_IA32_APICBASE: base | 0x400}) == 0


def test_the_state_keeps_id_and_form(board: Board) -> None:
    board.vm.create_irqchip()
    board.vcpu()
    vcpu = board.vcpu()
    base = vcpu.get_msrs([X.MSR_IA32_APICBASE])[X.MSR_IA32_APICBASE]
    assert vcpu.set_msrs({X.MSR_IA32_APICBASE: base | 0x400}) == 1
    assert bytes(vcpu.get_lapic())[0x20:0x24] == b"\0\0\0\1"
    board.vm.enable_cap(C.KVM_CAP_X2APIC_API, X.KVM_X2APIC_API_USE_32BIT_IDS)
    state = vcpu.get_lapic()
    assert bytes(state)[0x20:0x24] == b"\1\0\0\0"
    assert bytes(state)[0xD0:0xD4] == b"\2\0\0\0"
    vcpu.set_lapic(state)
    changed = bytearray(bytes(state))
    changed[0x20] = 5
    with pytest.raises(OSError, match="Errno 22"):
        vcpu.set_lapic(X.KvmLapicState.from_buffer(changed))


def test_unknown_flags_of_its_capability(board: Board) -> None:
    with pytest.raises(OSError, match="Errno 22"):
        board.vm.enable_cap(C.KVM_CAP_X2APIC_API, 1 << 10)
