# SPDX-License-Identifier: GPL-2.0-only
"""KVM_GET_ONE_REG, KVM_SET_ONE_REG, KVM_GET_REG_LIST: what there is, and what is refused."""

from __future__ import annotations

import ctypes
import errno

import pytest
from arm64_fake import Rig, errno_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anykvm.arch.arm64 import core_regs, idregs, regs
from anykvm.arch.arm64 import sysreg_ids as ids
from anykvm.uapi import arm64 as A
from anykvm.uapi import common as C

U64, U32, U128 = C.KVM_REG_SIZE_U64, C.KVM_REG_SIZE_U32, C.KVM_REG_SIZE_U128
CORE = C.KVM_REG_ARM64 | A.KVM_REG_ARM_CORE
SYSREG = C.KVM_REG_ARM64 | U64 | A.KVM_REG_ARM64_SYSREG


def sysreg(encoding: int) -> int:
    return SYSREG | encoding


@pytest.fixture
def vm(rig: Rig) -> Rig:
    rig.create_vcpu()
    return rig


# Core registers.


def test_where_the_core_registers_are() -> None:
    assert core_regs.SP_EL1 == A.KvmRegs.sp_el1.offset // 4 == 68
    assert A.core_reg(0) == CORE | U64
    assert len(core_regs.ids()) == 31 + 3 + 2 + 5 + 32 + 2
    assert A.v_reg(5) in core_regs.ids()
    assert A.REG_FPCR in core_regs.ids()


@pytest.mark.parametrize("register", core_regs.ids())
def test_every_core_register_keeps_its_own_value(vm: Rig, register: int) -> None:
    value = (
        0x5 if register == A.REG_PSTATE else 0x0123_4567_89AB_CDEF_FEDC_BA98_7654_3210 % (1 << C.reg_size(register) * 8)
    )
    before = {other: vm.get_reg(other) for other in core_regs.ids()}
    vm.set_reg(register, value)
    after = {other: vm.get_reg(other) for other in core_regs.ids()}
    assert after == {**before, register: value}


@pytest.mark.parametrize(
    ("register", "expected"),
    [
        (CORE | U32 | 0, errno.EINVAL),
        (CORE | U64 | 1, errno.EINVAL),
        (CORE | U128 | 0, errno.EINVAL),
        (CORE | U64 | core_regs.VREGS, errno.EINVAL),
        (CORE | U128 | core_regs.VREGS + 1, errno.EINVAL),
        (CORE | U64 | core_regs.FPSR, errno.EINVAL),
        (CORE | U64 | 82, errno.EINVAL),
        (CORE | U32 | 214, errno.EINVAL),
        (CORE | U32 | 216, errno.ENOENT),
        (CORE | U64 | 215, errno.ENOENT),
        (CORE | U64 | 0xFFFE, errno.ENOENT),
    ],
)
def test_core_registers_that_are_not_there(vm: Rig, register: int, expected: int) -> None:
    assert errno_of(vm.get_reg, register) == expected
    assert errno_of(vm.set_reg, register, 0) == expected


@pytest.mark.parametrize(
    ("pstate", "good"), [(0, 1), (4, 1), (5, 1), (0xF00003C5, 1), (9, 0), (0xD, 0), (0x10, 0), (0x13, 0)]
)
def test_modes_the_guest_can_be_in(vm: Rig, pstate: int, good: int) -> None:
    if good:
        vm.set_reg(A.REG_PSTATE, pstate)
        assert vm.get_reg(A.REG_PSTATE) == pstate
    else:
        assert errno_of(vm.set_reg, A.REG_PSTATE, pstate) == errno.EINVAL


# Everything.


def test_registers_before_init_are_enoexec(rig: Rig) -> None:
    fd = rig.create_vcpu(init=False)
    assert errno_of(rig.get_reg, A.REG_PC) == errno.ENOEXEC
    assert errno_of(rig.set_reg, A.REG_PC, 0) == errno.ENOEXEC
    assert errno_of(rig.ioctl, fd, C.KVM_GET_REG_LIST, C.KvmRegList(0)) == errno.ENOEXEC


