# SPDX-License-Identifier: GPL-2.0-only
"""The dirty log, with the test as the guest that sets bits."""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import pytest
from fake_arch import Machine

from anykvm.uapi import caps
from anykvm.uapi import constants as c
from anykvm.uapi import requests as rq
from anykvm.uapi.structs import KvmClearDirtyLog, KvmDirtyLog, KvmEnableCap, KvmUserspaceMemoryRegion

PAGE = 4096
PAGES = 200
RAM = mmap.mmap(-1, PAGES * PAGE)
HVA = ctypes.addressof(ctypes.c_char.from_buffer(RAM))


class Log:
    """One VM with one logged slot, number 2."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.vm = machine.vm()
        self.buffer = (ctypes.c_uint64 * 5)()
        self.buffer[4] = 0x5A5A

    def manual(self, value: int) -> None:
        cap = KvmEnableCap(cap=caps.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
        cap.args[0] = value
        self.machine.ioctl(self.vm, rq.KVM_ENABLE_CAP, cap)

    def slot(self, flags: int = c.KVM_MEM_LOG_DIRTY_PAGES) -> Any:
        region = KvmUserspaceMemoryRegion(2, flags, 0x100000, PAGES * PAGE, HVA)
        self.machine.ioctl(self.vm, rq.KVM_SET_USER_MEMORY_REGION, region)
        return self.machine.vm_of(self.vm).memory.by_id(2)

    def get(self, slot: int = 2) -> str:
        log = KvmDirtyLog(slot=slot)
        log.dirty_bitmap = ctypes.addressof(self.buffer)
        return self.machine.errno(self.vm, rq.KVM_GET_DIRTY_LOG, log)

    def pages(self) -> list[int]:
        return [page for page in range(256) if self.buffer[page // 64] >> page % 64 & 1]

    def clear(self, first: int, count: int, pages: list[int], slot: int = 2) -> str:
        mask = (ctypes.c_uint64 * 5)()
        for page in pages:
            mask[page // 64] |= 1 << page % 64
        log = KvmClearDirtyLog(slot=slot, num_pages=count, first_page=first)
        log.dirty_bitmap = ctypes.addressof(mask)
        return self.machine.errno(self.vm, rq.KVM_CLEAR_DIRTY_LOG, log)


@pytest.fixture
def log(machine: Machine) -> Log:
    return Log(machine)


def test_get_copies_and_clears(log: Log) -> None:
    slot = log.slot()
    for page in (0, 63, 64, 199):
        slot.dirty.mark(page)
    assert log.get() == "0"
    assert log.pages() == [0, 63, 64, 199]
    assert log.buffer[4] == 0x5A5A
    assert log.get() == "0"
    assert log.pages() == []


def test_the_engine_finds_the_bitmap_by_address(log: Log) -> None:
    slot = log.slot()
    ctypes.c_uint64.from_address(slot.dirty.address + 8).value = 1 << 5
    assert log.get() == "0"
    assert log.pages() == [69]


def test_refusals(log: Log) -> None:
    assert log.get() == "ENOENT"
    assert log.get(32767) == "EINVAL"
    assert log.get(1 << 16 | 2) == "EINVAL"
    log.slot(0)
    assert log.get() == "ENOENT"
    assert log.machine.errno(log.vm, rq.KVM_GET_DIRTY_LOG, 4) == "EFAULT"


def test_a_bad_bitmap_is_efault(log: Log) -> None:
    log.slot().dirty.mark(3)
    request = KvmDirtyLog(slot=2)
    request.dirty_bitmap = 64
    assert log.machine.errno(log.vm, rq.KVM_GET_DIRTY_LOG, request) == "EFAULT"


def test_manual_protect_leaves_the_bits_to_clear(log: Log) -> None:
    log.manual(1)
    slot = log.slot()
    for page in (1, 70, 199):
        slot.dirty.mark(page)
    for _ in range(2):
        assert log.get() == "0"
        assert log.pages() == [1, 70, 199]
    assert log.clear(0, 64, [1, 2, 3]) == "0"
    assert log.get() == "0"
    assert log.pages() == [70, 199]
    assert log.clear(128, 72, [71]) == "0"
    assert log.get() == "0"
    assert log.pages() == [70]


def test_clear_touches_only_the_bits_asked_for(log: Log) -> None:
    slot = log.slot()
    slot.dirty.mark(64)
    slot.dirty.mark(65)
    assert log.clear(64, 64, [0]) == "0"
    assert log.get() == "0"
    assert log.pages() == [65]


def test_clear_does_not_go_beyond_its_pages(log: Log) -> None:
    """Bits of the last word that belong to no page are not looked at."""
    log.slot().dirty.mark(199)
    assert log.clear(192, 8, [0, 8, 60]) == "0"
    assert log.get() == "0"
    assert log.pages() == [199]


@pytest.mark.parametrize(
    ("first", "count", "result"),
    [
        (1, 64, "EINVAL"),
        (0, 63, "EINVAL"),
        (0, 201, "EINVAL"),
        (192, 8, "0"),
        (192, 9, "EINVAL"),
        (192, 7, "EINVAL"),
        (256, 0, "EINVAL"),
        (0, 0, "0"),
        (0, 200, "0"),
        ((1 << 64) - 64, 64, "EINVAL"),
        (0, 0xFFFFFFFF, "EINVAL"),
    ],
)
def test_clear_ranges(log: Log, first: int, count: int, result: str) -> None:
    log.slot()
    assert log.clear(first, count, []) == result


def test_clear_refusals(log: Log) -> None:
    assert log.clear(0, 64, []) == "ENOENT"
    assert log.clear(1, 64, []) == "EINVAL"
    assert log.clear(0, 64, [], slot=1 << 20) == "EINVAL"
    log.slot()
    request = KvmClearDirtyLog(slot=2, num_pages=64)
    request.dirty_bitmap = 8
    assert log.machine.errno(log.vm, rq.KVM_CLEAR_DIRTY_LOG, request) == "EFAULT"


def test_initially_set(log: Log) -> None:
    log.manual(3)
    log.slot()
    assert log.get() == "0"
    assert log.pages() == list(range(PAGES))


def test_turning_the_log_off_and_on_starts_clean(log: Log) -> None:
    log.slot().dirty.mark(5)
    log.slot(0)
    log.slot()
    assert log.get() == "0"
    assert log.pages() == []
