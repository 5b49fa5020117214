# SPDX-License-Identifier: GPL-2.0-only
"""KVM_TRANSLATE (api.rst 4.15): from a guest-virtual address to the guest-physical one, by the guest's own tables.

Source: Intel SDM volume 3, chapter "Paging".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anykvm.uapi import common
from anykvm.uapi import x86 as uapi

if TYPE_CHECKING:
    from .vcpu import X86Vcpu

UNMAPPED: Final = 0xFFFFFFFFFFFFFFFF
_PRESENT: Final = 1 << 0
_LARGE: Final = 1 << 7
_ADDRESS: Final = 0x000FFFFFFFFFF000


def _entry(vcpu: X86Vcpu, address: int, size: int) -> int:
    """A table's entry; one that is not present where there is no memory, or if it has bits beyond the address."""
    data = vcpu.vm.read_guest(address, size, vcpu.smm.active)
    entry = int.from_bytes(data, "little") if data is not None else 0
    return 0 if entry & _ADDRESS & -(1 << vcpu.maxphyaddr) else entry


def walk(vcpu: X86Vcpu, address: int) -> int:
    """Give the guest-physical address, as a read by the system would find it; UNMAPPED if it would fault."""
    cpu = vcpu.load()
    if not cpu.cr0 & uapi.X86_CR0_PG:
        return address
    pae = bool(cpu.cr4 & uapi.X86_CR4_PAE)
    if not pae:
        return _walk(vcpu, address & 0xFFFFFFFF, cpu.cr3 & 0xFFFFF000, (22, 12), bool(cpu.cr4 & uapi.X86_CR4_PSE))
    if cpu.efer & uapi.EFER_LMA:
        # As in the kernel, the bits above the tables' 48 do not count.
        return _walk(vcpu, address, cpu.cr3 & _ADDRESS, (39, 30, 21, 12), True)
    return _walk(vcpu, address & 0xFFFFFFFF, cpu.cr3 & 0xFFFFFFE0, (30, 21, 12), True)


def read(vcpu: X86Vcpu, address: int, size: int) -> bytes | None:
    """Read as the system would, within one page of 4096 bytes; None if it would fault, or no memory is there."""
    physical = walk(vcpu, address)
    return None if physical == UNMAPPED else vcpu.vm.read_guest(physical, size, vcpu.smm.active)


def _walk(vcpu: X86Vcpu, address: int, table: int, shifts: tuple[int, ...], large: bool) -> int:
    size = 4 if len(shifts) == 2 else 8
    bits = 10 if size == 4 else 9
    for level, shift in enumerate(shifts):
        index = address >> shift & (1 << bits) - 1
        entry = _entry(vcpu, table + index * size, size)
        if not entry & _PRESENT:
            return UNMAPPED
        offset = address & (1 << shift) - 1
        last = shift == 12
        # The PDPTRs of PAE paging, and the top of four levels, map nothing themselves.
        if last or (large and entry & _LARGE and shift < 39 and not (len(shifts) == 3 and level == 0)):
            base = entry & _ADDRESS & -(1 << shift)
            if size == 4 and not last:
                # PSE-36: bits 39 to 32 of a page of 4 MiB.
                base |= (entry >> 13 & 0xFF) << 32
            return base | offset
        table = entry & (0xFFFFF000 if size == 4 else _ADDRESS)
    raise AssertionError("the last level maps a page")


def translate(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_TRANSLATE; EFAULT. As the kernel has it, ``writeable`` is always 1 and ``usermode`` 0."""
    services = vcpu.vcpu.services
    request = services.read_struct(arg, common.KvmTranslation)
    request.physical_address = address = walk(vcpu, request.linear_address)
    request.valid = address != UNMAPPED
    request.writeable = 1
    request.usermode = 0
    services.write_struct(arg, request)
    return 0
