# SPDX-License-Identifier: GPL-2.0-only
"""Memory slots: KVM_SET_USER_MEMORY_REGION (api.rst 4.35) and what finds a slot by guest-physical address."""

from __future__ import annotations

import enum
import errno
from typing import TYPE_CHECKING, Final

from anykvm.uapi.constants import (
    KVM_DIRTY_LOG_INITIALLY_SET,
    KVM_MEM_GUEST_MEMFD,
    KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY,
)
from anykvm.uapi.structs import KvmUserspaceMemoryRegion, KvmUserspaceMemoryRegion2

from .dirty import DirtyBitmap
from .services import PAGE_SIZE, USER_ADDRESS_LIMIT
from .slot_table import SlotTable
from .stats import MEMSLOT_CHANGES

if TYPE_CHECKING:
    from .vm import Vm

PAGE_SHIFT: Final = 12
KVM_MEM_MAX_NR_PAGES: Final = (1 << 31) - 1
_ADDRESS_SPACE: Final = 1 << 64


class SlotChange(enum.Enum):
    """What happens to a slot (enum kvm_mr_change)."""

    CREATE = enum.auto()
    DELETE = enum.auto()
    MOVE = enum.auto()
    FLAGS_ONLY = enum.auto()


class MemorySlot:
    """A slot; it never changes: a change replaces it. Pages have 4096 bytes."""

    __slots__ = ("as_id", "base_gfn", "dirty", "flags", "id", "npages", "userspace_addr")

    def __init__(  # noqa: PLR0917  (a record)
        self,
        as_id: int,
        id: int,
        base_gfn: int,
        npages: int,
        userspace_addr: int,
        flags: int,
        dirty: DirtyBitmap | None,
    ) -> None:
        self.as_id: Final = as_id
        self.id: Final = id
        self.base_gfn: Final = base_gfn
        self.npages: Final = npages
        self.userspace_addr: Final = userspace_addr
        self.flags: Final = flags
        self.dirty: Final = dirty

    @property
    def gpa(self) -> int:
        """The first guest-physical address."""
        return self.base_gfn << PAGE_SHIFT

    @property
    def size(self) -> int:
        """The size in bytes."""
        return self.npages << PAGE_SHIFT

    @property
    def readonly(self) -> bool:
        """Whether a guest write exits as MMIO instead."""
        return bool(self.flags & KVM_MEM_READONLY)


