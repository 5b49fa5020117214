# SPDX-License-Identifier: GPL-2.0-only
"""The memory side of a VM: slots and dirty logs."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator

from anykvm.api.backend import Backend
from anykvm.api.handle import Handle
from anykvm.api.memory import GuestMemory, Slots
from anykvm.uapi.common import (
    KVM_CAP_DIRTY_LOG_RING_ACQ_REL,
    KVM_CLEAR_DIRTY_LOG,
    KVM_ENABLE_CAP,
    KVM_GET_DIRTY_LOG,
    KVM_RESET_DIRTY_RINGS,
    KVM_SET_USER_MEMORY_REGION,
    KvmClearDirtyLog,
    KvmDirtyLog,
    KvmEnableCap,
    KvmUserspaceMemoryRegion,
)


def dirty_pages(bitmap: bytes) -> Iterator[int]:
    """The page numbers set in a dirty bitmap, ascending.

    >>> list(dirty_pages(b"\\x05\\x80"))
    [0, 2, 15]
    """
    for index, byte in enumerate(bitmap):
        for bit in range(8) if byte else ():
            if byte >> bit & 1:
                yield index * 8 + bit


class MemorySlots(Handle):
    """The guest-physical memory of a VM."""

    def __init__(self, backend: Backend, fd: int) -> None:
        super().__init__(backend, fd)
        self._slots = Slots().retain()

    def _release(self) -> None:
        self._slots.release()

    def set_user_memory_region(
        self,
        slot: int,
        guest_phys_addr: int,
        memory: GuestMemory | None,
        *,
        flags: int = 0,
        offset: int = 0,
        size: int | None = None,
    ) -> None:
        """Create, move, change or (``memory`` None) delete a memory slot (api.rst 4.35).

        The slot shows ``size`` bytes of ``memory`` from ``offset`` on (all of it by default) at ``guest_phys_addr``;
        all three are multiples of the page size. ``flags``: KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY. Errors:
        EINVAL, EEXIST where another slot is, ENOMEM, EBADF; ValueError for a part of ``memory`` that is not in it, or
        an address beyond 64 bits.

        >>> vm.set_user_memory_region(1, 0x8000_0000, memory)
        >>> vm.set_user_memory_region(2, 0x8000_0000, memory)
        Traceback (most recent call last):
        FileExistsError: [Errno 17] ...
        >>> vm.set_user_memory_region(1, 0, None)
        """
        if not 0 <= guest_phys_addr < 1 << 64:
            raise ValueError(f"guest_phys_addr {guest_phys_addr:#x} does not fit 64 bits")
        if memory is None:
            region = KvmUserspaceMemoryRegion(slot=slot, guest_phys_addr=guest_phys_addr)
            self.ioctl(KVM_SET_USER_MEMORY_REGION, region)
            self._slots.set(slot, None, 0)
            return
        length = memory.size - offset if size is None else size
        if offset < 0 or length <= 0 or offset + length > memory.size:
            raise ValueError(f"bytes {offset:#x} to {offset + length:#x} are not in a memory of {memory.size:#x} bytes")
        region = KvmUserspaceMemoryRegion(
            slot=slot,
            flags=flags,
            guest_phys_addr=guest_phys_addr,
            memory_size=length,
            userspace_addr=memory.address + offset,
        )
        self.ioctl(KVM_SET_USER_MEMORY_REGION, region)
        self._slots.set(slot, memory, length)

    def get_dirty_log(self, slot: int) -> bytes:
        """Which pages of a slot were written since the last call (api.rst 4.8).

        One bit per page, in multiples of 8 bytes; :func:`dirty_pages` reads it. Errors: ENOENT for a slot that is
        not there or not logged, EINVAL, EBADF.

        >>> from anykvm.uapi.common import KVM_MEM_LOG_DIRTY_PAGES
        >>> vm.set_user_memory_region(1, 0x8000_0000, memory, flags=KVM_MEM_LOG_DIRTY_PAGES)
        >>> list(dirty_pages(vm.get_dirty_log(1)))
        []
        """
        buffer = ctypes.create_string_buffer(max((self._slots.pages(slot) + 63) // 64 * 8, 8))
        self.ioctl(KVM_GET_DIRTY_LOG, KvmDirtyLog(slot=slot, dirty_bitmap=ctypes.addressof(buffer)))
        return buffer.raw

    def enable_dirty_ring(self, size: int) -> None:
        """Give every vCPU to come a dirty ring of ``size`` bytes, instead of dirty bitmaps (api.rst 8.29).

        A power of two, from 4096 to what KVM_CAP_DIRTY_LOG_RING_ACQ_REL says. Errors: EINVAL for another size, once
        there are vCPUs or a second time, E2BIG, EBADF.

        >>> kvm.create_vm().enable_dirty_ring(5000)
        Traceback (most recent call last):
        OSError: [Errno 22] ...
        """
        request = KvmEnableCap(cap=KVM_CAP_DIRTY_LOG_RING_ACQ_REL)
        request.args[0] = size
        self.ioctl(KVM_ENABLE_CAP, request)

    def reset_dirty_rings(self) -> int:
        """Give back the entries taken from the vCPUs' rings, and watch their pages again; returns how many.

        Errors: EINVAL without rings, EBADF.

        >>> vm.reset_dirty_rings()
        Traceback (most recent call last):
        OSError: [Errno 22] ...
        """
        return self.ioctl(KVM_RESET_DIRTY_RINGS)

    def clear_dirty_log(self, slot: int, first_page: int, num_pages: int, bitmap: bytes) -> None:
        """Make the pages set in ``bitmap`` clean again (api.rst 4.117).

        Where KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 is enabled. Bit 0 is ``first_page``, a multiple of 64, as
        ``num_pages`` is unless it reaches the slot's end. Errors: ENOENT, EINVAL, EBADF; ValueError for a bitmap
        shorter than ``num_pages`` bits.

        >>> vm.clear_dirty_log(9, 0, 64, bytes(8))
        Traceback (most recent call last):
        FileNotFoundError: [Errno 2] ...
        """
        if len(bitmap) * 8 < num_pages:
            raise ValueError(f"{num_pages} pages need {(num_pages + 7) // 8} bytes of bitmap, not {len(bitmap)}")
        # KVM reads whole words.
        buffer = ctypes.create_string_buffer(bitmap, (len(bitmap) + 7) // 8 * 8)
        request = KvmClearDirtyLog(
            slot=slot, num_pages=num_pages, first_page=first_page, dirty_bitmap=ctypes.addressof(buffer)
        )
        self.ioctl(KVM_CLEAR_DIRTY_LOG, request)
