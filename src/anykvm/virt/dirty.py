# SPDX-License-Identifier: GPL-2.0-only
"""The dirty log: which pages of a slot the guest wrote (api.rst 4.8 and 4.117).

The bitmap is plain memory: the engine sets bits in it from the vCPUs' threads, by atomic ORs, and takes no lock of
ours. So only the architecture can take bits out while the guest runs: ``hooks.harvest_dirty`` and
``hooks.clear_dirty``. The methods here that clear are what they use once they have stopped the vCPUs.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from anykvm.uapi.structs import KvmClearDirtyLog, KvmDirtyLog

from .services import Memory, Services

if TYPE_CHECKING:
    from .memory import MemorySlot
    from .vm import Vm

_WORD_BITS: Final = 64


def bitmap_bytes(pages: int) -> int:
    """The size of a bitmap of so many pages, in bytes: whole 64-bit words."""
    return (pages + _WORD_BITS - 1) // _WORD_BITS * 8


class DirtyBitmap:
    """One bit per page of 4096 bytes, in 64-bit little-endian words, at ``address``."""

    __slots__ = ("_memory", "_services", "_words", "pages", "size")

    def __init__(self, services: Services, pages: int) -> None:
        self.pages = pages
        self.size = bitmap_bytes(pages)
        self._services = services
        self._memory: Memory = services.alloc("dirty bitmap", self.size)
        self._words = self._memory.view.cast("Q")

    @property
    def address(self) -> int:
        """Where the engine finds it."""
        return self._memory.address

    @property
    def view(self) -> memoryview:
        """The bytes as they are now."""
        return self._memory.view

    def mark(self, page: int) -> bool:
        """Set a page's bit, and tell whether it was clear; not atomic, so with the vCPUs stopped."""
        word, bit = page // _WORD_BITS, 1 << page % _WORD_BITS
        before = self._words[word]
        self._words[word] = before | bit
        return not before & bit

    def fill(self) -> None:
        """Set every page's bit (KVM_DIRTY_LOG_INITIALLY_SET); before the engine knows the bitmap."""
        whole, rest = divmod(self.pages, _WORD_BITS)
        self._memory.view[: whole * 8] = b"\xff" * (whole * 8)
        if rest:
            self._words[whole] = (1 << rest) - 1

    def take(self) -> bytes:
        """Return the bitmap and clear it, with the vCPUs stopped."""
        taken = bytes(self._memory.view)
        self._memory.view[:] = bytes(self.size)
        return taken

    def clear(self, first_page: int, mask: bytes) -> None:
        """Clear the bits of ``mask`` from ``first_page`` (a multiple of 64) on, with the vCPUs stopped."""
        word = first_page // _WORD_BITS
        for bits in memoryview(mask).cast("Q"):
            if bits:
                self._words[word] &= ~bits
            word += 1

    def free(self) -> None:
        """Give the memory back; the engine must not know it any more."""
        self._services.free(self._memory)


def _check_bitmaps(vm: Vm) -> None:
    if vm.dirty_ring_size:
        raise OSError(errno.ENXIO, "the VM has dirty rings instead of bitmaps")


def _check_number(vm: Vm, number: int) -> None:
    as_id, slot_id = number >> 16, number & 0xFFFF
    if as_id >= vm.hooks.address_spaces or slot_id >= vm.hooks.user_mem_slots:
        raise OSError(errno.EINVAL, f"there is no slot number {slot_id} in address space {as_id}")


def _logged_slot(vm: Vm, number: int) -> MemorySlot:
    _check_number(vm, number)
    slot = vm.memory.by_id(number)
    if slot is None or slot.dirty is None:
        raise OSError(errno.ENOENT, f"slot {number} does not exist or has no KVM_MEM_LOG_DIRTY_PAGES")
    return slot


def get_dirty_log(vm: Vm, arg: int) -> int:
    """KVM_GET_DIRTY_LOG: copy the bitmap out, and clear it unless clearing is userspace's (KVM_CLEAR_DIRTY_LOG).

    EINVAL for a slot number out of range, ENOENT for a slot without a log, ENXIO with dirty rings, EFAULT: the bits are
    gone then, as in the kernel.
    """
    log = vm.services.read_struct(arg, KvmDirtyLog)
    _check_bitmaps(vm)
    with vm.slots_lock:
        slot = _logged_slot(vm, log.slot)
        assert slot.dirty is not None
        bits = bytes(slot.dirty.view) if vm.manual_dirty_log_protect else vm.hooks.harvest_dirty(vm, slot)
        vm.services.copy_to_user(log.dirty_bitmap, bits)
    return 0


def clear_dirty_log(vm: Vm, arg: int) -> int:
    """KVM_CLEAR_DIRTY_LOG: clear the pages whose bit is set in userspace's bitmap.

    EINVAL for a range that is not a multiple of 64 pages within the slot (its end excepted), ENOENT, ENXIO, EFAULT.
    """
    log = vm.services.read_struct(arg, KvmClearDirtyLog)
    _check_bitmaps(vm)
    first, count = log.first_page, log.num_pages
    with vm.slots_lock:
        _check_number(vm, log.slot)
        if first & _WORD_BITS - 1:
            raise OSError(errno.EINVAL, f"first_page {first} is not a multiple of 64")
        slot = _logged_slot(vm, log.slot)
        left = slot.npages - first
        if left < 0 or count > left or (count < left and count & _WORD_BITS - 1):
            raise OSError(errno.EINVAL, f"pages {first}+{count} are not a whole part of a slot of {slot.npages} pages")
        mask = bytearray(vm.services.copy_from_user(log.dirty_bitmap, bitmap_bytes(count)))
        if count & _WORD_BITS - 1:
            words = memoryview(mask).cast("Q")
            words[-1] &= (1 << count % _WORD_BITS) - 1
        if any(mask):
            vm.hooks.clear_dirty(vm, slot, first, bytes(mask))
    return 0
