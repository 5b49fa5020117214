# SPDX-License-Identifier: GPL-2.0-only
"""The local APIC's registers: the page the guest reads and writes, and KVM_GET_LAPIC and KVM_SET_LAPIC.

Source: Intel SDM volume 3, section "Local APIC", table "Local APIC Register Address Map"; ``arch/x86/kvm/lapic.c``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .lapic import Lapic

APIC_STATE_SIZE: Final = 0x400
"""The size of KVM_GET_LAPIC's register page in bytes."""
APIC_VERSION: Final = 0x50014
"""Version 0x14 with LVTs 0 to 5: timer, thermal, performance, LINT0, LINT1, error; with CMCI there is one more."""


# Registers, by offset in bytes.
APIC_ID: Final = 0x20
APIC_LVR: Final = 0x30
APIC_TPR: Final = 0x80
APIC_APR: Final = 0x90
APIC_PPR: Final = 0xA0
APIC_EOI: Final = 0xB0
APIC_LDR: Final = 0xD0
APIC_DFR: Final = 0xE0
APIC_SVR: Final = 0xF0
APIC_ISR: Final = 0x100
APIC_TMR: Final = 0x180
APIC_IRR: Final = 0x200
APIC_ESR: Final = 0x280
APIC_LVTCMCI: Final = 0x2F0
APIC_ICR: Final = 0x300
APIC_ICR2: Final = 0x310
APIC_LVTT: Final = 0x320
APIC_LVTTHMR: Final = 0x330
APIC_LVTPC: Final = 0x340
APIC_LVT0: Final = 0x350
APIC_LVT1: Final = 0x360
APIC_LVTERR: Final = 0x370
APIC_TMICT: Final = 0x380
APIC_TMCCT: Final = 0x390
APIC_TDCR: Final = 0x3E0

SVR_ENABLED: Final = 0x100
LVT_MASKED: Final = 0x10000
LVT_PERIODIC: Final = 0x20000
LVT_TSC_DEADLINE: Final = 0x40000
LVT_BITS: Final = {
    APIC_LVTT: 0x310FF,
    APIC_LVTTHMR: 0x117FF,
    APIC_LVTPC: 0x117FF,
    APIC_LVT0: 0x1F7FF,
    APIC_LVT1: 0x1F7FF,
    APIC_LVTERR: 0x110FF,
    APIC_LVTCMCI: 0x117FF,
}


_WORD: Final = struct.Struct("<I")


def read_register(lapic: Lapic, offset: int) -> int:
    """Read a register; 0 for one that does not exist or is write-only."""
    if APIC_ISR <= offset < APIC_ESR:
        bitmap = (lapic.isr, lapic.tmr, lapic.irr)[offset - APIC_ISR >> 7]
        return bitmap >> (offset & 0x70) * 2 & 0xFFFFFFFF
    reader = _READERS.get(offset)
    if reader is not None:
        return reader(lapic)
    return lapic.lvt.get(offset, 0)


def _write_id(lapic: Lapic, value: int) -> None:
    if lapic.x2apic:
        return
    with lapic.bus.lock:
        lapic.apic_id = value >> 24
        lapic.bus.changed()


def _write_tpr(lapic: Lapic, value: int) -> None:
    if lapic.report_tpr:
        lapic.side.tpr_touched(True)
    changed = (lapic.tpr ^ value) & 0xF0
    lapic.set_tpr(value & 0xFF)
    if changed:
        lapic.side.set_cr8(lapic.tpr >> 4)


def _write_ldr(lapic: Lapic, value: int) -> None:
    with lapic.bus.lock:
        lapic.ldr = value & 0xFF000000
        lapic.bus.changed()


def _write_dfr(lapic: Lapic, value: int) -> None:
    with lapic.bus.lock:
        lapic.dfr = value | 0x0FFFFFFF
        lapic.bus.changed()


def _write_svr(lapic: Lapic, value: int) -> None:
    with lapic.bus.lock:
        turned_on = value & SVR_ENABLED and not lapic.svr & SVR_ENABLED
        lapic.svr = value & 0x3FF
        if not value & SVR_ENABLED:
            for register in lapic.lvt:
                lapic.lvt[register] |= LVT_MASKED
        lapic.enables_changed()
        if turned_on:
            lapic.side.turned_on()


def _write_icr(lapic: Lapic, value: int) -> None:
    with lapic.bus.lock:
        lapic.icr = value & ~0x1000
        lapic.bus.send_ipi(lapic, value, lapic.icr2 >> 24)


def _write_icr2(lapic: Lapic, value: int) -> None:
    lapic.icr2 = value & 0xFF000000


def _write_lvt(lapic: Lapic, register: int, value: int) -> None:
    if register == APIC_LVTCMCI and not lapic.cmci:
        return
    with lapic.bus.lock:
        if not lapic.svr & SVR_ENABLED:
            value |= LVT_MASKED
        lapic.lvt[register] = value & (LVT_BITS[register] | lapic.deadline_bit * (register == APIC_LVTT))
        if register == APIC_LVTT:
            update_timer_mode(lapic)
        elif register == APIC_LVT0:
            lapic.enables_changed()


