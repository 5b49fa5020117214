# SPDX-License-Identifier: GPL-2.0-only
"""Coalesced MMIO and port I/O, by guests, on both backends."""

from __future__ import annotations

import pytest
from x86_guest_board import DEVICE, Board

from anykvm.api import Halt, MmioRead, MmioWrite, PioOut, coalesced_writes
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

ENTRIES = 170
PORT = 0x510


def ring(board: Board, vcpu: int = 0) -> memoryview:
    page = board.vm.check_extension(C.KVM_CAP_COALESCED_MMIO)
    assert page == X.KVM_COALESCED_MMIO_PAGE_OFFSET
    return board.vcpus[vcpu].mapped_page(page)


def test_writes_wait_in_order_until_a_read_exits(board: Board) -> None:
    assert board.vm.check_extension(C.KVM_CAP_COALESCED_PIO) == 1
    vcpu = board.long(
        f"mov ${DEVICE}, %ebx; movl $0x11223344, (%rbx); movb $0x55, 7(%rbx); mov ${PORT}, %dx; mov $0x66, %al;"
        "out %al, %dx; movw $0x7788, 8(%rbx); mov (%rbx), %eax; hlt"
    )
    board.vm.register_coalesced_mmio(DEVICE, 0x10)
    board.vm.register_coalesced_mmio(PORT, 1, pio=True)
    exit = vcpu.run()
    assert isinstance(exit, MmioRead)
    assert list(coalesced_writes(ring(board))) == [
        MmioWrite(DEVICE, b"\x44\x33\x22\x11"),
        MmioWrite(DEVICE + 7, b"\x55"),
        PioOut(PORT, 1, b"\x66"),
        MmioWrite(DEVICE + 8, b"\x88\x77"),
    ]
    exit.reply(1)
    assert isinstance(vcpu.run(), Halt)
    assert list(coalesced_writes(ring(board))) == []


def test_a_full_ring_lets_the_write_exit(board: Board) -> None:
    vcpu = board.long(f"mov ${DEVICE}, %ebx; mov $1, %ecx; 1: mov %ecx, (%rbx); inc %ecx; cmp $400, %ecx; jne 1b; hlt")
    board.vm.register_coalesced_mmio(DEVICE, 4)
    seen = []
    while True:
        exit = vcpu.run()
        queued = [int.from_bytes(write.data, "little") for write in coalesced_writes(ring(board))]
        seen += queued
        if isinstance(exit, Halt):
            break
        assert isinstance(exit, MmioWrite)
        assert len(queued) == ENTRIES - 1
        seen.append(exit.value)
    assert seen == list(range(1, 400))


def test_only_what_is_all_inside_is_queued(board: Board) -> None:
    vcpu = board.long(f"mov ${DEVICE}, %ebx; movl $1, 4(%rbx); movw $2, 4(%rbx); movb $3, 6(%rbx); hlt")
    board.vm.register_coalesced_mmio(DEVICE + 4, 2)
    assert [vcpu.run(), vcpu.run()] == [MmioWrite(DEVICE + 4, b"\1\0\0\0"), MmioWrite(DEVICE + 6, b"\3")]
    assert list(coalesced_writes(ring(board))) == [MmioWrite(DEVICE + 4, b"\2\0")]


def test_a_zone_is_taken_back(board: Board) -> None:
    vcpu = board.long(f"mov ${DEVICE}, %ebx; movb $1, (%rbx); movb $2, (%rbx); hlt")
    board.vm.register_coalesced_mmio(DEVICE, 0x100)
    board.vm.unregister_coalesced_mmio(DEVICE, 0x101)
    board.vm.unregister_coalesced_mmio(DEVICE, 1, pio=True)
    board.vm.unregister_coalesced_mmio(DEVICE + 0x10, 4)
    assert vcpu.run() == MmioWrite(DEVICE, b"\1")
    board.vm.register_coalesced_mmio(DEVICE, 1)
    assert isinstance(vcpu.run(), Halt)
    assert list(coalesced_writes(ring(board))) == [MmioWrite(DEVICE, b"\2")]


def test_every_vcpu_shows_the_one_ring(board: Board) -> None:
    first = board.long(f"mov ${DEVICE}, %ebx; movb $1, (%rbx); hlt")
    board.vcpu()
    board.vm.register_coalesced_mmio(DEVICE, 1)
    board.vcpu()
    assert isinstance(first.run(), Halt)
    assert [write.data for write in coalesced_writes(ring(board, 2))] == [b"\1"]
    assert list(coalesced_writes(ring(board, 1))) == []
    assert list(coalesced_writes(ring(board, 0))) == []


def test_what_is_refused(board: Board) -> None:
    zone = C.KvmCoalescedMmioZone(addr=DEVICE, size=4, pio=2)
    for request in (C.KVM_REGISTER_COALESCED_MMIO, C.KVM_UNREGISTER_COALESCED_MMIO):
        with pytest.raises(OSError, match="Errno 22"):
            board.vm.ioctl(request, zone)
        with pytest.raises(OSError, match="Errno 14"):
            board.vm.ioctl(request, 8)


def test_the_bus_has_room_for_so_many_zones(board: Board) -> None:
    made = 0
    with pytest.raises(OSError, match="Errno 28"):
        for made in range(1100):
            board.vm.register_coalesced_mmio(DEVICE + made * 16, 16)
    assert 980 < made <= 1000