@pytest.mark.parametrize(
    ("register", "expected"),
    [
        (C.KVM_REG_X86 | U64, errno.EINVAL),
        (C.KVM_REG_ARM64 | 1 << 40 | U64, errno.EINVAL),
        (C.KVM_REG_ARM64 | U64 | 0x0FFF_0000, errno.ENOENT),
        (C.KVM_REG_ARM64 | U32 | A.KVM_REG_ARM64_SYSREG | ids.VBAR_EL1, errno.ENOENT),
        (sysreg(ids.enc(3, 6, 1, 1, 0)), errno.ENOENT),
        (sysreg(ids.ICC_IAR1_EL1), errno.ENOENT),
        (A.KVM_REG_ARM64_SVE_VLS, errno.ENOENT),
        (A.fw_reg(9), errno.ENOENT),
        (A.fw_feat_bmap_reg(9), errno.ENOENT),
        (C.KVM_REG_ARM64 | U32 | A.KVM_REG_ARM_DEMUX | 3, errno.ENOENT),
        (C.KVM_REG_ARM64 | U64 | A.KVM_REG_ARM_DEMUX | 0, errno.ENOENT),
    ],
)
def test_registers_that_are_not_there(vm: Rig, register: int, expected: int) -> None:
    assert errno_of(vm.get_reg, register) == expected
    assert errno_of(vm.set_reg, register, 0) == expected


def test_a_bad_pointer_is_efault(vm: Rig) -> None:
    fd = vm.vcpus[0]
    assert errno_of(vm.ioctl, fd, C.KVM_GET_ONE_REG, C.KvmOneReg(A.REG_PC, 16)) == errno.EFAULT
    assert errno_of(vm.ioctl, fd, C.KVM_SET_ONE_REG, C.KvmOneReg(A.REG_PC, 16)) == errno.EFAULT
    assert errno_of(vm.ioctl, fd, C.KVM_SET_ONE_REG, 16) == errno.EFAULT


def test_the_list_says_how_long_it_is(vm: Rig) -> None:
    fd = vm.vcpus[0]
    head = C.KvmRegList(0)
    assert errno_of(vm.ioctl, fd, C.KVM_GET_REG_LIST, head) == errno.E2BIG
    count = head.n
    room = (ctypes.c_uint64 * (count + 2))(count + 1)
    vm.backend.ioctl(fd, C.KVM_GET_REG_LIST, ctypes.addressof(room))
    assert (room[0], room[count + 1]) == (count, 0)
    listed = list(room)[1 : count + 1]
    assert listed == regs.reg_list(vm.vcpu())
    for expected in (
        A.REG_PC,
        A.KVM_REG_ARM_PSCI_VERSION,
        A.KVM_REG_ARM_TIMER_CNT,
        sysreg(ids.CTR_EL0),
        A.KVM_REG_ARM_STD_BMAP,
    ):
        assert expected in listed


@pytest.mark.parametrize("register", [sysreg(ids.TTBR0_EL1), sysreg(ids.CSSELR_EL1), sysreg(ids.enc(2, 0, 0, 15, 7))])
def test_system_registers_keep_what_is_written(vm: Rig, register: int) -> None:
    vm.set_reg(register, 0x1234)
    assert vm.get_reg(register) == 0x1234


