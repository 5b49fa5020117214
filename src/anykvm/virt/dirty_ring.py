# SPDX-License-Identifier: GPL-2.0-only
"""The dirty ring: each vCPU's list of the pages it wrote, shared with userspace (api.rst 8.29).

A ring is part of the vCPU's file, from page KVM_DIRTY_LOG_PAGE_OFFSET on. The engine writes an entry when the vCPU is
the first to write to a page since that page was last reset, and so does KVM itself when it writes for a running vCPU.
Userspace takes entries in order and marks them; KVM_RESET_DIRTY_RINGS gives the marked ones back, and their pages are
watched again. Source: ``virt/kvm/dirty_ring.c``.
"""

from __future__ import annotations

import ctypes
import errno
from threading import get_ident
from typing import TYPE_CHECKING, Final

from anykvm.uapi.constants import KVM_DIRTY_GFN_F_DIRTY, KVM_DIRTY_GFN_F_RESET
from anykvm.uapi.structs import KvmDirtyGfn

from .dirty import bitmap_bytes
from .services import PAGE_SIZE, Services

if TYPE_CHECKING:
    from .memory import MemorySlot
    from .vcpu import Vcpu
    from .vm import Vm

KVM_DIRTY_LOG_PAGE_OFFSET: Final = 64
"""Where the ring begins in a vCPU's file, in pages."""
ENTRY_SIZE: Final = ctypes.sizeof(KvmDirtyGfn)
KVM_DIRTY_RING_MAX_ENTRIES: Final = 65536
KVM_DIRTY_RING_RSVD_ENTRIES: Final = 64
"""So many entries are kept for what is written between "nearly full" and the exit."""
_WORDS: Final = ENTRY_SIZE // 4
_U32: Final = 0xFFFFFFFF
_HEAD: Final = 0
_TAIL: Final = 1


class DirtyRingFull(Exception):
    """Leaves KVM_RUN with KVM_EXIT_DIRTY_RING_FULL."""


def file_size(ring_size: int) -> int:
    """The size in bytes of the file of a vCPU that has a ring of ``ring_size`` bytes; it is sparse."""
    return KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE + ring_size


