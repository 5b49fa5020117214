# SPDX-License-Identifier: GPL-2.0-only
"""Hyper-V's hypercalls: TLB flushes, IPIs, spin waits, events; messages and a debugger's are userspace's to serve.

Source: the Top Level Functional Specification 6.0b, chapter 3 and appendix B; ``arch/x86/kvm/hyperv.c``.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final

from anykvm.uapi import x86 as uapi
from anykvm.uapi.run import KvmRun

from . import engine, hyperv_vcpu
from .apic_bus import DM_FIXED

if TYPE_CHECKING:
    from .engine import CpuLike
    from .half_done import HalfDone
    from .vcpu import X86Vcpu

_U32: Final = 0xFFFFFFFF
_R8: Final = 8
_XMM: Final = 160
"""Where in the FXSAVE image XMM0 is."""
_EXIT: Final = KvmRun.mmio.offset
RESULT: Final = _EXIT + uapi.KvmHypervExit.u.offset + 8
"""Where in the run page userspace's answer to a call is."""
_CALL: Final = struct.Struct("<IIQ")
_PARAMS: Final = struct.Struct("<QQ")
_SET: Final = struct.Struct("<QQ")
"""A sparse set of vCPUs: format, and which banks of 64 follow."""
_MAX_BANKS: Final = 64
_FLAG_NUMBER: Final = 0xFFFF << 32
_INPUT: Final = uapi.HV_STATUS_INVALID_HYPERCALL_INPUT
_VECTORS: Final = range(0x10, 0x100)


class Call:
    """A call: its control word, taken apart, and its two operands, which ``fast`` calls have in registers.

    ``xmm`` are the halves of XMM0 to XMM5, for a fast call that needs more than two words of input.
    """

    __slots__ = ("code", "control", "fast", "input", "output", "rep_count", "rep_start", "var_count", "xmm")

    def __init__(self, control: int, first: int, second: int) -> None:
        self.control = control
        self.code = control & 0xFFFF
        self.fast = bool(control & uapi.HV_HYPERCALL_FAST)
        self.var_count = control >> uapi.HV_HYPERCALL_VARHEAD_SHIFT & 0x3FF
        self.rep_count = control >> uapi.HV_HYPERCALL_REP_COMP_SHIFT & 0xFFF
        self.rep_start = control >> uapi.HV_HYPERCALL_REP_START_SHIFT & 0xFFF
        self.input = first
        self.output = second
        self.xmm: tuple[int, ...] = ()

    @property
    def plain(self) -> bool:
        """Whether it has neither a list nor a variable header."""
        return not (self.rep_count or self.rep_start or self.var_count)


_WITH_XMM: Final = frozenset(
    {
        uapi.HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE,
        uapi.HVCALL_FLUSH_VIRTUAL_ADDRESS_LIST,
        uapi.HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE_EX,
        uapi.HVCALL_FLUSH_VIRTUAL_ADDRESS_LIST_EX,
        uapi.HVCALL_SEND_IPI_EX,
    }
)
_LISTS: Final = (uapi.HVCALL_FLUSH_VIRTUAL_ADDRESS_LIST, uapi.HVCALL_FLUSH_VIRTUAL_ADDRESS_LIST_EX)
_FLUSHES: Final = (uapi.HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE, uapi.HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE_EX, *_LISTS)
_IPIS: Final = (uapi.HVCALL_SEND_IPI, uapi.HVCALL_SEND_IPI_EX)
_OF_64: Final = (uapi.HVCALL_FLUSH_VIRTUAL_ADDRESS_SPACE, uapi.HVCALL_FLUSH_VIRTUAL_ADDRESS_LIST, uapi.HVCALL_SEND_IPI)
"""Those for the first 64 vCPUs, which have no variable header."""
_DEBUG: Final = (uapi.HVCALL_POST_DEBUG_DATA, uapi.HVCALL_RETRIEVE_DEBUG_DATA, uapi.HVCALL_RESET_DEBUG_SESSION)


def takes_calls(vcpu: X86Vcpu) -> bool:
    """Whether VMCALL is Hyper-V's: the guest has its interface, and has said what it is."""
    return vcpu.hyperv_enabled and vcpu.vm.hyperv.guest_os_id != 0


