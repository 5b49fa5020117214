# SPDX-License-Identifier: GPL-2.0-only
"""What this architecture uses of the engine: the interface of :class:`anykvm.engine.Cpu` for x86 as a type.

Tests put their own CPU behind it.
"""

from __future__ import annotations

from typing import Protocol

# Indices of get_segment and set_segment.
ES, CS, SS, DS, FS, GS, LDT, TR = range(8)
# Indices of get_table and set_table.
GDT, IDT = range(2)
# Indices of gpr.
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)

LINE_INTR = 0
SPURIOUS = 256
"""What answers IRQ_ACK when there is nothing to deliver after all."""

Segment = tuple[int, int, int, int]
"""Selector, base, limit in bytes, attributes: bits 8 and up of a descriptor's second word, shifted right by 8."""
CpuidLeaf = tuple[int, int, int, int, int, int, int]
"""Function, index, flags, eax, ebx, ecx, edx."""


class CpuLike(Protocol):
    """One software CPU. Everything but ``kick``, ``set_irq`` and ``nmi`` belongs to the owner of the vCPU's mutex."""

    rip: int
    rflags: int
    cr0: int
    cr2: int
    cr3: int
    cr4: int
    cr8: int
    efer: int
    xcr0: int
    shadow: bool
    nmi_masked: bool
    nmi_pending: bool
    want_window: bool
    park_msrs: bool
    """The MSRs the engine keeps come as events too."""
    idle_hints: bool
    """MONITOR and MWAIT do nothing; else they are undefined."""
    smm: bool
    """RSM comes as an event; else it is undefined."""
    space: int
    """Which of the machine's memory maps it sees."""
    tsc: int
    tsc_khz: int
    tsc_offset: int

    @property
    def gpr(self) -> memoryview[int]:
        """rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8 to r15."""

    @property
    def parked(self) -> int | None:
        """The kind of event it is parked in."""

    @property
    def raised(self) -> int:
        """The exception that waits to be delivered, or -1."""

    @property
    def interruptible(self) -> bool:
        """Whether an external interrupt could be taken now."""

    def run(self, value: int = 0) -> tuple[int, int, int, int]:
        """Run until an event; ``value`` answers the one that parked it."""

    def abandon(self) -> None:
        """Give up the instruction it is parked in."""

    def finish(self, value: int) -> None:
        """Complete the device access it is parked in with this answer, and nothing after that instruction."""

    def kick(self) -> None:
        """Make ``run`` return soon."""

    def set_irq(self, line: int, level: bool) -> None:
        """Drive INTR (line 0)."""

    def nmi(self) -> None:
        """Raise an NMI."""

    def raise_exception(self, vector: int, error_code: int = -1, /) -> None:
        """Make the instruction it is parked in fault, or else queue an exception; -1 is no error code."""

    def get_segment(self, index: int) -> Segment:
        """A segment register with its hidden part."""

    def set_segment(self, index: int, value: Segment) -> None:
        """Set a segment register with its hidden part."""

    def get_table(self, index: int) -> tuple[int, int]:
        """GDTR or IDTR: base and limit."""

    def set_table(self, index: int, base: int, limit: int) -> None:
        """Set GDTR or IDTR."""

    def get_dr(self, number: int) -> int:
        """A debug register."""

    def set_dr(self, number: int, value: int) -> None:
        """Set a debug register."""

    def set_debug(self, *, step: bool, int3: bool, dr: tuple[int, ...] | None, block_irq: bool) -> None:
        """Stop after each instruction, at INT3, or at the breakpoints of these debug registers (BREAK).

        With ``block_irq`` the guest takes neither interrupts nor NMIs.
        """

    def get_fx(self) -> bytes:
        """The FXSAVE image, 512 bytes."""

    def set_fx(self, image: bytes) -> None:
        """Set what :meth:`get_fx` gives."""

    def get_msr(self, index: int) -> int:
        """An MSR of the engine's; KeyError for another."""

    def set_msr(self, index: int, value: int) -> None:
        """Set an MSR of the engine's; KeyError for another."""

    def set_cpuid(self, leaves: list[CpuidLeaf]) -> None:
        """What CPUID answers."""

    def supported_cpuid(self, function: int, index: int) -> tuple[int, int, int, int]:
        """What the engine's CPU has: eax, ebx, ecx, edx."""

    def reset(self) -> None:
        """Architectural reset."""

    def set_write_ring(self, entries: int, counts: int, size: int, soft: int, /) -> None:
        """Log first writes to pages in a ring."""

    def close(self) -> None:
        """Free it."""
