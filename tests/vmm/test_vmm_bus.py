# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import pytest

from anykvm.vmm.bus import Bus
from anykvm.vmm.memory import Region


class Recorder:
    def __init__(self) -> None:
        self.seen: list[tuple[object, ...]] = []

    def read(self, offset: int, size: int) -> int:
        self.seen.append(("read", offset, size))
        return 0x1234

    def write(self, offset: int, size: int, value: int) -> None:
        self.seen.append(("write", offset, size, value))


def test_accesses_reach_the_device_by_offset() -> None:
    bus, device = Bus(), Recorder()
    bus.attach(Region(0x9000, 0x2000), device)
    assert bus.read(0x9000, 4) == 0x1234
    bus.write(0xAFFF, 1, 7)
    assert device.seen == [("read", 0, 4), ("write", 0x1FFF, 1, 7)]
    assert bus.unclaimed == 0


def test_where_no_device_is_reads_are_zero_and_counted() -> None:
    bus = Bus()
    bus.attach(Region(0x9000, 0x1000), Recorder())
    assert bus.read(0xA000, 8) == 0
    bus.write(0x8FFF, 4, 1)
    assert bus.unclaimed == 2


def test_devices_do_not_overlap() -> None:
    bus = Bus()
    bus.attach(Region(0x9000, 0x2000), Recorder())
    with pytest.raises(ValueError, match="overlaps"):
        bus.attach(Region(0xA000, 0x1000), Recorder())
    for region in (Region(0x800, 0x1000), Region(0x1000, 0x10), Region(0x1000, 0)):
        with pytest.raises(ValueError, match="whole pages"):
            bus.attach(region, Recorder())
