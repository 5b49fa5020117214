# SPDX-License-Identifier: GPL-2.0-only
"""Guest memory."""

from __future__ import annotations

import ctypes
import errno
import os

import pytest

from anykvm.api import GuestMemory, dirty_pages

PAGE = os.sysconf("SC_PAGE_SIZE")


def test_read_write_and_address() -> None:
    with GuestMemory(4 * PAGE) as memory:
        assert len(memory) == memory.size == 4 * PAGE
        assert memory.address % PAGE == 0
        memory.write(PAGE - 2, b"abcd")
        assert memory.read(PAGE - 2, 4) == b"abcd"
        assert ctypes.string_at(memory.address + PAGE - 2, 4) == b"abcd"
        memory.view[0] = 7
        assert memory.read(0, 1) == b"\x07"
    assert memory.closed


@pytest.mark.parametrize("size", [0, -PAGE, 1, PAGE + 1])
def test_sizes_there_are_not(size: int) -> None:
    with pytest.raises(ValueError, match="guest memory comes in pages"):
        GuestMemory(size)


@pytest.mark.parametrize("size", [1 << 62, 1 << 80])
def test_too_much_memory(size: int) -> None:
    with pytest.raises(OSError) as caught:
        GuestMemory(size)
    assert caught.value.errno == errno.ENOMEM


def test_much_memory_costs_nothing_until_used() -> None:
    with GuestMemory(1 << 36) as memory:
        memory.write((1 << 36) - 1, b"x")
        assert memory.read((1 << 36) - 1, 1) == b"x"


@pytest.mark.parametrize(("offset", "length"), [(-1, 1), (PAGE, 1), (0, PAGE + 1), (1, PAGE), (0, -1)])
def test_outside(offset: int, length: int) -> None:
    with GuestMemory(PAGE) as memory:
        with pytest.raises(ValueError, match="are not in a memory of"):
            memory.read(offset, length)
        if length >= 0:
            with pytest.raises(ValueError, match="are not in a memory of"):
                memory.write(offset, bytes(length))


def test_use_after_close() -> None:
    memory = GuestMemory(PAGE)
    memory.close()
    memory.close()
    for use in (lambda: memory.address, lambda: memory.read(0, 1), lambda: memory.write(0, b"x")):
        with pytest.raises(OSError) as caught:
            use()
        assert caught.value.errno == errno.EBADF


def test_a_held_slice_keeps_it() -> None:
    memory = GuestMemory(PAGE)
    piece = memory.view[0:10]
    with pytest.raises(OSError) as caught:
        memory.close()
    assert caught.value.errno == errno.EBUSY
    assert memory.read(0, 1) == b"\0"
    piece.release()
    memory.close()
    assert memory.closed


def test_dirty_pages() -> None:
    assert list(dirty_pages(b"")) == []
    assert list(dirty_pages(bytes(64))) == []
    assert list(dirty_pages(b"\x01" + bytes(7) + b"\x02")) == [0, 65]
