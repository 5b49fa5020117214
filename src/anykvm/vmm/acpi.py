# SPDX-License-Identifier: GPL-2.0-only
"""The ACPI tables of an x86 machine: which CPUs, interrupt controllers and devices there are, how to power off.

Source: ACPI specification 6.4, section 5.2; "LNRO0005" is Linux's id of a virtio-mmio transport
(``drivers/virtio/virtio_mmio.c``). A machine with ACPI's fixed hardware, in ACPI mode from the start; there is no PCI.
"""

from __future__ import annotations

import struct
from typing import Final

from . import aml, cmos, x86_map, x86_power

_OEM: Final = b"ANYKVM"
_HEADER: Final = struct.Struct("<4sIBB6s8sI4sI")
_IO_SPACE: Final = 1

_WBINVD: Final = 1 << 0
_C1_SUPPORTED: Final = 1 << 2
_NO_POWER_BUTTON: Final = 1 << 4
_NO_SLEEP_BUTTON: Final = 1 << 5
_NO_RTC_WAKE: Final = 1 << 6
_TIMER_32_BITS: Final = 1 << 8
_RESET_REGISTER: Final = 1 << 10

# IAPC_BOOT_ARCH: there are ISA devices; there is no 8042, VGA, MSI, ASPM.
_LEGACY_DEVICES: Final = 1 << 0
_NO_VGA: Final = 1 << 2
_NO_MSI: Final = 1 << 3
_NO_ASPM: Final = 1 << 4

_PC_COMPATIBLE: Final = 1  # there are 8259s as well
_ENABLED: Final = 1
_LEVEL_ACTIVE_HIGH: Final = 0xD
_ALL_CPUS: Final = 0xFF
_NO_C2: Final = 101  # microseconds: more than 100 is "not supported"
_NO_C3: Final = 1001


def build(base: int, vcpus: int, virtio_slots: int) -> tuple[int, bytes]:
    """All tables, to be placed at guest-physical `base` (a multiple of 64); returns the RSDP's address and the bytes.

    The APIC ids are 0 to `vcpus` - 1.
    """
    image = bytearray(64)  # the RSDP is first, where a search finds it

    def place(table: bytes) -> int:
        image.extend(bytes(-len(image) % 64))
        address = base + len(image)
        image.extend(table)
        return address

    facs = place(_facs())
    dsdt = place(_dsdt(virtio_slots))
    entries = [place(_fadt(facs, dsdt)), place(_madt(vcpus))]
    xsdt = place(_table(b"XSDT", 1, struct.pack(f"<{len(entries)}Q", *entries)))
    image[:36] = _rsdp(xsdt)
    return base, bytes(image)


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    size = _HEADER.size + len(body)
    table = bytearray(_HEADER.pack(signature, size, revision, 0, _OEM, _OEM.ljust(8), 1, b"AKVM", 1) + body)
    table[9] = _checksum(table)
    return bytes(table)


def _rsdp(xsdt: int) -> bytes:
    table = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, _OEM, 2, 0, 36, xsdt, 0))
    table[8] = _checksum(table[:20])
    table[32] = _checksum(table)
    return bytes(table)


def _facs() -> bytes:
    return struct.pack("<4sIIIIIQB31x", b"FACS", 64, 0, 0, 0, 0, 0, 2)


def _register(port: int, bits: int) -> bytes:
    """A generic address structure; all zero if there is no such register."""
    access = {8: 1, 16: 2, 32: 3}.get(bits, 0)
    return struct.pack("<BBBBQ", _IO_SPACE if bits else 0, bits, 0, access, port)


def _fadt(facs: int, dsdt: int) -> bytes:
    event = x86_map.PM_PORT
    control = event + x86_power.PM1_CONTROL
    timer = event + x86_power.PM_TIMER
    flags = _WBINVD | _C1_SUPPORTED | _NO_POWER_BUTTON | _NO_SLEEP_BUTTON | _NO_RTC_WAKE | _RESET_REGISTER
    flags |= _TIMER_32_BITS
    none = _register(0, 0)
    body = struct.pack("<IIBBHI4x", facs, dsdt, 0, 0, x86_map.SCI_IRQ, 0)
    # Event, control, PM2 control, timer, GPE0, GPE1 as ports, then their lengths in bytes.
    body += struct.pack("<8I", event, 0, control, 0, 0, timer, 0, 0) + bytes((4, 2, 0, 4, 0, 0, 0, 0))
    body += struct.pack("<HHHHBB", _NO_C2, _NO_C3, 0, 0, 0, 0)
    body += struct.pack("<BBBHBI", 0, 0, cmos.CENTURY, _LEGACY_DEVICES | _NO_VGA | _NO_MSI | _NO_ASPM, 0, flags)
    body += _register(x86_map.RESET_PORT, 8) + struct.pack("<BHB", x86_power.RESET_VALUE, 0, 0)
    # A 64-bit address counts where it is not zero; the FACS has its 32-bit one alone, as there may be but one.
    body += struct.pack("<QQ", 0, dsdt)
    body += _register(event, 32) + none + _register(control, 16) + none
    body += none + _register(timer, 32) + none * 2  # PM2 control, timer, GPE0, GPE1
    body += none * 2 + struct.pack("<8s", _OEM)  # sleep control and status (of reduced hardware), hypervisor
    return _table(b"FACP", 6, body)


def _madt(vcpus: int) -> bytes:
    body = struct.pack("<II", x86_map.LAPIC.base, _PC_COMPATIBLE)
    for index in range(vcpus):
        body += struct.pack("<BBBBI", 0, 8, index, index, _ENABLED)
    body += struct.pack("<BBBBII", 1, 12, 0, 0, x86_map.IOAPIC.base, 0)
    # ISA interrupts are edge-triggered and reach the IOAPIC's input of the same number; but for ACPI's own.
    body += struct.pack("<BBBBIH", 2, 10, 0, x86_map.SCI_IRQ, x86_map.SCI_IRQ, _LEVEL_ACTIVE_HIGH)
    body += struct.pack("<BBBHB", 4, 6, _ALL_CPUS, 0, 1)  # NMIs come in at LINT1
    return _table(b"APIC", 5, body)


def _dsdt(virtio_slots: int) -> bytes:
    sleep = aml.package(aml.integer(x86_power.SLEEP_TYPE_S5), *[aml.integer(0)] * 3)
    serial = aml.device(
        "COM1",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", aml.integer(1)),
        aml.name("_CRS", aml.resources(aml.io(x86_map.UART_PORT, 8), aml.irq(x86_map.UART_IRQ))),
    )
    clock = aml.device(
        "RTC",
        aml.name("_HID", aml.eisa_id("PNP0B00")),
        aml.name("_CRS", aml.resources(aml.io(x86_map.RTC_PORT, 2), aml.irq(x86_map.RTC_IRQ))),
    )
    virtio = [_virtio(index) for index in range(virtio_slots)]
    return _table(b"DSDT", 2, aml.name("\\_S5", sleep) + aml.scope("\\_SB", serial, clock, *virtio))


def _virtio(index: int) -> aml.Term:
    region = x86_map.virtio_slot(index)
    return aml.device(
        f"VR{index:02X}",
        aml.name("_HID", aml.string("LNRO0005")),
        aml.name("_UID", aml.integer(index)),
        aml.name("_CCA", aml.integer(1)),  # DMA is coherent
        aml.name("_CRS", aml.resources(aml.memory(region.base, region.size), aml.interrupt(x86_map.virtio_gsi(index)))),
    )
