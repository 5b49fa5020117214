# SPDX-License-Identifier: GPL-2.0-only
"""Instructions that an ioctl other than KVM_RUN finishes, and what is owed to whom."""

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


def test_nothing_is_owed_while_an_interrupt_is_acknowledged(one: Rig) -> None:
    """A guest that KVM_RUN left while it was taking an interrupt goes on with the vector, not with a port's answer."""
    arch = one.vcpu()
    cpu = one.cpu()
    one.run((Event.PIO_WRITE, 0x3F8, 1, 0x41))
    assert arch.reply is not None
    one.bytes()[4096] = 0x99
    one.set(C.KVM_INTERRUPT, C.KvmInterrupt(irq=0x33))

    def signalled(_cpu: object) -> tuple[int]:
        arch.vcpu.interrupt()
        return (Event.IRQ_ACK,)

    before = len(cpu.answers)
    assert errno_of(lambda: one.run(signalled)) == errno.EINTR
    assert (cpu.parked, arch.reply, arch.owed) == (Event.IRQ_ACK, None, None)
    one.run((Event.HLT,))
    assert cpu.answers[before : before + 2] == [0, 0x33]
    assert cpu.answers.count(0x33) == 1
