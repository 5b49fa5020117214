# SPDX-License-Identifier: GPL-2.0-only
"""KVM_GET_MSRS, KVM_SET_MSRS, the index lists (api.rst 4.3, 4.18, 4.19), and the guest's RDMSR and WRMSR.

A list of registers is done one after the other; the first that cannot be done ends it, and the number of those done is
what the ioctl returns.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable
from ctypes import sizeof
from typing import TYPE_CHECKING, Final

from anykvm.uapi import common
from anykvm.uapi import x86 as uapi

from . import hyperv_vcpu, sysregs
from .msr_filter import READ, WRITE

if TYPE_CHECKING:
    from anykvm.virt.services import Services

    from .vcpu import X86Vcpu

MAX_IO_MSRS: Final = 256
_HEAD: Final = sizeof(uapi.KvmMsrs)
_ENTRY: Final = struct.Struct("<IIQ")
_RUN_MSR: Final = struct.Struct("<B7xIIQ")
_U64: Final = 0xFFFFFFFFFFFFFFFF

DATA_OFFSET: Final = uapi.RunMsr.data.offset


def _transfer(services: Services, arg: int, do: Callable[[int, int], int], write_back: bool) -> int:
    count = int.from_bytes(services.copy_from_user(arg, 4), "little")
    if count >= MAX_IO_MSRS:
        raise OSError(errno.E2BIG, f"at most {MAX_IO_MSRS - 1} MSRs go in one request, not {count}")
    entries = bytearray(services.copy_from_user(arg + _HEAD, count * _ENTRY.size))
    done = 0
    for offset in range(0, len(entries), _ENTRY.size):
        index, reserved, data = _ENTRY.unpack_from(entries, offset)
        try:
            _ENTRY.pack_into(entries, offset, index, reserved, do(index, data) & _U64)
        except (KeyError, ValueError):
            break
        done += 1
    if write_back:
        services.copy_to_user(arg + _HEAD, entries)
    return done


def get_msrs(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_GET_MSRS; returns how many were read; E2BIG for more than 255."""
    vcpu.load()

    def read(index: int, _: int) -> int:
        try:
            return sysregs.get(vcpu, index, host=True)
        except KeyError:
            # One that is listed can be read and written with 0, whatever the guest's CPUID has.
            if index in sysregs.LISTED:
                return 0
            raise

    return _transfer(vcpu.vcpu.services, arg, read, True)


def set_msrs(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_SET_MSRS; returns how many were written; E2BIG for more than 255."""
    vcpu.load()

    def put(index: int, data: int) -> int:
        if index == uapi.MSR_EFER and data != vcpu.cpu.efer:
            # It changes the mode, which an instruction that is half done relies on.
            vcpu.coherent()
        try:
            sysregs.set_(vcpu, index, data, host=True)
        except KeyError:
            if data or index not in sysregs.LISTED:
                raise
        return data

    return _transfer(vcpu.vcpu.services, arg, put, False)


def get_feature_msrs(services: Services, arg: int) -> int:
    """KVM_GET_MSRS on the system fd: the feature MSRs only."""
    return _transfer(services, arg, lambda index, _: sysregs.FEATURES[index], True)


def write_list(services: Services, arg: int, indices: tuple[int, ...]) -> int:
    """KVM_GET_MSR_(FEATURE_)INDEX_LIST: always writes how many there are; E2BIG if userspace has less room."""
    room = int.from_bytes(services.copy_from_user(arg, 4), "little")
    services.copy_to_user(arg, len(indices).to_bytes(4, "little"))
    if room < len(indices):
        raise OSError(errno.E2BIG, f"there are {len(indices)} MSRs, and room for {room}")
    services.copy_to_user(arg + 4, struct.pack(f"<{len(indices)}I", *indices))
    return 0


# The guest.


def guest_read(vcpu: X86Vcpu, index: int) -> int | None:
    """RDMSR: the value; None if it becomes an exit or a #GP (:func:`read_refusal` says why)."""
    if not vcpu.vm.msr_filter.allows(index, READ):
        return None
    try:
        return sysregs.get(vcpu, index, host=False)
    except (KeyError, ValueError):
        return None


def guest_write(vcpu: X86Vcpu, index: int, value: int) -> int:
    """WRMSR: 0, or why not (KVM_MSR_EXIT_REASON_*)."""
    if not vcpu.vm.msr_filter.allows(index, WRITE):
        return uapi.KVM_MSR_EXIT_REASON_FILTER
    try:
        sysregs.set_(vcpu, index, value, host=False)
    except KeyError:
        return uapi.KVM_MSR_EXIT_REASON_UNKNOWN
    except ValueError:
        return uapi.KVM_MSR_EXIT_REASON_INVAL
    return 0


def read_refusal(vcpu: X86Vcpu, index: int) -> int:
    """Why RDMSR could not be done (KVM_MSR_EXIT_REASON_*)."""
    if not vcpu.vm.msr_filter.allows(index, READ):
        return uapi.KVM_MSR_EXIT_REASON_FILTER
    if vcpu.hyperv_enabled and index in hyperv_vcpu.MSRS:
        return uapi.KVM_MSR_EXIT_REASON_INVAL
    return uapi.KVM_MSR_EXIT_REASON_UNKNOWN


def exits(vcpu: X86Vcpu, reason: int) -> bool:
    """Whether userspace wants to serve it (KVM_CAP_X86_USER_SPACE_MSR); if not, the guest gets #GP."""
    return bool(vcpu.vm.user_space_msr & reason)


def fill_exit(vcpu: X86Vcpu, offset: int, index: int, value: int, *, reason: int, write: bool) -> None:
    """Fill the run page for KVM_EXIT_X86_RDMSR or KVM_EXIT_X86_WRMSR."""
    _RUN_MSR.pack_into(vcpu.vcpu.page, offset, 0, reason, index, value)
    vcpu.reply = (offset + DATA_OFFSET, 0 if write else 8)
    vcpu.msr_exit = True
    vcpu.vcpu.set_exit_reason(common.KVM_EXIT_X86_WRMSR if write else common.KVM_EXIT_X86_RDMSR)