class DirtyRing:
    """One vCPU's ring of ``size`` bytes. Written by its thread, in the guest or out of it; reset under slots_lock."""

    __slots__ = ("_counts", "_ladder", "_mapping", "_numbers", "_quads", "_words", "entries", "size", "soft_limit")

    def __init__(self, services: Services, memfd: int, size: int) -> None:
        self.size = size
        self.entries = size // ENTRY_SIZE
        self.soft_limit = self.entries - KVM_DIRTY_RING_RSVD_ENTRIES
        offset = KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE
        with services.ladder("dirty ring") as ladder:
            self._mapping = ladder.acquire("map", services.map, services.unmap, memfd, size, "dirty ring", offset)
            counts = ladder.acquire("counts", services.alloc, services.free, "dirty ring counts", 8)
        self._ladder = ladder
        self._counts = counts
        # How many entries were written and taken in all, modulo 2**32; userspace does not see them.
        self._numbers = counts.view.cast("I")
        view = memoryview(self._mapping).cast("B")
        self._words = view.cast("I")
        self._quads = view.cast("Q")

    def free(self) -> None:
        """Give the ring back; the engine does not know it any more. Userspace's mappings are its own."""
        self._ladder.unwind()

    @property
    def view(self) -> memoryview:
        """The entries as bytes."""
        return memoryview(self._mapping).cast("B")

    @property
    def address(self) -> int:
        """Where the engine finds the entries."""
        return ctypes.addressof(self._mapping)

    @property
    def counts_address(self) -> int:
        """Where the engine counts: two 32-bit words, entries written and entries taken."""
        return self._counts.address

    @property
    def used(self) -> int:
        """How many entries are not given back."""
        return self._numbers[_HEAD] - self._numbers[_TAIL] & _U32

    @property
    def full(self) -> bool:
        """Whether the vCPU must leave for userspace to take entries (kvm_dirty_ring_soft_full)."""
        return self.used >= self.soft_limit

    def push(self, slot: int, page: int) -> None:
        """Add an entry, from the vCPU's own thread out of the guest; one that finds no room at all is lost."""
        head = self._numbers[_HEAD]
        if self.used >= self.entries:
            return
        index = (head & self.entries - 1) * _WORDS
        self._words[index + 1] = slot
        self._quads[index // 2 + 1] = page
        self._words[index] = KVM_DIRTY_GFN_F_DIRTY
        self._numbers[_HEAD] = head + 1 & _U32

    def marked(self) -> list[tuple[int, int]]:
        """The entries that userspace has taken and marked, in order: (slot number, page), both unchecked."""
        tail = self._numbers[_TAIL]
        found = []
        for count in range(self.used):
            index = (tail + count & self.entries - 1) * _WORDS
            if not self._words[index] & KVM_DIRTY_GFN_F_RESET:
                break
            found.append((self._words[index + 1], self._quads[index // 2 + 1]))
        return found

    def give_back(self, count: int) -> None:
        """Make the oldest ``count`` entries free."""
        tail = self._numbers[_TAIL]
        for entry in range(count):
            self._words[(tail + entry & self.entries - 1) * _WORDS] = 0
        self._numbers[_TAIL] = tail + count & _U32


def enable(vm: Vm, size: int) -> int:
    """KVM_CAP_DIRTY_LOG_RING(_ACQ_REL): every vCPU to come has a ring of ``size`` bytes.

    EINVAL for a size that is no power of two or too small, once there are vCPUs, or a second time; E2BIG.
    """
    size &= _U32  # the kernel's argument is an int
    if size == 0 or size & size - 1:
        raise OSError(errno.EINVAL, f"a dirty ring has a power of two of bytes, not {size}")
    if size < max(KVM_DIRTY_RING_RSVD_ENTRIES * ENTRY_SIZE, PAGE_SIZE):
        raise OSError(errno.EINVAL, f"a dirty ring has at least {PAGE_SIZE} bytes, not {size}")
    if size > KVM_DIRTY_RING_MAX_ENTRIES * ENTRY_SIZE:
        raise OSError(errno.E2BIG, f"a dirty ring has at most {KVM_DIRTY_RING_MAX_ENTRIES * ENTRY_SIZE} bytes")
    with vm.lock:
        if vm.dirty_ring_size:
            raise OSError(errno.EINVAL, "the VM has dirty rings already")
        if vm.created_vcpus:
            raise OSError(errno.EINVAL, "dirty rings are enabled before the first vCPU is created")
        vm.dirty_ring_size = size
    return 0


def reset_dirty_rings(vm: Vm, arg: int) -> int:
    """KVM_RESET_DIRTY_RINGS: give back what userspace has marked; returns how many entries; EINVAL without rings."""
    if not vm.dirty_ring_size:
        raise OSError(errno.EINVAL, "the VM has no dirty rings: enable KVM_CAP_DIRTY_LOG_RING_ACQ_REL")
    total = 0
    with vm.slots_lock:
        taken: list[tuple[DirtyRing, int]] = []
        pages: dict[int, set[int]] = {}
        for vcpu in vm.vcpus():
            if vcpu.dirty_ring is None:
                continue
            marked = vcpu.dirty_ring.marked()
            taken.append((vcpu.dirty_ring, len(marked)))
            for slot, page in marked:
                pages.setdefault(slot, set()).add(page)
        for number, listed in pages.items():
            logged = vm.memory.by_id(number)
            if logged is not None and logged.dirty is not None:
                _watch_again(vm, logged, [page for page in listed if page < logged.npages])
        for ring, count in taken:
            ring.give_back(count)
            total += count
    return total


def _watch_again(vm: Vm, slot: MemorySlot, pages: list[int]) -> None:
    """Let the next write to these pages be an entry again."""
    if not pages:
        return
    first = min(pages) & ~63
    mask = bytearray(bitmap_bytes(max(pages) - first + 1))
    for page in pages:
        mask[page - first >> 3] |= 1 << (page & 7)
    vm.hooks.clear_dirty(vm, slot, first, bytes(mask))


def mark_written(vm: Vm, slot: MemorySlot, first: int, last: int) -> None:
    """Log that KVM itself wrote to pages of a slot with a log (mark_page_dirty); no vCPU is in the guest meanwhile.

    With rings it is the running vCPU that wrote; without one nobody is told, as in the kernel.
    """
    assert slot.dirty is not None
    running = _running(vm) if vm.dirty_ring_size else None
    for page in range(first, last + 1):
        if slot.dirty.mark(page) and running is not None and running.dirty_ring is not None:
            running.dirty_ring.push(slot.as_id << 16 | slot.id, page)


def _running(vm: Vm) -> Vcpu | None:
    thread = get_ident()
    return next((vcpu for vcpu in vm.vcpus() if vcpu.running and vcpu.thread == thread), None)
