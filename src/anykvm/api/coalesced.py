# SPDX-License-Identifier: GPL-2.0-only
"""Coalesced MMIO and port I/O: guest writes that are queued instead of leaving KVM_RUN (api.rst 4.116)."""

from __future__ import annotations

from collections.abc import Iterator
from struct import Struct
from typing import Final

from anykvm.api.exits import MmioWrite, PioOut
from anykvm.api.handle import Handle
from anykvm.uapi.common import KVM_REGISTER_COALESCED_MMIO, KVM_UNREGISTER_COALESCED_MMIO, KvmCoalescedMmioZone

_HEAD: Final = 8
_ENTRY: Final = Struct("=QII8s")
_PAGE: Final = 4096
_ENTRIES: Final = (_PAGE - _HEAD) // _ENTRY.size


class CoalescedZones(Handle):
    """The zones of a VM."""

    def register_coalesced_mmio(self, address: int, size: int, *, pio: bool = False) -> None:
        """Queue the guest's writes to ``size`` bytes from ``address`` on (of ports, if ``pio``).

        :func:`coalesced_writes` gives them out; a full ring lets the write exit as ever. Errors: ENOSPC, ENOMEM, EBADF.
        """
        self.ioctl(KVM_REGISTER_COALESCED_MMIO, KvmCoalescedMmioZone(addr=address, size=size, pio=pio))

    def unregister_coalesced_mmio(self, address: int, size: int, *, pio: bool = False) -> None:
        """Take back every zone that covers this range; there may be none. Errors: EBADF."""
        self.ioctl(KVM_UNREGISTER_COALESCED_MMIO, KvmCoalescedMmioZone(addr=address, size=size, pio=pio))


def coalesced_writes(ring: memoryview) -> Iterator[MmioWrite | PioOut]:
    """Take the writes that wait out of a ring page, in the guest's order.

    ``ring`` is the page of any vCPU's mapping that KVM_CAP_COALESCED_MMIO names (:meth:`Vcpu.mapped_page`); one reader
    at a time. Before each exit is served, what is in here came earlier.
    """
    words = ring[:_HEAD].cast("I")
    while words[0] != words[1]:
        first = words[0] % _ENTRIES
        address, size, pio, data = _ENTRY.unpack_from(ring, _HEAD + first * _ENTRY.size)
        words[0] = (first + 1) % _ENTRIES
        yield PioOut(address, size, data[:size]) if pio else MmioWrite(address, data[:size])
