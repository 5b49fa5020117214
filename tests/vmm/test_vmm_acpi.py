# SPDX-License-Identifier: GPL-2.0-only
"""The tables, read back as an operating system does: from the RSDP on, checksums and lengths and all."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anykvm.vmm import acpi, aml, x86_map, x86_power

BASE = x86_map.ACPI_TABLES.base


class Tables:
    def __init__(self, vcpus: int = 2, virtio_slots: int = 3) -> None:
        self.rsdp, self.image = acpi.build(BASE, vcpus, virtio_slots)
        rsdp = self.at(self.rsdp, 36)
        assert rsdp[:8] == b"RSD PTR "
        assert sum(rsdp[:20]) & 0xFF == sum(rsdp) & 0xFF == 0
        assert rsdp[15] == 2
        (xsdt,) = struct.unpack_from("<Q", rsdp, 24)
        entries = self.table(xsdt, b"XSDT")[36:]
        found = struct.unpack(f"<{len(entries) // 8}Q", entries)
        self.addresses = {self.at(address, 4): address for address in found}
        self.fadt = self.table(self.addresses[b"FACP"], b"FACP")
        self.madt = self.table(self.addresses[b"APIC"], b"APIC")
        self.dsdt = self.table(struct.unpack_from("<Q", self.fadt, 140)[0], b"DSDT")

    def at(self, address: int, size: int) -> bytes:
        assert address >= BASE and address + size <= BASE + len(self.image)
        return self.image[address - BASE : address - BASE + size]

    def table(self, address: int, signature: bytes) -> bytes:
        (size,) = struct.unpack("<I", self.at(address + 4, 4))
        table = self.at(address, size)
        assert table[:4] == signature
        assert sum(table) & 0xFF == 0, signature
        return table


def test_the_rsdp_is_where_it_is_looked_for() -> None:
    assert acpi.build(BASE, 1, 0)[0] % 16 == 0
    assert 0xE0000 <= acpi.build(BASE, 1, 0)[0] < 0x100000


@pytest.mark.parametrize("vcpus", [1, 2, 255])
def test_the_madt_names_every_cpu_once(vcpus: int) -> None:
    madt = Tables(vcpus).madt
    assert struct.unpack_from("<II", madt, 36) == (x86_map.LAPIC.base, 1)
    entries = []
    offset = 44
    while offset < len(madt):
        kind, length = madt[offset], madt[offset + 1]
        entries.append((kind, madt[offset + 2 : offset + length]))
        offset += length
    assert offset == len(madt)
    lapics = [struct.unpack("<BBI", data) for kind, data in entries if kind == 0]
    assert lapics == [(index, index, 1) for index in range(vcpus)]
    (ioapic,) = [struct.unpack("<BBII", data) for kind, data in entries if kind == 1]
    assert ioapic[2:] == (x86_map.IOAPIC.base, 0)
    (override,) = [struct.unpack("<BBIH", data) for kind, data in entries if kind == 2]
    assert override == (0, 9, 9, 0xD)
    assert [data for kind, data in entries if kind == 4] == [b"\xff\0\0\x01"]


def test_all_tables_fit_their_place() -> None:
    assert len(acpi.build(BASE, x86_map.MAX_VCPUS, x86_map.VIRTIO_SLOTS)[1]) <= x86_map.ACPI_TABLES.size


def test_the_fadt_says_how_to_power_off_and_reset() -> None:
    tables = Tables()
    fadt = tables.fadt
    assert len(fadt) == 276
    assert fadt[8] == 6
    facs, dsdt = struct.unpack_from("<II", fadt, 36)
    assert struct.unpack_from("<QQ", fadt, 132) == (0, dsdt)
    assert facs % 64 == 0
    assert tables.at(facs, 8) == b"FACS" + struct.pack("<I", 64)
    assert struct.unpack_from("<H", fadt, 46) == (x86_map.SCI_IRQ,)
    assert struct.unpack_from("<I", fadt, 48) == (0,)  # no SMI command: in ACPI mode
    assert struct.unpack_from("<I", fadt, 56) == (x86_map.PM_PORT,)
    assert struct.unpack_from("<I", fadt, 64) == (x86_map.PM_PORT + 4,)
    assert fadt[88:90] == bytes((4, 2))
    flags = struct.unpack_from("<I", fadt, 112)[0]
    assert flags & 1 << 10
    assert not flags & 1 << 20  # no reduced hardware
    assert struct.unpack_from("<BBBBQB", fadt, 116) == (1, 8, 0, 1, x86_map.RESET_PORT, x86_power.RESET_VALUE)
    assert struct.unpack_from("<BBBBQ", fadt, 148) == (1, 32, 0, 3, x86_map.PM_PORT)
    assert struct.unpack_from("<BBBBQ", fadt, 172) == (1, 16, 0, 2, x86_map.PM_PORT + 4)
    assert struct.unpack_from("<I", fadt, 76) == (x86_map.PM_PORT + 8,)
    assert fadt[91] == 4
    assert struct.unpack_from("<BBBBQ", fadt, 208) == (1, 32, 0, 3, x86_map.PM_PORT + 8)
    assert flags & 1 << 8
    arch = struct.unpack_from("<H", fadt, 109)[0]
    assert not arch & 2  # no 8042 to look for
    assert not arch & 1 << 5  # a clock


# A reader of the AML that is written here: names, packages, scopes, devices, buffers.


@dataclass
class Device:
    names: dict[str, Any] = field(default_factory=dict)
    children: dict[str, Device] = field(default_factory=dict)


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> bytes:
        taken = self.data[self.at : self.at + count]
        assert len(taken) == count
        self.at += count
        return taken

    def size(self) -> int:
        """Where the object ends."""
        start = self.at
        first = self.take(1)[0]
        more = first >> 6
        if not more:
            return start + first
        assert first & 0x30 == 0
        return start + (first & 0xF | int.from_bytes(self.take(more), "little") << 4)

    def path(self) -> str:
        text = ""
        if self.data[self.at : self.at + 1] == b"\\":
            text = self.take(1).decode()
        return text + self.take(4).decode()

    def value(self) -> Any:
        kind = self.take(1)[0]
        if kind in (0, 1):
            return kind
        if kind in (0x0A, 0x0B, 0x0C, 0x0E):
            return int.from_bytes(self.take({0x0A: 1, 0x0B: 2, 0x0C: 4, 0x0E: 8}[kind]), "little")
        if kind == 0x0D:
            end = self.data.index(b"\0", self.at)
            return self.take(end - self.at + 1)[:-1].decode()
        if kind == 0x11:
            end = self.size()
            length = self.value()
            assert self.at + length == end
            return self.take(length)
        assert kind == 0x12
        end = self.size()
        items = [self.value() for _ in range(self.take(1)[0])]
        assert self.at == end
        return items

    def body(self, end: int) -> Device:
        found = Device()
        while self.at < end:
            kind = self.take(1)[0]
            if kind == 0x08:
                path = self.path()
                found.names[path] = self.value()
                continue
            if kind == 0x5B:
                assert self.take(1) == b"\x82"
            else:
                assert kind == 0x10
            inner = self.size()
            path = self.path()
            found.children[path] = self.body(inner)
        assert self.at == end
        return found


def read(data: bytes) -> Device:
    return Reader(data).body(len(data))


def test_the_dsdt_declares_power_off_and_the_devices() -> None:
    root = read(Tables(virtio_slots=3).dsdt[36:])
    assert root.names == {"\\_S5_": [x86_power.SLEEP_TYPE_S5, 0, 0, 0]}
    devices = root.children["\\_SB_"].children
    assert list(devices) == ["COM1", "RTC_", "VR00", "VR01", "VR02"]
    serial = devices["COM1"].names
    assert serial["_HID"] == 0x0105D041  # EISAID ("PNP0501"), as iasl has it
    assert serial["_CRS"] == bytes.fromhex("4701f803f8030108 221000 7900")
    assert devices["RTC_"].names["_HID"] == 0x000BD041
    for index in range(3):
        names = devices[f"VR{index:02X}"].names
        assert (names["_HID"], names["_UID"]) == ("LNRO0005", index)
        crs = names["_CRS"]
        assert struct.unpack_from("<BHBII", crs) == (0x86, 9, 1, 0xFEB00000 + 0x1000 * index, 0x1000)
        assert struct.unpack_from("<BHBBI", crs, 12) == (0x89, 6, 1, 1, 16 + index)
        assert crs[-2:] == b"\x79\0"


@given(st.integers(0, (1 << 64) - 1))
def test_numbers(value: int) -> None:
    assert Reader(aml.integer(value)).value() == value


@given(st.integers(0, 100_000))
def test_lengths(size: int) -> None:
    body = bytes((0x08,)) + b"NAME" + b"\x0d" + b"x" * size + b"\0"
    assert read(aml.scope("\\_SB", body)).children["\\_SB_"].names["NAME"] == "x" * size


def test_what_is_no_aml_is_refused() -> None:
    with pytest.raises(ValueError, match="64 bits"):
        aml.integer(1 << 64)
    with pytest.raises(ValueError, match="no name"):
        aml.name("TOOLONG", aml.integer(0))
    with pytest.raises(ValueError, match="no name"):
        aml.name("low", aml.integer(0))
    with pytest.raises(ValueError, match="no plug and play id"):
        aml.eisa_id("PNP05")
    with pytest.raises(ValueError, match="too many"):
        aml.scope("\\_SB", bytes(1 << 28))