def test_a_register_the_engine_does_not_have_is_kept_beside(vm: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("arm64_fake.KNOWN_SYSREGS", frozenset({ids.VBAR_EL1}))
    register = sysreg(ids.enc(2, 0, 0, 3, 4))
    vm.set_reg(register, 77)
    assert vm.get_reg(register) == 77
    vm.init(vm.vcpus[0])
    assert vm.get_reg(register) == 0


def test_cache_sizes_are_fixed(vm: Rig) -> None:
    register = C.KVM_REG_ARM64 | U32 | A.KVM_REG_ARM_DEMUX | 1
    value = vm.get_reg(register)
    assert value == idregs.CCSIDR_A57[1]
    vm.set_reg(register, value)
    assert errno_of(vm.set_reg, register, value + 1) == errno.EINVAL


def test_workarounds(vm: Rig) -> None:
    for register in regs.WORKAROUNDS:
        best = vm.get_reg(register)
        vm.set_reg(register, best)
        vm.set_reg(register, 0)
        assert errno_of(vm.set_reg, register, best + 1) == errno.EINVAL
        assert errno_of(vm.set_reg, register, 1 << 32) == errno.EINVAL


# Identification.


@pytest.mark.parametrize(
    "encoding", [ids.MIDR_EL1, ids.CTR_EL0, ids.CLIDR_EL1, ids.enc(3, 0, 0, 1, 0), ids.ID_AA64PFR1_EL1]
)
def test_invariant_registers(vm: Rig, encoding: int) -> None:
    value = vm.get_reg(sysreg(encoding))
    vm.set_reg(sysreg(encoding), value)
    assert errno_of(vm.set_reg, sysreg(encoding), value ^ 1) == errno.EINVAL


def test_what_the_guest_is_told() -> None:
    pfr0 = idregs.defaults()[ids.ID_AA64PFR0_EL1]
    assert pfr0 & 0xFFFF == 0x0011, "AArch64 only, no EL2, no EL3"
    assert idregs.defaults()[ids.ID_AA64DFR0_EL1] >> 8 & 0xF == 0, "no PMU"
    ctr = idregs.CONSTANTS[ids.CTR_EL0]
    assert (ctr & 0xF, ctr >> 16 & 0xF) == (10, 10)
    assert all(encoding in idregs.CONSTANTS or encoding in idregs.VM_ID_REGS for encoding in idregs.ID_SPACE)


def test_features_can_be_lowered_before_the_first_run(vm: Rig) -> None:
    isar0 = sysreg(ids.ID_AA64ISAR0_EL1)
    value = vm.get_reg(isar0)
    lower = value & ~(0xF << 4)
    vm.set_reg(isar0, lower)
    assert vm.get_reg(isar0) == lower
    assert vm.arch.traps[ids.ID_AA64ISAR0_EL1][0](vm.vcpu()) == lower
    assert errno_of(vm.set_reg, isar0, value + (1 << 4)) == errno.EINVAL
    vm.arch.has_run = True
    vm.set_reg(isar0, lower)
    assert errno_of(vm.set_reg, isar0, value) == errno.EBUSY


def test_the_gic_field_follows_the_gic(vm: Rig) -> None:
    pfr0 = sysreg(ids.ID_AA64PFR0_EL1)
    value = vm.get_reg(pfr0)
    vm.vgic_v3()
    assert vm.get_reg(pfr0) == value | 1 << 24
    vm.set_reg(pfr0, value)
    vm.set_reg(pfr0, value & ~(0xFF << 56) | 1 << 24)
    assert vm.get_reg(pfr0) == value & ~(0xFF << 56) | 1 << 24


@given(st.sampled_from(sorted(idregs.VM_ID_REGS)), st.integers(0, (1 << 64) - 1))
def test_acceptable_never_raises_a_field(encoding: int, value: int) -> None:
    reset, mask = idregs.VM_ID_REGS[encoding]
    if idregs.acceptable(encoding, value):
        assert value & ~mask == reset & ~mask
        assert all(value >> shift & 0xF <= reset >> shift & 0xF for shift in range(0, 64, 4))
    assert idregs.acceptable(encoding, reset)


def test_writable_masks(rig: Rig) -> None:
    masks = (ctypes.c_uint64 * 192)()
    request = A.RegMaskRange(ctypes.addressof(masks), 0)
    rig.ioctl(rig.fd, A.KVM_ARM_GET_REG_WRITABLE_MASKS, request)
    assert masks[6 << 3 | 0] == (1 << 64) - 1
    assert masks[4 << 3 | 0] == 0xFF << 56
    assert sum(mask != 0 for mask in masks) == 4
    assert errno_of(rig.ioctl, rig.fd, A.KVM_ARM_GET_REG_WRITABLE_MASKS, A.RegMaskRange(0, 1)) == errno.EINVAL
    reserved = A.RegMaskRange(ctypes.addressof(masks), 0)
    reserved.reserved[3] = 1
    assert errno_of(rig.ioctl, rig.fd, A.KVM_ARM_GET_REG_WRITABLE_MASKS, reserved) == errno.EINVAL


@pytest.mark.parametrize(
    ("vcpu_id", "expected"),
    [(0, 0x8000_0000), (15, 0x8000_000F), (16, 0x8000_0100), (511, 0x8000_1F0F), (4096, 0x8001_0000)],
)
def test_mpidr_from_vcpu_id(vcpu_id: int, expected: int) -> None:
    assert idregs.mpidr(vcpu_id) == expected


def test_mpidr_can_be_set_until_the_vm_runs(vm: Rig) -> None:
    register = sysreg(ids.MPIDR_EL1)
    vm.set_reg(register, 0x8000_0203)
    assert vm.get_reg(register) == vm.cpu().mpidr == 0x8000_0203
    assert vm.arch.vcpu_by_mpidr(0x203) is vm.vcpu()
    vm.arch.has_run = True
    assert errno_of(vm.set_reg, register, 0x8000_0001) == errno.EBUSY


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, (1 << 64) - 1),
    st.integers(0, 0xFFFF),
    st.sampled_from([0x10, 0x11, 0x13, 0x14, 0x15, 0x16]),
    st.integers(0, 9),
)
def test_any_id_ends_in_a_value_or_an_errno(rig: Rig, noise: int, low: int, kind: int, size: int) -> None:
    if not rig.vcpus:
        rig.create_vcpu()
    for register in (noise, C.KVM_REG_ARM64 | size << 52 | kind << 16 | low):
        try:
            value = rig.get_reg(register)
        except OSError as failure:
            assert failure.errno in (errno.EINVAL, errno.ENOENT)
        else:
            rig.set_reg(register, value)
