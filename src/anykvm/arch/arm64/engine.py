# SPDX-License-Identifier: GPL-2.0-only
"""What this architecture uses of the engine: the interface of :class:`anykvm.engine.Cpu` as a type.

Tests put their own CPU behind it.
"""

from __future__ import annotations

from typing import Protocol


class CpuLike(Protocol):
    """One software CPU. Everything but ``kick`` and ``set_irq`` belongs to the owner of the vCPU's mutex."""

    pc: int
    pstate: int
    sp_el0: int
    sp_el1: int
    elr_el1: int
    fpsr: int
    fpcr: int
    cntvoff: int
    fault_va: int

    @property
    def gpr(self) -> memoryview[int]:
        """x0 to x30 and, as item 31, the stack pointer in use."""

    @property
    def parked(self) -> int | None:
        """The kind of event it is parked in."""

    def run(self, value: int = 0) -> tuple[int, int, int, int]:
        """Run until an event; ``value`` answers the one that parked it."""

    def abandon(self) -> None:
        """Give up the instruction it is parked in."""

    def kick(self) -> None:
        """Make ``run`` return soon."""

    def set_irq(self, line: int, level: bool) -> None:
        """Drive IRQ (0) or FIQ (1)."""

    def get_spsr(self, index: int) -> int:
        """A banked SPSR, in KVM's order."""

    def set_spsr(self, index: int, value: int) -> None:
        """Set a banked SPSR."""

    def get_vreg(self, number: int) -> bytes:
        """A vector register, 16 bytes."""

    def set_vreg(self, number: int, value: bytes) -> None:
        """Set a vector register."""

    def get_sysreg(self, encoding: int) -> int:
        """A system register; KeyError if the engine does not know it."""

    def set_sysreg(self, encoding: int, value: int) -> None:
        """Set a system register; KeyError if the engine does not know it."""

    def counter(self) -> int:
        """The physical counter now."""

    def set_mpidr(self, value: int) -> None:
        """What MPIDR_EL1 reads as."""

    def reset(self) -> None:
        """Architectural reset."""

    def set_write_ring(self, entries: int, counts: int, size: int, soft: int, /) -> None:
        """Log first writes to pages in a ring."""

    def close(self) -> None:
        """Free it."""
