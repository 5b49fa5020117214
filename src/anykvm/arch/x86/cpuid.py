# SPDX-License-Identifier: GPL-2.0-only
"""CPUID: what is offered (KVM_GET_SUPPORTED_CPUID), what a vCPU has (KVM_SET_CPUID2, KVM_GET_CPUID2).

What is offered is what the engine's CPU does, and of KVM's paravirtual features those that work here. Source: api.rst
4.20, 4.46; ``Documentation/virt/kvm/x86/cpuid.rst``.
"""

from __future__ import annotations

import errno
import threading
from ctypes import sizeof
from typing import TYPE_CHECKING, Final

from anykvm.engine import Cpu, Machine
from anykvm.uapi import x86 as uapi

from . import pv
from .xsave import XCR0_SUPPORTED

if TYPE_CHECKING:
    from anykvm.virt.services import Services

    from .engine import CpuidLeaf, CpuLike

KVM_MAX_CPUID_ENTRIES: Final = 256
_HEAD: Final = sizeof(uapi.KvmCpuid2)
_ENTRY: Final = sizeof(uapi.KvmCpuidEntry2)
_OLD_ENTRY: Final = sizeof(uapi.KvmCpuidEntry)
_SIGNIFICANT: Final = uapi.KVM_CPUID_FLAG_SIGNIFCANT_INDEX

NEVER_1_ECX: Final = uapi.CPUID_1_ECX_MWAIT | uapi.CPUID_1_ECX_VMX | uapi.CPUID_1_ECX_PCID | uapi.CPUID_1_ECX_AVX
KVMS_1_ECX: Final = uapi.CPUID_1_ECX_HYPERVISOR | uapi.CPUID_1_ECX_X2APIC | uapi.CPUID_1_ECX_TSC_DEADLINE
"""What KVM has whatever the CPU is."""
NEVER_7_EBX: Final = uapi.CPUID_7_EBX_INVPCID | uapi.CPUID_7_EBX_MPX
NEVER_7_ECX: Final = uapi.CPUID_7_ECX_LA57 | uapi.CPUID_7_ECX_PKU
NEVER_80000001_ECX: Final = uapi.CPUID_80000001_ECX_SVM

XSAVE_AREA: Final = 512 + 64
"""An XSAVE area with x87 and SSE, in bytes."""
XSAVEOPT: Final = 1 << 0

# Leaves of which every subleaf counts, and how many there can be.
_SUBLEAVES: Final = {0x4: 8, 0x7: 1, 0xD: 2}
_BASIC_MAX: Final = 0xD
_EXTENDED: Final = 0x80000000
_EXTENDED_MAX: Final = 0x80000008


def _leaf(cpu: CpuLike, function: int, index: int) -> CpuidLeaf | None:
    eax, ebx, ecx, edx = cpu.supported_cpuid(function, index)
    flags = _SIGNIFICANT if function in _SUBLEAVES else 0
    if function == 0:
        eax = min(eax, _BASIC_MAX)
    elif function == 1:
        # The APIC ID and OSXSAVE are each vCPU's own.
        ebx &= 0x00FFFFFF
        ecx = ecx & ~(NEVER_1_ECX | uapi.CPUID_1_ECX_OSXSAVE) | KVMS_1_ECX
        edx |= uapi.CPUID_1_EDX_APIC | uapi.CPUID_1_EDX_MSR | uapi.CPUID_1_EDX_TSC | uapi.CPUID_1_EDX_MTRR
        edx |= uapi.CPUID_1_EDX_MCE | uapi.CPUID_1_EDX_MCA | uapi.CPUID_1_EDX_PAT
    elif function in (0x5, 0x6, 0x9, 0xA, 0xB):
        # MONITOR, power, performance counters and topology: nothing of it is here.
        eax = ebx = ecx = edx = 0
    elif function == 0x4:
        if eax & 0x1F == 0:
            return None
        # One core that shares with nobody; userspace says otherwise if it wants.
        eax &= 0x3FFF
    elif function == 0x7:
        if index:
            return None
        eax = 0
        ebx = ebx & ~NEVER_7_EBX | uapi.CPUID_7_EBX_TSC_ADJUST
        ecx &= ~NEVER_7_ECX
        edx = uapi.CPUID_7_EDX_ARCH_CAPABILITIES
    elif function == 0xD:
        if index > 1:
            return None
        if index == 0:
            eax, ebx, ecx, edx = XCR0_SUPPORTED & eax, XSAVE_AREA, XSAVE_AREA, 0
        else:
            eax, ebx, ecx, edx = eax & XSAVEOPT, 0, 0, 0
    elif function == _EXTENDED:
        eax = max(min(eax, _EXTENDED_MAX), _EXTENDED)
    elif function == 0x80000001:
        ecx &= ~NEVER_80000001_ECX
    elif function == 0x80000008:
        ecx = 0
    return (function, index, flags, *(word & 0xFFFFFFFF for word in (eax, ebx, ecx, edx)))  # type: ignore[return-value]


def _collect(cpu: CpuLike) -> list[CpuidLeaf]:
    basic_max = min(cpu.supported_cpuid(0, 0)[0], _BASIC_MAX)
    extended_max = min(cpu.supported_cpuid(_EXTENDED, 0)[0], _EXTENDED_MAX)
    found = []
    for function in (*range(basic_max + 1), *range(_EXTENDED, extended_max + 1)):
        for index in range(_SUBLEAVES.get(function, 1)):
            leaf = _leaf(cpu, function, index)
            if leaf is not None:
                found.append(leaf)
            elif function == 0x4:
                break
    signature = [int.from_bytes(uapi.KVM_SIGNATURE[start : start + 4], "little") for start in (0, 4, 8)]
    found.append((uapi.KVM_CPUID_SIGNATURE, 0, 0, uapi.KVM_CPUID_FEATURES, *signature))  # type: ignore[arg-type]
    found.append((uapi.KVM_CPUID_FEATURES, 0, 0, pv.OFFERED, 0, 0, 0))
    return found


