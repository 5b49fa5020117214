# SPDX-License-Identifier: GPL-2.0-only
"""The MP tables, read back as a kernel reads them."""

from __future__ import annotations

import struct

import pytest

from anykvm.vmm import mptable, x86_map
from anykvm.vmm.errors import VmmError

SIZES = {0: 20, 1: 8, 2: 8, 3: 8, 4: 8}


@pytest.mark.parametrize("vcpus", [1, 2, 254])
def test_the_tables_add_up(vcpus: int) -> None:
    base = x86_map.MP_TABLES.base
    data = mptable.build(base, vcpus, 8, signature=0x600F10, features=0x201)
    assert len(data) <= x86_map.MP_TABLES.size
    assert data[:4] == b"_MP_"
    assert sum(data[:16]) & 0xFF == 0
    assert struct.unpack_from("<IBB", data, 4) == (base + 16, 1, 4)
    table = data[16:]
    size, revision, _, count, lapic = struct.unpack_from("<4xHBB28xHI", table)[:1] + struct.unpack_from(
        "<6xBB26xHI", table
    )
    assert (size, revision, lapic) == (len(table), 4, 0xFEE0_0000)
    assert sum(table) & 0xFF == 0
    at, found = 44, []
    for _ in range(count):
        found.append(table[at : at + SIZES[table[at]]])
        at += SIZES[table[at]]
    assert at == len(table)
    cpus = [entry for entry in found if entry[0] == 0]
    assert [(cpu[1], cpu[3]) for cpu in cpus] == [(index, 3 if index == 0 else 1) for index in range(vcpus)]
    assert struct.unpack_from("<II", cpus[0], 4) == (0x600F10, 0x201)
    (ioapic,) = [entry for entry in found if entry[0] == 2]
    assert struct.unpack("<BBBBI", ioapic) == (2, vcpus, 0x11, 1, 0xFEC0_0000)
    pins = [(entry[5], entry[7], entry[6]) for entry in found if entry[0] == 3]
    assert pins == [(irq, irq, vcpus) for irq in range(24) if irq != 2]


def test_more_cpus_than_the_tables_have() -> None:
    mptable.check(254)
    with pytest.raises(VmmError, match="254 CPUs at most, not 255: use --firmware acpi, or --smp 254"):
        mptable.check(255)


def test_devices_are_told_on_the_command_line() -> None:
    assert mptable.devices(2) == "virtio_mmio.device=4096@0xfeb00000:16 virtio_mmio.device=4096@0xfeb01000:17"
