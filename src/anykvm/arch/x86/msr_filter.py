# SPDX-License-Identifier: GPL-2.0-only
"""KVM_X86_SET_MSR_FILTER (api.rst 4.97): which MSRs the guest's RDMSR and WRMSR may reach.

The registers that the engine's CPU keeps to itself (``Cpu.NATIVE_MSRS``: system calls, segment bases, EFER, PAT) come
out of it only while there is a filter.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final, NamedTuple

from anykvm.uapi import x86 as uapi

if TYPE_CHECKING:
    from anykvm.virt.services import Services

READ: Final = uapi.KVM_MSR_FILTER_READ
WRITE: Final = uapi.KVM_MSR_FILTER_WRITE
_X2APIC: Final = range(uapi.MSR_X2APIC_FIRST, uapi.MSR_X2APIC_LAST + 1)


class Range(NamedTuple):
    """Some MSRs; a 1 bit allows what ``flags`` names."""

    flags: int
    base: int
    nmsrs: int
    bitmap: bytes


class MsrFilter(NamedTuple):
    """One immutable filter: what no range decides is as ``allow`` says."""

    allow: bool
    ranges: tuple[Range, ...]

    def allows(self, index: int, operation: int) -> bool:
        """Whether READ or WRITE may go on; x2APIC's registers are never filtered."""
        if index in _X2APIC:
            return True
        for one in self.ranges:
            offset = index - one.base
            if 0 <= offset < one.nmsrs and one.flags & operation:
                return bool(one.bitmap[offset >> 3] >> (offset & 7) & 1)
        return self.allow


ALLOW_ALL: Final = MsrFilter(True, ())


def read(services: Services, arg: int) -> MsrFilter:
    """Take a filter from userspace; EINVAL for unknown flags, a bitmap too large, or deny-all without ranges."""
    request = services.read_struct(arg, uapi.KvmMsrFilter)
    if request.flags & ~uapi.KVM_MSR_FILTER_VALID_MASK:
        raise OSError(errno.EINVAL, f"unknown MSR filter flags {request.flags:#x}")
    allow = not request.flags & uapi.KVM_MSR_FILTER_DEFAULT_DENY
    ranges = []
    for entry in request.ranges:
        if not entry.nmsrs:
            continue
        if entry.flags & ~uapi.KVM_MSR_FILTER_RANGE_VALID_MASK:
            raise OSError(errno.EINVAL, f"unknown flags {entry.flags:#x} of an MSR filter's range")
        size = (entry.nmsrs + 63) // 64 * 8
        if not entry.flags or size > uapi.KVM_MSR_FILTER_MAX_BITMAP_SIZE:
            raise OSError(errno.EINVAL, f"an MSR filter's range has flags and at most {0x600 * 8} registers")
        ranges.append(Range(entry.flags, entry.base, entry.nmsrs, services.copy_from_user(entry.bitmap, size)))
    if not allow and not ranges:
        raise OSError(errno.EINVAL, "an MSR filter that denies by default needs a range")
    if allow and not ranges:
        return ALLOW_ALL
    return MsrFilter(allow, tuple(ranges))
