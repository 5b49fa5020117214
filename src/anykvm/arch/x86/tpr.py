# SPDX-License-Identifier: GPL-2.0-only
"""KVM_TPR_ACCESS_REPORTING and KVM_SET_VAPIC_ADDR: for a userspace that patches a guest's accesses to its TPR.

The patched guest keeps its task priority in memory, where KVM takes it from whenever it looks at interrupts, and where
it leaves what else the guest needs to know. Source: ``kvm_lapic_sync_from_vapic`` and ``kvm_lapic_sync_to_vapic`` in
``arch/x86/kvm/lapic.c``.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from anykvm.uapi import common
from anykvm.uapi import x86 as uapi

if TYPE_CHECKING:
    from .vcpu import X86Vcpu

APIC_TPR: Final = 0x80
_TPR_ACCESS: Final = struct.Struct("<QI")


def set_reporting(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_TPR_ACCESS_REPORTING: the structure comes back as it is; EINVAL for flags."""
    services = vcpu.vcpu.services
    request = services.read_struct(arg, uapi.KvmTprAccessCtl)
    if request.flags:
        raise OSError(errno.EINVAL, f"kvm_tpr_access_ctl.flags cannot be {request.flags:#x}")
    if vcpu.lapic is not None:
        vcpu.lapic.report_tpr = request.enabled != 0
    services.write_struct(arg, request)
    return 0


def set_vapic_addr(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_SET_VAPIC_ADDR: 0 is none; EINVAL without an in-kernel local APIC, or where no memory is."""
    address = vcpu.vcpu.services.read_struct(arg, uapi.KvmVapicAddr).vapic_addr
    if vcpu.lapic is None or (address and vcpu.vm.vm.memory.gpa_to_hva(address, 4) is None):
        raise OSError(errno.EINVAL, f"the task priority cannot be kept at {address:#x}")
    vcpu.vapic_addr = address
    vcpu.attention = True
    return 0


def note_access(vcpu: X86Vcpu, write: bool) -> None:
    """The guest touched the TPR in its APIC page: that is to be reported, with the instruction's address."""
    vcpu.tpr_access = (vcpu.cpu.rip, write)
    vcpu.attention = True


def fill_exit(vcpu: X86Vcpu, offset: int) -> None:
    """KVM_EXIT_TPR_ACCESS, for what :func:`note_access` noted."""
    assert vcpu.tpr_access is not None
    (rip, write), vcpu.tpr_access = vcpu.tpr_access, None
    _TPR_ACCESS.pack_into(vcpu.vcpu.page, offset, rip, write)
    vcpu.vcpu.set_exit_reason(common.KVM_EXIT_TPR_ACCESS)


def sync_from_guest(vcpu: X86Vcpu) -> None:
    """Take the task priority out of the guest's memory."""
    data = vcpu.vm.read_guest(vcpu.vapic_addr, 4)
    if data is not None and vcpu.lapic is not None:
        vcpu.lapic.set_tpr(data[0])


def sync_to_guest(vcpu: X86Vcpu) -> None:
    """Leave task priority, priority in service, and highest vector that waits."""
    lapic = vcpu.lapic
    assert lapic is not None
    isr = max(lapic.isr.bit_length() - 1, 0) & 0xF0
    irr = max(lapic.irr.bit_length() - 1, 0)
    vcpu.vm.write_guest(vcpu.vapic_addr, bytes((lapic.tpr, isr, 0, irr)))