def update_timer_mode(lapic: Lapic) -> None:
    """Tell the timer what LVTT says; the lock is held."""
    entry = lapic.lvt[APIC_LVTT]
    lapic.timer.set_mode(entry & LVT_PERIODIC != 0, entry & LVT_TSC_DEADLINE != 0)


def _write_tmict(lapic: Lapic, value: int) -> None:
    with lapic.bus.lock:
        lapic.timer.start(value)


def _write_tdcr(lapic: Lapic, value: int) -> None:
    with lapic.bus.lock:
        lapic.tdcr = value & 0xB
        lapic.timer.set_divide(value)


# KVM_GET_LAPIC and KVM_SET_LAPIC.


def get_state(lapic: Lapic, wide_id: bool = False) -> bytes:
    """The register page: each register's 32 bits at its offset.

    In x2APIC mode the ID is as the register has it if ``wide_id``, else in the place of the xAPIC's.
    """
    with lapic.bus.lock:
        page = bytearray(lapic.page or bytes(APIC_STATE_SIZE))
        for offset in _STATE:
            _WORD.pack_into(page, offset, read_register(lapic, offset))
        if lapic.x2apic and not wide_id:
            _WORD.pack_into(page, APIC_ID, lapic.apic_id << 24 & 0xFFFFFFFF)
        return bytes(page)


def set_state(lapic: Lapic, page: bytes, wide_id: bool = False) -> bool:
    """Load the register page: KVM_GET_LAPIC's 1024 bytes; the version is kept, the current count goes on.

    In x2APIC mode ID and LDR stay what they are; False for another ID if ``wide_id``.
    """
    assert len(page) == APIC_STATE_SIZE
    if lapic.x2apic and wide_id and _WORD.unpack_from(page, APIC_ID)[0] != lapic.apic_id:
        return False
    with lapic.bus.lock:
        lapic.page = page
        words = {offset: _WORD.unpack_from(page, offset)[0] for offset in range(0, APIC_STATE_SIZE, 16)}
        lapic.tpr = words[APIC_TPR] & 0xFF
        if not lapic.x2apic:
            lapic.apic_id = words[APIC_ID] >> 24
            lapic.ldr = words[APIC_LDR]
        lapic.dfr = words[APIC_DFR]
        lapic.svr = words[APIC_SVR]
        lapic.icr = words[APIC_ICR]
        lapic.icr2 = words[APIC_ICR2]
        lapic.tdcr = words[APIC_TDCR]
        lapic.lvt = {register: words[register] for register in LVT_BITS}
        if not lapic.cmci:
            lapic.lvt[APIC_LVTCMCI] = LVT_MASKED
        lapic.isr, lapic.tmr, lapic.irr = (
            sum(words[base + 16 * i] << 32 * i for i in range(8)) for base in (APIC_ISR, APIC_TMR, APIC_IRR)
        )
        lapic.timer.stop()
        update_timer_mode(lapic)
        lapic.timer.set_divide(lapic.tdcr)
        lapic.timer.start(words[APIC_TMICT], words[APIC_TMCCT])
        lapic.enables_changed()
    lapic.side.set_cr8(lapic.tpr >> 4)
    return True


def _lvt_writer(register: int) -> Callable[[Lapic, int], None]:
    def write(lapic: Lapic, value: int) -> None:
        _write_lvt(lapic, register, value)

    return write


_READERS: Final[dict[int, Callable[[Lapic], int]]] = {
    APIC_ID: lambda lapic: lapic.apic_id if lapic.x2apic else lapic.apic_id << 24,
    APIC_LVR: lambda lapic: APIC_VERSION + (lapic.cmci << 16),
    APIC_LVTCMCI: lambda lapic: lapic.lvt[APIC_LVTCMCI] if lapic.cmci else 0,
    APIC_TPR: lambda lapic: lapic.tpr,
    APIC_PPR: lambda lapic: lapic.ppr,
    APIC_LDR: lambda lapic: lapic.ldr,
    APIC_DFR: lambda lapic: lapic.dfr,
    APIC_SVR: lambda lapic: lapic.svr,
    APIC_ICR: lambda lapic: lapic.icr,
    APIC_ICR2: lambda lapic: lapic.icr2,
    APIC_TMICT: lambda lapic: lapic.timer.initial,
    APIC_TMCCT: lambda lapic: lapic.timer.current(),
    APIC_TDCR: lambda lapic: lapic.tdcr,
}

WRITERS: Final[dict[int, Callable[[Lapic, int], None]]] = {
    APIC_ID: _write_id,
    APIC_TPR: _write_tpr,
    APIC_LDR: _write_ldr,
    APIC_DFR: _write_dfr,
    APIC_SVR: _write_svr,
    APIC_ICR: _write_icr,
    APIC_ICR2: _write_icr2,
    APIC_TMICT: _write_tmict,
    APIC_TDCR: _write_tdcr,
    **{register: _lvt_writer(register) for register in LVT_BITS},
}

_STATE: Final = (*_READERS, *LVT_BITS, *range(APIC_ISR, APIC_ESR, 16))
"""The registers that are not simply what KVM_SET_LAPIC stored."""
