# SPDX-License-Identifier: GPL-2.0-only
"""Model-specific registers: lists, counts, what they take, the filter, machine checks."""

from __future__ import annotations

import ctypes
import errno
import struct
from typing import Any

import pytest
from x86_fake import Rig, errno_of

from anykvm.arch.x86 import mtrr, sysregs
from anykvm.engine import Event
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

ALL = (1 << 64) - 1
GP = ("raise", X.GP_VECTOR, 0, True)


@pytest.fixture
def one(rig: Rig) -> Rig:
    rig.create_vcpu()
    return rig


def guest_write(rig: Rig, index: int, value: int) -> bool:
    """Whether the guest's WRMSR succeeds."""
    log = rig.cpu().log
    before = len(log)
    rig.run((Event.MSR_WRITE, index, 0, value), (Event.SHUTDOWN,))
    assert log[before:] in ([], [GP])
    return len(log) == before


# Lists.


def index_list(rig: Rig, request: int, room: int) -> tuple[int, list[int]]:
    buffer = (ctypes.c_uint32 * (room + 1))(room)
    try:
        rig.ioctl(rig.system, request, buffer)
    except OSError as error:
        assert error.errno == errno.E2BIG
        return buffer[0], []
    return buffer[0], list(buffer[1 : 1 + buffer[0]])


@pytest.mark.parametrize("request_number", [X.KVM_GET_MSR_INDEX_LIST, X.KVM_GET_MSR_FEATURE_INDEX_LIST])
def test_a_list_says_how_long_it_is(rig: Rig, request_number: int) -> None:
    count, _ = index_list(rig, request_number, 0)
    assert count > 0
    again, indices = index_list(rig, request_number, count)
    assert again == count == len(set(indices))
    assert index_list(rig, request_number, count - 1) == (count, [])


def test_all_that_is_listed_can_be_saved_and_restored(one: Rig) -> None:
    _, indices = index_list(one, X.KVM_GET_MSR_INDEX_LIST, 255)
    done, values = one.msrs(X.KVM_GET_MSRS, [(index, 0) for index in indices])
    assert done == len(indices)
    done, _ = one.msrs(X.KVM_SET_MSRS, list(zip(indices, values, strict=True)))
    assert done == len(indices)


def test_feature_msrs_on_the_system_fd(rig: Rig) -> None:
    _, indices = index_list(rig, X.KVM_GET_MSR_FEATURE_INDEX_LIST, 16)
    raw = b"".join(struct.pack("<IIQ", index, 0, 0) for index in (*indices, 0xDEAD, indices[0]))
    buffer = ctypes.create_string_buffer(struct.pack("<II", len(indices) + 2, 0) + raw)
    assert rig.ioctl(rig.system, X.KVM_GET_MSRS, buffer) == len(indices)


def test_the_first_that_cannot_be_done_ends_it(one: Rig) -> None:
    wanted = [(X.MSR_STAR, 1), (0xDEAD, 2), (X.MSR_CSTAR, 3)]
    assert one.msrs(X.KVM_SET_MSRS, wanted)[0] == 1
    assert one.cpu().msrs[X.MSR_CSTAR] == 0
    done, values = one.msrs(X.KVM_GET_MSRS, wanted)
    assert (done, values) == (1, [1, 2, 3])


@pytest.mark.parametrize("count", [256, 1000, 0xFFFFFFFF])
def test_too_many_at_once(one: Rig, count: int) -> None:
    head = X.KvmMsrs(nmsrs=count)
    assert errno_of(one.ioctl, one.vcpus[0], X.KVM_GET_MSRS, head) == errno.E2BIG


def test_none_at_all(one: Rig) -> None:
    assert one.msrs(X.KVM_GET_MSRS, []) == (0, [])


# What they take.


@pytest.mark.parametrize("index", sysregs.NATIVE)
def test_the_engines_own(one: Rig, index: int) -> None:
    assert one.set_msr(index, 0x1234)
    assert one.cpu().msrs[index] == 0x1234
    assert one.get_msr(index) == 0x1234


@pytest.mark.parametrize("index", [X.MSR_LSTAR, X.MSR_GS_BASE, X.MSR_KERNEL_GS_BASE])
def test_an_address_is_canonical(one: Rig, index: int) -> None:
    assert not one.set_msr(index, 1 << 47)
    assert one.set_msr(index, ALL - (1 << 47) + 1)


@pytest.mark.parametrize("index", [X.MSR_IA32_SYSENTER_ESP, X.MSR_IA32_SYSENTER_EIP])
def test_an_address_is_made_canonical(one: Rig, index: int) -> None:
    assert one.set_msr(index, 1 << 47)
    assert one.get_msr(index) == ALL - (1 << 47) + 1


