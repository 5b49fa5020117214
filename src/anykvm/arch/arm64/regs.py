# SPDX-License-Identifier: GPL-2.0-only
"""KVM_GET_ONE_REG, KVM_SET_ONE_REG, KVM_GET_REG_LIST (api.rst 4.68, 4.69, 4.84): registers by id.

The kind of register is in bits 27:16 of the id: core, cache size, system, firmware, firmware feature. ENOENT for a
register there is not, EINVAL for a value it cannot have, EBUSY for what is fixed once the VM has run.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from anykvm.uapi import arm64 as uapi
from anykvm.uapi.common import (
    KVM_REG_ARCH_MASK,
    KVM_REG_ARM64,
    KVM_REG_SIZE_MASK,
    KVM_REG_SIZE_SHIFT,
    KVM_REG_SIZE_U32,
    KVM_REG_SIZE_U64,
)

from . import core_regs, idregs, psci, smccc, sysregs
from . import sysreg_ids as ids

if TYPE_CHECKING:
    from .vcpu import Arm64Vcpu

_SYSREG: Final = KVM_REG_ARM64 | KVM_REG_SIZE_U64 | uapi.KVM_REG_ARM64_SYSREG
_DEMUX: Final = KVM_REG_ARM64 | KVM_REG_SIZE_U32 | uapi.KVM_REG_ARM_DEMUX | uapi.KVM_REG_ARM_DEMUX_ID_CCSIDR

TIMERS: Final = (
    uapi.KVM_REG_ARM_TIMER_CTL,
    uapi.KVM_REG_ARM_TIMER_CNT,
    uapi.KVM_REG_ARM_TIMER_CVAL,
    uapi.KVM_REG_ARM_PTIMER_CTL,
    uapi.KVM_REG_ARM_PTIMER_CNT,
    uapi.KVM_REG_ARM_PTIMER_CVAL,
)
WORKAROUNDS: Final = {
    uapi.KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1: uapi.KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_1_NOT_REQUIRED,
    uapi.KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_2: uapi.KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_2_NOT_REQUIRED,
    uapi.KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_3: uapi.KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_3_NOT_REQUIRED,
}
BITMAPS: Final = {
    uapi.KVM_REG_ARM_STD_BMAP: smccc.STD_BMAP_SUPPORTED,
    uapi.KVM_REG_ARM_STD_HYP_BMAP: smccc.STD_HYP_BMAP_SUPPORTED,
    uapi.KVM_REG_ARM_VENDOR_HYP_BMAP: smccc.VENDOR_HYP_BMAP_SUPPORTED,
}


def _no_register(register: int) -> OSError:
    return OSError(errno.ENOENT, f"there is no register {register:#x}")


def _size(register: int) -> int:
    return 1 << ((register & KVM_REG_SIZE_MASK) >> KVM_REG_SIZE_SHIFT)


def _coproc(register: int) -> int:
    # Everything above the size field's neighbours must be arm64's; what is between is reserved.
    if (
        register & ~KVM_REG_SIZE_MASK & 0xFFFFFFFF00000000 != KVM_REG_ARM64
        or register & KVM_REG_ARCH_MASK != KVM_REG_ARM64
    ):
        raise OSError(errno.EINVAL, f"register {register:#x} is not one of arm64")
    return register & uapi.KVM_REG_ARM_COPROC_MASK


def get(vcpu: Arm64Vcpu, register: int) -> bytes:
    """A register's value, little-endian, in the size its id names."""
    kind = _coproc(register)
    cpu = vcpu.load()
    if kind == uapi.KVM_REG_ARM_CORE:
        return core_regs.get(cpu, register)
    return _get_value(vcpu, kind, register).to_bytes(_size(register), "little")


def _get_value(vcpu: Arm64Vcpu, kind: int, register: int) -> int:
    if register in TIMERS:
        return _get_timer(vcpu, register)
    if register == uapi.KVM_REG_ARM_PSCI_VERSION:
        return vcpu.psci_version
    if register in WORKAROUNDS:
        return WORKAROUNDS[register]
    if register in BITMAPS:
        return vcpu.vm.std_bmap if register == uapi.KVM_REG_ARM_STD_BMAP else 0
    if kind == uapi.KVM_REG_ARM_DEMUX:
        return _ccsidr(register)
    encoding = _encoding(register)
    if encoding in idregs.CONSTANTS or encoding in idregs.VM_ID_REGS:
        return vcpu.vm.read_id(encoding)
    if encoding == ids.MPIDR_EL1:
        return vcpu.mpidr
    return vcpu.get_sysreg(encoding)