class MemorySlots:
    """The slots of a VM. Changes are made with ``vm.slots_lock`` held; readers take no lock."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._tables = tuple(SlotTable() for _ in range(vm.hooks.address_spaces))
        self._by_id: dict[int, MemorySlot] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def slots(self) -> list[MemorySlot]:
        """The slots of address space 0 by guest-physical address."""
        return list(self._tables[0])

    def by_id(self, number: int) -> MemorySlot | None:
        """Find a slot by its number (address space in the upper 16 bits); slots_lock is held."""
        return self._by_id.get(number)

    def find(self, gpa: int, as_id: int = 0) -> MemorySlot | None:
        """Find the slot that a guest-physical address of an address space is in."""
        return self._tables[as_id].find(gpa >> PAGE_SHIFT)

    def gpa_to_hva(self, gpa: int, size: int, write: bool = False, as_id: int = 0) -> int | None:
        """Translate a guest-physical range that lies in one slot; None if it does not, or is read-only and written."""
        slot = self.find(gpa, as_id)
        if slot is None or gpa + size > slot.gpa + slot.size or (write and slot.readonly):
            return None
        return slot.userspace_addr + gpa - slot.gpa

    # KVM_SET_USER_MEMORY_REGION.

    def set_region(self, region: KvmUserspaceMemoryRegion | KvmUserspaceMemoryRegion2) -> int:
        """Create, move, change the flags of, or delete a slot; EINVAL, EEXIST, EFAULT, ENOMEM; slots_lock is held."""
        number, flags, gpa = region.slot, region.flags, region.guest_phys_addr
        size, hva = region.memory_size, region.userspace_addr
        self._check(number, flags, gpa, size, hva)
        old = self.by_id(number)
        if size == 0:
            if old is None:
                raise OSError(errno.EINVAL, f"slot {number} does not exist: it cannot be deleted")
            return self._set(old, None, SlotChange.DELETE)
        base_gfn, npages = gpa >> PAGE_SHIFT, size >> PAGE_SHIFT
        if old is None:
            change = SlotChange.CREATE
        else:
            if hva != old.userspace_addr or npages != old.npages or (flags ^ old.flags) & KVM_MEM_READONLY:
                raise OSError(errno.EINVAL, f"slot {number} exists: only its place and its dirty log can change")
            if base_gfn != old.base_gfn:
                change = SlotChange.MOVE
            elif flags != old.flags:
                change = SlotChange.FLAGS_ONLY
            else:
                return 0
        if change is not SlotChange.FLAGS_ONLY:
            self._check_overlap(number, base_gfn, npages)
        if change is SlotChange.CREATE and not self._vm.services.user_range_mapped(hva, size):
            # The kernel finds out when the guest touches the page; here nothing could stop that access.
            raise OSError(errno.EFAULT, f"not everything from {hva:#x} to {hva + size:#x} is mapped")
        dirty, made = self._dirty_bitmap(old, flags, npages)
        new = MemorySlot(number >> 16, number & 0xFFFF, base_gfn, npages, hva, flags, dirty)
        try:
            return self._set(old, new, change)
        except BaseException:
            if made and dirty is not None:
                dirty.free()
            raise

    def _check(self, number: int, flags: int, gpa: int, size: int, hva: int) -> None:
        hooks = self._vm.hooks
        valid = KVM_MEM_LOG_DIRTY_PAGES | (KVM_MEM_READONLY if hooks.readonly_memory else 0)
        if flags & KVM_MEM_GUEST_MEMFD:
            raise OSError(errno.EINVAL, "KVM_MEM_GUEST_MEMFD is not supported here")
        if flags & ~valid:
            raise OSError(errno.EINVAL, f"unknown slot flags {flags & ~valid:#x}")
        for what, value in (("size", size), ("guest-physical address", gpa), ("user address", hva)):
            if value & PAGE_SIZE - 1:
                raise OSError(errno.EINVAL, f"the slot's {what} {value:#x} is not a multiple of {PAGE_SIZE}")
        if hva + size > USER_ADDRESS_LIMIT:
            raise OSError(errno.EINVAL, f"{hva:#x} is not a user address")
        if number >> 16 >= hooks.address_spaces:
            raise OSError(errno.EINVAL, f"there is no address space {number >> 16}: slot {number:#x} cannot be in it")
        if number & 0xFFFF >= hooks.user_mem_slots:
            raise OSError(errno.EINVAL, f"slot number {number & 0xFFFF:#x} is not below {hooks.user_mem_slots}")
        if gpa + size >= _ADDRESS_SPACE:
            raise OSError(errno.EINVAL, f"a slot of {size:#x} bytes at {gpa:#x} runs over the end of the address space")
        if size >> PAGE_SHIFT > KVM_MEM_MAX_NR_PAGES:
            raise OSError(errno.EINVAL, f"a slot has at most {KVM_MEM_MAX_NR_PAGES} pages")

    def _check_overlap(self, number: int, base_gfn: int, npages: int) -> None:
        # Neighbours only: those before the end, backwards; the slot itself does not count.
        for slot in self._tables[number >> 16].backwards(base_gfn + npages - 1):
            if slot.as_id << 16 | slot.id != number:
                if slot.base_gfn + slot.npages > base_gfn:
                    raise OSError(errno.EEXIST, f"slot {number} overlaps slot {slot.id} at {slot.gpa:#x}")
                return

    def _dirty_bitmap(self, old: MemorySlot | None, flags: int, npages: int) -> tuple[DirtyBitmap | None, bool]:
        """Give the new slot's bitmap, and whether it was made for it."""
        if not flags & KVM_MEM_LOG_DIRTY_PAGES:
            return None, False
        if old is not None and old.dirty is not None:
            return old.dirty, False
        dirty = DirtyBitmap(self._vm.services, npages)
        # With rings the bits say what is in one already: nothing is.
        if self._vm.manual_dirty_log_protect & KVM_DIRTY_LOG_INITIALLY_SET and not self._vm.dirty_ring_size:
            dirty.fill()
        return dirty, True

    def _set(self, old: MemorySlot | None, new: MemorySlot | None, change: SlotChange) -> int:
        vm = self._vm
        vm.hooks.prepare_memory_region(vm, old, new, change)
        before = self._tables
        changed = new or old
        assert changed is not None
        as_id = changed.as_id
        vm.services.publish("memory slots")
        self._tables = (*before[:as_id], before[as_id].replace(old, new), *before[as_id + 1 :])
        try:
            vm.hooks.commit_memory_region(vm, old, new, change)
        except BaseException:
            self._tables = before
            raise
        if new is not None:
            self._by_id[new.as_id << 16 | new.id] = new
        elif old is not None:
            del self._by_id[old.as_id << 16 | old.id]
        if old is not None and old.dirty is not None and (new is None or new.dirty is not old.dirty):
            old.dirty.free()
        vm.stats.values[MEMSLOT_CHANGES] += 1
        return 0

    def free(self) -> None:
        """Give the slots' memory back, when the VM dies and ``vm.arch`` is gone."""
        slots = list(self._by_id.values())
        self._tables = tuple(SlotTable() for _ in self._tables)
        self._by_id.clear()
        for slot in slots:
            if slot.dirty is not None:
                slot.dirty.free()


def set_user_memory_region(vm: Vm, arg: int) -> int:
    """KVM_SET_USER_MEMORY_REGION."""
    region: KvmUserspaceMemoryRegion = vm.services.read_struct(arg, KvmUserspaceMemoryRegion)
    with vm.slots_lock:
        return vm.memory.set_region(region)


def set_user_memory_region2(vm: Vm, arg: int) -> int:
    """KVM_SET_USER_MEMORY_REGION2: the same without KVM_MEM_GUEST_MEMFD, which is EINVAL."""
    region: KvmUserspaceMemoryRegion2 = vm.services.read_struct(arg, KvmUserspaceMemoryRegion2)
    with vm.slots_lock:
        return vm.memory.set_region(region)
