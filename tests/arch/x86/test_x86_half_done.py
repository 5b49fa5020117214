# SPDX-License-Identifier: GPL-2.0-only
"""Instructions that an ioctl other than KVM_RUN finishes."""

from __future__ import annotations

import pytest
from x86_fake import Rig

from anykvm.engine import Event
from anykvm.uapi import x86 as X


@pytest.fixture
def one(rig: Rig) -> Rig:
    rig.create_vcpu()
    return rig


def test_registers_read_before_another_ioctl_finished_the_instruction_leave_its_rip(one: Rig) -> None:
    """QEMU writes back what it read, the special registers first: the instruction does not run a second time."""
    one.run((Event.MMIO_WRITE, 0xD000_0000, 2, 0x20))
    regs = one.get(X.KVM_GET_REGS, X.KvmRegs)
    cpu = one.cpu()

    def finish(_: object) -> None:
        cpu.rip += 2

    cpu.script.append(finish)
    sregs = one.get(X.KVM_GET_SREGS, X.KvmSregs)
    sregs.cr2 += 0x1000
    one.set(X.KVM_SET_SREGS, sregs)
    one.set(X.KVM_SET_REGS, regs)
    assert cpu.rip == regs.rip + 2
    one.run((Event.HLT,))
    one.set(X.KVM_SET_REGS, regs)
    assert cpu.rip == regs.rip
