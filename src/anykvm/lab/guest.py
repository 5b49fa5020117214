# SPDX-License-Identifier: GPL-2.0-only
"""The lab's guests: a handful of instructions that add 1 to 10 and say the sum to a device or a port.

They are machine code, so that a sweep needs no assembler. An architecture that joins the tree joins here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from anykvm.api import Exit, MmioWrite, PioOut, Vcpu, Vm
from anykvm.uapi import arm64, common
from anykvm.uapi import x86 as x86_uapi

RAM: Final = 0x4000_0000
"""Where the guest's memory begins on arm64; x86's begins at 0."""
RAM_SIZE: Final = 4096
SUM: Final = 55
_DEVICE: Final = 0x0A00_0000
_PORT: Final = 0xE9


@dataclass(frozen=True)
class Guest:
    """An architecture's guest: where its memory is, its code, what a vCPU needs before it runs, and its last exit."""

    base: int
    code: bytes
    prepare: Callable[[Vm, Vcpu], None]
    end: Exit

    def run(self, vm: Vm, vcpu: Vcpu) -> str:
        """Run the guest on a vCPU from its first instruction to its end; what was wrong, or nothing."""
        self.prepare(vm, vcpu)
        found = vcpu.run()
        return "" if found == self.end else f"vCPU {vcpu.vcpu_id} ended with {found!r} instead of {self.end!r}"


def _arm64(vm: Vm, vcpu: Vcpu) -> None:
    vcpu.init(vm.preferred_target(), [arm64.KVM_ARM_VCPU_PSCI_0_2])
    vcpu.set_one_reg(arm64.REG_PC, RAM)


def _x86(vm: Vm, vcpu: Vcpu) -> None:
    if vcpu.mp_state != common.KVM_MP_STATE_RUNNABLE:
        vcpu.mp_state = common.KVM_MP_STATE_RUNNABLE
    sregs = vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    vcpu.set_sregs(sregs)
    vcpu.set_regs(x86_uapi.KvmRegs(rip=0, rflags=2))


GUESTS: Final[dict[str, Guest]] = {
    "arm64": Guest(
        RAM,
        b"".join(
            word.to_bytes(4, "little")
            for word in (
                0xD2800140,  # mov x0, #10
                0xD2800001,  # mov x1, #0
                0x8B000021,  # 1: add x1, x1, x0
                0xF1000400,  # subs x0, x0, #1
                0x54FFFFC1,  # b.ne 1b
                0xD2A14002,  # mov x2, #0x0a000000
                0xB9000041,  # str w1, [x2]
                0x14000000,  # b .
            )
        ),
        _arm64,
        MmioWrite(_DEVICE, SUM.to_bytes(4, "little")),
    ),
    "x86": Guest(
        0,
        # mov $10, %cx; xor %ax, %ax; 1: add %cx, %ax; loop 1b; out %ax, $0xe9; 2: jmp 2b
        bytes.fromhex("b90a00 31c0 01c8 e2fc e7e9 ebfe"),
        _x86,
        PioOut(_PORT, 2, SUM.to_bytes(2, "little")),
    ),
}
