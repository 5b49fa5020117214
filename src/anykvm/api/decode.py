# SPDX-License-Identifier: GPL-2.0-only
"""From the run page to an exit object: one decoder per exit reason, in a table.

This is the hot path of every VMM: no ctypes field access here, only struct on the mapped page.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final

from anykvm.api import exits
from anykvm.api.exits import Exit, MmioRead, MmioWrite, PioIn, PioOut, SystemEventType
from anykvm.uapi import common

Decoder = Callable[[memoryview], Exit]

_UNION: Final = common.KvmRun.mmio.offset
_UNION_END: Final = _UNION + 256
_OUT: Final = common.KVM_EXIT_IO_OUT
_BYTES: Final = [bytes((value,)) for value in range(256)]
_MMIO: Final = Struct("=Q8sIB").unpack_from
_IO: Final = Struct("=BBHIQ").unpack_from
_HYPERCALL: Final = Struct("=Q6QQQ").unpack_from
_WORDS16: Final = Struct("=II16Q").unpack_from
_U32_U32: Final = Struct("=II").unpack_from
_U64_U32: Final = Struct("=QI").unpack_from
_U64_U64: Final = Struct("=QQ").unpack_from
_U64_U64_U64: Final = Struct("=QQQ").unpack_from
_U64: Final = Struct("=Q").unpack_from
_EVENTS: Final[dict[int, int]] = {int(event): event for event in SystemEventType}


def _mmio(page: memoryview) -> Exit:
    address, data, size, is_write = _MMIO(page, _UNION)
    if is_write:
        return MmioWrite(address, data[:size])
    return MmioRead(address, size, page)


def _io(page: memoryview) -> Exit:
    direction, size, port, count, offset = _IO(page, _UNION)
    if direction == _OUT:
        length = size * count
        return PioOut(port, size, _BYTES[page[offset]] if length == 1 else bytes(page[offset : offset + length]))
    return PioIn(port, size, count, page, offset)


def _hypercall(page: memoryview) -> Exit:
    words = _HYPERCALL(page, _UNION)
    return exits.Hypercall(words[0], words[1:7], words[8], _page=page)


def _system_event(page: memoryview) -> Exit:
    kind, count, *data = _WORDS16(page, _UNION)
    return exits.SystemEvent(_EVENTS.get(kind, kind), tuple(data[: min(count, 16)]))


def _internal(page: memoryview) -> Exit:
    suberror, count, *data = _WORDS16(page, _UNION)
    return exits.InternalError(suberror, tuple(data[: min(count, 16)]))


def _unknown(page: memoryview) -> Exit:
    return exits.Unknown(common.KVM_EXIT_UNKNOWN, _U64(page, _UNION)[0])


def _arch_exit(reason: int, name: str) -> Decoder:
    def decode(page: memoryview) -> Exit:
        return exits.ArchExit(reason, name, bytes(page[_UNION:_UNION_END]))

    return decode


_KNOWN: Final[dict[int, Decoder]] = {
    common.KVM_EXIT_EXCEPTION: lambda page: exits.GuestException(*_U32_U32(page, _UNION)),
    common.KVM_EXIT_IO: _io,
    common.KVM_EXIT_HYPERCALL: _hypercall,
    common.KVM_EXIT_DEBUG: lambda page: exits.Debug(bytes(page[_UNION : _UNION + common.DEBUG_EXIT_ARCH_MAX])),
    common.KVM_EXIT_HLT: lambda _: exits.Halt(),
    common.KVM_EXIT_MMIO: _mmio,
    common.KVM_EXIT_IRQ_WINDOW_OPEN: lambda _: exits.IrqWindowOpen(),
    common.KVM_EXIT_SHUTDOWN: lambda _: exits.Shutdown(),
    common.KVM_EXIT_FAIL_ENTRY: lambda page: exits.FailEntry(*_U64_U32(page, _UNION)),
    common.KVM_EXIT_INTR: lambda _: exits.Interrupted(),
    common.KVM_EXIT_INTERNAL_ERROR: _internal,
    common.KVM_EXIT_SYSTEM_EVENT: _system_event,
    common.KVM_EXIT_ARM_NISV: lambda page: exits.ArmNisv(*_U64_U64(page, _UNION)),
    common.KVM_EXIT_DIRTY_RING_FULL: lambda _: exits.DirtyRingFull(),
    common.KVM_EXIT_MEMORY_FAULT: lambda page: exits.MemoryFault(*_U64_U64_U64(page, _UNION)),
}

_NAMES: Final[dict[int, str]] = {
    value: name
    for name, value in vars(common).items()
    if name.startswith("KVM_EXIT_") and name not in {"KVM_EXIT_IO_IN", "KVM_EXIT_IO_OUT"}
}


def _table() -> tuple[Decoder, ...]:
    table: dict[int, Decoder] = {reason: _arch_exit(reason, name) for reason, name in _NAMES.items()}
    table |= _KNOWN | {common.KVM_EXIT_UNKNOWN: _unknown}
    return tuple(table[reason] for reason in range(len(table)))


DECODERS: Final = _table()
"""By exit reason; the reasons are numbered without a gap."""
KNOWN: Final = len(DECODERS)


def decode(page: memoryview, reason: int) -> Exit:
    """The exit object for what the run page says; ``page`` is a view of its bytes."""
    try:
        decoder = DECODERS[reason]
    except IndexError:
        return exits.Unknown(reason, _U64(page, _UNION)[0])
    return decoder(page)
