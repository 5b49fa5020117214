# SPDX-License-Identifier: GPL-2.0-only
"""How request numbers are encoded, decoded, and that no two requests of one fd collide by accident."""

from __future__ import annotations

import ctypes
import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anykvm.uapi import arm64, arm64_vgic, caps, common, constants, exits, ioctl, psci, requests, run, smccc, structs
from anykvm.uapi.ioctl import _IO, _IOR, _IOW, _IOWR, IOC_NONE, IOC_READ, IOC_WRITE, KVMIO, Request, decode


def test_known_numbers() -> None:
    assert common.KVM_GET_API_VERSION == 0xAE00
    assert common.KVM_RUN == 0xAE80
    assert common.KVM_SET_USER_MEMORY_REGION == 0x4020AE46
    assert common.KVM_CREATE_DEVICE == 0xC00CAEE0
    assert arm64.KVM_ARM_VCPU_INIT == 0x4020AEAE


@pytest.mark.parametrize(
    ("request_number", "direction"),
    [
        (_IO(KVMIO, 1), IOC_NONE),
        (_IOR(KVMIO, 1, ctypes.c_uint64), IOC_READ),
        (_IOW(KVMIO, 1, ctypes.c_uint64), IOC_WRITE),
        (_IOWR(KVMIO, 1, ctypes.c_uint64), IOC_READ | IOC_WRITE),
    ],
)
def test_direction(request_number: int, direction: int) -> None:
    assert decode(request_number) == Request(direction, KVMIO, 1, 8 if direction else 0)


@given(st.integers(0, 3), st.integers(0, 255), st.integers(0, 255), st.integers(0, (1 << ioctl.IOC_SIZEBITS) - 1))
def test_decode_undoes_encode(direction: int, kind: int, nr: int, size: int) -> None:
    assert decode(ioctl._ioc(direction, kind, nr, size)) == Request(direction, kind, nr, size)


def test_an_argument_too_large_is_refused() -> None:
    class Large(ctypes.Structure):
        _fields_ = (("bytes", ctypes.c_uint8 * (1 << ioctl.IOC_SIZEBITS)),)

    with pytest.raises(ValueError, match="at most 16383 bytes"):
        _IOW(KVMIO, 1, Large)


def request_names() -> dict[str, int]:
    return {
        name: value
        for module in (requests, arm64)
        for name, value in vars(module).items()
        if name.startswith("KVM_")
        and isinstance(value, int)
        and decode(value).type == KVMIO
        and decode(value).size < 4096
        and value >> 32 == 0
        and value & 0xFFFF_0000 in {decode(value).direction << 30 | decode(value).size << 16}
    }


def test_requests_are_distinct() -> None:
    names = {name: value for name, value in request_names().items() if not name.startswith(("KVM_REG", "KVM_PSCI"))}
    assert len(names) > 45
    # One number for two requests: the first is a vCPU's, the second a VM's.
    assert names["KVM_GET_ONE_REG"] == names.pop("KVM_ARM_SET_DEVICE_ADDR")
    assert len(set(names.values())) == len(names)


def test_the_run_page_fits_in_a_page() -> None:
    assert ctypes.sizeof(common.KvmRun) == 2352 <= 4096
    assert common.KvmRun.immediate_exit.offset == 1
    assert common.KvmRun.exit_reason.offset == 8
    assert common.KvmRun.mmio.offset == common.KvmRun.io.offset == 32


def test_register_sizes() -> None:
    assert common.reg_size(arm64.REG_PC) == 8
    assert common.reg_size(arm64.v_reg(31)) == 16
    assert common.reg_size(arm64.REG_FPCR) == 4


def test_core_registers_are_where_a_kernel_has_them() -> None:
    # KVM_REG_ARM_CORE_REG counts in 32-bit words.
    assert arm64.x_reg(0) == 0x6030_0000_0010_0000
    assert arm64.REG_SP == 0x6030_0000_0010_003E
    assert arm64.REG_PC == 0x6030_0000_0010_0040
    assert arm64.REG_PSTATE == 0x6030_0000_0010_0042
    assert arm64.REG_FPSR == 0x6020_0000_0010_00D4


@pytest.mark.parametrize(("function", "number"), [(arm64.x_reg, 31), (arm64.x_reg, -1), (arm64.v_reg, 32)])
def test_registers_that_are_not_there(function: object, number: int) -> None:
    assert callable(function)
    with pytest.raises(ValueError, match="there is no"):
        function(number)


@given(st.integers(0, 3), st.integers(0, 7), st.integers(0, 15), st.integers(0, 15), st.integers(0, 7))
def test_system_register_ids_keep_their_fields(op0: int, op1: int, crn: int, crm: int, op2: int) -> None:
    register = arm64.sys_reg(op0, op1, crn, crm, op2)
    assert (register >> 14 & 3, register >> 11 & 7, register >> 7 & 15, register >> 3 & 15, register & 7) == (
        op0,
        op1,
        crn,
        crm,
        op2,
    )
    assert register & arm64.KVM_REG_ARM_COPROC_MASK == arm64.KVM_REG_ARM64_SYSREG


def test_capabilities_are_distinct() -> None:
    numbers = [value for name, value in vars(caps).items() if name.startswith("KVM_CAP_")]
    assert len(numbers) == len(set(numbers)) > 200


@pytest.mark.parametrize(
    "module",
    [arm64, arm64_vgic, caps, constants, exits, ioctl, psci, requests, run, smccc, structs],
    ids=lambda m: m.__name__,
)
def test_examples(module: object) -> None:
    assert doctest.testmod(module).failed == 0  # type: ignore[arg-type]
