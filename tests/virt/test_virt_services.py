# SPDX-License-Identifier: GPL-2.0-only
"""Services: the ledger, timers, memory, eventfds."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import threading
import time
from collections.abc import Iterator

import pytest

from anykvm.virt.services import Services

MS = 1_000_000


@pytest.fixture
def services() -> Iterator[Services]:
    services = Services()
    yield services
    assert services.ledger() == {}
    services.close()


def test_the_ledger(services: Services) -> None:
    charges = [services.charge("vcpu", 100) for _ in range(2)]
    lock = services.mutex("vm lock")
    fd = services.memfd("kvm-vm", 0)
    timer = services.timer("guest timer", lambda: None)
    epoll = services.epoll("irqfd")
    assert services.ledger() == {
        ("memory", "vcpu"): 2,
        ("lock", "vm lock"): 1,
        ("fd", "kvm-vm"): 1,
        ("timer", "guest timer"): 1,
        ("fd", "irqfd"): 1,
    }
    for charge in charges:
        services.free(charge)
    services.free_mutex(lock)
    services.close_fd(fd)
    services.free_timer(timer)
    services.close_epoll(epoll)
    with pytest.raises(KeyError):
        services.free(charges[0])


@pytest.mark.parametrize("size", [0, 1, 8, 4095, 4096, 100000])
def test_memory_is_zeroed_and_has_an_address(services: Services, size: int) -> None:
    memory = services.alloc("test", size)
    assert bytes(memory.view) == bytes(size)
    if size:
        ctypes.c_uint8.from_address(memory.address + size - 1).value = 7
        assert memory.view[size - 1] == 7
    services.free(memory)


def test_no_memory(services: Services) -> None:
    for size in (1 << 62, 1 << 70):
        with pytest.raises(OSError) as failure:
            services.alloc("too much", size)
        assert failure.value.errno == errno.ENOMEM


def test_user_ranges(services: Services) -> None:
    memory = services.alloc("test", 1 << 20)
    assert services.user_range_mapped(memory.address, 1 << 20)
    assert not services.user_range_mapped(0, 4096)
    assert not services.user_range_mapped(memory.address, 1 << 45)
    services.free(memory)


def test_a_thread_leaves_the_ledger(services: Services) -> None:
    go = threading.Event()
    thread = services.thread("worker", lambda: go.wait(5) and None)
    assert services.ledger() == {("thread", "worker"): 1}
    go.set()
    thread.join()


def test_a_timer_fires_once_and_in_time(services: Services) -> None:
    fired: list[int] = []
    timer = services.timer("test", lambda: fired.append(services.now()))
    late = []
    for _ in range(20):
        deadline = services.now() + 2 * MS
        timer.arm(deadline)
        end = time.monotonic() + 5
        while not fired and time.monotonic() < end:
            time.sleep(0.0005)
        late.append(fired.pop() - deadline)
    assert all(value >= 0 for value in late)
    assert sorted(late)[10] < 5 * MS
    time.sleep(0.01)
    assert fired == []
    services.free_timer(timer)


def test_a_deadline_in_the_past_fires_at_once(services: Services) -> None:
    fired = threading.Event()
    timer = services.timer("test", fired.set)
    timer.arm(0)
    assert fired.wait(5)
    services.free_timer(timer)


def test_cancel_and_rearm(services: Services) -> None:
    fired: list[int] = []
    timer = services.timer("test", lambda: fired.append(1))
    timer.arm(services.now() + 5 * MS)
    timer.cancel()
    time.sleep(0.02)
    assert fired == []
    timer.arm(services.now() + 3 * MS)
    timer.arm(services.now() + 30 * MS)
    time.sleep(0.015)
    assert fired == []
    end = time.monotonic() + 5
    while not fired and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(0.02)
    assert fired == [1]
    services.free_timer(timer)


def test_an_earlier_deadline_wakes_the_thread(services: Services) -> None:
    fired = threading.Event()
    far = services.timer("far", lambda: None)
    near = services.timer("near", fired.set)
    far.arm(services.now() + 3600 * 1000 * MS)
    time.sleep(0.01)
    near.arm(services.now() + MS)
    assert fired.wait(2)
    far.arm(services.now() + MS)
    services.free_timer(near)
    services.free_timer(far)


def test_many_timers_fire_in_order(services: Services) -> None:
    fired: list[int] = []
    start = services.now() + 20 * MS
    timers = [services.timer("test", lambda n=n: fired.append(n)) for n in range(100)]
    for n in random.Random(1).sample(range(100), 100):
        timers[n].arm(start + n * MS // 4)
    end = time.monotonic() + 10
    while len(fired) < 100 and time.monotonic() < end:
        time.sleep(0.005)
    assert fired == list(range(100))
    for timer in timers:
        services.free_timer(timer)


def test_a_timer_can_arm_itself(services: Services) -> None:
    done = threading.Event()
    count = 0

    def tick() -> None:
        nonlocal count
        count += 1
        if count == 10:
            done.set()
        else:
            timer.arm(services.now() + MS // 2)

    timer = services.timer("tick", tick)
    timer.arm(services.now())
    assert done.wait(5)
    assert count == 10
    services.free_timer(timer)


def test_eventfds(services: Services) -> None:
    fd = os.eventfd(0)
    event = services.eventfd_get(fd, "test")
    assert event.fd != fd
    assert event.id == services.eventfd_id(fd)
    assert event.drain() == 0
    event.signal()
    event.signal()
    assert event.drain() == 2
    os.eventfd_write(fd, 4)
    assert event.drain() == 4
    services.eventfd_put(event)
    os.close(fd)
    with pytest.raises(OSError) as failure:
        services.eventfd_get(fd, "test")
    assert failure.value.errno == errno.EBADF


def test_a_full_eventfd_does_not_block(services: Services) -> None:
    event = services.eventfd("test")
    os.eventfd_write(event.fd, (1 << 64) - 2)
    event.signal()
    assert event.drain() == (1 << 64) - 2
    services.eventfd_put(event)
