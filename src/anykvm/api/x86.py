# SPDX-License-Identifier: GPL-2.0-only
"""x86 beside the handles: CPUID entries, lists of MSRs, debug exits; and what the system handle offers on x86."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass
from typing import Final

from anykvm.api.exits import ArchExit, Debug
from anykvm.api.handle import Handle
from anykvm.uapi.x86 import (
    KVM_GET_MSR_FEATURE_INDEX_LIST,
    KVM_GET_MSR_INDEX_LIST,
    KVM_GET_MSRS,
    KVM_GET_SUPPORTED_CPUID,
    KVM_GET_SUPPORTED_HV_CPUID,
    KVM_X86_GET_MCE_CAP_SUPPORTED,
    KvmCpuid2,
    KvmCpuidEntry2,
    KvmDebugExitArch,
    KvmHypervExit,
    KvmMsrEntry,
    KvmMsrs,
    KvmXenExit,
    RunMsr,
)

_Buffer = ctypes.Array[ctypes.c_char]
_CPUID_HEAD: Final = ctypes.sizeof(KvmCpuid2)
_CPUID_ENTRY: Final = ctypes.sizeof(KvmCpuidEntry2)
_MSRS_HEAD: Final = ctypes.sizeof(KvmMsrs)
_MSR_ENTRY: Final = ctypes.sizeof(KvmMsrEntry)
_FIRST_GUESS: Final = 128


@dataclass(frozen=True, slots=True)
class CpuidEntry:
    """One leaf of CPUID; ``index`` counts where ``flags`` has KVM_CPUID_FLAG_SIGNIFCANT_INDEX.

    >>> CpuidEntry(7, index=0, flags=1, ebx=0x80).ebx
    128
    """

    function: int
    index: int = 0
    flags: int = 0
    eax: int = 0
    ebx: int = 0
    ecx: int = 0
    edx: int = 0


def encode_cpuid(entries: Iterable[CpuidEntry]) -> _Buffer:
    """Lay entries out as ``struct kvm_cpuid2``.

    >>> len(encode_cpuid([CpuidEntry(0)]))
    48
    """
    raw = b"".join(bytes(KvmCpuidEntry2(*astuple(entry))) for entry in entries)
    head = KvmCpuid2(nent=len(raw) // _CPUID_ENTRY)
    return ctypes.create_string_buffer(bytes(head) + raw, _CPUID_HEAD + len(raw))


def decode_cpuid(buffer: bytes) -> list[CpuidEntry]:
    """Undo :func:`encode_cpuid`.

    >>> decode_cpuid(encode_cpuid([CpuidEntry(1, eax=2)]).raw)[0].eax
    2
    """
    found = []
    for number in range(KvmCpuid2.from_buffer_copy(buffer).nent):
        one = KvmCpuidEntry2.from_buffer_copy(buffer, _CPUID_HEAD + number * _CPUID_ENTRY)
        found.append(CpuidEntry(one.function, one.index, one.flags, one.eax, one.ebx, one.ecx, one.edx))
    return found


def fetch_cpuid(handle: Handle, request: int) -> list[CpuidEntry]:
    """Make a request that fills ``struct kvm_cpuid2``, with more and more room until it is enough."""
    room = _FIRST_GUESS
    while True:
        buffer = ctypes.create_string_buffer(bytes(KvmCpuid2(nent=room)), _CPUID_HEAD + room * _CPUID_ENTRY)
        try:
            handle.ioctl(request, buffer)
        except OSError as error:
            if error.errno != errno.E2BIG or room >= 1 << 16:
                raise
            room *= 2
            continue
        return decode_cpuid(buffer.raw)


def encode_msrs(values: Mapping[int, int]) -> _Buffer:
    """Lay MSRs out as ``struct kvm_msrs``: index to value.

    >>> len(encode_msrs({0x10: 0}))
    24
    """
    raw = b"".join(bytes(KvmMsrEntry(index=index, data=value)) for index, value in values.items())
    return ctypes.create_string_buffer(bytes(KvmMsrs(nmsrs=len(values))) + raw, _MSRS_HEAD + len(raw))


def fetch_msrs(handle: Handle, indices: Iterable[int]) -> dict[int, int]:
    """Read MSRs; those from the first that cannot be read on are missing in the answer."""
    wanted = list(indices)
    buffer = encode_msrs(dict.fromkeys(wanted, 0))
    done = handle.ioctl(KVM_GET_MSRS, buffer)
    entries = (KvmMsrEntry.from_buffer(buffer, _MSRS_HEAD + number * _MSR_ENTRY) for number in range(done))
    return {entry.index: entry.data for entry in entries}


def _fetch_list(handle: Handle, request: int) -> list[int]:
    count = 0
    while True:
        buffer = (ctypes.c_uint32 * (count + 1))(count)
        try:
            handle.ioctl(request, ctypes.addressof(buffer))
        except OSError as error:
            # The kernel says how many there are.
            if error.errno != errno.E2BIG or buffer[0] <= count:
                raise
            count = buffer[0]
            continue
        return list(buffer[1 : buffer[0] + 1])


def debug_exit(exit: Debug) -> KvmDebugExitArch:
    """What a debug exit says: the exception (1 #DB, 3 #BP), the linear address, DR6 and DR7.

    >>> debug_exit(Debug(arch=bytes([3]) + bytes(31))).exception
    3
    """
    return KvmDebugExitArch.from_buffer_copy(exit.arch)


def msr_exit(exit: ArchExit) -> RunMsr:
    """What KVM_EXIT_X86_RDMSR or KVM_EXIT_X86_WRMSR says: index, reason, and the data written.

    Answer in the run page, by ``data`` or ``error`` of ``RunMsr.from_buffer(vcpu.run_page, KvmRun.hw.offset)``.

    >>> msr_exit(ArchExit(29, "KVM_EXIT_X86_RDMSR", bytes(12) + bytes([16]) + bytes(243))).index
    16
    """
    return RunMsr.from_buffer_copy(exit.payload)


def hyperv_exit(exit: ArchExit) -> KvmHypervExit:
    """What KVM_EXIT_HYPERV says: registers of the synthetic interrupts that changed, a hypercall, or a debugger's.

    Answer a hypercall by ``u.hcall.result`` of ``KvmHypervExit.from_buffer(vcpu.run_page, KvmRun.hw.offset)``.

    >>> hyperv_exit(ArchExit(27, "KVM_EXIT_HYPERV", bytes([2]) + bytes(7) + bytes([0x5C]) + bytes(247))).u.hcall.input
    92
    """
    return KvmHypervExit.from_buffer_copy(exit.payload)


def xen_exit(exit: ArchExit) -> KvmXenExit:
    """What KVM_EXIT_XEN says: a hypercall.

    Answer by ``u.hcall.result`` of ``KvmXenExit.from_buffer(vcpu.run_page, KvmRun.hw.offset)``.

    >>> xen_exit(ArchExit(34, "KVM_EXIT_XEN", bytes([1]) + bytes(15) + bytes([17]) + bytes(239))).u.hcall.input
    17
    """
    return KvmXenExit.from_buffer_copy(exit.payload)


class X86System(Handle):
    """What :class:`Kvm` has on x86; elsewhere these are OSError EINVAL."""

    def get_supported_cpuid(self) -> list[CpuidEntry]:
        """What a vCPU's CPUID can offer (api.rst 4.46), for :meth:`Vcpu.set_cpuid2`. Errors: EBADF."""
        return fetch_cpuid(self, KVM_GET_SUPPORTED_CPUID)

    def get_supported_hv_cpuid(self) -> list[CpuidEntry]:
        """What Hyper-V's leaves of a CPUID can offer (api.rst 4.118). Errors: EBADF, EINVAL if there are none."""
        return fetch_cpuid(self, KVM_GET_SUPPORTED_HV_CPUID)

    def get_msr_index_list(self) -> list[int]:
        """The MSRs to save and restore (api.rst 4.3). Errors: EBADF."""
        return _fetch_list(self, KVM_GET_MSR_INDEX_LIST)

    def get_msr_feature_index_list(self) -> list[int]:
        """The MSRs that describe features, for :meth:`get_feature_msrs` (api.rst 4.3). Errors: EBADF."""
        return _fetch_list(self, KVM_GET_MSR_FEATURE_INDEX_LIST)

    def get_feature_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """Read feature MSRs (api.rst 4.18); from the first that is none on they are missing. Errors: E2BIG, EBADF."""
        return fetch_msrs(self, indices)

    def get_mce_cap_supported(self) -> int:
        """What :meth:`Vcpu.setup_mce` takes, without the number of banks (api.rst 4.104). Errors: EBADF."""
        value = ctypes.c_uint64()
        self.ioctl(KVM_X86_GET_MCE_CAP_SUPPORTED, ctypes.addressof(value))
        return value.value
