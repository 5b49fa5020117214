# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of Hyper-V's interface share: guests that have it, and how they use it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from x86_guest_board import Board

from anykvm.api import PioOut, Vcpu
from anykvm.api.x86 import CpuidEntry
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

ID = 0x8100_0000_0000_0001
PAGE = 0x30000
DONE = "mov $0x99, %dx; out %al, %dx;"
APIC_ON = "mov $0xfee000f0, %edi; movl $0x1ff, (%rdi);"
FAULT = ".code64\nmov $0xd, %al; out %al, $0xe9; mov $0x99, %dx; out %al, %dx"


def only_here(board: Board) -> Board:
    """Hyper-V's guests run on the software backend: a machine's KVM may lack it, or serve VMCALL by itself."""
    if not board.kvm.check_extension(C.KVM_CAP_HYPERV_CPUID) or not board.software:
        pytest.skip("this KVM has no Hyper-V interface, or serves VMCALL by itself")
    return board


def leaves(board: Board) -> list[CpuidEntry]:
    """The CPUID of a guest with Hyper-V's leaves: KVM's signature moves on."""
    kvm = board.kvm.get_supported_cpuid()
    moved = [replace(entry, function=entry.function + 0x100 * (entry.function >> 28 == 4)) for entry in kvm]
    return [*moved, *board.kvm.get_supported_hv_cpuid()]


def hyperv(board: Board, source: str, without: Iterable[int] = ()) -> Vcpu:
    """A vCPU in long mode with Hyper-V's leaves, but these."""
    vcpu = board.long(source)
    vcpu.set_cpuid2([entry for entry in leaves(board) if entry.function not in without])
    return vcpu


def wrmsr(index: int, value: int) -> str:
    return f"mov ${index}, %ecx; mov ${value & 0xFFFFFFFF}, %eax; mov ${value >> 32}, %edx; wrmsr;"


def rdmsr(index: int) -> str:
    return f"mov ${index}, %ecx; rdmsr; out %eax, $0xe9;"


def call(control: int, first: int = 0, second: int = 0) -> str:
    """Make a hypercall, and write its status to the port."""
    operands = f"mov ${first}, %rdx; mov ${second}, %r8;"
    return f"movabs ${control}, %rcx; {operands} mov ${PAGE}, %ebx; call *%rbx; out %eax, $0xe9;"


OPEN = wrmsr(X.HV_X64_MSR_GUEST_OS_ID, ID) + wrmsr(X.HV_X64_MSR_HYPERCALL, PAGE | 1)


def finish(board: Board, vcpu: Vcpu) -> list[int]:
    """Run to the end that :data:`DONE` is; what was written to the port."""
    for _ in range(200):
        exit = vcpu.run()
        assert isinstance(exit, PioOut), exit
        if exit.port == 0x99:
            return board.seen
        board.seen.append(int.from_bytes(exit.data, "little"))
    raise AssertionError(f"the guest does not end: {board.seen[-10:]}")
