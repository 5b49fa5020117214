# SPDX-License-Identifier: GPL-2.0-only
"""Xen's hypercalls: those that are served here for speed; all others are userspace's (KVM_EXIT_XEN).

Source: Xen's public headers; ``kvm_xen_hypercall`` in ``arch/x86/kvm/xen.c``.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Final

from anykvm.uapi import x86 as uapi
from anykvm.uapi.run import KvmRun

from . import engine, timer, translate, xen_evtchn

if TYPE_CHECKING:
    from .half_done import HalfDone
    from .vcpu import X86Vcpu

_U64: Final = 0xFFFFFFFFFFFFFFFF
_U32: Final = 0xFFFFFFFF
_EXIT: Final = KvmRun.mmio.offset
_HCALL: Final = struct.Struct("<I4xIIQ8x6Q")
"""Type, long mode, privilege, number, (result,) operands: as KvmXenExit."""
RESULT: Final = _EXIT + 24
_R8, _R9, _R10 = 8, 9, 10
_LONG: Final = (engine.RDI, engine.RSI, engine.RDX, _R10, _R8, _R9)
_SHORT: Final = (engine.RBX, engine.RCX, engine.RDX, engine.RSI, engine.RDI, engine.RBP)
_POLL: Final = struct.Struct("<QI4xQ")
_SINGLESHOT: Final = struct.Struct("<QI")
_MAX_PORTS: Final = 128
_FAR_NS: Final = 1 << 50
_SOON_NS: Final = 100_000_000


def call(vcpu: X86Vcpu, long_mode: bool, privilege: int) -> bool:
    """Serve a call: number in RAX, the result goes there. False if userspace has to serve it."""
    gpr = vcpu.cpu.gpr
    mask = _U64 if long_mode else _U32
    number = gpr[engine.RAX]
    operands = tuple(gpr[register] & mask for register in (_LONG if long_mode else _SHORT))
    result = None if privilege else _serve(vcpu, number, operands, long_mode)
    if result is not None:
        gpr[engine.RAX] = result & _U64
        return True
    _HCALL.pack_into(vcpu.vcpu.page, _EXIT, uapi.KVM_EXIT_XEN_HCALL, long_mode, privilege, number, *operands)
    return False


def complete(vcpu: HalfDone) -> None:
    """Take userspace's answer to KVM_EXIT_XEN."""
    vcpu.cpu.gpr[engine.RAX] = int.from_bytes(vcpu.vcpu.page[RESULT : RESULT + 8], "little")


def _serve(vcpu: X86Vcpu, number: int, operands: tuple[int, ...], long_mode: bool) -> int | None:
    """What a call answers; None if it is not served here."""
    first, second, third = operands[:3]
    if number == uapi.XEN_HC_XEN_VERSION:
        return vcpu.vm.xen.version or None if first == uapi.XENVER_VERSION else None
    if number == uapi.XEN_HC_EVENT_CHANNEL_OP and first == uapi.EVTCHNOP_SEND:
        port = translate.read(vcpu, second, 4)
        if port is None:
            return -errno.EFAULT
        return 0 if xen_evtchn.send_by_guest(vcpu.vm, int.from_bytes(port, "little")) else None
    if number == uapi.XEN_HC_SCHED_OP and first in (uapi.SCHEDOP_YIELD, uapi.SCHEDOP_POLL):
        if first == uapi.SCHEDOP_POLL and _polls(vcpu, long_mode):
            return _poll(vcpu, second)
        os.sched_yield()
        return 0
    if vcpu.xen is None or not vcpu.xen.timer_port:
        return None
    if number == uapi.XEN_HC_SET_TIMER_OP:
        return _set_timer(vcpu, first if long_mode else first | second << 32)
    if number == uapi.XEN_HC_VCPU_OP:
        return _singleshot(vcpu, first, second, third, long_mode)
    return None


def _polls(vcpu: X86Vcpu, long_mode: bool) -> bool:
    """Whether polling is ours: with all event channels of the guest's known here."""
    return long_mode and vcpu.lapic is not None and bool(vcpu.vm.xen.flags & uapi.KVM_XEN_HVM_CONFIG_EVTCHN_SEND)


def _poll(vcpu: X86Vcpu, address: int) -> int:
    data = translate.read(vcpu, address, _POLL.size)
    if data is None:
        return -errno.EFAULT
    at, count, timeout = _POLL.unpack(data)
    if count > _MAX_PORTS:
        return -errno.EINVAL
    ports = []
    for index in range(count):
        port = translate.read(vcpu, at + 4 * index & _U64, 4)
        if port is None:
            return -errno.EFAULT
        ports.append(int.from_bytes(port, "little"))
    if any(port >= vcpu.vm.xen.layout.ports for port in ports):
        return -errno.EINVAL
    try:
        vcpu.own_xen().poll(ports, timeout, lambda: _any_pending(vcpu, ports))
    except OSError as error:
        return -(error.errno or errno.ENOMEM)
    return 0


def _any_pending(vcpu: X86Vcpu, ports: list[int]) -> bool:
    """Without a shared page there is no telling: so as if."""
    vm = vcpu.vm
    layout = vm.xen.layout
    shared = vm.xen.shared_info
    bits = vm.read_guest(shared + layout.pending, layout.ports // 8) if shared is not None else None
    return bits is None or any(bits[port >> 3] >> (port & 7) & 1 for port in ports)


def _set_timer(vcpu: X86Vcpu, expires: int) -> int:
    own = vcpu.own_xen()
    if not expires:
        own.stop_timer()
        return 0
    now = vcpu.vm.clock.now()
    # As Xen does it: what looks like an overflow is soon, not never.
    if expires >> 63 or expires - now >= _FAR_NS:
        expires = now + _SOON_NS
    own.start_timer(expires)
    return 0


def _singleshot(vcpu: X86Vcpu, operation: int, vcpu_id: int, address: int, long_mode: bool) -> int | None:
    own = vcpu.own_xen()
    if operation not in (uapi.VCPUOP_SET_SINGLESHOT_TIMER, uapi.VCPUOP_STOP_SINGLESHOT_TIMER):
        return None
    if own.vcpu_id != vcpu_id:
        return -errno.EINVAL
    if operation == uapi.VCPUOP_STOP_SINGLESHOT_TIMER:
        own.stop_timer()
        return 0
    data = translate.read(vcpu, address, 16 if long_mode else _SINGLESHOT.size)
    if data is None:
        return -errno.EFAULT
    expires, flags = _SINGLESHOT.unpack_from(data)
    if flags & uapi.VCPU_SSHOTTMR_FUTURE and timer.signed(expires - vcpu.vm.clock.now()) < 0:
        return -errno.ETIME
    own.start_timer(expires)
    return 0