def test_the_upper_half_of_tsc_aux(one: Rig) -> None:
    assert not one.set_msr(X.MSR_TSC_AUX, 1 << 32)
    assert one.set_msr(X.MSR_TSC_AUX, 0xFFFFFFFF)


CASES = [
    (X.MSR_IA32_MISC_ENABLE, 1, [0, 9], []),
    (X.MSR_IA32_MCG_STATUS, 0, [7, 16, ALL], []),
    (X.MSR_IA32_MCG_CTL, 0, [0, ALL], [1]),
    (X.MSR_IA32_DEBUGCTLMSR, 0, [1, 3], [4, ALL]),
    (X.MSR_MISC_FEATURES_ENABLES, 0, [0], [1]),
    (X.MSR_K7_HWCR, 0, [1 << 18], [1, ALL]),
    (X.MSR_KVM_POLL_CONTROL, 1, [0, 1], [2, ALL]),
    (X.MSR_KVM_ASYNC_PF_EN, 0, [0], [1]),
    (X.MSR_KVM_STEAL_TIME, 0, [0, 0x1001, 0x40], [2, 0x3F, 0x20]),
    (X.MSR_KVM_PV_EOI_EN, 0, [0, 0x1001, 0x1004], [2, 3]),
    (X.MSR_IA32_PERF_STATUS, 1000 | 4 << 40, [], [0, 1]),
    (X.MSR_IA32_PLATFORM_ID, 0, [], [0, 1]),
    (X.MSR_EBL_CR_POWERON, 0, [], [0]),
    (X.MSR_IA32_CR_PAT, 0, [0x0007040600070406], [0x0307040600070406, 2]),
    (X.MSR_EFER, 0, [1, 0x901], [1 << 12, ALL]),
    (X.MSR_MTRRcap, 0x508, [], [0, 0x508]),
    (X.MSR_MTRRdefType, 0, [0xC06], [0xC02, 0x1006]),
    (X.MSR_MTRRphysBase0, 0, [0x80000006], [0x80000007, 0x106, 1 << 40]),
    (X.MSR_MTRRphysBase0 + 1, 0, [0xF80000800], [0x1, 1 << 40]),
    (X.MSR_MTRRfix64K_00000, 0, [0x0606060606060606], [0x0306060606060606]),
    (X.MSR_IA32_FEAT_CTL, 0, [1], [4]),
    (X.MSR_PLATFORM_INFO, 0, [1 << 31], []),
    (X.MSR_IA32_APICBASE, 0xFEE00900, [0xFEE00800], [0xFEE00901, 0xFEE00D00, ALL]),
]


@pytest.mark.parametrize(("index", "initial", "good", "bad"), CASES, ids=[hex(case[0]) for case in CASES])
def test_values(one: Rig, index: int, initial: int, good: list[int], bad: list[int]) -> None:
    if index == X.MSR_IA32_MCG_CTL:
        one.vcpu().mcg_cap |= sysregs.MCG_CTL_P
    assert one.get_msr(index) == initial
    for value in bad:
        assert not one.set_msr(index, value), hex(value)
        assert one.get_msr(index) == initial
    for value in good:
        assert one.set_msr(index, value), hex(value)
        assert one.get_msr(index) == value


@pytest.mark.parametrize("index", [0xDEAD, 0x480, 0x802, 0x8FF, 0x4B564D09, X.MSR_MTRRphysBase0 + 16])
def test_there_is_no_such_register(one: Rig, index: int) -> None:
    assert one.get_msr(index) is None
    assert not one.set_msr(index, 0)
    assert not guest_write(one, index, 0)


def test_the_guest_may_not_write_what_userspace_may(one: Rig) -> None:
    assert one.set_msr(X.MSR_IA32_UCODE_REV, 5)
    assert guest_write(one, X.MSR_IA32_UCODE_REV, 0)
    assert one.get_msr(X.MSR_IA32_UCODE_REV) == 5
    assert one.set_msr(X.MSR_IA32_FEAT_CTL, 1)
    assert not guest_write(one, X.MSR_IA32_FEAT_CTL, 0)
    assert one.set_msr(X.MSR_IA32_FEAT_CTL, 0)


@pytest.mark.parametrize("index", [X.MSR_AMD64_NB_CFG, X.MSR_IA32_UCODE_WRITE, X.MSR_K7_EVNTSEL0])
def test_writes_that_do_nothing(one: Rig, index: int) -> None:
    assert guest_write(one, index, 0x1234)
    assert one.get_msr(index) in (0, None)


