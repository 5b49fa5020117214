# SPDX-License-Identifier: GPL-2.0-only
"""Where a GSI goes: the entries of KVM_SET_GSI_ROUTING."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

from anykvm.uapi.common import (
    KVM_IRQ_ROUTING_IRQCHIP,
    KVM_IRQ_ROUTING_MSI,
    KVM_MSI_VALID_DEVID,
    KvmIrqRouting,
    KvmIrqRoutingEntry,
    KvmMsi,
)


@dataclass(frozen=True, slots=True)
class IrqchipRoute:
    """GSI ``gsi`` drives input ``pin`` of the in-kernel interrupt controller number ``irqchip``."""

    gsi: int
    irqchip: int
    pin: int


@dataclass(frozen=True, slots=True)
class MsiRoute:
    """GSI ``gsi`` is a write of ``data`` (32 bits) to ``address``, from device ``devid`` where the controller asks."""

    gsi: int
    address: int
    data: int
    devid: int | None = None


Route = IrqchipRoute | MsiRoute


def encode_routing(routes: Sequence[Route]) -> ctypes.Array[ctypes.c_char]:
    """The whole table as KVM_SET_GSI_ROUTING takes it."""
    head, size = ctypes.sizeof(KvmIrqRouting), ctypes.sizeof(KvmIrqRoutingEntry)
    buffer = ctypes.create_string_buffer(head + size * len(routes))
    KvmIrqRouting.from_buffer(buffer).nr = len(routes)
    for index, route in enumerate(routes):
        entry = KvmIrqRoutingEntry.from_buffer(buffer, head + size * index)
        entry.gsi = route.gsi
        if isinstance(route, IrqchipRoute):
            entry.type = KVM_IRQ_ROUTING_IRQCHIP
            entry.u.irqchip.irqchip, entry.u.irqchip.pin = route.irqchip, route.pin
            continue
        entry.type = KVM_IRQ_ROUTING_MSI
        msi = entry.u.msi
        msi.address_lo, msi.address_hi, msi.data = route.address & 0xFFFFFFFF, route.address >> 32, route.data
        if route.devid is not None:
            entry.flags, msi.devid = KVM_MSI_VALID_DEVID, route.devid
    return buffer


def encode_msi(address: int, data: int, devid: int | None) -> KvmMsi:
    """One message as KVM_SIGNAL_MSI takes it."""
    msi = KvmMsi(address_lo=address & 0xFFFFFFFF, address_hi=address >> 32, data=data)
    if devid is not None:
        msi.flags, msi.devid = KVM_MSI_VALID_DEVID, devid
    return msi