def set_(vcpu: Arm64Vcpu, register: int, data: bytes) -> None:
    """Set a register."""
    kind = _coproc(register)
    if kind == uapi.KVM_REG_ARM_CORE:
        core_regs.check(register)
        core_regs.set_(vcpu.coherent(), register, data)
        return
    value = int.from_bytes(data, "little")
    if register in TIMERS:
        _set_timer(vcpu, register, value)
    elif register == uapi.KVM_REG_ARM_PSCI_VERSION:
        _set_psci_version(vcpu, value)
    elif register in WORKAROUNDS:
        # "Not required" is the best there is; userspace may ask for less, and gets it.
        if value & ~0xF or value > WORKAROUNDS[register]:
            raise OSError(errno.EINVAL, f"firmware register {register:#x} cannot be {value:#x}")
    elif register in BITMAPS:
        _set_bitmap(vcpu, register, value)
    elif kind == uapi.KVM_REG_ARM_DEMUX:
        if value != _ccsidr(register):
            raise OSError(errno.EINVAL, "a cache's geometry cannot be changed")
    else:
        _set_sysreg(vcpu, _encoding(register), value)


def _encoding(register: int) -> int:
    encoding = register & 0xFFFF
    known = encoding in sysregs.BY_ENCODING or encoding in idregs.CONSTANTS or encoding in idregs.VM_ID_REGS
    if register & ~0xFFFF != _SYSREG or not known:
        raise _no_register(register)
    return encoding


def _set_sysreg(vcpu: Arm64Vcpu, encoding: int, value: int) -> None:
    if encoding in idregs.CONSTANTS:
        if value != idregs.CONSTANTS[encoding]:
            raise OSError(errno.EINVAL, f"system register {encoding:#x} cannot be changed")
    elif encoding in idregs.VM_ID_REGS:
        vcpu.vm.set_id(encoding, value)
    elif encoding == ids.MPIDR_EL1:
        if vcpu.vm.has_run and value != vcpu.mpidr:
            raise OSError(errno.EBUSY, "MPIDR_EL1 is fixed once a vCPU has run")
        vcpu.mpidr = value
        vcpu.load().set_mpidr(value)
    else:
        vcpu.coherent()
        vcpu.set_sysreg(encoding, value)


def _ccsidr(register: int) -> int:
    index = register & uapi.KVM_REG_ARM_DEMUX_VAL_MASK
    if register & ~uapi.KVM_REG_ARM_DEMUX_VAL_MASK != _DEMUX or index >= len(idregs.CCSIDR_A57):
        raise _no_register(register)
    return idregs.CCSIDR_A57[index]


# Timers.


def _get_timer(vcpu: Arm64Vcpu, register: int) -> int:
    timers = vcpu.timers
    match register:
        case uapi.KVM_REG_ARM_TIMER_CTL:
            return timers.vtimer.read_ctl()
        case uapi.KVM_REG_ARM_TIMER_CNT:
            return timers.virtual_count()
        case uapi.KVM_REG_ARM_TIMER_CVAL:
            return timers.vtimer.cval
        case uapi.KVM_REG_ARM_PTIMER_CTL:
            return timers.ptimer.read_ctl()
        case uapi.KVM_REG_ARM_PTIMER_CNT:
            return timers.physical_count()
        case _:
            return timers.ptimer.cval


def _set_timer(vcpu: Arm64Vcpu, register: int, value: int) -> None:
    timers = vcpu.timers
    match register:
        case uapi.KVM_REG_ARM_TIMER_CTL:
            timers.vtimer.write_ctl(value)
        case uapi.KVM_REG_ARM_TIMER_CNT:
            # One counter for the whole VM: the last write counts.
            vcpu.vm.set_cntvoff(timers.physical_count() - value)
        case uapi.KVM_REG_ARM_TIMER_CVAL:
            timers.vtimer.write_cval(value)
        case uapi.KVM_REG_ARM_PTIMER_CTL:
            timers.ptimer.write_ctl(value)
        case uapi.KVM_REG_ARM_PTIMER_CNT:
            # CNTPCT_EL0 is the host's counter and stays it.
            pass
        case _:
            timers.ptimer.write_cval(value)


# Firmware.


def _set_psci_version(vcpu: Arm64Vcpu, value: int) -> None:
    wants = psci.VERSIONS if vcpu.psci_version != psci.PSCI_0_1 else (psci.PSCI_0_1,)
    if value not in wants:
        raise OSError(errno.EINVAL, f"PSCI {value >> 16}.{value & 0xFFFF} is not offered to this vCPU")
    if value != psci.PSCI_0_1:
        vcpu.vm.psci_version = value


def _set_bitmap(vcpu: Arm64Vcpu, register: int, value: int) -> None:
    if value & ~BITMAPS[register]:
        raise OSError(errno.EINVAL, f"firmware features {value & ~BITMAPS[register]:#x} are not there")
    if register == uapi.KVM_REG_ARM_STD_BMAP and value != vcpu.vm.std_bmap:
        if vcpu.vm.has_run:
            raise OSError(errno.EBUSY, "firmware features are fixed once a vCPU has run")
        vcpu.vm.std_bmap = value


def reg_list(vcpu: Arm64Vcpu) -> list[int]:
    """Every id there is, in the kernel's order: core, firmware, timers, system, cache sizes."""
    return [
        *core_regs.ids(),
        uapi.KVM_REG_ARM_PSCI_VERSION,
        *WORKAROUNDS,
        *BITMAPS,
        *TIMERS,
        *(_SYSREG | encoding for encoding in sysregs.user_encodings()),
        *(_DEMUX | index for index in range(len(idregs.CCSIDR_A57))),
    ]
