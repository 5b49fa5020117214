# SPDX-License-Identifier: GPL-2.0-only
"""Where things are in a guest's physical memory, as data; and how much of it a machine may have.

The arm64 map keeps the addresses of QEMU's "virt" machine (``hw/arm/virt.c``) for what early boot code may have built
in (RAM, UART, GIC distributor). Redistributors have more room here, so that one region holds those of all vCPUs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .errors import VmmError

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
PAGE_SIZE: Final = 4096


@dataclass(frozen=True)
class Region:
    """A range of guest-physical addresses, in bytes."""

    base: int
    size: int

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.base + self.size


@dataclass(frozen=True)
class Interrupt:
    """A shared peripheral interrupt of the GIC: its SPI number, from 0 (interrupt id 32)."""

    spi: int


GIC_DISTRIBUTOR: Final = Region(0x0800_0000, 0x1_0000)
GIC_V2_CPU_INTERFACE: Final = Region(0x0801_0000, 0x2000)
GIC_V3_REDISTRIBUTORS: Final = Region(0x1000_0000, 0x3000_0000)
GIC_V3_REDISTRIBUTOR_SIZE: Final = 0x2_0000
UART: Final = Region(0x0900_0000, 0x1000)
UART_IRQ: Final = Interrupt(1)
VIRTIO: Final = Region(0x0A00_0000, 0x2_0000)
VIRTIO_SLOT_SIZE: Final = 0x1000
VIRTIO_SLOTS: Final = VIRTIO.size // VIRTIO_SLOT_SIZE
VIRTIO_FIRST_IRQ: Final = Interrupt(16)
RAM_BASE: Final = 0x4000_0000

# Interrupt lines of the GIC: 32 private ones, 32 for the devices above, 32 to spare. A multiple of 32.
GIC_INTERRUPTS: Final = 96

# The timers' private interrupts, as PPI numbers: secure and non-secure physical, virtual, hypervisor.
TIMER_PPIS: Final = (13, 14, 11, 10)

MIN_MEMORY: Final = 32 * MIB
"""What a guest gets at least, beyond what is loaded into it: less than this and no kernel reaches user space."""


def virtio_slot(index: int) -> Region:
    """The registers of the virtio transport number `index`."""
    return Region(VIRTIO.base + index * VIRTIO_SLOT_SIZE, VIRTIO_SLOT_SIZE)


def virtio_irq(index: int) -> Interrupt:
    """The interrupt of the virtio transport number `index`."""
    return Interrupt(VIRTIO_FIRST_IRQ.spi + index)


_UNITS: Final = {"": MIB, "k": KIB, "m": MIB, "g": GIB, "t": 1 << 40}


def parse_size(text: str) -> int:
    """Bytes from ``512``, ``512M`` (both MiB), ``2G``, ``1T``, ``524288K``; ``VmmError`` if it is none of these."""
    match = re.fullmatch(r"(\d{1,15})([kmgt]?)(i?b)?", text.strip().lower())
    if match is None:
        raise VmmError(f"{text!r} is no memory size: give MiB, or a number with K, M, G or T, as in --memory 512M")
    return int(match[1]) * _UNITS[match[2]]


def round_up(value: int, alignment: int) -> int:
    """The next multiple of `alignment`, or `value` itself."""
    return -(-value // alignment) * alignment


def format_size(size: int) -> str:
    """Bytes for people, and for ``parse_size``: rounded up to whole MiB."""
    mib = -(-size // MIB)
    return f"{mib >> 10}G" if mib and mib % 1024 == 0 else f"{mib}M"


def host_memory(proc: Path = Path("/proc"), cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """How many bytes this host could give at most: RAM and swap, or the cgroup's limit; ``None`` if it does not say."""
    total: int | None = None
    try:
        found = dict(re.findall(r"^(\w+):\s+(\d+) kB$", (proc / "meminfo").read_text(), re.MULTILINE))
        total = (int(found["MemTotal"]) + int(found.get("SwapTotal", 0))) * KIB
    except (OSError, KeyError, ValueError):
        pass
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = int((cgroup / name).read_text())
        except (OSError, ValueError):  # "max" is no number
            continue
        total = limit if total is None else min(total, limit)
    return total


def check_memory(size: int, address_bits: int, host: int | None, not_ram: int = RAM_BASE) -> None:
    """Refuse a RAM size (bytes) that no machine here can have.

    `address_bits` is how wide guest-physical addresses are, `host` what this host has at most, `not_ram` how much of
    the address space is not RAM, both in bytes.
    """
    room = (1 << address_bits) - not_ram
    if size <= 0:
        raise VmmError("a machine without memory cannot run: give at least --memory 128M")
    if size % PAGE_SIZE:
        raise VmmError(f"memory of {size} bytes is not a multiple of {PAGE_SIZE}: give whole MiB, as in --memory 512M")
    if size > room:
        raise VmmError(
            f"{format_size(size)} of memory do not fit {address_bits}-bit addresses: "
            f"give at most --memory {format_size(room)}"
        )
    if host is not None and size > host:
        down = max(host // MIB // 2, 1) * MIB
        raise VmmError(
            f"{format_size(size)} of memory are more than this host has ({host // MIB}M): "
            f"give less, such as --memory {format_size(down)}"
        )


def check_room(ram_size: int, needed: int) -> None:
    """Refuse less memory than a kernel and its initrd need, in bytes."""
    if ram_size < needed:
        raise VmmError(
            f"{format_size(ram_size)} of memory do not hold this kernel and initrd: "
            f"give at least --memory {format_size(needed)}"
        )