def _read(cpu: CpuLike, long_mode: bool) -> Call:
    gpr = cpu.gpr
    if long_mode:
        return Call(gpr[engine.RCX], gpr[engine.RDX], gpr[_R8])
    pairs = ((engine.RDX, engine.RAX), (engine.RBX, engine.RCX), (engine.RDI, engine.RSI))
    return Call(*((gpr[high] & _U32) << 32 | gpr[low] & _U32 for high, low in pairs))


def call(vcpu: X86Vcpu, long_mode: bool) -> int | None:
    """Serve a call from kernel mode: its status; None for one that is undefined, -1 for one that is userspace's."""
    one = _read(vcpu.cpu, long_mode)
    rights = vcpu.own_hyperv().rights
    if not rights.has_call(one.code):
        return uapi.HV_STATUS_ACCESS_DENIED
    if one.control & uapi.HV_HYPERCALL_RESERVED:
        return _INPUT
    if one.fast and one.code in _WITH_XMM:
        if not rights.has_xmm_input:
            return None
        one.xmm = struct.unpack_from(f"<{2 * uapi.HV_MAX_XMM_REGISTERS}Q", vcpu.cpu.get_fx(), _XMM)
    return _serve(vcpu, one)


def set_result(cpu: CpuLike, status: int, long_mode: bool) -> None:
    """Give the guest a call's result: in RAX, or EDX:EAX."""
    if long_mode:
        cpu.gpr[engine.RAX] = status
    else:
        cpu.gpr[engine.RAX] = status & _U32
        cpu.gpr[engine.RDX] = status >> 32


def complete(vcpu: HalfDone, long_mode: bool) -> None:
    """Take userspace's answer to KVM_EXIT_HYPERV."""
    set_result(vcpu.cpu, int.from_bytes(vcpu.vcpu.page[RESULT : RESULT + 8], "little"), long_mode)


def _serve(vcpu: X86Vcpu, one: Call) -> int:
    code = one.code
    if code in _FLUSHES or code in _IPIS:
        repeats = bool(one.rep_count or one.rep_start)
        listed = one.rep_count and not one.rep_start if code in _LISTS else not repeats
        if not listed or (code in _OF_64 and one.var_count):
            return _INPUT
        return _flush(vcpu, one) if code in _FLUSHES else _send_ipi(vcpu, one)
    if code == uapi.HVCALL_NOTIFY_LONG_SPIN_WAIT:
        if not one.plain:
            return _INPUT
        os.sched_yield()
        return uapi.HV_STATUS_SUCCESS
    if code in (uapi.HVCALL_SIGNAL_EVENT, uapi.HVCALL_POST_MESSAGE):
        return _message(vcpu, one)
    if code in _DEBUG:
        return _debug(vcpu, one)
    return uapi.HV_STATUS_INVALID_HYPERCALL_CODE


# Sets of vCPUs.


def _of_mask(vcpu: X86Vcpu, mask: int) -> list[X86Vcpu]:
    return [other for other in vcpu.vm.vcpus if mask >> hyperv_vcpu.index_of(other) & 1]


def _sparse(vcpu: X86Vcpu, one: Call, banks: int, address: int, used: int) -> int | None:
    """Read the banks of a sparse set, as one mask; None if they are not there.

    They are at ``address``, or for a fast call in the halves of XMM registers after the first ``used``.
    """
    count = one.var_count
    if count > _MAX_BANKS:
        return None
    if one.fast:
        if count > len(one.xmm) - used:
            return None
        words = one.xmm[used : used + count]
    else:
        data = vcpu.vm.read_guest(address, 8 * count)
        if data is None:
            return None
        words = struct.unpack(f"<{count}Q", data)
    mask = 0
    for bank, word in zip((bit for bit in range(_MAX_BANKS) if banks >> bit & 1), words, strict=True):
        mask |= word << 64 * bank
    return mask


