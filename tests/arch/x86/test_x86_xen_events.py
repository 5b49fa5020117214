# SPDX-License-Identifier: GPL-2.0-only
"""Xen's event channels, upcalls, timers and polling, by guests that use them."""

from __future__ import annotations

import errno
import os
import struct
import time
from collections.abc import Iterator

import pytest
from x86_fake import errno_of
from x86_guest_board import Board
from x86_hyperv_rig import APIC_ON, DONE, finish
from x86_xen_rig import (
    BLOCK,
    INFO,
    INTERCEPT,
    MASK,
    PENDING,
    PRIORITY,
    VECTOR,
    WINDOW,
    bits,
    call,
    get_own,
    guest,
    only_here,
    route,
    set_hvm,
    set_own,
)

from anykvm.api import GuestMemory, Vcpu
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

EVTCHN = X.KVM_XEN_ATTR_TYPE_EVTCHN
TIMER = X.KVM_XEN_VCPU_ATTR_TYPE_TIMER
PORT = 66
MS = 1_000_000


@pytest.fixture
def board(board: Board) -> Board:
    only_here(board).vm.create_irqchip()
    return board


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    yield fd
    os.close(fd)


def send(board: Board, port: int, vcpu_id: int = 0, priority: int = PRIORITY) -> int:
    """KVM_XEN_HVM_EVTCHN_SEND: 0 or its errno."""
    try:
        board.vm.ioctl(X.KVM_XEN_HVM_EVTCHN_SEND, X.KvmIrqRoutingXenEvtchn(port, vcpu_id, priority))
    except OSError as error:
        return error.errno or -1
    return 0


def ready(vcpu: Vcpu) -> None:
    """Run to the guest's first word, from where it waits."""
    assert "0xe9" in repr(vcpu.run())


def test_an_event_is_an_upcall(board: Board) -> None:
    vcpu = guest(board, f"out %al, $0xe9; sti; hlt; cli; {DONE}")
    ready(vcpu)
    assert send(board, PORT) == 0
    assert bits(board, PENDING + 8) == 1 << PORT - 64
    assert (board.memory.read(INFO, 1), bits(board, INFO + 8)) == (b"\1", 1 << 1)
    assert finish(board, vcpu) == [0x77]
    # The upcall came without the local APIC, and is over since the guest lowered it.
    assert not any(bytes(vcpu.get_lapic())[0x100:0x280])


def test_an_event_wakes_a_vcpu_that_sleeps(board: Board, eventfd: int) -> None:
    vcpu = guest(board, f"out %al, $0xe9; sti; hlt; cli; {DONE}")
    route(board, 40, 0, PORT)
    board.vm.irqfd(eventfd, 40)
    ready(vcpu)
    os.eventfd_write(eventfd, 1)
    assert finish(board, vcpu) == [0x77]
    assert bits(board, PENDING + 8) == 1 << PORT - 64


def test_a_vector_of_the_vcpus_own_goes_through_its_local_apic(board: Board) -> None:
    vcpu = guest(board, f"{APIC_ON} out %al, $0xe9; {WINDOW} {DONE}", vector=0)
    set_own(vcpu, X.KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, vector=VECTOR)
    ready(vcpu)
    assert send(board, PORT) == send(board, PORT + 1) == 0
    assert finish(board, vcpu) == [0x77]
    assert any(bytes(vcpu.get_lapic())[0x100:0x180])


def test_an_upcall_that_a_disabled_local_apic_missed(board: Board) -> None:
    vcpu = guest(board, f"out %al, $0xe9; {WINDOW} out %al, $0xe9; {APIC_ON} {WINDOW} {DONE}", vector=0)
    set_own(vcpu, X.KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, vector=VECTOR)
    ready(vcpu)
    assert send(board, PORT) == 0
    ready(vcpu)
    assert finish(board, vcpu) == [0x77]


def test_userspace_may_ask_for_the_upcall_by_hand(board: Board) -> None:
    vcpu = guest(board, f"out %al, $0xe9; {WINDOW} {DONE}")
    ready(vcpu)
    board.memory.write(INFO, b"\1")
    assert finish(board, vcpu) == [0x77]


