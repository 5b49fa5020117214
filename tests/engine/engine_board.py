# SPDX-License-Identifier: GPL-2.0-only
"""A board to run small assembled arm64 guests on, and a thread to run a cpu on."""

from __future__ import annotations

import ctypes
import mmap
import threading
from pathlib import Path
from typing import Any

from anykvm.engine import Arm64Cpu, Cpu, Event, Machine
from anykvm.guests.tools import Toolchain

RAM = 0x4000_0000
PROGRAMS = Path(__file__).parent / "programs"


def sys(op0: int, op1: int, crn: int, crm: int, op2: int) -> int:
    return op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2


class Board:
    """RAM at ``RAM`` with one program at its start, and as many cpus as asked for."""

    def __init__(self, tools: Toolchain, program: str, *, size: int = 4 << 20, **machine: Any) -> None:
        self.size = size
        self.ram = mmap.mmap(-1, size)
        self.hva = ctypes.addressof(ctypes.c_char.from_buffer(self.ram))
        self.machine = Machine("arm64", **machine)
        self.machine.map(RAM, size, self.hva)
        self.cpus: list[Arm64Cpu] = []
        source = PROGRAMS / f"{program}.S"
        self.image = tools.assemble(source, base=RAM)
        self.ram[: len(self.image)] = self.image

    def cpu(self, *, pc: int = RAM, **x: int) -> Arm64Cpu:
        cpu = Cpu(self.machine)
        self.cpus.append(cpu)
        cpu.pc = pc
        cpu.sp_el1 = RAM + self.size - 0x10000 * len(self.cpus)
        cpu.set_mpidr(0x8000_0000 | (len(self.cpus) - 1))
        for name, value in x.items():
            cpu.gpr[int(name[1:])] = value
        return cpu

    def word(self, offset: int, size: int = 8) -> int:
        return int.from_bytes(self.ram[offset : offset + size], "little")

    def set_word(self, offset: int, value: int, size: int = 8) -> None:
        self.ram[offset : offset + size] = value.to_bytes(size, "little")

    def close(self) -> None:
        for cpu in self.cpus:
            cpu.close()
        self.machine.close()


class Runner(threading.Thread):
    """Runs a cpu on a thread of its own until a hypercall; kicks are counted and run through."""

    def __init__(self, cpu: Any) -> None:
        super().__init__(daemon=True)
        self.cpu: Any = cpu
        self.events: list[tuple[int, int, int, int]] = []
        self.kicks = 0
        self.start()

    def run(self) -> None:
        while True:
            event = self.cpu.run()
            if event[0] == Event.KICK:
                self.kicks += 1
                continue
            self.events.append(event)
            if event[0] in (Event.HVC, Event.ERROR, Event.FETCH):
                return

    def result(self, timeout: float = 60) -> tuple[int, int, int, int]:
        self.join(timeout)
        assert not self.is_alive(), f"the guest did not end: pc {self.cpu.gpr[:4]}"
        return self.events[-1]
