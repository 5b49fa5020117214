# SPDX-License-Identifier: GPL-2.0-only
"""Hypercalls by the SMC calling convention: KVM as the guest's firmware.

HVC and SMC #0 are both accepted, as in today's kernel; what nobody knows returns NOT_SUPPORTED (-1). No CPU bug needs a
workaround here, and the guest is told so: the host runs no guest code speculatively. The feature bitmaps userspace
may set (KVM_REG_ARM_FW_FEAT_BMAP) switch whole services off.

Source: Arm DEN0028; Arm DEN0098 (TRNG); ``arch/arm64/kvm/hypercalls.c``.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from anykvm.uapi import arm64 as uapi

from . import psci

if TYPE_CHECKING:
    from .vcpu import Arm64Vcpu

U64: Final = 0xFFFFFFFFFFFFFFFF
NOT_SUPPORTED: Final = uapi.SMCCC_RET_NOT_SUPPORTED & U64
NOT_REQUIRED: Final = uapi.SMCCC_RET_NOT_REQUIRED & U64

STD_BMAP_SUPPORTED: Final = 1 << uapi.KVM_REG_ARM_STD_BIT_TRNG_V1_0
STD_HYP_BMAP_SUPPORTED: Final = 0
VENDOR_HYP_BMAP_SUPPORTED: Final = 0

TRNG_VERSION: Final = 0x10000
TRNG_INVALID_PARAMETER: Final = -2 & U64
TRNG_MAX_BITS32: Final = 96
TRNG_MAX_BITS64: Final = 192
# The UUID of KVM's generator, as the kernel returns it in four words.
TRNG_UUID: Final = (0x0D21E000, 0x4384_11EB, 0x8070_5252, 0x4A8C_0AC3)

_TRNG: Final = frozenset(
    (
        uapi.ARM_SMCCC_TRNG_VERSION,
        uapi.ARM_SMCCC_TRNG_FEATURES,
        uapi.ARM_SMCCC_TRNG_GET_UUID,
        uapi.ARM_SMCCC_TRNG_RND32,
        uapi.ARM_SMCCC_TRNG_RND64,
    )
)


def _arch_features(function: int) -> int:
    match function:
        case uapi.ARM_SMCCC_VERSION_FUNC_ID | uapi.ARM_SMCCC_ARCH_FEATURES_FUNC_ID:
            return 0
        case uapi.ARM_SMCCC_ARCH_WORKAROUND_1 | uapi.ARM_SMCCC_ARCH_WORKAROUND_2 | uapi.ARM_SMCCC_ARCH_WORKAROUND_3:
            return NOT_REQUIRED
        case _:
            return NOT_SUPPORTED


def _trng(vcpu: Arm64Vcpu, function: int) -> tuple[int, int, int, int]:
    gpr = vcpu.cpu.gpr
    if not vcpu.vm.std_bmap & STD_BMAP_SUPPORTED:
        return NOT_SUPPORTED, 0, 0, 0
    if function == uapi.ARM_SMCCC_TRNG_VERSION:
        return TRNG_VERSION, 0, 0, 0
    if function == uapi.ARM_SMCCC_TRNG_FEATURES:
        return (0 if gpr[1] & 0xFFFFFFFF in _TRNG else NOT_SUPPORTED), 0, 0, 0
    if function == uapi.ARM_SMCCC_TRNG_GET_UUID:
        return TRNG_UUID
    width = 64 if function == uapi.ARM_SMCCC_TRNG_RND64 else 32
    bits = gpr[1] if width == 64 else gpr[1] & 0xFFFFFFFF
    if not 0 < bits <= 3 * width:
        return TRNG_INVALID_PARAMETER, 0, 0, 0
    entropy = int.from_bytes(os.urandom(3 * width // 8), "little") & (1 << bits) - 1
    mask = (1 << width) - 1
    return 0, entropy >> 2 * width & mask, entropy >> width & mask, entropy & mask


def call(vcpu: Arm64Vcpu) -> bool:
    """Serve the call in x0 to x3; returns False if KVM_RUN must return to userspace."""
    gpr = vcpu.cpu.gpr
    function = gpr[0] & 0xFFFFFFFF
    match function:
        case uapi.ARM_SMCCC_VERSION_FUNC_ID:
            results = (uapi.ARM_SMCCC_VERSION_1_1, 0, 0, 0)
        case uapi.ARM_SMCCC_ARCH_FEATURES_FUNC_ID:
            results = (_arch_features(gpr[1] & 0xFFFFFFFF), 0, 0, 0)
        case _ if function in _TRNG:
            results = _trng(vcpu, function)
        case _:
            return psci.call(vcpu, function)
    gpr[0], gpr[1], gpr[2], gpr[3] = results
    return True


def smc(vcpu: Arm64Vcpu, immediate: int) -> bool:
    """An SMC instruction; a non-zero immediate is reserved and returns -1."""
    if immediate:
        vcpu.cpu.gpr[0] = U64
        return True
    return call(vcpu)