def test_a_control_register_there_is_not(one: Rig) -> None:
    """IA32_MCG_CTL without MCG_CTL_P: userspace finds a zero, the guest nothing."""
    assert one.get_msr(X.MSR_IA32_MCG_CTL) == 0
    assert one.set_msr(X.MSR_IA32_MCG_CTL, 0)
    assert not one.set_msr(X.MSR_IA32_MCG_CTL, ALL)
    assert not guest_write(one, X.MSR_IA32_MCG_CTL, 0)
    one.run((Event.MSR_READ, X.MSR_IA32_MCG_CTL), (Event.SHUTDOWN,))
    assert one.cpu().log[-1] == GP


def test_lma_follows_the_mode(one: Rig) -> None:
    one.vcpu().load()
    one.cpu().efer = X.EFER_LMA | X.EFER_LME
    assert one.set_msr(X.MSR_EFER, X.EFER_LME | X.EFER_SCE)
    assert one.cpu().efer == X.EFER_LMA | X.EFER_LME | X.EFER_SCE


def test_mtrrs_have_no_gap() -> None:
    assert len(set(mtrr.INDICES)) == 2 * mtrr.NR_VARIABLE + 11 + 1
    assert all(map(mtrr.is_mtrr, mtrr.INDICES))
    assert mtrr.is_mtrr(X.MSR_MTRRcap)
    assert not mtrr.is_mtrr(X.MSR_IA32_CR_PAT)


# The filter.


