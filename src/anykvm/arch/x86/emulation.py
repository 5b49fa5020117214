# SPDX-License-Identifier: GPL-2.0-only
"""An instruction that cannot be run, because it is where no memory is: KVM_EXIT_INTERNAL_ERROR, or #UD.

What a kernel's emulator does not know, the engine runs; what is left is an instruction that nobody can fetch. Source:
``handle_emulation_failure`` in ``arch/x86/kvm/x86.c``; api.rst, KVM_CAP_EXIT_ON_EMULATION_FAILURE.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from anykvm.uapi import common
from anykvm.uapi import x86 as uapi
from anykvm.uapi.run import KvmRun

from . import engine, translate

if TYPE_CHECKING:
    from .vcpu import X86Vcpu

_LONGEST: Final = 15
_NOP: Final = b"\x90"
_EXIT: Final = KvmRun.emulation_failure.offset
_HEAD: Final = struct.Struct("<IIQ")  # suberror, ndata, flags
_BYTES: Final = struct.Struct("<B15s")
_REASON: Final = struct.Struct("<5Q")


def failed(vcpu: X86Vcpu, address: int) -> bool:
    """Nothing is at this guest-physical address that code was to be fetched from; True if userspace has to see it.

    With KVM_CAP_EXIT_ON_EMULATION_FAILURE it always does, and the guest is as it was before. Without, the guest gets
    #UD, and userspace sees it before that if it happened at ring 0.
    """
    exits = vcpu.vm.exit_on_emulation_failure
    if not exits:
        vcpu.exception, vcpu.exception_payload = (uapi.UD_VECTOR, None), None
        vcpu.attention = True
        if vcpu.cpu.get_segment(engine.SS)[3] >> 5 & 3:
            return False
    fill_exit(vcpu, address)
    return True


def fill_exit(vcpu: X86Vcpu, address: int) -> None:
    """Fill the run page: the instruction's bytes, as far as there are any, and five words on why.

    Those are the hardware's exit reason and information in the kernel. Here only the third says something: the
    address, which is where SVM has it.
    """
    data = instruction(vcpu)
    at = _EXIT + _HEAD.size
    flags = 0
    if data:
        flags = common.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
        _BYTES.pack_into(vcpu.vcpu.page, at, len(data), data.ljust(_LONGEST, _NOP))
        at += _BYTES.size
    _REASON.pack_into(vcpu.vcpu.page, at, 0, 0, address, 0, 0)
    words = (at + _REASON.size - _EXIT) // 8 - 1
    _HEAD.pack_into(vcpu.vcpu.page, _EXIT, common.KVM_INTERNAL_ERROR_EMULATION, words, flags)
    vcpu.vcpu.set_exit_reason(common.KVM_EXIT_INTERNAL_ERROR)


def instruction(vcpu: X86Vcpu) -> bytes:
    """The bytes at RIP, at most 15 and of one page, as the kernel's emulator fetches them first."""
    cpu = vcpu.cpu
    linear = cpu.get_segment(engine.CS)[1] + cpu.rip
    linear &= 0xFFFFFFFFFFFFFFFF if cpu.efer & uapi.EFER_LMA else 0xFFFFFFFF
    return translate.read(vcpu, linear, min(_LONGEST, 0x1000 - (linear & 0xFFF))) or b""
