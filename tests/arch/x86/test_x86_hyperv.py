# SPDX-License-Identifier: GPL-2.0-only
"""Hyper-V's interface: what CPUID offers, the MSRs, the hypercall page and the reference page, by guests."""

from __future__ import annotations

import errno
import struct
import time

import pytest
from x86_fake import Rig, errno_of
from x86_guest_board import Board
from x86_hyperv_rig import ID, OPEN, PAGE, hyperv, only_here, wrmsr

from anykvm.api import Halt
from anykvm.api.x86 import CpuidEntry
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

GP = "mov $0xd, %al; out %al, $0xe9; hlt"


@pytest.fixture
def board(board: Board) -> Board:
    return only_here(board)


def test_what_cpuid_offers(board: Board) -> None:
    leaves = {entry.function: entry for entry in board.kvm.get_supported_hv_cpuid()}
    head = leaves[X.HYPERV_CPUID_VENDOR_AND_MAX_FUNCTIONS]
    assert head.eax == max(leaves)
    assert struct.pack("<3I", head.ebx, head.ecx, head.edx) == b"Linux KVM Hv"
    assert leaves[X.HYPERV_CPUID_INTERFACE].eax == int.from_bytes(b"Hv#1", "little")
    features = leaves[X.HYPERV_CPUID_FEATURES].eax
    assert features & X.HV_MSR_HYPERCALL_AVAILABLE and features & X.HV_MSR_REFERENCE_TSC_AVAILABLE


def test_room_for_the_leaves(rig: Rig) -> None:
    for fd in (rig.system, rig.create_vcpu()):
        room = X.KvmCpuid2(nent=1)
        assert errno_of(rig.ioctl, fd, X.KVM_GET_SUPPORTED_HV_CPUID, room) == errno.E2BIG


def test_a_guest_without_the_leaves_has_none_of_it(board: Board) -> None:
    board.load(f".code64\n{GP}", 0x2000)
    board.gate(X.GP_VECTOR, 0x2000)
    vcpu = board.long(f"mov ${X.HV_X64_MSR_TIME_REF_COUNT}, %ecx; rdmsr; hlt")
    board.until(vcpu, Halt)
    assert board.seen == [0xD]
    # Userspace saves and restores them all the same.
    assert vcpu.set_msrs({X.HV_X64_MSR_GUEST_OS_ID: ID}) == 1
    assert vcpu.get_msrs([X.HV_X64_MSR_GUEST_OS_ID]) == {X.HV_X64_MSR_GUEST_OS_ID: ID}


@pytest.mark.parametrize(
    ("control", "status"),
    [
        (X.HVCALL_NOTIFY_LONG_SPIN_WAIT | 1 << 16, X.HV_STATUS_SUCCESS),
        (X.HVCALL_NOTIFY_LONG_SPIN_WAIT | 1 << 32, X.HV_STATUS_INVALID_HYPERCALL_INPUT),
        (X.HVCALL_NOTIFY_LONG_SPIN_WAIT | 1 << 48, X.HV_STATUS_INVALID_HYPERCALL_INPUT),
        (X.HVCALL_NOTIFY_LONG_SPIN_WAIT | 1 << 17, X.HV_STATUS_INVALID_HYPERCALL_INPUT),
        (0x3FFF, X.HV_STATUS_INVALID_HYPERCALL_CODE),
    ],
)
def test_the_hypercall_page(board: Board, control: int, status: int) -> None:
    call = f"movabs ${control}, %rcx; mov ${PAGE}, %ebx; call *%rbx; out %eax, $0xe9; hlt"
    board.until(hyperv(board, OPEN + call), Halt)
    assert board.seen == [status]
    # The vendor's instruction, and back.
    assert board.memory.read(PAGE, 4) in (b"\x0f\x01\xc1\xc3", b"\x0f\x01\xd9\xc3")


def test_the_page_is_there_only_for_who_said_what_it_is(board: Board) -> None:
    read = f"mov ${X.HV_X64_MSR_HYPERCALL}, %ecx; rdmsr; out %eax, $0xe9;"
    early, forget = wrmsr(X.HV_X64_MSR_HYPERCALL, PAGE | 1), wrmsr(X.HV_X64_MSR_GUEST_OS_ID, 0)
    board.until(hyperv(board, early + read + OPEN + read + forget + read + "hlt"), Halt)
    assert board.seen == [0, PAGE | 1, PAGE]


def test_a_page_where_no_memory_is(board: Board) -> None:
    board.load(f".code64\n{GP}", 0x2000)
    board.gate(X.GP_VECTOR, 0x2000)
    code = wrmsr(X.HV_X64_MSR_GUEST_OS_ID, ID) + wrmsr(X.HV_X64_MSR_HYPERCALL, 0x7000_0001)
    board.until(hyperv(board, code + "hlt"), Halt)
    assert board.seen == [0xD]


def test_before_that_hypercalls_are_kvms(board: Board) -> None:
    board.until(hyperv(board, f"mov ${X.KVM_HC_VAPIC_POLL_IRQ}, %eax; vmcall; out %eax, $0xe9; hlt"), Halt)
    assert board.seen == [0]


