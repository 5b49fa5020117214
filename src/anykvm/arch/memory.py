# SPDX-License-Identifier: GPL-2.0-only
"""Memory slots on the engine: the hooks that are the same for every architecture. ``vm.arch`` has the ``machine``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from anykvm.virt.hooks import ArchHooks

if TYPE_CHECKING:
    from anykvm.engine import Machine
    from anykvm.virt.memory import MemorySlot, SlotChange
    from anykvm.virt.vcpu import Vcpu
    from anykvm.virt.vm import Vm


class EngineMemory(ArchHooks):
    """The part of an architecture's hooks that shows slots to the engine."""

    def commit_memory_region(self, vm: Vm, old: MemorySlot | None, new: MemorySlot | None, change: SlotChange) -> None:
        """Map, unmap, or map anew."""
        machine: Machine = vm.arch.machine
        if old is not None and new is not None:
            with machine.stopped():
                machine.unmap(old.gpa, old.as_id)
                _map(machine, new)
        elif old is not None:
            machine.unmap(old.gpa, old.as_id)
        elif new is not None:
            _map(machine, new)

    def harvest_dirty(self, vm: Vm, slot: MemorySlot) -> bytes:
        """Take the bitmap out of the engine's hands, atomically."""
        return bytes(vm.arch.machine.harvest_dirty(slot.gpa, slot.as_id))

    def clear_dirty(self, vm: Vm, slot: MemorySlot, first_page: int, mask: bytes) -> None:
        """Clear bits while no vCPU can set one."""
        assert slot.dirty is not None
        machine: Machine = vm.arch.machine
        with machine.stopped():
            slot.dirty.clear(first_page, mask)
            pages = min(len(mask) * 8, slot.npages - first_page)
            machine.reprotect(slot.gpa, first_page, pages)


class RingCpu(Protocol):
    """A CPU that logs what it writes."""

    def set_write_ring(self, entries: int, counts: int, size: int, soft: int, /) -> None:
        """Log first writes to pages in a ring of ``size`` entries at an address; ``soft`` of them make it leave."""


def connect_ring(vcpu: Vcpu, cpu: RingCpu) -> None:
    """Let the engine's CPU write the vCPU's dirty ring, if it has one; before it first runs."""
    ring = vcpu.dirty_ring
    if ring is not None:
        cpu.set_write_ring(ring.address, ring.counts_address, ring.entries, ring.soft_limit)


def _map(machine: Machine, slot: MemorySlot) -> None:
    dirty = slot.dirty.address if slot.dirty is not None else 0
    machine.map(
        slot.gpa,
        slot.size,
        slot.userspace_addr,
        readonly=slot.readonly,
        dirty=dirty,
        tag=slot.as_id << 16 | slot.id,
        space=slot.as_id,
    )