def test_masked_and_raised_already(board: Board) -> None:
    vcpu = guest(board, f"out %al, $0xe9; {WINDOW} {DONE}")
    board.memory.write(MASK + 8, struct.pack("<Q", 1 << PORT - 64))
    board.memory.write(PENDING, struct.pack("<Q", 1 << 5))
    ready(vcpu)
    assert send(board, PORT) == send(board, 5) == 0
    assert finish(board, vcpu) == []
    assert bits(board, PENDING + 8) == 1 << PORT - 64


def test_a_guest_of_32_bits_has_words_of_32(board: Board) -> None:
    guest(board, DONE)
    set_hvm(board, X.KVM_XEN_ATTR_TYPE_LONG_MODE, long_mode=0)
    assert send(board, 1024) == errno.EINVAL
    assert send(board, PORT) == 0
    assert bits(board, PENDING + 8) == 1 << PORT - 64
    assert bits(board, INFO) >> 32 == 1 << 2


def test_what_cannot_be_told_waits(board: Board) -> None:
    page, at = GuestMemory(4096), 0x200000
    board.vm.set_user_memory_region(1, at, page)
    vcpu = guest(board, f"{APIC_ON} out %al, $0xe9; {WINDOW} {DONE}", vector=0)
    set_own(vcpu, X.KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, gpa=at)
    set_own(vcpu, X.KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, vector=VECTOR)
    ready(vcpu)
    board.vm.set_user_memory_region(1, at, None)
    assert send(board, PORT) == 0
    assert page.read(0, 16) == bytes(16)
    board.vm.set_user_memory_region(1, at, page)
    assert finish(board, vcpu) == [0x77]
    assert struct.unpack("<QQ", page.read(0, 16)) == (1, 2)
    board.vm.set_user_memory_region(1, at, None)
    page.close()


def test_events_that_cannot_be_sent(board: Board) -> None:
    vcpu = guest(board, DONE)
    for port, vcpu_id, priority in ((0, 0, PRIORITY), (4096, 0, PRIORITY), (5, 3, PRIORITY), (5, 0, 0)):
        assert send(board, port, vcpu_id, priority) == errno.EINVAL
    assert errno_of(route, board, 40, 0, PORT, 1) == errno.EINVAL
    set_own(vcpu, X.KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, gpa=X.XEN_INVALID)
    assert send(board, PORT) == errno.EINVAL


# What the guest sends.


def port_attr(sent: int, to: int, *, vcpu: int = 0, kind: int = 2, flags: int = 0, priority: int = PRIORITY) -> dict:  # type: ignore[type-arg]
    return {
        "evtchn__send_port": sent,
        "evtchn__type": kind,
        "evtchn__flags": flags,
        "evtchn__deliver__port__port": to,
        "evtchn__deliver__port__vcpu": vcpu,
        "evtchn__deliver__port__priority": priority,
    }


def send_call(port_at: int) -> str:
    return call(X.XEN_HC_EVENT_CHANNEL_OP, X.EVTCHNOP_SEND, port_at)


def test_the_guest_sends_to_itself_and_to_eventfds(board: Board, eventfd: int) -> None:
    board.memory.write(BLOCK, struct.pack("<II", 127, 128))
    vcpu = guest(board, f"{send_call(BLOCK)} {WINDOW} {send_call(BLOCK + 4)} {send_call(1 << 40)} {DONE}")
    set_hvm(board, EVTCHN, **port_attr(127, PORT, vcpu=3))
    set_hvm(board, EVTCHN, **port_attr(127, PORT, flags=X.KVM_XEN_EVTCHN_UPDATE))
    out = {"evtchn__deliver__eventfd__fd": eventfd}
    set_hvm(board, EVTCHN, evtchn__send_port=128, evtchn__type=2, **out)
    assert finish(board, vcpu) == [0, 0x77, 0, (-errno.EFAULT) & 0xFFFFFFFF]
    assert os.eventfd_read(eventfd) == 1


