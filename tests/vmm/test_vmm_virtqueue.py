# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vmm_fakes import FakeMemory
from vmm_rings import AVAIL, DESC, USED, Driver

from anykvm.vmm.virtqueue import (
    AVAIL_F_NO_INTERRUPT,
    DESC_F_INDIRECT,
    DESC_F_NEXT,
    DESC_F_WRITE,
    RingError,
    Virtqueue,
)


@pytest.fixture
def driver() -> Driver:
    return Driver()


def queue_of(driver: Driver) -> Virtqueue:
    queue = Virtqueue(driver.memory, driver.size)
    queue.desc, queue.avail, queue.used = DESC, AVAIL, USED
    queue.enable()
    return queue


def test_an_empty_queue_has_nothing(driver: Driver) -> None:
    assert queue_of(driver).pop() is None
    assert Virtqueue(driver.memory, 8).pop() is None


def test_a_chain_comes_with_its_buffers_and_goes_back(driver: Driver) -> None:
    queue = queue_of(driver)
    head = driver.offer([(b"abc", False), (b"defg", False), (bytes(5), True)])
    chain = queue.pop()
    assert chain is not None
    assert [bytes(view) for view in chain.readable] == [b"abc", b"defg"]
    assert (chain.readable_size, chain.writable_size) == (7, 5)
    chain.writable[0][:2] = b"ok"
    queue.push(chain, 2)
    assert driver.collect() == [(head, 2)]
    assert driver.buffer(head, 2)[:2] == b"ok"
    assert queue.pop() is None


def test_indices_wrap(driver: Driver) -> None:
    queue = queue_of(driver)
    driver.avail_index = queue._next_avail = 0xFFFE
    driver.used_index = queue._next_used = 0xFFFE
    driver.publish()
    for _ in range(6):
        head = driver.offer([(b"x", False)])
        chain = queue.pop()
        assert chain is not None
        queue.push(chain, 0)
        assert driver.collect() == [(head, 0)]


def test_the_driver_can_do_without_interrupts(driver: Driver) -> None:
    queue = queue_of(driver)
    assert queue.wants_interrupt
    driver.poke(AVAIL, struct.pack("<H", AVAIL_F_NO_INTERRUPT))
    assert not queue.wants_interrupt
    queue.disable()
    assert not queue.wants_interrupt


@pytest.mark.parametrize(
    ("descriptors", "words"),
    [
        ([(DESC, 1, DESC_F_NEXT, 0)], "longer than its queue"),
        ([(DESC, 1, DESC_F_NEXT, 1), (DESC, 1, DESC_F_NEXT, 0)], "longer than its queue"),
        ([(DESC, 1, DESC_F_NEXT, 99)], "descriptor 99"),
        ([(0, 16, 0, 0)], "not in memory"),
        ([(DESC, 0xFFFFFFFF, 0, 0)], "not in memory"),
        ([(0xFFFFFFFFFFFFFFFF, 0xFFFFFFFF, 0, 0)], "not in memory"),
        ([(DESC, 16, DESC_F_INDIRECT, 0)], "indirect"),
        ([(DESC, 1, DESC_F_WRITE | DESC_F_NEXT, 1), (DESC, 1, 0, 0)], "readable buffer after"),
    ],
)
def test_broken_chains_are_refused(driver: Driver, descriptors: list[tuple[int, int, int, int]], words: str) -> None:
    queue = queue_of(driver)
    for index, descriptor in enumerate(descriptors):
        driver.descriptor(index, *descriptor)
    driver.make_available(0)
    with pytest.raises(RingError, match=words):
        queue.pop()


def test_more_requests_than_entries_are_refused(driver: Driver) -> None:
    queue = queue_of(driver)
    driver.avail_index = driver.size + 1
    driver.publish()
    with pytest.raises(RingError, match="requests in a queue"):
        queue.pop()


def test_a_head_outside_the_table_is_refused(driver: Driver) -> None:
    queue = queue_of(driver)
    driver.make_available(driver.size)
    with pytest.raises(RingError, match="in a table of"):
        queue.pop()


@pytest.mark.parametrize(
    ("size", "desc", "avail", "used"),
    [
        (0, DESC, AVAIL, USED),
        (3, DESC, AVAIL, USED),
        (16, DESC, AVAIL, USED),
        (8, DESC + 8, AVAIL, USED),
        (8, DESC, AVAIL + 1, USED),
        (8, DESC, AVAIL, USED + 2),
        (8, 0, AVAIL, USED),
        (8, DESC, 0x4000_FFFC, USED),
        (8, DESC, AVAIL, 1 << 63),
    ],
)
def test_rings_that_cannot_be_are_refused(driver: Driver, size: int, desc: int, avail: int, used: int) -> None:
    queue = Virtqueue(driver.memory, 8)
    queue.size, queue.desc, queue.avail, queue.used = size, desc, avail, used
    with pytest.raises(RingError):
        queue.enable()
    assert not queue.ready


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_random_rings_give_chains_or_a_ring_error_and_always_end(data: st.DataObject) -> None:
    driver = Driver(FakeMemory())
    queue = queue_of(driver)
    address = st.one_of(st.integers(0x4000_0000, 0x4001_0000), st.integers(0, (1 << 64) - 1))
    length = st.one_of(st.integers(0, 300), st.integers(0, (1 << 32) - 1))
    for index in range(driver.size):
        flags, following = data.draw(st.integers(0, 7)), data.draw(st.integers(0, driver.size + 1))
        driver.descriptor(index, data.draw(address), data.draw(length), flags, following)
    driver.poke(AVAIL + 4, data.draw(st.binary(min_size=16, max_size=16)))
    driver.avail_index = data.draw(st.integers(0, 12))
    driver.publish()
    served = 0
    try:
        while (chain := queue.pop()) is not None:
            assert len(chain.readable) + len(chain.writable) <= driver.size
            queue.push(chain, chain.writable_size & 0xFFFFFFFF)
            served += 1
    except RingError as error:
        assert str(error)
    # A buffer may be the ring itself; then what is there is the device's own writing, and still bounded.
    assert served <= 0x10000


def test_all_views_are_let_go_when_a_queue_is_disabled(driver: Driver) -> None:
    queue = queue_of(driver)
    driver.offer([(b"abc", False)])
    chain = queue.pop()
    assert chain is not None
    queue.push(chain, 0)
    queue.disable()
    driver.memory.data.append(0)  # BufferError while a view is held
