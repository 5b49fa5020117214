# SPDX-License-Identifier: GPL-2.0-only
"""The SMC calling convention: how a function number is made, and those KVM answers besides PSCI.

Source: Arm DEN0028 (SMC Calling Convention); ``include/linux/arm-smccc.h`` for KVM's own vendor calls;
``Documentation/virt/kvm/arm/``.
"""

from __future__ import annotations

from typing import Final

ARM_SMCCC_FAST_CALL: Final = 1 << 31
ARM_SMCCC_SMC_64: Final = 1 << 30
ARM_SMCCC_OWNER_SHIFT: Final = 24
ARM_SMCCC_OWNER_MASK: Final = 0x3F
ARM_SMCCC_FUNC_MASK: Final = 0xFFFF

ARM_SMCCC_OWNER_ARCH: Final = 0
ARM_SMCCC_OWNER_STANDARD: Final = 4
ARM_SMCCC_OWNER_STANDARD_HYP: Final = 5
ARM_SMCCC_OWNER_VENDOR_HYP: Final = 6


def smccc_call(owner: int, function: int, *, smc64: bool = False) -> int:
    """The number of a fast call.

    >>> hex(smccc_call(ARM_SMCCC_OWNER_STANDARD, 0))
    '0x84000000'
    """
    width = ARM_SMCCC_SMC_64 if smc64 else 0
    return ARM_SMCCC_FAST_CALL | width | owner << ARM_SMCCC_OWNER_SHIFT | function & ARM_SMCCC_FUNC_MASK


ARM_SMCCC_VERSION_1_0: Final = 0x10000
ARM_SMCCC_VERSION_1_1: Final = 0x10001
ARM_SMCCC_VERSION_1_2: Final = 0x10002

ARM_SMCCC_VERSION_FUNC_ID: Final = 0x80000000
ARM_SMCCC_ARCH_FEATURES_FUNC_ID: Final = 0x80000001
ARM_SMCCC_ARCH_SOC_ID: Final = 0x80000002
ARM_SMCCC_ARCH_WORKAROUND_3: Final = 0x80003FFF
ARM_SMCCC_ARCH_WORKAROUND_2: Final = 0x80007FFF
ARM_SMCCC_ARCH_WORKAROUND_1: Final = 0x80008000

ARM_SMCCC_TRNG_VERSION: Final = 0x84000050
ARM_SMCCC_TRNG_FEATURES: Final = 0x84000051
ARM_SMCCC_TRNG_GET_UUID: Final = 0x84000052
ARM_SMCCC_TRNG_RND32: Final = 0x84000053
ARM_SMCCC_TRNG_RND64: Final = 0xC4000053

ARM_SMCCC_HV_PV_TIME_FEATURES: Final = 0xC5000020
ARM_SMCCC_HV_PV_TIME_ST: Final = 0xC5000021

ARM_SMCCC_VENDOR_HYP_KVM_FEATURES_FUNC_ID: Final = 0x86000000
ARM_SMCCC_VENDOR_HYP_KVM_PTP_FUNC_ID: Final = 0x86000001
ARM_SMCCC_VENDOR_HYP_CALL_UID_FUNC_ID: Final = 0x8600FF01

SMCCC_RET_SUCCESS: Final = 0
SMCCC_RET_NOT_SUPPORTED: Final = -1
SMCCC_RET_NOT_REQUIRED: Final = -2
SMCCC_RET_INVALID_PARAMETER: Final = -3
