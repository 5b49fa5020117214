# SPDX-License-Identifier: GPL-2.0-only
"""An instruction that waits for its answer: a port or device access, an MSR, or a hypercall that userspace serves.

Registers are the guest's whole state to userspace at any moment (api.rst 5), so writing them, or ``immediate_exit``,
first brings the instruction to its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anykvm.engine import Event
from anykvm.uapi.run import KvmRun

from . import hypercall, inject, regs

if TYPE_CHECKING:
    from anykvm.virt.vcpu import Vcpu

    from .engine import CpuLike

EXIT_DATA: Final = KvmRun.mmio.offset

MID_INSTRUCTION: Final = frozenset(
    int(kind)
    for kind in (
        Event.MMIO_READ,
        Event.MMIO_WRITE,
        Event.PIO_READ,
        Event.PIO_WRITE,
        Event.MSR_READ,
        Event.MSR_WRITE,
        Event.CR8_WRITE,
    )
)
"""Events in the middle of an instruction: it goes on with the next ``run``."""


PORT_ACCESS: Final = frozenset({int(Event.PIO_READ), int(Event.PIO_WRITE)})
RIP: Final = 128
"""Where RIP is in ``struct kvm_regs``."""


class HalfDone:
    """What :class:`.vcpu.X86Vcpu` has of it."""

    vcpu: Vcpu
    cpu: CpuLike
    attention: bool
    reply: tuple[int, int] | None
    msr_exit: bool
    hypercall_mask: int
    owed: int | None
    wanted_regs: tuple[bytes, bytes] | None

    def load(self) -> CpuLike:
        """Give the CPU for use, made ready the first time."""
        raise NotImplementedError

    @property
    def mid_instruction(self) -> bool:
        """Whether an instruction is half done."""
        return self.cpu.parked in MID_INSTRUCTION

    def drop_instruction(self) -> None:
        """Give up the instruction that is half done, if one is."""
        if self.mid_instruction:
            self.cpu.abandon()
        self.reply = self.owed = self.wanted_regs = None
        self.msr_exit = False

    def take_reply(self) -> int:
        """What a half-done instruction goes on with: userspace's answer in the run page, or what is owed."""
        reply = self.reply
        if reply is None:
            value, self.owed = self.owed or 0, None
            return value
        self.reply = None
        offset, size = reply
        page = self.vcpu.page
        if self.msr_exit:
            self.msr_exit = False
            if page[EXIT_DATA]:
                inject.general_protection(self.cpu)
                return 0
        return int.from_bytes(page[offset : offset + size], "little")

    def get_regs(self) -> bytes:
        """``struct kvm_regs``."""
        cpu = self.load()
        return self.wanted_regs[1] if self.wanted_regs is not None else regs.get(cpu)

    def set_regs(self, data: bytes) -> None:
        """Write ``struct kvm_regs``; while an instruction is half done, when it is finished."""
        cpu = self.load()
        if self.hypercall_mask:
            regs.set_(cpu, data)
        elif self.half_done and cpu.parked in PORT_ACCESS:
            if int.from_bytes(data[RIP : RIP + 8], "little") != cpu.rip:
                # As in the kernel: whoever moves on does without the answer.
                self.drop_instruction()
                regs.set_(cpu, data)
                return
            # The instruction goes on with these; a string instruction counts on from them.
            before = regs.get(cpu)
            regs.set_general(cpu, data)
            self.wanted_regs = (data[:RIP] + before[RIP:], data)
        elif self.half_done:
            self.wanted_regs = (self.wanted_regs[0] if self.wanted_regs is not None else regs.get(cpu), data)
        else:
            regs.set_(cpu, data)

    @property
    def half_done(self) -> bool:
        """Whether an instruction waits for its answer."""
        return self.reply is not None or self.owed is not None

    def complete_io(self) -> None:
        """Finish the instruction that is half done, if one is, and stop as soon after it as possible."""
        if self.hypercall_mask:
            hypercall.complete(self)
        if not self.half_done:
            return
        cpu = self.cpu
        value = self.take_reply()
        cpu.kick()
        kind = cpu.run(value)[0]
        # What the guest met next is met again: it is undone here, not remembered. An interrupt it was about to take
        # (IRQ_ACK) is acknowledged when it runs again.
        if kind in MID_INSTRUCTION:
            cpu.abandon()
        elif kind == Event.HLT:
            cpu.rip -= 1
        elif kind == Event.HYPERCALL:
            cpu.rip -= 3
        if self.wanted_regs is not None:
            before, wanted = self.wanted_regs
            self.wanted_regs = None
            regs.merge(cpu, before, wanted)
        self.attention = True
