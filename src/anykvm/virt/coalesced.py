# SPDX-License-Identifier: GPL-2.0-only
"""Coalesced MMIO and port I/O (api.rst 4.116): guest writes that wait in a ring instead of leaving KVM_RUN.

The ring is one page for the whole VM, which every vCPU's mapping shows (KVM_CAP_COALESCED_MMIO says at which page).
Here it is a page of the first vCPU's memfd; the others' mappings get it in place of their own when the first zone is
registered. A program that has mapped another vCPU's fd by itself keeps that vCPU's own page, which stays empty.

Source: ``virt/kvm/coalesced_mmio.c``.
"""

from __future__ import annotations

import ctypes
import errno
import struct
from typing import TYPE_CHECKING, Any, Final

from anykvm.uapi.structs import KvmCoalescedMmio, KvmCoalescedMmioRing, KvmCoalescedMmioZone

from .bus import IoBus
from .ladder import Ladder
from .mapping import show_also_at
from .services import PAGE_SIZE, Mutex

if TYPE_CHECKING:
    from .vcpu import Vcpu
    from .vm import Vm

_HEAD: Final = ctypes.sizeof(KvmCoalescedMmioRing)
_ENTRY: Final = struct.Struct("<QII8s")
KVM_COALESCED_MMIO_MAX: Final = (PAGE_SIZE - _HEAD) // ctypes.sizeof(KvmCoalescedMmio)
"""How many entries the ring has; one is always free."""


class Zone:
    """A range of addresses (bytes) whose writes are queued: a device on a bus."""

    __slots__ = ("_ring", "addr", "bus", "ladder", "pio", "size")

    def __init__(self, ring: CoalescedRing, bus: IoBus, zone: KvmCoalescedMmioZone, ladder: Ladder) -> None:
        self._ring = ring
        self.bus = bus
        self.addr: int = zone.addr
        self.size: int = zone.size
        self.pio: int = zone.pio
        self.ladder = ladder

    def read(self, vcpu: Any, addr: int, size: int) -> int | None:
        """Leave reads to userspace."""
        return None

    def write(self, vcpu: Any, addr: int, size: int, value: int) -> bool:
        """Queue a write; False if the ring is full, so that it becomes an exit."""
        return self._ring.push(addr, size, value, self.pio)

    def covers(self, addr: int, size: int) -> bool:
        """Whether all of a range is in this zone."""
        return self.addr <= addr and addr + size <= self.addr + self.size


class CoalescedRing:
    """The zones of a VM, changed with ``vm.slots_lock`` held, and its ring, written with a lock of its own."""

    def __init__(self, vm: Vm, lock: Mutex) -> None:
        self._vm = vm
        self._zones: list[Zone] = []
        self._lock = lock
        self._page: memoryview | None = None
        self._words: memoryview[int] | None = None
        self._source = 0

    def __len__(self) -> int:
        return len(self._zones)

    def register(self, zone: KvmCoalescedMmioZone) -> None:
        """Queue the writes to a zone from now on; ENOMEM, ENOSPC."""
        vm = self._vm
        bus = vm.pio_bus if zone.pio else vm.mmio_bus
        with vm.services.ladder("coalesced zone") as ladder:
            ladder.acquire("zone", vm.services.charge, vm.services.free, "coalesced zone", 64)
            item = Zone(self, bus, zone, ladder)
            bus.register(item.addr, item.size, item)
            ladder.push("bus", bus.unregister, item)
            self._zones.append(item)
            ladder.push("item", self._zones.remove, item)
        # A vCPU that is being created finds the zone, or is found here.
        for vcpu in list(vm.vcpu_array):
            self.show(vcpu)

    def unregister(self, zone: KvmCoalescedMmioZone) -> None:
        """Take back every zone that covers this range; there may be none."""
        for item in list(self._zones):
            if item.pio == zone.pio and item.covers(zone.addr, zone.size):
                item.ladder.unwind()

    def release(self) -> None:
        """Take back every zone, when the VM dies."""
        for item in list(self._zones):
            item.ladder.unwind()
        self._page = self._words = None

    def show(self, vcpu: Vcpu) -> None:
        """Let a vCPU's mapping show the ring, if there are zones; the first vCPU's page is the ring."""
        if not self._zones:
            return
        offset = vcpu.hooks.coalesced_mmio_page * PAGE_SIZE
        with self._lock:
            if self._page is None:
                self._page = vcpu.page[offset : offset + PAGE_SIZE]
                self._words = self._page.cast("I")
                self._source = vcpu.run_address + offset
            elif vcpu.run_address + offset != self._source:
                show_also_at(self._source, vcpu.run_address + offset, PAGE_SIZE)

    def push(self, addr: int, size: int, value: int, pio: int) -> bool:
        """Queue one write of ``size`` bytes; False if there is no room, or no ring that makes sense."""
        with self._lock:
            page, words = self._page, self._words
            if page is None or words is None:
                return False
            first, last = words[0], words[1]
            following = (last + 1) % KVM_COALESCED_MMIO_MAX
            if last >= KVM_COALESCED_MMIO_MAX or following == first:
                return False
            data = value.to_bytes(size, "little")
            _ENTRY.pack_into(page, _HEAD + last * _ENTRY.size, addr, size, pio, data)
            words[1] = following
            return True


def _zone(vm: Vm, arg: int) -> KvmCoalescedMmioZone:
    zone: KvmCoalescedMmioZone = vm.services.read_struct(arg, KvmCoalescedMmioZone)
    if zone.pio not in (0, 1):
        raise OSError(errno.EINVAL, f"a coalesced zone is MMIO (0) or port I/O (1), not {zone.pio}")
    return zone


def register_coalesced_mmio(vm: Vm, arg: int) -> int:
    """KVM_REGISTER_COALESCED_MMIO; EINVAL, ENOMEM, ENOSPC."""
    zone = _zone(vm, arg)
    with vm.slots_lock:
        vm.coalesced.register(zone)
    return 0


def unregister_coalesced_mmio(vm: Vm, arg: int) -> int:
    """KVM_UNREGISTER_COALESCED_MMIO; EINVAL."""
    zone = _zone(vm, arg)
    with vm.slots_lock:
        vm.coalesced.unregister(zone)
    return 0
