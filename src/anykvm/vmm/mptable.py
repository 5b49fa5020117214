# SPDX-License-Identifier: GPL-2.0-only
"""The MP tables of an x86 machine: which CPUs, interrupt controllers and interrupts there are, without ACPI.

Source: Intel MultiProcessor Specification 1.4, chapter 4 (the tables), 3.6.2.3 (symmetric I/O mode). The only bus is
ISA; the interrupts of the virtio devices are told as ISA interrupts above 15, for which Linux takes the IOAPIC's inputs
of the same number.
"""

from __future__ import annotations

import struct
from typing import Final

from . import x86_map
from .errors import VmmError

MAX_VCPUS: Final = 254  # the IOAPIC's id is different from every CPU's, and 255 is everyone

_REVISION: Final = 4  # 1.4
_POINTER_SIZE: Final = 16
_OEM: Final = b"ANYKVM  "
_PRODUCT: Final = b"ANYKVM PC   "
_HEADER: Final = struct.Struct("<4sHBB8s12sIHHIHBB")
_PROCESSOR, _BUS, _IOAPIC, _IO_INTERRUPT, _LOCAL_INTERRUPT = range(5)
_INT, _NMI, _EXTINT = 0, 1, 3
_LAPIC_VERSION: Final = 0x14
_IOAPIC_VERSION: Final = 0x11
_ENABLED: Final = 1
_BOOT: Final = 2
_AS_THE_BUS: Final = 0
_LEVEL_ACTIVE_HIGH: Final = 0xD
_ISA: Final = 0
_ALL: Final = 0xFF


def build(base: int, vcpus: int, virtio_slots: int, *, signature: int = 0, features: int = 0) -> bytes:
    """The pointer and the table, to be placed at guest-physical `base` (a multiple of 16 from 0xf0000 on).

    The APIC ids are 0 to `vcpus` - 1; `signature` and `features` are EAX and EDX of CPUID leaf 1.
    """
    ioapic = vcpus
    entries = [_processor(index, signature, features) for index in range(vcpus)]
    entries.append(struct.pack("<BB6s", _BUS, _ISA, b"ISA   "))
    entries.append(struct.pack("<BBBBI", _IOAPIC, ioapic, _IOAPIC_VERSION, _ENABLED, x86_map.IOAPIC.base))
    # KVM's timer is on input 0, as its GSI is; IRQ 2 is the second PIC.
    entries += [_interrupt(_IO_INTERRUPT, _INT, irq, ioapic, irq) for irq in range(16) if irq != 2]
    for index in range(virtio_slots):
        gsi = x86_map.virtio_gsi(index)
        entries.append(_interrupt(_IO_INTERRUPT, _INT, gsi, ioapic, gsi, flags=_LEVEL_ACTIVE_HIGH))
    entries.append(_interrupt(_LOCAL_INTERRUPT, _EXTINT, 0, 0, 0))
    entries.append(_interrupt(_LOCAL_INTERRUPT, _NMI, 0, _ALL, 1))
    body = b"".join(entries)
    size = _HEADER.size + len(body)
    header = bytearray(
        _HEADER.pack(
            *(b"PCMP", size, _REVISION, 0, _OEM, _PRODUCT, 0, 0, len(entries), x86_map.LAPIC.base, 0, 0, 0),
        )
    )
    header[7] = _checksum(header + body)
    # No default configuration (byte 11); the guest starts with the PICs wired to it, not in PIC mode (byte 12).
    pointer = bytearray(struct.pack("<4sIBBBBBBBB", b"_MP_", base + _POINTER_SIZE, 1, _REVISION, 0, 0, 0, 0, 0, 0))
    pointer[10] = _checksum(pointer)
    return bytes(pointer + header) + body


def check(vcpus: int) -> None:
    """Refuse more vCPUs than the tables can tell of."""
    if vcpus > MAX_VCPUS:
        raise VmmError(
            f"MP tables tell of {MAX_VCPUS} CPUs at most, not {vcpus}: use --firmware acpi, or --smp {MAX_VCPUS}"
        )


def devices(virtio_slots: int) -> str:
    """Words for Linux's command line that tell of the virtio devices, as the tables cannot.

    A kernel without CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES does not look at them.
    """
    return " ".join(
        f"virtio_mmio.device={region.size}@{region.base:#x}:{x86_map.virtio_gsi(index)}"
        for index in range(virtio_slots)
        for region in (x86_map.virtio_slot(index),)
    )


def _checksum(data: bytes | bytearray) -> int:
    return -sum(data) & 0xFF


def _processor(apic_id: int, signature: int, features: int) -> bytes:
    flags = _ENABLED | (_BOOT if apic_id == 0 else 0)
    return struct.pack("<BBBBII8x", _PROCESSOR, apic_id, _LAPIC_VERSION, flags, signature, features)


def _interrupt(entry: int, kind: int, irq: int, apic: int, pin: int, *, flags: int = _AS_THE_BUS) -> bytes:
    return struct.pack("<BBHBBBB", entry, kind, flags, _ISA, irq, apic, pin)