def test_what_is_not_known_here_is_userspaces(board: Board) -> None:
    board.memory.write(BLOCK, struct.pack("<I", 127))
    vcpu = guest(board, send_call(BLOCK) + DONE)
    assert "34" in repr(vcpu.run())


def test_ports_that_cannot_be(board: Board, eventfd: int) -> None:
    guest(board, DONE)

    def refused(**values: int) -> int:
        return errno_of(set_hvm, board, EVTCHN, **values)

    set_hvm(board, EVTCHN, **port_attr(5, 5, kind=X.EVTCHNSTAT_IPI))
    assert refused(**port_attr(5, 6)) == errno.EEXIST
    for attr in (
        port_attr(0, 5),
        port_attr(4096, 5),
        port_attr(6, 4096),
        port_attr(6, 5, kind=X.EVTCHNSTAT_IPI),
        port_attr(6, 5, kind=1),
        port_attr(6, 5, priority=0),
        port_attr(6, 5, flags=8),
        port_attr(5, 6, kind=X.EVTCHNSTAT_IPI, flags=X.KVM_XEN_EVTCHN_UPDATE),
    ):
        assert refused(**attr) == errno.EINVAL
    assert refused(**port_attr(7, 5, flags=X.KVM_XEN_EVTCHN_UPDATE)) == errno.ENOENT
    assert refused(**port_attr(7, 5, flags=X.KVM_XEN_EVTCHN_DEASSIGN)) == errno.ENOENT
    out = {"evtchn__type": 2, "evtchn__deliver__eventfd__fd": 1000}
    assert refused(evtchn__send_port=9, **out) == errno.EBADF
    set_hvm(board, EVTCHN, **port_attr(5, 0, flags=X.KVM_XEN_EVTCHN_DEASSIGN))
    set_hvm(board, EVTCHN, **port_attr(5, 6))
    set_hvm(board, EVTCHN, evtchn__send_port=9, evtchn__type=2, evtchn__deliver__eventfd__fd=eventfd)
    set_hvm(board, EVTCHN, **port_attr(0, 0, flags=X.KVM_XEN_EVTCHN_RESET))
    set_hvm(board, EVTCHN, **port_attr(9, 6))


# Timers.


def with_timer(board: Board, source: str, expires: int = 0) -> Vcpu:
    vcpu = guest(board, source)
    set_own(vcpu, TIMER, timer__port=13, timer__priority=PRIORITY, timer__expires_ns=expires)
    return vcpu


def now(board: Board) -> int:
    clock = X.KvmClockData()
    board.vm.ioctl(X.KVM_GET_CLOCK, clock)
    return int(clock.clock)


def test_a_timer_that_userspace_sets(board: Board) -> None:
    vcpu = with_timer(board, f"out %al, $0xe9; sti; hlt; cli; {DONE}")
    ready(vcpu)
    at = now(board) + 20 * MS
    set_own(vcpu, TIMER, timer__port=13, timer__priority=PRIORITY, timer__expires_ns=at)
    timer = get_own(vcpu, TIMER).timer
    assert (timer.port, timer.priority, timer.expires_ns) == (13, PRIORITY, at)
    assert finish(board, vcpu) == [0x77]
    assert now(board) >= at and bits(board, PENDING) == 1 << 13
    assert get_own(vcpu, TIMER).timer.expires_ns == 0


def test_a_timer_that_the_guest_sets(board: Board) -> None:
    past, stop = call(X.XEN_HC_SET_TIMER_OP, 1), call(X.XEN_HC_SET_TIMER_OP, 0)
    vcpu = with_timer(board, f"{call(X.XEN_HC_SET_TIMER_OP, (1 << 63) | 1)} {stop} {past} {WINDOW} {DONE}")
    assert finish(board, vcpu) == [0, 0, 0, 0x77]


