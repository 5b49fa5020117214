# SPDX-License-Identifier: GPL-2.0-only
"""A board with memory that only a handler of SMIs sees."""

from __future__ import annotations

from x86_guest_board import Board, software

from anykvm.api import Exit, GuestMemory, PioOut, Vcpu
from anykvm.guests.tools import Toolchain
from anykvm.uapi import x86 as X

SMRAM_SLOT = 1 << 16 | 1
SMBASE = 0x30000
AREA = 0xFE00
APM = 0xB2
MARK = "out %al, $0xe9;"
RSM = "rsm"
CALL = "out %al, $0xb2;"
"""As a PC's firmware asks for an SMI: the test answers with one."""


class SmmBoard(Board):
    """A board with 256 KiB that are seen in system management mode alone, from 0x20000 on; it answers port 0xb2."""

    def __init__(self, tools: Toolchain, *, chip: bool = False) -> None:
        super().__init__(software(), tools)
        self.smram = GuestMemory(0x40000)
        self.vm.set_user_memory_region(SMRAM_SLOT, 0x20000, self.smram)
        if chip:
            self.vm.create_irqchip()
        self.inside: list[bool] = []

    def handler(self, source: str, smbase: int = SMBASE) -> None:
        """What is at SMBASE + 0x8000, in real mode."""
        self.smram.write(smbase + 0x8000 - 0x20000, self.tools.assemble(f".code16\n{source}\n", base=0x8000))

    def area(self, smbase: int = SMBASE) -> bytes:
        """The save area."""
        return self.smram.read(smbase + AREA - 0x20000, 512)

    def patch(self, offset: int, data: bytes, smbase: int = SMBASE) -> None:
        """Change what RSM will load."""
        self.smram.write(smbase + AREA + offset - 0x20000, data)

    def until_end(self, vcpu: Vcpu, *kinds: type[Exit]) -> Exit:
        """Run to one of these exits, sending an SMI for each write to port 0xb2."""
        for _ in range(100):
            exit = vcpu.run()
            if isinstance(exit, PioOut):
                self.seen.append(int.from_bytes(exit.data, "little"))
                self.inside.append(bool(vcpu.run_page.flags & X.KVM_RUN_X86_SMM))
                if exit.port == APM:
                    vcpu.smi()
            elif isinstance(exit, kinds):
                return exit
            else:
                raise AssertionError(f"{exit} after {self.seen}")
        raise AssertionError(f"it does not end: {self.seen[-10:]}")

    def close(self) -> None:
        super().close()
        self.smram.close()
