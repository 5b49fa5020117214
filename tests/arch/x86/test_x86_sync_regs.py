# SPDX-License-Identifier: GPL-2.0-only
"""Registers in the run page (KVM_CAP_SYNC_REGS)."""

from __future__ import annotations

import errno

import pytest
from x86_fake import Rig, errno_of

from anykvm.engine import Event
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X


@pytest.fixture
def one(rig: Rig) -> Rig:
    rig.create_vcpu()
    return rig


def test_registers_are_left_in_the_page(one: Rig) -> None:
    one.page().kvm_valid_regs = X.KVM_SYNC_X86_VALID_FIELDS
    one.cpu().gpr[0] = 0
    one.run((Event.HLT,))
    sync = X.KvmSyncRegs.from_buffer_copy(one.bytes(), C.KvmRun.s.offset)
    assert sync.regs.rip == 0xFFF0
    assert sync.sregs.cs.base == 0xFFFF0000
    assert sync.events.flags


def test_and_taken_from_it(one: Rig) -> None:
    one.get(X.KVM_GET_REGS, X.KvmRegs)
    sync = X.KvmSyncRegs.from_buffer(one.bytes(), C.KvmRun.s.offset)
    sync.regs.rip = 0x4000
    sync.regs.rflags = 2
    one.page().kvm_dirty_regs = X.KVM_SYNC_X86_REGS
    one.run((Event.HLT,))
    assert one.cpu().rip == 0x4000
    assert one.page().kvm_dirty_regs == 0
    del sync


@pytest.mark.parametrize("field", ["kvm_valid_regs", "kvm_dirty_regs"])
def test_unknown_sets_of_registers(one: Rig, field: str) -> None:
    setattr(one.page(), field, 1 << 40)
    assert errno_of(one.run) == errno.EINVAL


def test_bad_registers_in_the_page(one: Rig) -> None:
    one.page().kvm_dirty_regs = X.KVM_SYNC_X86_SREGS
    X.KvmSyncRegs.from_buffer(one.bytes(), C.KvmRun.s.offset).sregs.cr4 = 1 << 40
    assert errno_of(one.run) == errno.EINVAL
