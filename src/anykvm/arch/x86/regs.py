# SPDX-License-Identifier: GPL-2.0-only
"""KVM_GET_REGS and KVM_SET_REGS (api.rst 4.11, 4.12): the general registers.

x86 has no register by id, so this is what ONE_REG is elsewhere; control and segment registers are in ``sregs``.
"""

from __future__ import annotations

from operator import itemgetter
from struct import Struct
from typing import TYPE_CHECKING, Final

from anykvm.uapi import x86 as uapi

from .engine import RAX, RBP, RBX, RCX, RDI, RDX, RSI, RSP

if TYPE_CHECKING:
    from .engine import CpuLike

ORDER: Final = (RAX, RBX, RCX, RDX, RSI, RDI, RSP, RBP, *range(8, 16))
"""Which register of the engine each word of kvm_regs is."""
# One call each: a VMM that emulates instructions asks for the registers at every exit.
_in_order: Final = itemgetter(*ORDER)
_pack: Final = Struct("<18Q").pack
U64: Final = 0xFFFFFFFFFFFFFFFF


def get(cpu: CpuLike) -> bytes:
    """``struct kvm_regs``, 144 bytes."""
    return _pack(*_in_order(cpu.gpr), cpu.rip, cpu.rflags)


def merge(cpu: CpuLike, before: bytes, after: bytes, wanted: bytes) -> None:
    """Write what userspace wanted while an instruction was half done, now that it is finished.

    ``before`` is what the registers were then, ``after`` what the instruction made of them, whatever they are by now.
    What userspace left as it was takes the instruction's result; so RIP, if it was not moved, is behind the
    instruction, as KVM has it.
    """
    words = range(0, len(before), 8)
    chosen = (after if wanted[at : at + 8] == before[at : at + 8] else wanted for at in words)
    set_(cpu, b"".join(source[at : at + 8] for source, at in zip(chosen, words, strict=True)))


def set_general(cpu: CpuLike, data: bytes) -> None:
    """Write the general registers, which a parked port access takes from there when it goes on."""
    words = memoryview(data).cast("Q")
    gpr = cpu.gpr
    for word, index in enumerate(ORDER):
        gpr[index] = words[word]


def set_(cpu: CpuLike, data: bytes) -> None:
    """Write all of them; the CPU is coherent. Bit 1 of RFLAGS is always set."""
    words = memoryview(data).cast("Q")
    set_general(cpu, data)
    cpu.rip = words[16]
    cpu.rflags = words[17] | uapi.X86_EFLAGS_FIXED
