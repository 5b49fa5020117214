# SPDX-License-Identifier: GPL-2.0-only
"""The driver's side of a virtqueue, in guest memory."""

from __future__ import annotations

import struct

from vmm_fakes import FakeMemory

from anykvm.vmm.virtqueue import DESC_F_NEXT, DESC_F_WRITE

DESC = 0x4000_1000
AVAIL = 0x4000_2000
USED = 0x4000_3000
BUFFERS = 0x4000_4000


class Driver:
    """Puts requests into a ring at fixed addresses, and takes them back."""

    def __init__(self, memory: FakeMemory | None = None, size: int = 8) -> None:
        self.memory = memory or FakeMemory()
        self.size = size
        self.avail_index = 0
        self.used_index = 0
        self._next_descriptor = 0
        self._next_buffer = BUFFERS
        self._chains: dict[int, list[tuple[int, int]]] = {}

    def poke(self, address: int, data: bytes) -> None:
        with self.memory.view(address, len(data)) as view:
            view[:] = data

    def peek(self, address: int, size: int) -> bytes:
        with self.memory.view(address, size) as view:
            return bytes(view)

    def descriptor(self, index: int, address: int, length: int, flags: int, following: int) -> None:
        self.poke(DESC + 16 * index, struct.pack("<QIHH", address, length, flags, following))

    def publish(self) -> None:
        self.poke(AVAIL + 2, struct.pack("<H", self.avail_index & 0xFFFF))

    def make_available(self, head: int) -> None:
        self.poke(AVAIL + 4 + 2 * (self.avail_index % self.size), struct.pack("<H", head))
        self.avail_index += 1
        self.publish()

    def offer(self, buffers: list[tuple[bytes, bool]]) -> int:
        """Offer one request: (content, does the device write it)."""
        indices = [(self._next_descriptor + n) % self.size for n in range(len(buffers))]
        self._next_descriptor += len(buffers)
        chain: list[tuple[int, int]] = []
        for position, (content, writable) in enumerate(buffers):
            last = position == len(buffers) - 1
            flags = (0 if last else DESC_F_NEXT) | (DESC_F_WRITE if writable else 0)
            if self._next_buffer + len(content) >= self.memory.base + len(self.memory.data):
                self._next_buffer = BUFFERS
            self.poke(self._next_buffer, content)
            chain.append((self._next_buffer, len(content)))
            following = 0 if last else indices[position + 1]
            self.descriptor(indices[position], self._next_buffer, len(content), flags, following)
            self._next_buffer += len(content)
        self._chains[indices[0]] = chain
        self.make_available(indices[0])
        return indices[0]

    def buffer(self, head: int, position: int) -> bytes:
        return self.peek(*self._chains[head][position])

    def collect(self) -> list[tuple[int, int]]:
        """What the device has given back: (head, bytes written)."""
        (index,) = struct.unpack("<H", self.peek(USED + 2, 2))
        got: list[tuple[int, int]] = []
        while self.used_index & 0xFFFF != index:
            got.append(struct.unpack("<II", self.peek(USED + 4 + 8 * (self.used_index % self.size), 8)))
            self.used_index += 1
        return got
