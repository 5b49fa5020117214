# SPDX-License-Identifier: GPL-2.0-only
"""Split virtqueues over guest memory.

Source: Virtual I/O Device (VIRTIO) Version 1.2, section 2.7. Offered neither: indirect descriptors, event indices.

Nothing a guest writes into a ring can make this fail in another way than :class:`RingError`, or run for longer than one
queue's length: the number of entries, the length of a chain and every address are checked before use.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

DESC_F_NEXT: Final = 1
DESC_F_WRITE: Final = 2
DESC_F_INDIRECT: Final = 4
AVAIL_F_NO_INTERRUPT: Final = 1

_DESC: Final = struct.Struct("<QIHH")
_U16: Final = struct.Struct("<H")
_USED: Final = struct.Struct("<II")


class RingError(Exception):
    """The driver broke the rules of the ring; the device needs a reset."""


class Memory(Protocol):
    """Guest memory, as devices see it."""

    def view(self, gpa: int, size: int) -> memoryview:
        """`size` bytes at a guest-physical address; ``OSError`` (EFAULT) or ``ValueError`` if not all of it is RAM."""


@dataclass(frozen=True)
class Chain:
    """One request: buffers to read from, then buffers to write to."""

    head: int
    readable: Sequence[memoryview]
    writable: Sequence[memoryview]

    @property
    def readable_size(self) -> int:
        """Bytes in all readable buffers."""
        return sum(len(view) for view in self.readable)

    @property
    def writable_size(self) -> int:
        """Bytes in all writable buffers."""
        return sum(len(view) for view in self.writable)

    def release(self) -> None:
        """Let go of guest memory."""
        for view in (*self.readable, *self.writable):
            view.release()


class Virtqueue:
    """One queue. Its owner holds a lock around all calls."""

    def __init__(self, memory: Memory, max_size: int) -> None:
        self._memory = memory
        self.max_size = max_size
        self.size = max_size
        self.desc = 0
        self.avail = 0
        self.used = 0
        self.ready = False
        self._next_avail = 0
        self._next_used = 0
        self._views: tuple[memoryview, memoryview, memoryview] | None = None

    def enable(self) -> None:
        """Start, with the size and addresses the driver gave; ``RingError`` if they are none."""
        if not 0 < self.size <= self.max_size or self.size & (self.size - 1):
            raise RingError(f"queue size {self.size}")
        if self.desc % 16 or self.avail % 2 or self.used % 4:
            raise RingError("a ring is not aligned")
        self._views = (
            self._view(self.desc, 16 * self.size),
            self._view(self.avail, 6 + 2 * self.size),
            self._view(self.used, 6 + 8 * self.size),
        )
        self._next_avail = self._next_used = 0
        self.ready = True

    def reset(self) -> None:
        """Forget the driver."""
        self.size = self.max_size
        self.desc = self.avail = self.used = 0
        self.disable()

    def disable(self) -> None:
        """Stop, and let go of guest memory."""
        self.ready = False
        for view in self._views or ():
            view.release()
        self._views = None

    def pop(self) -> Chain | None:
        """The next request, or ``None`` if there is none."""
        if self._views is None:
            return None
        _, avail, _ = self._views
        (index,) = _U16.unpack_from(avail, 2)
        waiting = (index - self._next_avail) & 0xFFFF
        if waiting == 0:
            return None
        if waiting > self.size:
            raise RingError(f"{waiting} requests in a queue of {self.size}")
        (head,) = _U16.unpack_from(avail, 4 + 2 * (self._next_avail % self.size))
        chain = self._chain(head)
        self._next_avail = (self._next_avail + 1) & 0xFFFF
        return chain

    def push(self, chain: Chain, written: int) -> None:
        """Give a request back, with the number of bytes written to it."""
        chain.release()
        if self._views is None:
            return
        _, _, used = self._views
        _USED.pack_into(used, 4 + 8 * (self._next_used % self.size), chain.head, written)
        self._next_used = (self._next_used + 1) & 0xFFFF
        # The entry is in memory before the index says so: one store each, and no compiler between them.
        _U16.pack_into(used, 2, self._next_used)

    @property
    def wants_interrupt(self) -> bool:
        """Tell whether the driver wants to hear of used buffers."""
        if self._views is None:
            return False
        (flags,) = _U16.unpack_from(self._views[1], 0)
        return not flags & AVAIL_F_NO_INTERRUPT

    def _view(self, address: int, size: int) -> memoryview:
        try:
            return self._memory.view(address, size)
        except (OSError, ValueError, OverflowError, IndexError):
            raise RingError(f"{size} bytes at {address:#x} are not in memory") from None

    def _chain(self, head: int) -> Chain:
        assert self._views is not None
        table = self._views[0]
        readable: list[memoryview] = []
        writable: list[memoryview] = []
        index = head
        for _ in range(self.size):
            if index >= self.size:
                raise RingError(f"descriptor {index} in a table of {self.size}")
            address, length, flags, following = _DESC.unpack_from(table, 16 * index)
            if flags & DESC_F_INDIRECT:
                raise RingError("an indirect descriptor, which was not offered")
            view = self._view(address, length) if length else memoryview(bytearray())
            if flags & DESC_F_WRITE:
                writable.append(view)
            elif writable:
                raise RingError("a readable buffer after a writable one")
            else:
                readable.append(view)
            if not flags & DESC_F_NEXT:
                return Chain(head, readable, writable)
            index = following
        raise RingError("a chain longer than its queue")
