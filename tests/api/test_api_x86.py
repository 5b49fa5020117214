# SPDX-License-Identifier: GPL-2.0-only
"""What the handles have on x86: what goes down to the ABI, and what is made of the answers."""

from __future__ import annotations

import ctypes
import errno

import api_x86_uses
import pytest
from fake_backend import FakeBackend
from hypothesis import given
from hypothesis import strategies as st

from anykvm.api import ArchExit, Debug, Kvm, Vcpu, Vm
from anykvm.api.x86 import CpuidEntry, debug_exit, decode_cpuid, encode_cpuid, encode_msrs, msr_exit
from anykvm.api.x86_vm import MsrRange
from anykvm.uapi import x86

WORD = st.integers(0, 0xFFFFFFFF)


@given(st.lists(st.builds(CpuidEntry, WORD, WORD, WORD, WORD, WORD, WORD, WORD), max_size=20))
def test_cpuid_there_and_back(entries: list[CpuidEntry]) -> None:
    assert decode_cpuid(encode_cpuid(entries).raw) == entries


@given(st.dictionaries(WORD, st.integers(0, (1 << 64) - 1), max_size=20))
def test_msrs_are_laid_out_as_the_kernel_wants(values: dict[int, int]) -> None:
    buffer = encode_msrs(values)
    assert len(buffer) == 8 + 16 * len(values)
    assert x86.KvmMsrs.from_buffer(buffer).nmsrs == len(values)
    entries = [x86.KvmMsrEntry.from_buffer(buffer, 8 + 16 * number) for number in range(len(values))]
    assert {entry.index: entry.data for entry in entries} == values


def test_more_room_is_found_for_cpuid(fake: FakeBackend, kvm: Kvm) -> None:
    rooms = []

    def answer(fd: int, arg: int) -> int:
        head = x86.KvmCpuid2.from_address(arg)
        rooms.append(head.nent)
        if head.nent < 300:
            raise OSError(errno.E2BIG, "more")
        head.nent = 1
        x86.KvmCpuidEntry2.from_address(arg + 8).eax = 7
        return 0

    fake.answers[x86.KVM_GET_SUPPORTED_CPUID] = answer
    assert kvm.get_supported_cpuid() == [CpuidEntry(0, eax=7)]
    assert rooms == [128, 256, 512]


def test_another_error_of_cpuid_comes_out(fake: FakeBackend, kvm: Kvm) -> None:
    fake.answers[x86.KVM_GET_SUPPORTED_CPUID] = OSError(errno.ENOMEM, "none")
    with pytest.raises(OSError) as caught:
        kvm.get_supported_cpuid()
    assert caught.value.errno == errno.ENOMEM


@pytest.mark.parametrize(
    ("request_number", "method"),
    [
        (x86.KVM_GET_MSR_INDEX_LIST, "get_msr_index_list"),
        (x86.KVM_GET_MSR_FEATURE_INDEX_LIST, "get_msr_feature_index_list"),
    ],
)
def test_index_lists(fake: FakeBackend, kvm: Kvm, request_number: int, method: str) -> None:
    def answer(fd: int, arg: int) -> int:
        words = (ctypes.c_uint32 * 1).from_address(arg)
        room, words[0] = words[0], 3
        if room < 3:
            raise OSError(errno.E2BIG, "more")
        (ctypes.c_uint32 * 4).from_address(arg)[1:4] = [0x10, 0x1B, 0x277]
        return 0

    fake.answers[request_number] = answer
    assert getattr(kvm, method)() == [0x10, 0x1B, 0x277]


def test_a_list_that_cannot_be_is_an_error(fake: FakeBackend, kvm: Kvm) -> None:
    fake.answers[x86.KVM_GET_MSR_INDEX_LIST] = OSError(errno.E2BIG, "and no number")
    with pytest.raises(OSError) as caught:
        kvm.get_msr_index_list()
    assert caught.value.errno == errno.E2BIG


def test_only_the_msrs_that_were_read_are_in_the_answer(fake: FakeBackend, vcpu: Vcpu) -> None:
    def answer(fd: int, arg: int) -> int:
        x86.KvmMsrEntry.from_address(arg + 8).data = 99
        return 1

    fake.answers[x86.KVM_GET_MSRS] = answer
    assert vcpu.get_msrs([x86.MSR_EFER, 0xDEAD, x86.MSR_STAR]) == {x86.MSR_EFER: 99}