def test_the_reference_page(board: Board) -> None:
    read = f"mov ${X.HV_X64_MSR_TIME_REF_COUNT}, %ecx; rdmsr; out %eax, $0xe9; mov %edx, %eax; out %eax, $0xe9;"
    page = (
        f"mov ${PAGE}, %esi; rdtsc; shl $32, %rdx; or %rdx, %rax; mulq 8(%rsi); add 16(%rsi), %rdx;"
        "mov %edx, %eax; out %eax, $0xe9; shr $32, %rdx; mov %edx, %eax; out %eax, $0xe9;"
    )
    vcpu = hyperv(board, wrmsr(X.HV_X64_MSR_REFERENCE_TSC, PAGE | 1) + read + page + read + page + "hlt")
    board.until(vcpu, Halt)
    times = [low | high << 32 for low, high in zip(board.seen[::2], board.seen[1::2], strict=True)]
    # The register and the page are one clock of 100 ns.
    assert times == sorted(times) and times[-1] - times[0] < 10_000_000
    sequence, reserved, scale, _ = struct.unpack("<IIQq", board.memory.read(PAGE, 24))
    khz = vcpu.get_msrs([X.HV_X64_MSR_TSC_FREQUENCY])[X.HV_X64_MSR_TSC_FREQUENCY] // 1000
    assert sequence and not reserved and scale == (10_000 << 64) // khz


def test_a_clock_that_moves_is_written_anew(board: Board) -> None:
    vcpu = hyperv(board, wrmsr(X.HV_X64_MSR_REFERENCE_TSC, PAGE | 1) + "hlt; hlt")
    board.until(vcpu, Halt)
    first = struct.unpack("<IIQq", board.memory.read(PAGE, 24))
    board.vm.ioctl(X.KVM_SET_CLOCK, X.KvmClockData(clock=10**12))
    board.until(vcpu, Halt)
    second = struct.unpack("<IIQq", board.memory.read(PAGE, 24))
    assert second[0] == first[0] + 1 and second[2] == first[2]
    moved = (second[3] - first[3]) / 10**7
    assert 990 < moved < 1001


def test_a_guest_that_will_be_told_keeps_its_page(board: Board) -> None:
    emulate = wrmsr(X.HV_X64_MSR_TSC_EMULATION_CONTROL, 1)
    vcpu = hyperv(board, wrmsr(X.HV_X64_MSR_REFERENCE_TSC, PAGE | 1) + emulate + "hlt; hlt")
    board.until(vcpu, Halt)
    first = board.memory.read(PAGE, 24)
    board.vm.ioctl(X.KVM_SET_CLOCK, X.KvmClockData(clock=10**12))
    board.until(vcpu, Halt)
    assert board.memory.read(PAGE, 24) == first


def test_indices_and_the_time_a_vcpu_ran(board: Board) -> None:
    vcpu = hyperv(board, f"mov ${X.HV_X64_MSR_VP_INDEX}, %ecx; rdmsr; out %eax, $0xe9; hlt")
    assert vcpu.set_msrs({X.HV_X64_MSR_VP_INDEX: 1024}) == 0
    assert vcpu.set_msrs({X.HV_X64_MSR_VP_INDEX: 77}) == 1
    board.until(vcpu, Halt)
    assert board.seen == [77]
    assert vcpu.set_msrs({X.HV_X64_MSR_VP_RUNTIME: 10**12}) == 1
    end = time.thread_time() + 0.01
    while time.thread_time() < end:
        pass
    ran = vcpu.get_msrs([X.HV_X64_MSR_VP_RUNTIME])[X.HV_X64_MSR_VP_RUNTIME] - 10**12
    assert 100_000 <= ran < 10**9


@pytest.mark.parametrize(
    ("index", "guest", "host"),
    [
        (X.HV_X64_MSR_TIME_REF_COUNT, False, True),
        (X.HV_X64_MSR_TSC_FREQUENCY, False, True),
        (X.HV_X64_MSR_VP_INDEX, False, True),
        (X.HV_X64_MSR_VP_RUNTIME, False, True),
        (X.HV_X64_MSR_TSC_EMULATION_STATUS, False, True),
        (X.HV_X64_MSR_REENLIGHTENMENT_CONTROL, True, True),
    ],
)
def test_who_may_write(board: Board, index: int, guest: bool, host: bool) -> None:
    board.load(f".code64\n{GP}", 0x2000)
    board.gate(X.GP_VECTOR, 0x2000)
    vcpu = hyperv(board, wrmsr(index, 1) + "hlt")
    board.until(vcpu, Halt)
    assert board.seen == ([] if guest else [0xD])
    assert vcpu.set_msrs({index: 1}) == host


def test_kvms_own_features_are_found_behind_hypervs(board: Board) -> None:
    vcpu = hyperv(board, "hlt")
    vcpu.enable_cap(C.KVM_CAP_ENFORCE_PV_FEATURE_CPUID, 1)
    assert CpuidEntry(X.HYPERV_CPUID_INTERFACE, eax=X.HYPERV_INTERFACE_SIGNATURE) in vcpu.get_cpuid2()
    assert vcpu.set_msrs({X.MSR_KVM_POLL_CONTROL: 1}) == 1
