# SPDX-License-Identifier: GPL-2.0-only
"""An instruction that waits for its answer: a port or device access, an MSR, or a hypercall that userspace serves.

Registers are the guest's whole state to userspace at any moment (api.rst 5), so writing them, or ``immediate_exit``,
first brings the instruction to its end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anykvm.engine import Event
from anykvm.uapi import x86 as uapi
from anykvm.uapi.run import KvmRun

from . import engine, hypercall, inject, regs, translate

if TYPE_CHECKING:
    from anykvm.virt.vcpu import Vcpu

    from .engine import CpuLike
    from .vcpu import X86Vcpu

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


DEVICE_ACCESS: Final = frozenset(
    int(kind) for kind in (Event.MMIO_READ, Event.MMIO_WRITE, Event.PIO_READ, Event.PIO_WRITE)
)
PORT_ACCESS: Final = frozenset({int(Event.PIO_READ), int(Event.PIO_WRITE)})
PIO_PAGE: Final = 4096 * uapi.KVM_PIO_PAGE_OFFSET
READ_AHEAD: Final = 1024
"""The most bytes that one exit for a REP INS asks for."""
RIP: Final = 128
"""Where RIP is in ``struct kvm_regs``."""


class Batch:
    """What userspace gave for a REP INS beyond the first item: ``count`` items in all, ``size`` bytes each.

    It serves the instruction that asked for it, as long as that goes on where the last item left it.
    """

    __slots__ = ("at", "count", "next_rdi", "port", "rip", "size", "step")

    def __init__(self, cpu: CpuLike, port: int, size: int, count: int, *, down: bool) -> None:
        self.port, self.size, self.count = port, size, count
        self.rip = cpu.rip
        self.step = -size if down else size
        self.at = 1
        self.next_rdi = cpu.gpr[engine.RDI] + self.step

    def take(self, cpu: CpuLike, page: memoryview, port: int, size: int) -> int | None:
        """Give the next item, from the port's page; None if this is not for the access."""
        if self.at >= self.count or (port, size) != (self.port, self.size):
            return None
        if cpu.gpr[engine.RDI] != self.next_rdi or cpu.rip != self.rip:
            return None
        start = PIO_PAGE + self.at * size
        self.at += 1
        self.next_rdi += self.step
        return int.from_bytes(page[start : start + size], "little")


def make_batch(cpu: CpuLike, port: int, size: int, width: int) -> Batch:
    """How many items of a REP INS one exit asks for: what is left, in the page, in 1024 bytes.

    ``width`` is the address size in bytes. Source: ``pio_in_emulated`` in ``arch/x86/kvm/emulate.c``.
    """
    mask = (1 << 8 * width) - 1
    rdi = cpu.gpr[engine.RDI]
    down = cpu.rflags & uapi.X86_EFLAGS_DF != 0
    in_page = rdi & 0xFFF if down else 0x1000 - (rdi & 0xFFF)
    count = min(in_page, READ_AHEAD // size, cpu.gpr[engine.RCX] & mask)
    return Batch(cpu, port, size, max(count, 1), down=down)


def out_length(vcpu: X86Vcpu) -> int:
    """How long the OUT instruction at RIP is, in bytes; 0 if it cannot be told."""
    cpu = vcpu.cpu
    linear = cpu.get_segment(engine.CS)[1] + cpu.rip & 0xFFFFFFFFFFFFFFFF
    for length in range(1, 16):
        byte = translate.read(vcpu, linear + length - 1, 1)
        if byte is None:
            break
        if byte[0] in (0xE6, 0xE7):
            return length + 1
        if byte[0] in (0xEE, 0xEF):
            return length
    return 0


class HalfDone:
    """What :class:`.vcpu.X86Vcpu` has of it."""

    __slots__ = (
        "attention",
        "batch",
        "cpu",
        "finished",
        "hypercall_exit",
        "hypercall_mask",
        "msr_exit",
        "owed",
        "reply",
        "rip_ahead",
        "vcpu",
        "wanted_regs",
    )

    vcpu: Vcpu
    cpu: CpuLike
    attention: bool
    reply: tuple[int, int] | None
    msr_exit: bool
    hypercall_exit: int
    hypercall_mask: int
    owed: int | None
    wanted_regs: tuple[bytes, bytes] | None
    rip_ahead: int
    batch: Batch | None
    finished: tuple[bytes, bytes] | None
    """The registers before and after an instruction that an ioctl finished, until the next KVM_RUN."""

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
        self.reply = self.owed = self.wanted_regs = self.batch = None
        self.msr_exit = False
        self.rip_ahead = 0

    def take_reply(self) -> int:
        """What a half-done instruction goes on with: userspace's answer in the run page, or what is owed."""
        reply = self.reply
        if reply is None:
            value, self.owed = self.owed or 0, None
            return value
        self.reply = None
        self.rip_ahead = 0
        offset, size = reply
        if self.msr_exit:
            self.msr_exit = False
            if self.vcpu.page[EXIT_DATA]:
                inject.general_protection(self.cpu)
                return 0
        if not size:
            return 0
        page = self.vcpu.page
        return int.from_bytes(page[offset : offset + size], "little")

    def get_regs(self) -> bytes:
        """``struct kvm_regs``."""
        cpu = self.load()
        data = self.wanted_regs[1] if self.wanted_regs is not None else regs.get(cpu)
        if self.rip_ahead:
            data = data[:RIP] + (cpu.rip + self.rip_ahead).to_bytes(8, "little") + data[RIP + 8 :]
        return data

    def set_regs(self, data: bytes) -> None:
        """Write ``struct kvm_regs``; while an instruction is half done, when it is finished."""
        cpu = self.load()
        if self.hypercall_mask:
            regs.set_(cpu, data)
        elif self.half_done and cpu.parked in PORT_ACCESS:
            rip = cpu.rip
            if int.from_bytes(data[RIP : RIP + 8], "little") != rip + self.rip_ahead:
                # As in the kernel: whoever moves on does without the answer.
                self.drop_instruction()
                regs.set_(cpu, data)
                return
            # The instruction goes on with these; a string instruction counts on from them.
            data = data[:RIP] + rip.to_bytes(8, "little") + data[RIP + 8 :]
            before = regs.get(cpu)
            regs.set_general(cpu, data)
            flags = RIP + 8
            self.wanted_regs = (data[:flags] + before[flags:], data) if data[flags:] != before[flags:] else None
        elif self.half_done:
            self.wanted_regs = (self.wanted_regs[0] if self.wanted_regs is not None else regs.get(cpu), data)
        elif self.finished is not None:
            regs.merge(cpu, *self.finished, data)
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
        # KVM finishes it in the next KVM_RUN: who read the registers before this means those.
        before = self.wanted_regs[0] if self.wanted_regs is not None else self.get_regs()
        parked = cpu.parked
        value = self.take_reply()
        if parked in DEVICE_ACCESS:
            cpu.finish(value)
            kind = int(Event.KICK)
        else:
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
        after = regs.get(cpu)
        self.finished = before, after
        if self.wanted_regs is not None:
            wanted = self.wanted_regs[1]
            self.wanted_regs = None
            regs.merge(cpu, before, after, wanted)
        self.attention = True
