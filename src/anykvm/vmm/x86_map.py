# SPDX-License-Identifier: GPL-2.0-only
"""Where things are in an x86 machine: memory, ports, interrupts.

Low memory is laid out as on every PC. RAM ends at 3 GiB and goes on at 4 GiB; between them are the devices.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from .memory import GIB, KIB, MIB, Region

# Below 1 MiB, for the boot protocol; the kernel takes all of it over.
GDT: Final = 0x500
BOOT_STACK: Final = 0x8FF0
BOOT_PARAMS: Final = 0x7000
PAGE_TABLES: Final = 0x9000
COMMAND_LINE: Final = 0x2_0000
SETUP_DATA: Final = 0x3_0000
LOW_RAM_END: Final = 0x9_FC00
ACPI_TABLES: Final = Region(0xE_0000, 0x2_0000)  # where the RSDP is looked for, and read-only memory on a PC
MP_TABLES: Final = Region(0xF_0000, 0x1_0000)  # the half of it in which their pointer is looked for
HIGH_RAM: Final = MIB

RAM_HOLE: Final = Region(3 * GIB, GIB)
VIRTIO: Final = Region(0xFEB0_0000, 0x8000)
IOAPIC: Final = Region(0xFEC0_0000, 0x1000)
LAPIC: Final = Region(0xFEE0_0000, 0x1000)
IDENTITY_MAP: Final = 0xFFFB_C000  # KVM's own page and task state segment, for CPUs without real mode in guests
TSS: Final = 0xFFFB_D000

UART_PORT: Final = 0x3F8
UART_IRQ: Final = 4
RTC_PORT: Final = 0x70
RTC_IRQ: Final = 8
KEYBOARD_PORT: Final = 0x64
RESET_PORT: Final = 0xCF9
PM_PORT: Final = 0x600
SCI_IRQ: Final = 9

IOAPIC_PINS: Final = 24
VIRTIO_SLOT_SIZE: Final = 0x1000
VIRTIO_FIRST_GSI: Final = 16  # the first that is no ISA interrupt
VIRTIO_SLOTS: Final = VIRTIO.size // VIRTIO_SLOT_SIZE
"""One for each of the IOAPIC's inputs from 16 on."""

MAX_VCPUS: Final = 255
"""APIC ids have 8 bits, and 255 is everyone."""


def virtio_slot(index: int) -> Region:
    """The registers of the virtio transport number `index`."""
    return Region(VIRTIO.base + index * VIRTIO_SLOT_SIZE, VIRTIO_SLOT_SIZE)


def virtio_gsi(index: int) -> int:
    """The interrupt of the virtio transport number `index`."""
    return VIRTIO_FIRST_GSI + index


class Part(NamedTuple):
    """A part of RAM: where the guest sees it, where it is in the memory given to it, how large it is (bytes)."""

    gpa: int
    offset: int
    size: int


def ram_parts(size: int) -> list[Part]:
    """RAM of `size` bytes, around the hole."""
    low = min(size, RAM_HOLE.base)
    parts = [Part(0, 0, low)]
    if size > low:
        parts.append(Part(RAM_HOLE.end, low, size - low))
    return parts


E820_RAM: Final = 1
E820_RESERVED: Final = 2


def e820(size: int) -> list[tuple[int, int, int]]:
    """What the kernel is told of memory: (start, bytes, type)."""
    low, *above = ram_parts(size)
    return [
        (0, LOW_RAM_END, E820_RAM),
        (LOW_RAM_END, 640 * KIB - LOW_RAM_END, E820_RESERVED),
        (ACPI_TABLES.base, ACPI_TABLES.size, E820_RESERVED),
        (HIGH_RAM, low.size - HIGH_RAM, E820_RAM),
        *((part.gpa, part.size, E820_RAM) for part in above),
    ]
