# SPDX-License-Identifier: GPL-2.0-only
"""The core registers of ONE_REG: an index (in 32-bit words) into ``struct kvm_regs``.

Source: ``arch/arm64/kvm/guest.c``; the layout is :class:`anykvm.uapi.arm64.KvmRegs`.
"""

from __future__ import annotations

import ctypes
import errno
from typing import TYPE_CHECKING, Final

from anykvm.uapi import arm64 as uapi
from anykvm.uapi.common import KVM_REG_ARM64, KVM_REG_SIZE_U32, KVM_REG_SIZE_U64, KVM_REG_SIZE_U128

if TYPE_CHECKING:
    from .engine import CpuLike

# In 32-bit words.
X0: Final = 0
SP_EL0: Final = 62
PC: Final = 64
PSTATE: Final = 66
SP_EL1: Final = uapi.KvmRegs.sp_el1.offset // 4
ELR_EL1: Final = uapi.KvmRegs.elr_el1.offset // 4
SPSR: Final = uapi.KvmRegs.spsr.offset // 4
VREGS: Final = uapi.KvmRegs.fp_regs.offset // 4
FPSR: Final = VREGS + 128
FPCR: Final = FPSR + 1
NR_WORDS: Final = ctypes.sizeof(uapi.KvmRegs) // 4

MODE_EL0T: Final = 0x0
MODE_EL1T: Final = 0x4
MODE_EL1H: Final = 0x5


def _size(offset: int) -> int:
    """The size in bytes of the register at an offset; EINVAL if none begins there."""
    if offset < VREGS:
        if offset < SPSR + 2 * uapi.KVM_NR_SPSR and offset % 2 == 0:
            return 8
    elif offset < FPSR:
        if (offset - VREGS) % 4 == 0:
            return 16
    elif offset in (FPSR, FPCR):
        return 4
    raise OSError(errno.EINVAL, f"no core register at offset {offset}")


def check(register: int) -> int:
    """The offset a core register's id means; ENOENT beyond the structure, EINVAL for a wrong size or place."""
    offset = register & ~(uapi.KVM_REG_ARM_COPROC_MASK | 0xFFFFFFFF00000000)
    size = 1 << (register >> 52 & 0xF)
    if offset >= NR_WORDS or offset + size // 4 > NR_WORDS:
        raise OSError(errno.ENOENT, f"core register offset {offset} is beyond the registers")
    if size != _size(offset):
        raise OSError(errno.EINVAL, f"core register at offset {offset} does not have {size} bytes")
    return offset


def get(cpu: CpuLike, register: int) -> bytes:
    """Read a core register, little-endian."""
    offset = check(register)
    if VREGS <= offset < FPSR:
        return cpu.get_vreg((offset - VREGS) // 4)
    if offset >= FPSR:
        return (cpu.fpsr if offset == FPSR else cpu.fpcr).to_bytes(4, "little")
    if offset < SP_EL0:
        value = cpu.gpr[offset // 2]
    elif offset == SP_EL0:
        value = cpu.sp_el0
    elif offset == PC:
        value = cpu.pc
    elif offset == PSTATE:
        value = cpu.pstate
    elif offset == SP_EL1:
        value = cpu.sp_el1
    elif offset == ELR_EL1:
        value = cpu.elr_el1
    else:
        value = cpu.get_spsr((offset - SPSR) // 2)
    return value.to_bytes(8, "little")


def set_(cpu: CpuLike, register: int, data: bytes) -> None:
    """Write a core register; EINVAL for a mode the guest cannot be in. The CPU must be coherent."""
    offset = check(register)
    if VREGS <= offset < FPSR:
        cpu.set_vreg((offset - VREGS) // 4, data)
        return
    value = int.from_bytes(data, "little")
    if offset == FPSR:
        cpu.fpsr = value
    elif offset == FPCR:
        cpu.fpcr = value
    elif offset < SP_EL0:
        cpu.gpr[offset // 2] = value
    elif offset == SP_EL0:
        cpu.sp_el0 = value
    elif offset == PC:
        cpu.pc = value
    elif offset == PSTATE:
        if value & 0x1F not in (MODE_EL0T, MODE_EL1T, MODE_EL1H):
            raise OSError(errno.EINVAL, f"PSTATE {value:#x} has a mode that is not EL0t, EL1t or EL1h")
        cpu.pstate = value & 0xFFFFFFFF
    elif offset == SP_EL1:
        cpu.sp_el1 = value
    elif offset == ELR_EL1:
        cpu.elr_el1 = value
    else:
        cpu.set_spsr((offset - SPSR) // 2, value)


def ids() -> list[int]:
    """Every core register's id, in the order of the structure."""
    base = KVM_REG_ARM64 | uapi.KVM_REG_ARM_CORE
    found = [base | KVM_REG_SIZE_U64 | offset for offset in range(0, SPSR + 2 * uapi.KVM_NR_SPSR, 2)]
    found += [base | KVM_REG_SIZE_U128 | offset for offset in range(VREGS, FPSR, 4)]
    return [*found, base | KVM_REG_SIZE_U32 | FPSR, base | KVM_REG_SIZE_U32 | FPCR]
