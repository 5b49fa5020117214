# SPDX-License-Identifier: GPL-2.0-only
"""The guest's calls to KVM: VMCALL and VMMCALL.

Source: ``Documentation/virt/kvm/x86/hypercalls.rst``; ``kvm_emulate_hypercall`` in ``arch/x86/kvm/x86.c``.
"""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING, Final

from anykvm.uapi import common
from anykvm.uapi import x86 as uapi
from anykvm.uapi.run import KvmRun, RunHypercall

from . import cpuid, engine, hyperv_calls, pv, timer, tpr, translate, xen_calls

if TYPE_CHECKING:
    from .half_done import HalfDone
    from .vcpu import X86Vcpu

_U64: Final = 0xFFFFFFFFFFFFFFFF
_CS_L: Final = 1 << 13
_DPL_SHIFT: Final = 5
LENGTH: Final = 3
"""Bytes of VMCALL and of VMMCALL."""

_EXIT: Final = KvmRun.hypercall.offset
_RET: Final = _EXIT + RunHypercall.ret.offset
_HYPERCALL: Final = struct.Struct("<Q6QQQ")
_LONG_MODE: Final = 1
_OF_HYPERV: Final = 1 << 31
"""In EAX: says that a call is Hyper-V's, where Xen's are intercepted too."""
_ICR_DESTINATION: Final = 0x800 | 0xC0000
"""The ICR's bits that say who is meant: the bitmap does."""
_PAIRING: Final = struct.Struct("<qqQI36x")


def _fix(vcpu: X86Vcpu, byte: int) -> bool:
    """See to a call by the other vendor's instruction: it is replaced, or with that quirk disabled undefined.

    ``byte`` is the instruction's third. What the guest's own vendor is, its CPUID says. False if it is undefined.
    """
    native = cpuid.hypercall_insn(vcpu.cpuid)
    if byte == native[2]:
        return True
    cpu = vcpu.cpu
    if vcpu.vm.disabled_quirks & uapi.KVM_X86_QUIRK_FIX_HYPERCALL_INSN:
        _undefined(vcpu)
        return False
    linear = cpu.get_segment(engine.CS)[1] + cpu.rip - LENGTH & _U64
    for offset in range(LENGTH):
        # A byte at a time: the instruction may lie across two pages.
        address = translate.walk(vcpu, linear + offset)
        if address != translate.UNMAPPED:
            vcpu.vm.write_guest(address, native[offset : offset + 1])
    return True


def _undefined(vcpu: X86Vcpu) -> None:
    vcpu.cpu.rip -= LENGTH
    vcpu.cpu.raise_exception(uapi.UD_VECTOR)


def call(vcpu: X86Vcpu, byte: int) -> bool:
    """Serve a hypercall: number in RAX, arguments in RBX, RCX, RDX, RSI; the result goes to RAX.

    Outside 64-bit mode the registers are 32 bits wide. A call from user mode is KVM_EPERM. ``byte`` is the
    instruction's third, which says if it is VMCALL or VMMCALL. False if userspace has to serve it
    (KVM_EXIT_HYPERCALL).
    """
    if vcpu.cpuid and not _fix(vcpu, byte):
        return True
    cpu = vcpu.cpu
    gpr = cpu.gpr
    long_mode = bool(cpu.get_segment(engine.CS)[3] & _CS_L) and bool(cpu.efer & uapi.EFER_LMA)
    mask = _U64 if long_mode else 0xFFFFFFFF
    number = gpr[engine.RAX] & mask
    of_hyperv = hyperv_calls.takes_calls(vcpu)
    if vcpu.vm.xen.intercepts and not (of_hyperv and number & _OF_HYPERV):
        return _xen(vcpu, long_mode)
    if of_hyperv:
        return _hyperv(vcpu, long_mode)
    args = tuple(gpr[register] & mask for register in (engine.RBX, engine.RCX, engine.RDX, engine.RSI))
    if cpu.get_segment(engine.SS)[3] >> _DPL_SHIFT & 3:
        result = -uapi.KVM_EPERM
    elif number == uapi.KVM_HC_MAP_GPA_RANGE:
        refused = _map_gpa_range(vcpu, args)
        if not refused:
            _exit(vcpu, number, args[:3], long_mode)
            return False
        result = refused
    else:
        result = _serve(vcpu, number, args, long_mode)
    gpr[engine.RAX] = result & mask
    return True


def _hyperv(vcpu: X86Vcpu, long_mode: bool) -> bool:
    """A call of Hyper-V's: undefined in user mode and in real mode. False if userspace has to serve it."""
    cpu = vcpu.cpu
    allowed = not cpu.get_segment(engine.SS)[3] >> _DPL_SHIFT & 3 and cpu.cr0 & uapi.X86_CR0_PE
    status = hyperv_calls.call(vcpu, long_mode) if allowed else None
    if status is None:
        _undefined(vcpu)
    elif status < 0:
        _wait(vcpu, common.KVM_EXIT_HYPERV, long_mode)
        return False
    else:
        hyperv_calls.set_result(cpu, status, long_mode)
    return True


def _xen(vcpu: X86Vcpu, long_mode: bool) -> bool:
    """A call of Xen's. False if userspace has to serve it."""
    if xen_calls.call(vcpu, long_mode, vcpu.cpu.get_segment(engine.SS)[3] >> _DPL_SHIFT & 3):
        return True
    _wait(vcpu, common.KVM_EXIT_XEN, long_mode)
    return False


