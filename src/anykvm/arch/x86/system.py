# SPDX-License-Identifier: GPL-2.0-only
"""x86's ioctls on the system fd: what is offered."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Final

from anykvm.uapi import common
from anykvm.uapi import x86 as uapi
from anykvm.virt.services import Services

from . import cpuid, hyperv_cpuid, msrs, sysregs
from .xsave import XCR0_SUPPORTED


def get_supported_cpuid(services: Services, arg: int) -> int:
    """KVM_GET_SUPPORTED_CPUID; E2BIG."""
    return cpuid.write(services, arg, cpuid.supported())


def get_emulated_cpuid(services: Services, arg: int) -> int:
    """KVM_GET_EMULATED_CPUID: nothing is offered that the engine does not have; E2BIG without room for an entry."""
    return cpuid.write(services, arg, ((0, 0, 0, 0, 0, 0, 0),))


def get_msr_index_list(services: Services, arg: int) -> int:
    """KVM_GET_MSR_INDEX_LIST; E2BIG."""
    return msrs.write_list(services, arg, sysregs.SAVED)


def get_msr_feature_index_list(services: Services, arg: int) -> int:
    """KVM_GET_MSR_FEATURE_INDEX_LIST; E2BIG."""
    return msrs.write_list(services, arg, tuple(sysregs.FEATURES))


def get_mce_cap_supported(services: Services, arg: int) -> int:
    """KVM_X86_GET_MCE_CAP_SUPPORTED."""
    services.copy_to_user(arg, sysregs.MCE_CAP_SUPPORTED.to_bytes(8, "little"))
    return 0


def _attr(services: Services, arg: int) -> int:
    request = services.read_struct(arg, common.KvmDeviceAttr)
    if request.group or request.attr != uapi.KVM_X86_XCOMP_GUEST_SUPP:
        raise OSError(errno.ENXIO, f"the system fd has no attribute {request.attr} in group {request.group}")
    return int(request.addr)


def has_device_attr(services: Services, arg: int) -> int:
    """KVM_HAS_DEVICE_ATTR; ENXIO."""
    _attr(services, arg)
    return 0


def get_device_attr(services: Services, arg: int) -> int:
    """KVM_GET_DEVICE_ATTR: the components of XCR0 a guest can have; ENXIO."""
    services.copy_to_user(_attr(services, arg), XCR0_SUPPORTED.to_bytes(8, "little"))
    return 0


def get_supported_hv_cpuid(services: Services, arg: int) -> int:
    """KVM_GET_SUPPORTED_HV_CPUID; E2BIG, EFAULT."""
    return cpuid.write(services, arg, hyperv_cpuid.supported())


IOCTLS: Final[dict[int, Callable[[Services, int], int]]] = {
    uapi.KVM_GET_SUPPORTED_CPUID: get_supported_cpuid,
    uapi.KVM_GET_EMULATED_CPUID: get_emulated_cpuid,
    uapi.KVM_GET_SUPPORTED_HV_CPUID: get_supported_hv_cpuid,
    uapi.KVM_GET_MSR_INDEX_LIST: get_msr_index_list,
    uapi.KVM_GET_MSR_FEATURE_INDEX_LIST: get_msr_feature_index_list,
    uapi.KVM_GET_MSRS: msrs.get_feature_msrs,
    common.KVM_HAS_DEVICE_ATTR: has_device_attr,
    common.KVM_GET_DEVICE_ATTR: get_device_attr,
    uapi.KVM_X86_GET_MCE_CAP_SUPPORTED: get_mce_cap_supported,
}
