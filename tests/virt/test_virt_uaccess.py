# SPDX-License-Identifier: GPL-2.0-only
"""User memory: right bytes, EFAULT for wrong addresses, from many threads."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import threading
from collections.abc import Iterator

import pytest

from anykvm.uapi.structs import KvmIrqLevel
from anykvm.virt.uaccess import UserAccess

PAGE = 4096


@pytest.fixture
def user() -> Iterator[UserAccess]:
    user = UserAccess()
    yield user
    user.close()


def address_of(buffer: object) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 1, 2, 7, 8, 511, 512, 513, 4096, 65535, 65536, 65537, 300001])
def test_any_size(user: UserAccess, size: int) -> None:
    data = os.urandom(size)
    source = bytearray(data + b"beyond")
    assert user.copy_from_user(address_of(source), size) == data
    target = bytearray(size + 3)
    user.copy_to_user(address_of(target), data)
    assert target == data + b"\0\0\0"
    user.copy_to_user(address_of(target), memoryview(bytes(size)))
    assert target == bytes(size + 3)


@pytest.mark.parametrize("address", [0, 1, 4096, 1 << 47, 0xFFFF8000_00000000, (1 << 64) - 1, (1 << 64) - 8, -4096])
@pytest.mark.parametrize("size", [1, 8, 600, 70000])
def test_bad_addresses(user: UserAccess, address: int, size: int) -> None:
    with pytest.raises(OSError) as failure:
        user.copy_from_user(address, size)
    assert failure.value.errno == errno.EFAULT
    with pytest.raises(OSError) as failure:
        user.copy_to_user(address, bytes(size))
    assert failure.value.errno == errno.EFAULT


def test_a_range_that_runs_into_a_hole(user: UserAccess) -> None:
    fd = os.memfd_create("short")
    os.ftruncate(fd, 2 * PAGE)
    ram = mmap.mmap(fd, 2 * PAGE)
    address = address_of(ram)
    os.ftruncate(fd, PAGE)
    assert user.copy_from_user(address + PAGE - 8, 8) == bytes(8)
    for size in (16, 600):
        with pytest.raises(OSError) as failure:
            user.copy_from_user(address + PAGE - 8, size)
        assert failure.value.errno == errno.EFAULT
        with pytest.raises(OSError) as failure:
            user.copy_to_user(address + PAGE - 8, bytes(size))
        assert failure.value.errno == errno.EFAULT
    os.close(fd)


def test_page_protection_counts(user: UserAccess) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    ram = mmap.mmap(-1, PAGE)
    address = address_of(ram)
    assert libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), mmap.PROT_READ) == 0
    assert user.copy_from_user(address, 8) == bytes(8)
    with pytest.raises(OSError) as failure:
        user.copy_to_user(address, b"x")
    assert failure.value.errno == errno.EFAULT
    libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), mmap.PROT_READ | mmap.PROT_WRITE)


def test_structures(user: UserAccess) -> None:
    level = KvmIrqLevel(level=1)
    level.irq = 33
    copy = user.read_struct(ctypes.addressof(level), KvmIrqLevel)
    assert (copy.irq, copy.level) == (33, 1)
    copy.level = 0
    assert level.level == 1
    user.write_struct(ctypes.addressof(level), copy)
    assert level.level == 0


def test_threads(user: UserAccess) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        source = bytearray([number] * 5000)
        target = bytearray(5000)
        for size in (8, 5000, 300, 4096) * 50:
            if user.copy_from_user(address_of(source), size) != bytes([number] * size):
                wrong.append(number)
            user.copy_to_user(address_of(target), source[:size])
            if target[:size] != source[:size]:
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
