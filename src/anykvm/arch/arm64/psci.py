# SPDX-License-Identifier: GPL-2.0-only
"""PSCI: the guest's calls to start, stop and suspend its CPUs, and to switch the machine off.

The version (0.1, 0.2, 1.0, 1.1) is the VM's, KVM_REG_ARM_PSCI_VERSION sets it. SYSTEM_OFF and the resets stop every
vCPU and return to userspace with KVM_EXIT_SYSTEM_EVENT; a vCPU run again after that finds INTERNAL_FAILURE in x0.

Source: Arm DEN0022; ``arch/arm64/kvm/psci.c``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from anykvm.uapi import arm64 as uapi
from anykvm.uapi import common

from .power import ResetState

if TYPE_CHECKING:
    from .vcpu import Arm64Vcpu

U64: Final = 0xFFFFFFFFFFFFFFFF
MPIDR_HWID_BITMASK: Final = 0xFF00FFFFFF
PSTATE_E_SCTLR_EE: Final = 1 << 25

PSCI_0_1: Final = uapi.psci_version(0, 1)
PSCI_0_2: Final = uapi.psci_version(0, 2)
PSCI_1_0: Final = uapi.psci_version(1, 0)
PSCI_1_1: Final = uapi.psci_version(1, 1)
LATEST: Final = PSCI_1_1
VERSIONS: Final = (PSCI_0_2, PSCI_1_0, PSCI_1_1)

_EXIT: Final = None
"""What a handler returns when KVM_RUN must return to userspace."""


def _suspend(vcpu: Arm64Vcpu, arg1: int, arg2: int, arg3: int) -> int | None:
    # As in the kernel, every power state is WFI: the registers are kept, an interrupt wakes.
    vcpu.power.suspend()
    vcpu.attention = True
    return uapi.PSCI_RET_SUCCESS


def _cpu_off(vcpu: Arm64Vcpu, arg1: int, arg2: int, arg3: int) -> int | None:
    vcpu.power.off()
    vcpu.attention = True
    return uapi.PSCI_RET_SUCCESS


def _cpu_on(vcpu: Arm64Vcpu, mpidr: int, entry: int, context: int) -> int | None:
    if mpidr & ~MPIDR_HWID_BITMASK:
        return uapi.PSCI_RET_INVALID_PARAMS
    target = vcpu.vm.vcpu_by_mpidr(mpidr)
    if target is None:
        return uapi.PSCI_RET_INVALID_PARAMS
    with vcpu.vm.power_lock:
        if not target.power.stopped:
            old = vcpu.psci_version == PSCI_0_1
            return uapi.PSCI_RET_INVALID_PARAMS if old else uapi.PSCI_RET_ALREADY_ON
        target.attention = True
        target.power.on(ResetState(entry, context))
    return uapi.PSCI_RET_SUCCESS


def _affinity_info(vcpu: Arm64Vcpu, affinity: int, level: int, arg3: int) -> int | None:
    if affinity & ~MPIDR_HWID_BITMASK or level > 3:
        return uapi.PSCI_RET_INVALID_PARAMS
    mask = MPIDR_HWID_BITMASK & ~((1 << level * 8) - 1)
    affinity &= mask
    matching = [other for other in vcpu.vm.vcpus if other.mpidr & mask == affinity]
    if not matching:
        return uapi.PSCI_RET_INVALID_PARAMS
    if any(not other.power.stopped for other in matching):
        return uapi.PSCI_0_2_AFFINITY_LEVEL_ON
    return uapi.PSCI_0_2_AFFINITY_LEVEL_OFF


def _system_event(vcpu: Arm64Vcpu, kind: int, flags: int) -> int | None:
    for other in vcpu.vm.vcpus:
        other.power.off()
        if other is not vcpu:
            other.kick()
    vcpu.attention = True
    vcpu.exit_system_event(kind, flags)
    return _EXIT


def _system_off(vcpu: Arm64Vcpu, arg1: int, arg2: int, arg3: int) -> int | None:
    return _system_event(vcpu, common.KVM_SYSTEM_EVENT_SHUTDOWN, 0)


def _system_reset(vcpu: Arm64Vcpu, arg1: int, arg2: int, arg3: int) -> int | None:
    return _system_event(vcpu, common.KVM_SYSTEM_EVENT_RESET, 0)


def _system_reset2(vcpu: Arm64Vcpu, kind: int, arg2: int, arg3: int) -> int | None:
    if uapi.PSCI_1_1_RESET_TYPE_SYSTEM_WARM_RESET < kind & 0xFFFFFFFF < uapi.PSCI_1_1_RESET_TYPE_VENDOR_START:
        return uapi.PSCI_RET_INVALID_PARAMS
    return _system_event(vcpu, common.KVM_SYSTEM_EVENT_RESET, uapi.KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2)


def _migrate_info_type(vcpu: Arm64Vcpu, arg1: int, arg2: int, arg3: int) -> int | None:
    return uapi.PSCI_0_2_TOS_MP


def _version(vcpu: Arm64Vcpu, arg1: int, arg2: int, arg3: int) -> int | None:
    return vcpu.psci_version


def _features(vcpu: Arm64Vcpu, function: int, arg2: int, arg3: int) -> int | None:
    function &= 0xFFFFFFFF
    known = function in _functions(vcpu.psci_version) or function == uapi.ARM_SMCCC_VERSION_FUNC_ID
    return uapi.PSCI_RET_SUCCESS if known else uapi.PSCI_RET_NOT_SUPPORTED


Handler = Callable[["Arm64Vcpu", int, int, int], "int | None"]

_CALLS_0_1: Final[dict[int, Handler]] = {
    uapi.KVM_PSCI_FN_CPU_OFF: _cpu_off,
    uapi.KVM_PSCI_FN_CPU_ON: _cpu_on,
}
_CALLS_0_2: Final[dict[int, Handler]] = {
    uapi.PSCI_0_2_FN_PSCI_VERSION: _version,
    uapi.PSCI_0_2_FN_CPU_SUSPEND: _suspend,
    uapi.PSCI_0_2_FN64_CPU_SUSPEND: _suspend,
    uapi.PSCI_0_2_FN_CPU_OFF: _cpu_off,
    uapi.PSCI_0_2_FN_CPU_ON: _cpu_on,
    uapi.PSCI_0_2_FN64_CPU_ON: _cpu_on,
    uapi.PSCI_0_2_FN_AFFINITY_INFO: _affinity_info,
    uapi.PSCI_0_2_FN64_AFFINITY_INFO: _affinity_info,
    uapi.PSCI_0_2_FN_MIGRATE_INFO_TYPE: _migrate_info_type,
    uapi.PSCI_0_2_FN_SYSTEM_OFF: _system_off,
    uapi.PSCI_0_2_FN_SYSTEM_RESET: _system_reset,
}
_CALLS_1_0: Final[dict[int, Handler]] = {**_CALLS_0_2, uapi.PSCI_1_0_FN_PSCI_FEATURES: _features}
_CALLS_1_1: Final[dict[int, Handler]] = {
    **_CALLS_1_0,
    uapi.PSCI_1_1_FN_SYSTEM_RESET2: _system_reset2,
    uapi.PSCI_1_1_FN64_SYSTEM_RESET2: _system_reset2,
}
_CALLS: Final = {PSCI_0_1: _CALLS_0_1, PSCI_0_2: _CALLS_0_2, PSCI_1_0: _CALLS_1_0, PSCI_1_1: _CALLS_1_1}


def _functions(version: int) -> dict[int, Handler]:
    return _CALLS[version]


def call(vcpu: Arm64Vcpu, function: int) -> bool:
    """Serve a PSCI call; returns False if KVM_RUN must return to userspace."""
    gpr = vcpu.cpu.gpr
    handler = _functions(vcpu.psci_version).get(function)
    if handler is None:
        gpr[0] = uapi.PSCI_RET_NOT_SUPPORTED & U64
        gpr[1] = gpr[2] = gpr[3] = 0
        return True
    args = gpr[1], gpr[2], gpr[3]
    if not function & uapi.PSCI_0_2_64BIT and function not in _CALLS_0_1:
        args = args[0] & 0xFFFFFFFF, args[1] & 0xFFFFFFFF, args[2] & 0xFFFFFFFF
    value = handler(vcpu, *args)
    if value is None:
        gpr[0] = uapi.PSCI_RET_INTERNAL_FAILURE & U64
        return False
    gpr[0] = value & U64
    gpr[1] = gpr[2] = gpr[3] = 0
    return True