def test_set_msrs_says_how_many(fake: FakeBackend, vcpu: Vcpu) -> None:
    fake.answers[x86.KVM_SET_MSRS] = 1
    assert vcpu.set_msrs({1: 2, 3: 4}) == 1


def test_an_msr_filter_is_laid_out(fake: FakeBackend, vm: Vm) -> None:
    seen = []

    def answer(fd: int, arg: int) -> int:
        request = x86.KvmMsrFilter.from_address(arg)
        first = request.ranges[0]
        seen.append((request.flags, first.flags, first.base, first.nmsrs, ctypes.string_at(first.bitmap, 16)))
        seen.append(request.ranges[1].nmsrs)
        return 0

    fake.answers[x86.KVM_X86_SET_MSR_FILTER] = answer
    vm.set_msr_filter([MsrRange(3, 0x10, [True, False, True] + [False] * 67)], deny=True)
    assert seen == [(1, 3, 0x10, 70, b"\x05" + bytes(15)), 0]


def test_an_msr_filter_has_sixteen_ranges(vm: Vm) -> None:
    with pytest.raises(ValueError, match="at most 16 ranges"):
        vm.set_msr_filter([MsrRange(1, 0, [True])] * 17)


@pytest.mark.parametrize("clock", [12345, x86.KvmClockData(clock=12345)])
def test_the_clock_by_number_or_structure(fake: FakeBackend, vm: Vm, clock: int | x86.KvmClockData) -> None:
    seen = []
    fake.answers[x86.KVM_SET_CLOCK] = lambda fd, arg: seen.append(x86.KvmClockData.from_address(arg).clock) or 0
    vm.set_clock(clock)
    assert seen == [12345]


def test_a_chips_state_goes_behind_the_head(fake: FakeBackend, vm: Vm) -> None:
    kept: dict[int, bytes] = {}

    def put(fd: int, arg: int) -> int:
        kept[ctypes.c_uint32.from_address(arg).value] = ctypes.string_at(arg + 8, 512)
        return 0

    def get(fd: int, arg: int) -> int:
        ctypes.memmove(arg + 8, kept[ctypes.c_uint32.from_address(arg).value], 512)
        return 0

    from anykvm.uapi import common

    fake.answers |= {common.KVM_SET_IRQCHIP: put, common.KVM_GET_IRQCHIP: get}
    vm.set_irqchip(2, b"abc")
    assert vm.get_irqchip(2) == b"abc" + bytes(509)


def test_debug_registers_for_a_debugger(fake: FakeBackend, vcpu: Vcpu) -> None:
    seen = []

    def answer(fd: int, arg: int) -> int:
        request = x86.KvmGuestDebug.from_address(arg)
        seen.append((request.control, list(request.arch.debugreg)))
        return 0

    fake.answers[x86.KVM_SET_GUEST_DEBUG] = answer
    vcpu.set_guest_debug(0x20001, debugreg=[0x1000, 0, 0, 0, 0, 0, 0, 0x402])
    assert seen == [(0x20001, [0x1000, 0, 0, 0, 0, 0, 0, 0x402])]


def test_exits_are_read() -> None:
    debug = debug_exit(Debug(bytes(x86.KvmDebugExitArch(1, 0, 0x1234, 0x4000, 0x400))))
    assert (debug.exception, debug.pc, debug.dr6, debug.dr7) == (1, 0x1234, 0x4000, 0x400)
    payload = bytes(x86.RunMsr(reason=2, index=0xC0000080, data=5)).ljust(256, b"\0")
    msr = msr_exit(ArchExit(30, "KVM_EXIT_X86_WRMSR", payload))
    assert (msr.reason, msr.index, msr.data) == (2, 0xC0000080, 5)


@pytest.mark.parametrize("name", api_x86_uses.VCPU)
def test_an_error_of_a_request_comes_out(fake: FakeBackend, vcpu: Vcpu, name: str) -> None:
    class Refusing(dict[int, OSError]):
        def get(self, key: int, default: object = None) -> OSError:  # type: ignore[override]
            return OSError(errno.EINVAL, "no")

        def __contains__(self, key: object) -> bool:
            return True

        def __getitem__(self, key: int) -> OSError:
            return OSError(errno.EINVAL, "no")

    kept, fake.answers = fake.answers, Refusing()  # type: ignore[assignment]
    try:
        with pytest.raises(OSError) as caught:
            api_x86_uses.VCPU[name](vcpu)
    finally:
        fake.answers = kept
    assert caught.value.errno == errno.EINVAL