def _flush(vcpu: X86Vcpu, one: Call) -> int:
    """Flush TLBs. All is flushed, of all vCPUs: whose address space is meant, only they know."""
    if one.code in _OF_64:
        if not one.fast and vcpu.vm.read_guest(one.input, 24) is None:
            return _INPUT
    else:
        if one.fast:
            kind, banks = one.xmm[:2]
        else:
            data = vcpu.vm.read_guest(one.input, 32)
            if data is None:
                return _INPUT
            kind, banks = _SET.unpack_from(data, 16)
        if one.var_count != banks.bit_count():
            return _INPUT
        named = kind == uapi.HV_GENERIC_SET_SPARSE_4K
        if named and one.var_count and _sparse(vcpu, one, banks, one.input + 32, 2) is None:
            return _INPUT
    vcpu.vm.flush_tlbs()
    # All of a list is done at once.
    return uapi.HV_STATUS_SUCCESS | one.rep_count << uapi.HV_HYPERCALL_REP_COMP_SHIFT


def _send_ipi(vcpu: X86Vcpu, one: Call) -> int:
    if vcpu.lapic is None:
        return _INPUT
    if one.fast:
        words = (one.input, one.output, *one.xmm[:1])
    else:
        size = 16 if one.code in _OF_64 else 24
        data = vcpu.vm.read_guest(one.input, size)
        if data is None:
            return _INPUT
        words = struct.unpack(f"<{size // 8}Q", data)
    vector = words[0] & _U32
    if one.code in _OF_64:
        if one.fast and words[0] >> 32:
            return _INPUT
        targets = _of_mask(vcpu, words[1])
    else:
        kind, banks = words[1:]
        if one.var_count != banks.bit_count():
            return _INPUT
        if kind == uapi.HV_GENERIC_SET_ALL:
            targets = vcpu.vm.vcpus
        elif not one.var_count:
            return uapi.HV_STATUS_SUCCESS
        else:
            mask = _sparse(vcpu, one, banks, one.input + 24, 1)
            if mask is None:
                return _INPUT
            targets = _of_mask(vcpu, mask)
    if vector not in _VECTORS:
        return _INPUT
    with vcpu.lapic.bus.lock:
        for target in targets:
            if target.lapic is not None:
                target.lapic.accept(DM_FIXED, vector, False)
    return uapi.HV_STATUS_SUCCESS


# What userspace serves.


def _leave(vcpu: X86Vcpu, one: Call) -> int:
    page = vcpu.vcpu.page
    _CALL.pack_into(page, _EXIT, uapi.KVM_EXIT_HYPERV_HCALL, 0, one.control)
    _PARAMS.pack_into(page, RESULT + 8, one.input, one.output)
    return -1


def _message(vcpu: X86Vcpu, one: Call) -> int:
    if not one.plain:
        return _INPUT
    if one.code == uapi.HVCALL_SIGNAL_EVENT:
        status = _signal(vcpu, one)
        # Userspace may know the connection.
        if status != uapi.HV_STATUS_INVALID_PORT_ID:
            return status
    if not vcpu.own_hyperv().synic.active:
        return _INPUT
    return _leave(vcpu, one)


def _signal(vcpu: X86Vcpu, one: Call) -> int:
    """HVCALL_SIGNAL_EVENT for a connection that has an eventfd (KVM_HYPERV_EVENTFD)."""
    if not one.fast:
        data = None if one.input & 7 else vcpu.vm.read_guest(one.input, 8)
        if data is None:
            return uapi.HV_STATUS_INVALID_ALIGNMENT
        one.input = int.from_bytes(data, "little")
    if one.input & _FLAG_NUMBER:
        return uapi.HV_STATUS_INVALID_PORT_ID
    if one.input & ~uapi.KVM_HYPERV_CONN_ID_MASK:
        return _INPUT
    event = vcpu.vm.hyperv.eventfds.get(one.input)
    if event is None:
        return uapi.HV_STATUS_INVALID_PORT_ID
    event.signal()
    return uapi.HV_STATUS_SUCCESS


def _debug(vcpu: X86Vcpu, one: Call) -> int:
    if one.fast and one.code != uapi.HVCALL_RESET_DEBUG_SESSION:
        return uapi.HV_STATUS_INVALID_PARAMETER
    if not vcpu.own_hyperv().rights.debugging:
        return uapi.HV_STATUS_INVALID_HYPERCALL_CODE
    options = vcpu.vm.hyperv.syndbg.get(uapi.HV_X64_MSR_SYNDBG_OPTIONS, 0)
    if not options & uapi.HV_X64_SYNDBG_OPTION_USE_HCALLS:
        return uapi.HV_STATUS_OPERATION_DENIED
    return _leave(vcpu, one)