def test_a_single_shot(board: Board) -> None:
    board.memory.write(BLOCK, struct.pack("<QII", 1, X.VCPU_SSHOTTMR_FUTURE, 0))
    board.memory.write(BLOCK + 16, struct.pack("<QII", 1, 0, 0))
    start, stop = X.VCPUOP_SET_SINGLESHOT_TIMER, X.VCPUOP_STOP_SINGLESHOT_TIMER
    code = call(X.XEN_HC_VCPU_OP, start, 5, BLOCK) + call(X.XEN_HC_VCPU_OP, start, 4, BLOCK)
    code += call(X.XEN_HC_VCPU_OP, start, 5, BLOCK + 16) + WINDOW + call(X.XEN_HC_VCPU_OP, stop, 5)
    vcpu = with_timer(board, code + DONE)
    set_own(vcpu, X.KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, vcpu_id=5)
    assert [value - (1 << 32) if value >> 31 else value for value in finish(board, vcpu)] == [
        *(-errno.ETIME, -errno.EINVAL),
        *(0, 0x77, 0),
    ]


def test_without_a_timer_its_calls_are_userspaces(board: Board) -> None:
    vcpu = guest(board, call(X.XEN_HC_SET_TIMER_OP, 1) + DONE)
    assert "34" in repr(vcpu.run())


# Polling.


def poll(at: int = BLOCK) -> str:
    return call(X.XEN_HC_SCHED_OP, X.SCHEDOP_POLL, at)


def ports(board: Board, *wanted: int, timeout_ms: int = 0) -> None:
    board.memory.write(BLOCK, struct.pack("<QIIQ", BLOCK + 64, len(wanted), 0, timeout_ms * MS))
    board.memory.write(BLOCK + 64, struct.pack(f"<{len(wanted)}I", *wanted))


def test_polling_for_what_is_there(board: Board) -> None:
    ports(board, 3, PORT)
    board.memory.write(PENDING + 8, struct.pack("<Q", 1 << PORT - 64))
    assert finish(board, guest(board, poll() + DONE)) == [0]


def test_polling_until_a_timeout(board: Board) -> None:
    ports(board, PORT, timeout_ms=20)
    vcpu = guest(board, poll() + DONE)
    started = time.monotonic()
    assert finish(board, vcpu) == [0]
    assert 0.019 <= time.monotonic() - started < 5


@pytest.mark.parametrize("wanted", [(13,), (3, 13)])
def test_a_masked_event_ends_polling(board: Board, wanted: tuple[int, ...]) -> None:
    ports(board, *wanted)
    vcpu = with_timer(board, f"out %al, $0xe9; {poll()} {DONE}")
    board.memory.write(MASK, struct.pack("<Q", 1 << 13))
    ready(vcpu)
    set_own(vcpu, TIMER, timer__port=13, timer__priority=PRIORITY, timer__expires_ns=now(board) + 20 * MS)
    assert finish(board, vcpu) == [0]
    assert bits(board, PENDING) == 1 << 13


def test_an_upcall_ends_polling(board: Board) -> None:
    ports(board, 3)
    vcpu = with_timer(board, f"out %al, $0xe9; sti; {poll()} cli; {DONE}")
    ready(vcpu)
    set_own(vcpu, TIMER, timer__port=13, timer__priority=PRIORITY, timer__expires_ns=now(board) + 20 * MS)
    assert sorted(finish(board, vcpu)) == [0, 0x77]


def test_polls_that_cannot_be(board: Board) -> None:
    ports(board, 4096)
    board.memory.write(BLOCK + 24, struct.pack("<QIIQ", BLOCK, 129, 0, 0))
    vcpu = guest(board, poll() + poll(BLOCK + 24) + poll(1 << 40) + DONE)
    assert [value - (1 << 32) for value in finish(board, vcpu)] == [-errno.EINVAL, -errno.EINVAL, -errno.EFAULT]


def test_where_events_are_userspaces_too_polling_only_yields(board: Board) -> None:
    ports(board, PORT)
    assert finish(board, guest(board, poll() + DONE, flags=INTERCEPT)) == [0]
    assert board.vm.check_extension(C.KVM_CAP_XEN_HVM) & INTERCEPT
