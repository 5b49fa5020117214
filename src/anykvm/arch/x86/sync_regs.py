# SPDX-License-Identifier: GPL-2.0-only
"""Registers in the run page (KVM_CAP_SYNC_REGS, api.rst 6.75): fetched before the guest runs, stored after it."""

from __future__ import annotations

import errno
from ctypes import sizeof
from typing import TYPE_CHECKING, Final

from anykvm.uapi import x86 as uapi
from anykvm.uapi.run import KvmRun

from . import events, sregs

if TYPE_CHECKING:
    from .vcpu import X86Vcpu

_VALID: Final = KvmRun.kvm_valid_regs.offset
_DIRTY: Final = KvmRun.kvm_dirty_regs.offset
_REGS: Final = KvmRun.s.offset + uapi.KvmSyncRegs.regs.offset
_SREGS: Final = KvmRun.s.offset + uapi.KvmSyncRegs.sregs.offset
_EVENTS: Final = KvmRun.s.offset + uapi.KvmSyncRegs.events.offset


def _word(vcpu: X86Vcpu, offset: int) -> int:
    return int.from_bytes(vcpu.vcpu.page[offset : offset + 8], "little")


def load(vcpu: X86Vcpu) -> None:
    """Take what ``kvm_dirty_regs`` names; EINVAL for unknown bits in it or in ``kvm_valid_regs``, or bad registers.

    The page is userspace's, which may write it meanwhile: everything is copied before it is looked at.
    """
    dirty = _word(vcpu, _DIRTY)
    if (_word(vcpu, _VALID) | dirty) & ~uapi.KVM_SYNC_X86_VALID_FIELDS:
        raise OSError(errno.EINVAL, "kvm_valid_regs or kvm_dirty_regs names registers there are not")
    page = vcpu.vcpu.page
    if dirty & uapi.KVM_SYNC_X86_REGS:
        vcpu.set_regs(bytes(page[_REGS : _REGS + sizeof(uapi.KvmRegs)]))
    if dirty & uapi.KVM_SYNC_X86_SREGS:
        sregs.set_(vcpu, uapi.KvmSregs.from_buffer_copy(page, _SREGS))
    if dirty & uapi.KVM_SYNC_X86_EVENTS:
        events.set_(vcpu, uapi.KvmVcpuEvents.from_buffer_copy(page, _EVENTS))
    page[_DIRTY : _DIRTY + 8] = bytes(8)


def store(vcpu: X86Vcpu) -> None:
    """Leave what ``kvm_valid_regs`` names in the page."""
    valid = _word(vcpu, _VALID)
    page = vcpu.vcpu.page
    if valid & uapi.KVM_SYNC_X86_REGS:
        page[_REGS : _REGS + sizeof(uapi.KvmRegs)] = vcpu.get_regs()
    if valid & uapi.KVM_SYNC_X86_SREGS:
        page[_SREGS : _SREGS + sizeof(uapi.KvmSregs)] = bytes(sregs.get(vcpu))
    if valid & uapi.KVM_SYNC_X86_EVENTS:
        page[_EVENTS : _EVENTS + sizeof(uapi.KvmVcpuEvents)] = bytes(events.get(vcpu))
