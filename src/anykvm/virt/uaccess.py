# SPDX-License-Identifier: GPL-2.0-only
"""Copying from and to user addresses, as the kernel does: a bad address is EFAULT, never a crash.

The bytes go through a memfd: ``pwrite`` from the address into it, ``preadv`` from it to the address. The host's
kernel checks the address on the way, its pages' protection too. This costs half of process_vm_readv, which has to
look itself up.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from typing import Final, TypeVar

from .mapping import map_shared

S = TypeVar("S", bound="ctypes.Structure | ctypes.Union")

_WINDOW: Final = 65536
_WINDOWS: Final = 16
_SMALL: Final = 512
_ADDRESS_MASK: Final = (1 << 64) - 1

_Bytes = ctypes.Array[ctypes.c_char]
_LARGE_TYPE: Final[type[_Bytes]] = ctypes.c_char * _WINDOW


def _bad_address(address: int) -> OSError:
    return OSError(errno.EFAULT, f"bad address {address & _ADDRESS_MASK:#x}")


class UserAccess:
    """Copies of any length. One instance serves every thread: each copy takes a window of its own."""

    def __init__(self) -> None:
        self._types: list[type[_Bytes] | None] = [None] * (_SMALL + 1)
        self._move: Callable[[int], int] = lambda fd: fd
        self._drop: Callable[[int], None] = lambda fd: None
        self._open()

    def _open(self) -> None:
        self._fd = self._move(os.memfd_create("anykvm-uaccess", os.MFD_CLOEXEC))
        os.ftruncate(self._fd, _WINDOW * _WINDOWS)
        self._map = memoryview(map_shared(self._fd, _WINDOW * _WINDOWS)).cast("B")
        # list.pop and list.append are atomic: the free windows need no lock.
        self._free = [n * _WINDOW for n in range(_WINDOWS)]

    def close(self) -> None:
        """Give the memfd back."""
        self._map.release()
        self._drop(self._fd)
        os.close(self._fd)

    def relocate(self, move: Callable[[int], int], drop: Callable[[int], None]) -> None:
        """Let ``move`` choose the descriptor's number, now and after a fork: it is given one, and gives another.

        ``drop`` is told before that is closed.
        """
        self._move = move
        self._drop = drop
        self._fd = move(self._fd)

    def reopen(self) -> None:
        """Start afresh in a forked child, which must not share its parent's windows."""
        self.close()
        self._open()

    def _window(self) -> int:
        while True:
            try:
                return self._free.pop()
            except IndexError:
                # Every window is in use by a copy in progress: those take microseconds.
                os.sched_yield()

    def _at(self, address: int, size: int) -> memoryview | _Bytes:
        address &= _ADDRESS_MASK
        if size <= _SMALL:
            kind = self._types[size]
            if kind is None:
                kind = self._types[size] = ctypes.c_char * size
            return kind.from_address(address)
        return memoryview(_LARGE_TYPE.from_address(address)).cast("B")[:size]

    def copy_from_user(self, address: int, size: int) -> bytes:
        """Read ``size`` bytes at a user address; EFAULT if they are not all readable."""
        if size <= _WINDOW:
            if size == 0:
                return b""
            window = self._window()
            try:
                if os.pwrite(self._fd, self._at(address, size), window) != size:
                    raise _bad_address(address)
                return bytes(self._map[window : window + size])
            finally:
                self._free.append(window)
        parts = []
        for offset in range(0, size, _WINDOW):
            parts.append(self.copy_from_user(address + offset, min(_WINDOW, size - offset)))
        return b"".join(parts)

    def copy_to_user(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Write bytes to a user address; EFAULT if they do not all fit, and then some may have been written."""
        size = len(data)
        if size <= _WINDOW:
            if size == 0:
                return
            window = self._window()
            try:
                self._map[window : window + size] = data
                if os.preadv(self._fd, [self._at(address, size)], window) != size:
                    raise _bad_address(address)
            finally:
                self._free.append(window)
            return
        view = memoryview(data).cast("B")
        for offset in range(0, size, _WINDOW):
            self.copy_to_user(address + offset, view[offset : offset + _WINDOW])

    def read_struct(self, address: int, kind: type[S]) -> S:
        """Read a ctypes structure; EFAULT."""
        return kind.from_buffer_copy(self.copy_from_user(address, ctypes.sizeof(kind)))  # type: ignore[return-value]

    def write_struct(self, address: int, value: ctypes.Structure | ctypes.Union) -> None:
        """Write a ctypes structure; EFAULT."""
        self.copy_to_user(address, bytes(value))


_shared: list[UserAccess] = []


def shared() -> UserAccess:
    """Give the one instance of the process, made when it is first needed; it stays."""
    if not _shared:
        access = UserAccess()
        os.register_at_fork(after_in_child=access.reopen)
        _shared.append(access)
    return _shared[0]
