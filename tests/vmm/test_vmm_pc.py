# SPDX-License-Identifier: GPL-2.0-only
"""A PC's small devices, and the bus of ports they are on."""

from __future__ import annotations

import calendar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anykvm.vmm import cmos, x86_power
from anykvm.vmm.cmos import Cmos
from anykvm.vmm.outcome import Kind, Outcome
from anykvm.vmm.pio import PortBus


class Recorder:
    def __init__(self) -> None:
        self.seen: list[tuple[object, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.seen.append(("read", offset, size))
        return 0x10 + offset

    def write(self, offset: int, size: int, value: int) -> None:
        self.seen.append(("write", offset, size, value))


# Ports.


def test_accesses_reach_the_device_by_offset() -> None:
    ports, device = PortBus(), Recorder()
    ports.attach(0x3F8, 8, device)
    assert ports.read(0x3FD, 1) == 0x15
    ports.write(0x3F8, 1, 65)
    assert device.seen == [("read", 5, 1), ("write", 0, 1, 65)]
    assert ports.unclaimed == 0


def test_where_nobody_is_all_bits_are_ones() -> None:
    ports = PortBus()
    assert [ports.read(0x80, size) for size in (1, 2, 4)] == [0xFF, 0xFFFF, 0xFFFFFFFF]
    ports.write(0x80, 1, 0)
    assert ports.unclaimed == 1 + 2 + 4 + 1


def test_wide_accesses_are_split_for_narrow_devices() -> None:
    ports, narrow, wide = PortBus(), Recorder(), Recorder()
    ports.attach(0x100, 2, narrow)
    ports.attach(0x102, 2, wide, width=2)
    assert ports.read(0x100, 2) == 0x1110
    assert ports.read(0x102, 2) == 0x10
    assert ports.read(0x100, 4) == 0x11101110
    ports.write(0x101, 2, 0xBBAA)
    assert narrow.seen[-1] == ("write", 1, 1, 0xAA)
    assert wide.seen[0] == ("read", 0, 2)
    assert wide.seen[-1] == ("write", 0, 1, 0xBB)


def test_the_last_port_is_followed_by_the_first() -> None:
    assert PortBus().read(0xFFFF, 4) == 0xFFFFFFFF


def test_strings_are_item_by_item() -> None:
    ports, device = PortBus(), Recorder()
    ports.attach(0x40, 1, device)
    ports.write_items(0x40, 1, b"abc")
    assert [seen[3] for seen in device.seen] == list(b"abc")
    assert ports.read_items(0x40, 1, 3) == b"\x10\x10\x10"
    assert ports.read_items(0x40, 2, 2) == b"\x10\xff\x10\xff"


@pytest.mark.parametrize(("base", "count"), [(0x3FF, 1), (0x3F0, 9), (0x400, 0), (0xFFFF, 2), (-1, 1)])
def test_devices_do_not_overlap_or_leave_the_port_space(base: int, count: int) -> None:
    ports = PortBus()
    ports.attach(0x3F8, 8, Recorder())
    with pytest.raises(ValueError, match=r"overlap|port space"):
        ports.attach(base, count, Recorder())


# Clock.


def read_clock(device: Cmos, index: int) -> int:
    device.write(0, 1, index)
    return device.read(1, 1)


@given(st.integers(0, 4_000_000_000))
def test_the_clock_is_the_hosts_in_utc(now: int) -> None:
    device = Cmos(lambda: float(now))

    def bcd(index: int) -> int:
        value = read_clock(device, index)
        return 10 * (value >> 4) + (value & 0xF)

    year = 100 * bcd(cmos.CENTURY) + bcd(9)
    fields = (year, bcd(8), bcd(7), bcd(4), bcd(2), bcd(0))
    assert calendar.timegm(fields) == now
    assert bcd(6) == (calendar.weekday(*fields[:3]) + 1) % 7 + 1
    assert read_clock(device, 0x0A) & 0x80 == 0
    assert read_clock(device, 0x0B) == 0x02
    assert read_clock(device, 0x0D) == 0x80


def test_bytes_are_kept_but_the_clock_cannot_be_set() -> None:
    device = Cmos(lambda: 0.0)
    for index, value in ((0x0F, 0x0A), (0x7F, 0x55), (9, 0x99), (0x0B, 0x80)):
        device.write(0, 1, index | 0x80)  # bit 7 masks NMIs
        device.write(1, 1, value)
    assert read_clock(device, 0x0F) == 0x0A
    assert read_clock(device, 0x7F) == 0x55
    assert read_clock(device, 9) == 0x70
    assert read_clock(device, 0x0B) == 0x02
    assert device.read(0, 1) == 0xFF


# Power.


class Ended(list[Outcome]):
    @property
    def kinds(self) -> list[Kind]:
        return [outcome.kind for outcome in self]


def test_power_off_as_acpi_does_it() -> None:
    ended = Ended()
    power = x86_power.PowerManagement(ended.append)
    assert power.read(4, 2) & 1  # in ACPI mode
    power.write(0, 2, 0x8000)  # clear the wake status
    sleep = 5 << 10
    power.write(4, 2, sleep | 1)
    assert ended == []
    power.write(4, 2, sleep | 1 | 1 << 13)
    assert ended.kinds == [Kind.POWER_OFF]


def test_other_sleep_states_do_nothing() -> None:
    ended = Ended()
    power = x86_power.PowerManagement(ended.append)
    for kind in (0, 1, 2, 3, 4, 6, 7):
        power.write(4, 2, kind << 10 | 1 << 13)
    assert ended == []
    assert not power.read(4, 2) & 1 << 13


def test_power_off_byte_by_byte() -> None:
    ended = Ended()
    power = x86_power.PowerManagement(ended.append)
    power.write(5, 1, (5 << 10 | 1 << 13) >> 8)
    assert ended.kinds == [Kind.POWER_OFF]


def test_enabled_events_can_be_read_back_and_none_happens() -> None:
    power = x86_power.PowerManagement(Ended().append)
    power.write(2, 2, 0x0120)
    assert power.read(2, 2) == 0x0120
    assert (power.read(2, 1), power.read(3, 1)) == (0x20, 0x01)
    assert power.read(0, 2) == 0


@given(st.integers(0, 1 << 62))
def test_the_timer_counts_at_its_rate_and_wraps(now: int) -> None:
    timer = x86_power.PowerTimer(lambda: now)
    value = timer.read(0, 4)
    assert value == now * 3_579_545 // 10**9 % (1 << 32)
    timer.write(0, 4, 0)
    assert b"".join(timer.read(offset, 1).to_bytes(1, "little") for offset in range(4)) == value.to_bytes(4, "little")


def test_resets() -> None:
    ended = Ended()
    control = x86_power.ResetControl(ended.append)
    control.write(0, 1, 0x02)
    assert ended == []
    control.write(0, 1, 0x06)
    keyboard = x86_power.KeyboardController(ended.append)
    keyboard.write(0, 1, 0xAA)
    assert ended.kinds == [Kind.RESET]
    keyboard.write(0, 1, 0xFE)
    assert ended.kinds == [Kind.RESET, Kind.RESET]
    assert keyboard.read(0, 1) & 2 == 0  # Linux waits until it is ready
