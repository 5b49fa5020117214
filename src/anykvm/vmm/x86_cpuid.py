# SPDX-License-Identifier: GPL-2.0-only
"""What an x86 vCPU says of itself: everything this KVM supports, and its own place in the machine.

Sources: Intel SDM volume 2, CPUID (leaves 1, 4, 0xb, 0x1f); AMD APM volume 3, appendix E (0x80000008, 0x8000001e);
``Documentation/virt/kvm/api.rst``, 4.46. The machine is one package of as many cores as there are vCPUs, with one
thread each; a vCPU's APIC id is its number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from anykvm.api import Kvm
from anykvm.api.x86 import CpuidEntry
from anykvm.uapi import common, x86

_HTT: Final = 1 << 28  # leaf 1, edx: more than one logical CPU in the package
_LEVEL_THREAD: Final = 1
_LEVEL_CORE: Final = 2


def for_vcpu(leaves: Iterable[CpuidEntry], apic_id: int, vcpus: int, *, tsc_deadline: bool = False) -> list[CpuidEntry]:
    """The leaves with a vCPU's own topology in them, and the TSC-deadline timer where KVM has one."""
    bits = (vcpus - 1).bit_length()
    found: list[CpuidEntry] = []
    for leaf in leaves:
        match leaf.function:
            case 1:
                ebx = leaf.ebx & 0x0000FFFF | min(1 << bits, 0xFF) << 16 | apic_id << 24
                edx = leaf.edx | _HTT if vcpus > 1 else leaf.edx & ~_HTT
                ecx = leaf.ecx | x86.CPUID_1_ECX_TSC_DEADLINE if tsc_deadline else leaf.ecx
                found.append(replace(leaf, ebx=ebx, ecx=ecx, edx=edx))
            case 4 if leaf.eax & 0x1F:
                level = leaf.eax >> 5 & 7
                sharing = 0 if level < 3 else (1 << bits) - 1
                eax = leaf.eax & 0x3FFF | sharing << 14 | min((1 << bits) - 1, 0x3F) << 26
                found.append(replace(leaf, eax=eax))
            case 0xB | 0x1F:
                if leaf.index == 0:
                    found += _levels(leaf, apic_id, vcpus, bits)
            case 0x80000008:
                found.append(replace(leaf, ecx=bits << 12 | vcpus - 1))
            case 0x8000001E:
                found.append(replace(leaf, eax=apic_id, ebx=apic_id & 0xFF, ecx=0))
            case _:
                found.append(leaf)
    return found


def _levels(leaf: CpuidEntry, apic_id: int, vcpus: int, bits: int) -> list[CpuidEntry]:
    """Leaf 0xb or 0x1f: the threads of a core, the cores of the package, and the end."""
    base = replace(leaf, flags=leaf.flags | x86.KVM_CPUID_FLAG_SIGNIFCANT_INDEX, edx=apic_id)
    return [
        replace(base, index=0, eax=0, ebx=1, ecx=_LEVEL_THREAD << 8),
        replace(base, index=1, eax=bits, ebx=vcpus, ecx=1 | _LEVEL_CORE << 8),
        replace(base, index=2, eax=0, ebx=0, ecx=2),
    ]


def has_tsc_deadline(kvm: Kvm) -> bool:
    """Whether KVM's local APIC has the TSC-deadline timer, which its list of leaves leaves out."""
    return kvm.check_extension(common.KVM_CAP_TSC_DEADLINE_TIMER) > 0