def _exit(vcpu: X86Vcpu, number: int, args: tuple[int, ...], long_mode: bool) -> None:
    """KVM_EXIT_HYPERCALL."""
    words = (*args, *(0,) * (6 - len(args)))
    _HYPERCALL.pack_into(vcpu.vcpu.page, _EXIT, number, *words, 0, _LONG_MODE if long_mode else 0)
    _wait(vcpu, common.KVM_EXIT_HYPERCALL, long_mode)


def _wait(vcpu: X86Vcpu, reason: int, long_mode: bool) -> None:
    """Leave with a filled run page; the guest stays at the instruction until userspace has answered."""
    vcpu.cpu.rip -= LENGTH
    vcpu.hypercall_exit = reason
    vcpu.hypercall_mask = _U64 if long_mode else 0xFFFFFFFF
    vcpu.vcpu.set_exit_reason(reason)


def complete(vcpu: HalfDone) -> None:
    """Take userspace's answer to KVM_EXIT_HYPERCALL, KVM_EXIT_HYPERV or KVM_EXIT_XEN."""
    mask, vcpu.hypercall_mask = vcpu.hypercall_mask, 0
    if vcpu.hypercall_exit == common.KVM_EXIT_HYPERV:
        hyperv_calls.complete(vcpu, mask == _U64)
    elif vcpu.hypercall_exit == common.KVM_EXIT_XEN:
        xen_calls.complete(vcpu)
    else:
        vcpu.cpu.gpr[engine.RAX] = int.from_bytes(vcpu.vcpu.page[_RET : _RET + 8], "little") & mask
    vcpu.cpu.rip += LENGTH


def _map_gpa_range(vcpu: X86Vcpu, args: tuple[int, ...]) -> int:
    """0 if userspace is to be asked."""
    if not vcpu.vm.hypercall_exits >> uapi.KVM_HC_MAP_GPA_RANGE & 1:
        return -uapi.KVM_ENOSYS
    address, pages, _attributes, _ = args
    if address & 0xFFF or not pages or (address >> 12) + pages > _U64:
        return -uapi.KVM_EINVAL
    return 0


def _serve(vcpu: X86Vcpu, number: int, args: tuple[int, ...], long_mode: bool) -> int:
    if number == uapi.KVM_HC_VAPIC_POLL_IRQ:
        if vcpu.vapic_addr:
            tpr.sync_from_guest(vcpu)
        return 0
    if number == uapi.KVM_HC_CLOCK_PAIRING and long_mode:
        return _clock_pairing(vcpu, args[0], args[1])
    if vcpu.lapic is not None:
        if number == uapi.KVM_HC_KICK_CPU and pv.has(vcpu, uapi.KVM_FEATURE_PV_UNHALT):
            _kick_cpu(vcpu, args[1])
            return 0
        if number == uapi.KVM_HC_SEND_IPI and pv.has(vcpu, uapi.KVM_FEATURE_PV_SEND_IPI):
            return _send_ipi(vcpu, args, 64 if long_mode else 32)
        if number == uapi.KVM_HC_SCHED_YIELD and pv.has(vcpu, uapi.KVM_FEATURE_PV_SCHED_YIELD):
            os.sched_yield()
            return 0
    return -uapi.KVM_ENOSYS


def _kick_cpu(vcpu: X86Vcpu, apic_id: int) -> None:
    """Wake the vCPU with this APIC ID from HLT; it need not be halted yet."""
    assert vcpu.lapic is not None
    bus = vcpu.lapic.bus
    with bus.lock:
        lapics = bus.targets(apic_id & 0xFFFFFFFF, False)
    for other in vcpu.vm.vcpus:
        if other.lapic in lapics:
            other.pv_unhalted = True
            other.sleep.wake()


def _send_ipi(vcpu: X86Vcpu, args: tuple[int, ...], width: int) -> int:
    """KVM_HC_SEND_IPI: to those APIC IDs whose bit is set in two words, counted from a lowest ID; how many took it."""
    low, high, lowest, icr = args
    if icr & _ICR_DESTINATION:
        return -uapi.KVM_EINVAL
    assert vcpu.lapic is not None
    bus = vcpu.lapic.bus
    bits = low | high << width
    taken = 0
    with bus.lock:
        while bits:
            bit = bits & -bits
            bits ^= bit
            lapics = bus.targets(lowest + bit.bit_length() - 1 & 0xFFFFFFFF, False)
            if len(lapics) == 1:
                taken += bus.send(
                    lapics, icr >> 8 & 7, icr & 0xFF, icr & 0x8000 != 0, asserted=icr & 0x4000 != 0 or not icr & 0x8000
                )
    return taken


def _clock_pairing(vcpu: X86Vcpu, address: int, kind: int) -> int:
    """KVM_HC_CLOCK_PAIRING: the host's time of day and the guest's TSC at one moment."""
    if kind != uapi.KVM_CLOCK_PAIRING_WALLCLOCK:
        return -uapi.KVM_EOPNOTSUPP
    tsc = timer.read_tsc(vcpu)
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    if not vcpu.vm.write_guest(address, _PAIRING.pack(seconds, nanoseconds, tsc, 0)):
        return -uapi.KVM_EFAULT
    return 0
