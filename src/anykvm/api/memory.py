# SPDX-License-Identifier: GPL-2.0-only
"""Guest memory: anonymous pages of this process that memory slots show to a guest."""

from __future__ import annotations

import ctypes
import errno
import mmap
from types import TracebackType
from typing import Final, Self

from anykvm.api.handle import page_size

# Memory a guest never touches costs nothing, whatever the machine's overcommit policy.
_MAP_NORESERVE: Final[int] = getattr(mmap, "MAP_NORESERVE", 0x4000)


class GuestMemory:
    """``size`` bytes of zeroed, page-aligned memory; ``size`` is a multiple of the page size.

    A context manager. It cannot be closed while a memory slot shows it to a guest (EBUSY).

    Errors: ValueError for a size that is not a positive multiple of the page size, OSError ENOMEM.

    >>> with GuestMemory(1 << 20) as ram:
    ...     ram.write(0x1000, b"boot")
    ...     ram.read(0x1000, 4)
    b'boot'
    """

    def __init__(self, size: int) -> None:
        if size <= 0 or size % page_size():
            raise ValueError(f"guest memory comes in pages of {page_size()} bytes; {size} is no multiple of that")
        try:
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
            self._map = mmap.mmap(-1, size, flags=flags)
        except OverflowError:
            raise OSError(errno.ENOMEM, f"no room for {size} bytes of guest memory") from None
        self.size = size
        self.view: memoryview = memoryview(self._map)
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._map))
        self._slots = 0

    @property
    def address(self) -> int:
        """Where the memory begins in this process.

        Errors: EBADF when closed.

        >>> memory.address % 4096
        0
        """
        if self.closed:
            raise OSError(errno.EBADF, "this GuestMemory is closed")
        return self._address

    @property
    def closed(self) -> bool:
        """Whether the memory has been given back.

        >>> memory.closed
        False
        """
        return self._map.closed

    def read(self, offset: int, length: int) -> bytes:
        """Copy ``length`` bytes out, from ``offset`` bytes after the start.

        Errors: ValueError for bytes outside the memory, EBADF when closed.

        >>> memory.read(0, 2)
        b'\\x00\\x00'
        """
        self._check(offset, length)
        return bytes(self.view[offset : offset + length])

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Copy ``data`` in, to ``offset`` bytes after the start; a dirty log does not see it.

        Errors: ValueError for bytes outside the memory, EBADF when closed.

        >>> memory.write(8, b"x")
        >>> memory.read(8, 1)
        b'x'
        """
        self._check(offset, len(data))
        self.view[offset : offset + len(data)] = data

    def _check(self, offset: int, length: int) -> None:
        if self.closed:
            raise OSError(errno.EBADF, "this GuestMemory is closed")
        if offset < 0 or length < 0 or offset + length > self.size:
            raise ValueError(f"bytes {offset:#x} to {offset + length:#x} are not in a memory of {self.size:#x} bytes")

    def close(self) -> None:
        """Give the memory back; a second call does nothing.

        Errors: EBUSY while a memory slot uses it, or a slice of ``view`` is still held.

        >>> memory.close()
        >>> memory.closed
        True
        """
        if self.closed:
            return
        if self._slots:
            raise OSError(errno.EBUSY, f"this GuestMemory is used by {self._slots} memory slot(s)")
        self.view.release()
        try:
            self._map.close()
        except BufferError:
            self.view = memoryview(self._map)
            raise OSError(errno.EBUSY, "a slice of this GuestMemory's view is still held") from None

    def __len__(self) -> int:
        return self.size

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class Slots:
    """The memory each slot of one VM shows, kept until the last handle that keeps the VM alive is closed."""

    def __init__(self) -> None:
        self.memory: dict[int, tuple[GuestMemory, int]] = {}
        self._handles = 0

    def retain(self) -> Slots:
        """One more handle keeps the VM."""
        self._handles += 1
        return self

    def release(self) -> None:
        """One handle fewer; the last lets go of the memory."""
        self._handles -= 1
        if not self._handles:
            for slot in tuple(self.memory):
                self.set(slot, None, 0)

    def set(self, slot: int, memory: GuestMemory | None, size: int) -> None:
        """Note what a slot shows now; ``size`` in bytes."""
        if memory is not None:
            memory._slots += 1
        old = self.memory.pop(slot, None)
        if old is not None:
            old[0]._slots -= 1
        if memory is not None:
            self.memory[slot] = memory, size

    def pages(self, slot: int) -> int:
        """The size of a slot in pages; 0 when there is none."""
        return self.memory[slot][1] // page_size() if slot in self.memory else 0