class _Supported:
    """Asked of the engine once: it takes a CPU to ask."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leaves: tuple[CpuidLeaf, ...] | None = None

    def leaves(self) -> tuple[CpuidLeaf, ...]:
        with self._lock:
            if self._leaves is None:
                machine = Machine("x86")
                cpu = Cpu(machine)
                try:
                    self._leaves = tuple(_collect(cpu))
                finally:
                    cpu.close()
                    machine.close()
            return self._leaves

    def forget(self) -> None:
        with self._lock:
            self._leaves = None


_supported: Final = _Supported()
supported = _supported.leaves
forget = _supported.forget


def find(leaves: tuple[CpuidLeaf, ...], function: int, index: int = 0) -> CpuidLeaf | None:
    """Find a leaf as the CPU would: the subleaf counts only where the entry says so."""
    for leaf in leaves:
        if leaf[0] == function and (not leaf[2] & _SIGNIFICANT or leaf[1] == index):
            return leaf
    return None


def with_mwait(leaves: tuple[CpuidLeaf, ...], on: bool) -> tuple[CpuidLeaf, ...]:
    """The same with or without MONITOR and MWAIT."""
    bit = uapi.CPUID_1_ECX_MWAIT
    return tuple((*leaf[:5], leaf[5] & ~bit | (bit if on else 0), leaf[6]) if leaf[0] == 1 else leaf for leaf in leaves)


def without_kvm_feature(leaves: tuple[CpuidLeaf, ...], feature: int) -> tuple[CpuidLeaf, ...]:
    """The same without one of the features in KVM_CPUID_FEATURES' eax."""
    base = kvm_base(leaves)
    if base is None:
        return leaves
    return tuple((*leaf[:3], leaf[3] & ~(1 << feature), *leaf[4:]) if leaf[0] == base | 1 else leaf for leaf in leaves)


def is_amd(leaves: tuple[CpuidLeaf, ...]) -> bool:
    """Whether the vendor is AMD or Hygon, whose hypercall is VMMCALL."""
    leaf = find(leaves, 0)
    if leaf is None:
        return False
    vendor = b"".join(word.to_bytes(4, "little") for word in (leaf[4], leaf[6], leaf[5]))
    return vendor in (b"AuthenticAMD", b"HygonGenuine")


def hypercall_insn(leaves: tuple[CpuidLeaf, ...]) -> bytes:
    """Give the vendor's own instruction for a hypercall: VMMCALL or VMCALL."""
    return b"\x0f\x01\xd9" if is_amd(leaves) else b"\x0f\x01\xc1"


def find_kvm_features(leaves: tuple[CpuidLeaf, ...]) -> int:
    """Find KVM_CPUID_FEATURES' eax; 0 without."""
    base = kvm_base(leaves)
    features = find(leaves, base | 1) if base is not None else None
    return features[3] if features is not None else 0


def kvm_base(leaves: tuple[CpuidLeaf, ...]) -> int | None:
    """Where KVM's signature is: a multiple of 0x100 from 0x40000000 on."""
    signature = tuple(int.from_bytes(uapi.KVM_SIGNATURE[start : start + 4], "little") for start in (0, 4, 8))
    for leaf in leaves:
        if leaf[0] & 0xFFFF00FF == uapi.KVM_CPUID_SIGNATURE and leaf[4:] == signature:
            return leaf[0]
    return None


def encode(leaves: tuple[CpuidLeaf, ...]) -> bytes:
    """The entries of kvm_cpuid2."""
    return b"".join(b"".join(word.to_bytes(4, "little") for word in leaf) + bytes(12) for leaf in leaves)


def decode(data: bytes) -> tuple[CpuidLeaf, ...]:
    """Undo :func:`encode`."""
    words = memoryview(data).cast("I")
    return tuple(tuple(words[start : start + 7]) for start in range(0, len(words), _ENTRY // 4))  # type: ignore[misc]


def decode_old(data: bytes) -> tuple[CpuidLeaf, ...]:
    """The entries of KVM_SET_CPUID: without subleaves."""
    words = memoryview(data).cast("I")
    rows = (words[start : start + 5] for start in range(0, len(words), _OLD_ENTRY // 4))
    return tuple((row[0], 0, 0, row[1], row[2], row[3], row[4]) for row in rows)


def read(services: Services, arg: int, *, old: bool = False) -> tuple[CpuidLeaf, ...]:
    """Take kvm_cpuid2 (or kvm_cpuid) from userspace; E2BIG for more than 256 entries, EFAULT."""
    count = int.from_bytes(services.copy_from_user(arg, 4), "little")
    if count > KVM_MAX_CPUID_ENTRIES:
        raise OSError(errno.E2BIG, f"a vCPU has at most {KVM_MAX_CPUID_ENTRIES} CPUID entries, not {count}")
    data = services.copy_from_user(arg + _HEAD, count * (_OLD_ENTRY if old else _ENTRY))
    return decode_old(data) if old else decode(data)


def write(services: Services, arg: int, leaves: tuple[CpuidLeaf, ...]) -> int:
    """Give userspace the entries, and how many there are; E2BIG if it has less room, EFAULT."""
    room = int.from_bytes(services.copy_from_user(arg, 4), "little")
    if room < len(leaves):
        raise OSError(errno.E2BIG, f"there are {len(leaves)} CPUID entries, and room for {room}")
    services.copy_to_user(arg + _HEAD, encode(leaves))
    services.copy_to_user(arg, len(leaves).to_bytes(4, "little"))
    return 0
