# SPDX-License-Identifier: GPL-2.0-only
"""Debug registers (api.rst 4.33, 4.34), KVM_SET_GUEST_DEBUG (4.87) and KVM_EXIT_DEBUG."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from anykvm.uapi import common
from anykvm.uapi import x86 as uapi

if TYPE_CHECKING:
    from .engine import CpuLike
    from .vcpu import X86Vcpu

DR6_RESET: Final = 0xFFFF0FF0
DR7_RESET: Final = 0x400
DR6_BS: Final = 1 << 14
HIGH: Final = 0xFFFFFFFF00000000

CONTROL_KNOWN: Final = (
    common.KVM_GUESTDBG_ENABLE
    | common.KVM_GUESTDBG_SINGLESTEP
    | uapi.KVM_GUESTDBG_USE_SW_BP
    | uapi.KVM_GUESTDBG_USE_HW_BP
    | uapi.KVM_GUESTDBG_INJECT_DB
    | uapi.KVM_GUESTDBG_INJECT_BP
    | uapi.KVM_GUESTDBG_BLOCKIRQ
)
_DEBUG_EXIT: Final = struct.Struct("<IIQQQ")


def get(cpu: CpuLike) -> uapi.KvmDebugregs:
    """``struct kvm_debugregs``."""
    regs = uapi.KvmDebugregs(dr6=cpu.get_dr(6), dr7=cpu.get_dr(7))
    regs.db[:] = [cpu.get_dr(number) for number in range(4)]
    return regs


def set_(vcpu: X86Vcpu, regs: uapi.KvmDebugregs) -> None:
    """Write all of them; EINVAL for flags, or DR6 and DR7 beyond 32 bits."""
    if regs.flags:
        raise OSError(errno.EINVAL, f"kvm_debugregs.flags cannot be {regs.flags:#x}")
    if regs.dr6 & HIGH or regs.dr7 & HIGH:
        raise OSError(errno.EINVAL, "DR6 and DR7 have 32 bits")
    same = vcpu.half_done and bytes(get(vcpu.load())) == bytes(regs)
    cpu = vcpu.load() if same else vcpu.coherent()
    for number in range(4):
        cpu.set_dr(number, regs.db[number])
    cpu.set_dr(6, regs.dr6 | DR6_RESET)
    cpu.set_dr(7, regs.dr7 | DR7_RESET)


def set_guest_debug(vcpu: X86Vcpu, request: uapi.KvmGuestDebug) -> None:
    """KVM_SET_GUEST_DEBUG; EBUSY to inject while an exception is pending, EINVAL for what cannot be done."""
    control = request.control
    cpu = vcpu.coherent()
    if control & (uapi.KVM_GUESTDBG_INJECT_DB | uapi.KVM_GUESTDBG_INJECT_BP):
        if vcpu.exception is not None:
            raise OSError(errno.EBUSY, "an exception is pending already")
        vector = uapi.DB_VECTOR if control & uapi.KVM_GUESTDBG_INJECT_DB else uapi.BP_VECTOR
        vcpu.exception = (vector, None)
        vcpu.attention = True
    enabled = bool(control & common.KVM_GUESTDBG_ENABLE)
    hardware = enabled and control & uapi.KVM_GUESTDBG_USE_HW_BP
    cpu.set_debug(
        step=enabled and bool(control & common.KVM_GUESTDBG_SINGLESTEP),
        int3=enabled and bool(control & uapi.KVM_GUESTDBG_USE_SW_BP),
        dr=tuple(request.arch.debugreg) if hardware else None,
        block_irq=enabled and bool(control & uapi.KVM_GUESTDBG_BLOCKIRQ),
    )
    vcpu.guest_debug = control if enabled else 0
    vcpu.debug_dr7 = request.arch.debugreg[7] if hardware else DR7_RESET


def fill_exit(vcpu: X86Vcpu, dr6: int, offset: int) -> None:
    """Fill the run page for KVM_EXIT_DEBUG: #DB with DR6's bits, or #BP if there are none."""
    cpu = vcpu.cpu
    vector = uapi.DB_VECTOR if dr6 else uapi.BP_VECTOR
    pc = cpu.rip + cpu.get_segment(1)[1] & 0xFFFFFFFFFFFFFFFF
    _DEBUG_EXIT.pack_into(vcpu.vcpu.page, offset, vector, 0, pc, dr6 | DR6_RESET if dr6 else 0, vcpu.debug_dr7)
    vcpu.vcpu.set_exit_reason(common.KVM_EXIT_DEBUG)