def set_filter(rig: Rig, ranges: list[tuple[int, int, int, bytes]], flags: int = 0) -> int:
    request = X.KvmMsrFilter(flags=flags)
    kept: list[Any] = []
    for entry, (what, base, count, bits) in zip(request.ranges, ranges, strict=False):
        kept.append(ctypes.create_string_buffer(bits.ljust((count + 63) // 64 * 8, b"\0")))
        entry.flags, entry.base, entry.nmsrs, entry.bitmap = what, base, count, ctypes.addressof(kept[-1])
    return rig.ioctl(rig.fd, X.KVM_X86_SET_MSR_FILTER, request)


MISC = X.MSR_IA32_MISC_ENABLE


def test_a_denied_register_faults(one: Rig) -> None:
    set_filter(one, [(X.KVM_MSR_FILTER_WRITE, MISC, 2, b"\x02")])
    assert not guest_write(one, MISC, 5)
    one.run((Event.MSR_READ, MISC), (Event.SHUTDOWN,))
    assert one.cpu().answers[-1] == 1
    assert one.set_msr(MISC, 5), "userspace is not filtered"


def test_or_exits(one: Rig) -> None:
    set_filter(one, [(X.KVM_MSR_FILTER_READ, MISC, 1, b"\0")])
    one.enable(C.KVM_CAP_X86_USER_SPACE_MSR, X.KVM_MSR_EXIT_REASON_FILTER)
    page = one.run((Event.MSR_READ, MISC))
    assert page.exit_reason == C.KVM_EXIT_X86_RDMSR
    assert struct.unpack_from("<II", one.bytes(), 40) == (X.KVM_MSR_EXIT_REASON_FILTER, MISC)


def test_denied_by_default(one: Rig) -> None:
    both = X.KVM_MSR_FILTER_READ | X.KVM_MSR_FILTER_WRITE
    set_filter(one, [(both, MISC, 1, b"\x01")], X.KVM_MSR_FILTER_DEFAULT_DENY)
    assert guest_write(one, MISC, 5)
    assert not guest_write(one, X.MSR_KVM_POLL_CONTROL, 0)
    set_filter(one, [])
    assert guest_write(one, X.MSR_KVM_POLL_CONTROL, 0)


@pytest.mark.parametrize(
    ("ranges", "flags"),
    [
        ([], 1),
        ([], 2),
        ([(4, 0, 1, b"")], 0),
        ([(0, 0, 1, b"")], 0),
        ([(1, 0, 0x600 * 8 + 1, b"")], 0),
    ],
)
def test_filters_that_are_refused(one: Rig, ranges: list[tuple[int, int, int, bytes]], flags: int) -> None:
    assert errno_of(set_filter, one, ranges, flags) == errno.EINVAL


def test_a_bitmap_that_is_not_there(one: Rig) -> None:
    request = X.KvmMsrFilter()
    request.ranges[0].flags, request.ranges[0].nmsrs, request.ranges[0].bitmap = 1, 8, 0x10
    assert errno_of(one.ioctl, one.fd, X.KVM_X86_SET_MSR_FILTER, request) == errno.EFAULT


@pytest.mark.parametrize("value", [8, 1 << 40])
def test_reasons_there_are_not(one: Rig, value: int) -> None:
    assert errno_of(one.enable, C.KVM_CAP_X86_USER_SPACE_MSR, value) == errno.EINVAL


# Machine checks.


def word(value: int) -> ctypes.c_uint64:
    return ctypes.c_uint64(value)


CAP = 10 | sysregs.MCG_CTL_P


def test_what_machine_checks_there_can_be(rig: Rig) -> None:
    value = word(0)
    rig.ioctl(rig.system, X.KVM_X86_GET_MCE_CAP_SUPPORTED, value)
    assert value.value == sysregs.MCE_CAP_SUPPORTED


@pytest.mark.parametrize("cap", [0, 33, 10 | 1 << 40, 10 | 1 << 9])
def test_capabilities_there_cannot_be(one: Rig, cap: int) -> None:
    assert errno_of(one.set, X.KVM_X86_SETUP_MCE, word(cap)) == errno.EINVAL


def test_the_number_of_banks(one: Rig) -> None:
    one.set(X.KVM_X86_SETUP_MCE, word(CAP))
    assert one.get_msr(X.MSR_IA32_MCG_CAP) == CAP
    assert one.get_msr(X.MSR_IA32_MC0_CTL + 36) == ALL
    assert one.get_msr(X.MSR_IA32_MC0_CTL + 40) is None
    assert one.set_msr(X.MSR_IA32_MCG_CAP, CAP)
    assert not one.set_msr(X.MSR_IA32_MCG_CAP, 5)
    assert one.set_msr(X.MSR_IA32_MC0_CTL, 0)
    assert not one.set_msr(X.MSR_IA32_MC0_CTL, 1)
    assert one.set_msr(X.MSR_IA32_MC0_CTL + 1, 5)
    assert not guest_write(one, X.MSR_IA32_MC0_CTL + 1, 5)
    assert guest_write(one, X.MSR_IA32_MC0_CTL + 1, 0)


def mce(rig: Rig, status: int, bank: int = 1) -> int:
    return rig.set(X.KVM_X86_SET_MCE, X.KvmX86Mce(status=status, addr=0x1000, misc=2, mcg_status=5, bank=bank))


VAL, OVER, UC = 1 << 63, 1 << 62, 1 << 61


def test_a_corrected_error_is_logged(one: Rig) -> None:
    one.set(X.KVM_X86_SETUP_MCE, word(CAP))
    mce(one, VAL | 1)
    assert [one.get_msr(X.MSR_IA32_MC0_CTL + 4 + n) for n in range(4)] == [ALL, VAL | 1, 0x1000, 2]
    mce(one, VAL | 2)
    assert one.get_msr(X.MSR_IA32_MC0_CTL + 5) == VAL | OVER | 2
    assert one.vcpu().exception is None


def test_an_uncorrected_one_is_an_exception(one: Rig) -> None:
    one.set(X.KVM_X86_SETUP_MCE, word(CAP))
    one.vcpu().load()
    one.cpu().cr4 = X.X86_CR4_MCE
    mce(one, VAL | UC | 1)
    assert one.get_msr(X.MSR_IA32_MCG_STATUS) == 5
    mce(one, VAL | 3)
    assert one.get_msr(X.MSR_IA32_MC0_CTL + 5) == VAL | OVER | UC | 1
    one.run((Event.HLT,))
    assert one.cpu().log == [("raise", X.MC_VECTOR, -1, False)]


def test_a_second_one_shuts_down(one: Rig) -> None:
    one.set(X.KVM_X86_SETUP_MCE, word(CAP))
    one.vcpu().load()
    mce(one, VAL | UC)
    assert one.run().exit_reason == C.KVM_EXIT_SHUTDOWN
    assert one.run((Event.HLT,)).exit_reason == C.KVM_EXIT_HLT


def test_reporting_that_is_off(one: Rig) -> None:
    one.set(X.KVM_X86_SETUP_MCE, word(CAP))
    one.set_msr(X.MSR_IA32_MCG_CTL, 0)
    mce(one, VAL | UC)
    assert one.get_msr(X.MSR_IA32_MC0_CTL + 5) == 0


@pytest.mark.parametrize(("status", "bank"), [(1, 1), (VAL, 10)])
def test_errors_there_cannot_be(one: Rig, status: int, bank: int) -> None:
    one.set(X.KVM_X86_SETUP_MCE, word(CAP))
    assert errno_of(mce, one, status, bank) == errno.EINVAL
