# SPDX-License-Identifier: GPL-2.0-only
"""Interrupt routing: from a GSI to the pins and messages it stands for (api.rst 4.52), KVM_IRQ_LINE, KVM_SIGNAL_MSI."""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from anykvm.uapi.constants import KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MSI_VALID_DEVID
from anykvm.uapi.structs import KvmIrqLevel, KvmIrqRouting, KvmIrqRoutingEntry, KvmMsi

from .stats import IRQ_INJECTIONS, MSI_INJECTIONS

if TYPE_CHECKING:
    from .vm import Vm

KVM_MAX_IRQ_ROUTES: Final = 4096
# Who drives a GSI: KVM_IRQ_LINE and plain irqfds, resampling irqfds, or a device of the architecture's own.
IRQ_SOURCE_USERSPACE: Final = 0
IRQ_SOURCE_RESAMPLE: Final = 1
IRQ_SOURCE_ARCH: Final = 2
_ENTRY_SIZE: Final = ctypes.sizeof(KvmIrqRoutingEntry)


class Route(NamedTuple):
    """Where a GSI goes: a pin of an irqchip, or a message (``irqchip`` is -1 then), or what only the architecture
    knows (``own``: the type of the route and its numbers).
    """

    gsi: int
    irqchip: int = -1
    pin: int = 0
    address: int = 0
    data: int = 0
    devid: int | None = None
    own: tuple[int, ...] = ()


class _Table:
    """One immutable routing table."""

    __slots__ = ("gsi_of_own", "gsi_of_pin", "routes")

    def __init__(self, entries: list[Route]) -> None:
        routes: dict[int, list[Route]] = {}
        self.gsi_of_pin: dict[tuple[int, int], int] = {}
        self.gsi_of_own: dict[tuple[int, ...], int] = {}
        for entry in entries:
            others = routes.setdefault(entry.gsi, [])
            # A GSI goes to one message, or to one pin of each of several irqchips.
            if any(other.irqchip < 0 or entry.irqchip in (-1, other.irqchip) for other in others):
                raise OSError(errno.EINVAL, f"GSI {entry.gsi} is routed twice")
            others.append(entry)
            if entry.irqchip >= 0:
                self.gsi_of_pin[entry.irqchip, entry.pin] = entry.gsi
            elif entry.own:
                self.gsi_of_own[entry.own] = entry.gsi
        self.routes = {gsi: tuple(entries) for gsi, entries in routes.items()}


class IrqRouting:
    """The routing of a VM. Changes are made with ``vm.irq_lock`` held; injecting takes no lock of ours."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._table = _Table([])
        self._resamplers: dict[int, tuple[Callable[[], None], ...]] = {}

    def routes(self, gsi: int) -> tuple[Route, ...]:
        """Give where a GSI goes; nothing for one without a route."""
        return self._table.routes.get(gsi, ())

    def set_irq(self, gsi: int, level: int, source: int = IRQ_SOURCE_USERSPACE) -> int:
        """Drive a GSI (kvm_set_irq); returns how many destinations took it, -1 if it goes nowhere.

        ``source`` is who drives it: where lines are shared, one that lets go does not lower it for the others.
        """
        vm = self._vm
        result = -1
        for route in self._table.routes.get(gsi, ()):
            try:
                if route.irqchip >= 0:
                    taken = vm.hooks.set_irq(vm, route.irqchip, route.pin, level, source)
                    vm.stats.values[IRQ_INJECTIONS] += 1
                elif level and route.own:
                    taken = vm.hooks.set_own_irq(vm, route.own)
                elif level:
                    taken = vm.hooks.set_msi(vm, route.address, route.data, route.devid)
                    vm.stats.values[MSI_INJECTIONS] += 1
                else:
                    continue
            except OSError:
                continue
            if taken >= 0:
                result = taken + max(result, 0)
        return result

    def set_entries(self, entries: list[Route]) -> None:
        """Replace the table; EINVAL."""
        table = _Table(entries)
        with self._vm.irq_lock:
            self._vm.services.publish("irq routing")
            self._table = table

    def set_default_routing(self) -> None:
        """Install the architecture's default routing, which its irqchip does when it is initialised."""
        self.set_entries([Route(gsi, chip, pin) for gsi, chip, pin in self._vm.hooks.default_routing(self._vm)])

    def route_of(self, entry: KvmIrqRoutingEntry) -> Route:
        """Check one entry of KVM_SET_GSI_ROUTING; EINVAL."""
        if entry.gsi >= KVM_MAX_IRQ_ROUTES:
            raise OSError(errno.EINVAL, f"GSI {entry.gsi} is not below {KVM_MAX_IRQ_ROUTES}")
        if entry.type == KVM_IRQ_ROUTING_MSI:
            if entry.flags & ~KVM_MSI_VALID_DEVID:
                raise OSError(errno.EINVAL, f"unknown flags {entry.flags:#x} of the route of GSI {entry.gsi}")
            msi = entry.u.msi
            devid = msi.devid if entry.flags & KVM_MSI_VALID_DEVID else None
            return Route(entry.gsi, address=msi.address_hi << 32 | msi.address_lo, data=msi.data, devid=devid)
        if entry.flags:
            raise OSError(errno.EINVAL, f"unknown flags {entry.flags:#x} of the route of GSI {entry.gsi}")
        if entry.type != KVM_IRQ_ROUTING_IRQCHIP:
            return Route(entry.gsi, own=self._vm.hooks.own_route(self._vm, entry))
        if not self._vm.hooks.has_irqchip_routes(self._vm):
            raise OSError(errno.EINVAL, f"GSI {entry.gsi} cannot go to a pin: the VM's pins are not in the kernel")
        chip, pin = entry.u.irqchip.irqchip, entry.u.irqchip.pin
        pins = self._vm.hooks.irqchip_pins
        if chip >= len(pins) or pin >= pins[chip]:
            raise OSError(errno.EINVAL, f"{self._vm.hooks.name} has no pin {pin} of irqchip {chip}")
        return Route(entry.gsi, chip, pin)

    # End of interrupt, for resampling irqfds.

    def register_ack_notifier(self, gsi: int, notify: Callable[[], None]) -> None:
        """Call ``notify`` whenever the guest ends an interrupt at a pin of ``gsi``, its line having been lowered."""
        with self._vm.irq_lock:
            table = dict(self._resamplers)
            table[gsi] = (*table.get(gsi, ()), notify)
            self._resamplers = table

    def unregister_ack_notifier(self, gsi: int, notify: Callable[[], None]) -> None:
        """Take a resampler back."""
        with self._vm.irq_lock:
            table = dict(self._resamplers)
            left = tuple(other for other in table.pop(gsi, ()) if other != notify)
            if left:
                table[gsi] = left
            self._resamplers = table

    def has_notifier(self, irqchip: int, pin: int) -> bool:
        """Tell whether anyone wants to know of ends of interrupt at a pin (kvm_irq_has_notifier)."""
        if not self._resamplers:
            return False
        gsi = self._table.gsi_of_pin.get((irqchip, pin))
        return gsi is not None and gsi in self._resamplers

    def notify_acked(self, irqchip: int, pin: int) -> None:
        """Say that the guest ended an interrupt (kvm_notify_acked_irq).

        The line is lowered once, before any resampler is told: one that raised it again would be undone by the next.
        Lowering goes through ``hooks.set_irq``: the caller holds no lock which that takes.
        """
        if self._resamplers:
            self._notify(self._table.gsi_of_pin.get((irqchip, pin)))

    def notify_acked_own(self, own: tuple[int, ...]) -> None:
        """The same for what only the architecture knows, as its route has it."""
        if self._resamplers:
            self._notify(self._table.gsi_of_own.get(own))

    def _notify(self, gsi: int | None) -> None:
        resamplers = self._resamplers.get(gsi, ()) if gsi is not None else ()
        if gsi is not None and resamplers:
            self.set_irq(gsi, 0, IRQ_SOURCE_RESAMPLE)
            for notify in resamplers:
                notify()


def set_gsi_routing(vm: Vm, arg: int) -> int:
    """KVM_SET_GSI_ROUTING: replace the whole table; EINVAL for too many entries, flags, or an entry that is wrong."""
    services = vm.services
    head = services.read_struct(arg, KvmIrqRouting)
    if not vm.hooks.can_set_irq_routing(vm):
        raise OSError(errno.EINVAL, "the VM has no in-kernel irqchip: there is nothing to route to")
    if head.nr > KVM_MAX_IRQ_ROUTES or head.flags:
        raise OSError(errno.EINVAL, f"a routing table has at most {KVM_MAX_IRQ_ROUTES} entries and no flags")
    raw = services.copy_from_user(arg + ctypes.sizeof(KvmIrqRouting), head.nr * _ENTRY_SIZE)
    entries = [
        vm.irq.route_of(KvmIrqRoutingEntry.from_buffer_copy(raw, offset)) for offset in range(0, len(raw), _ENTRY_SIZE)
    ]
    vm.irq.set_entries(entries)
    return 0


def irq_line(vm: Vm, arg: int) -> int:
    """KVM_IRQ_LINE: drive a line of the in-kernel irqchip."""
    event = vm.services.read_struct(arg, KvmIrqLevel)
    vm.hooks.irq_line(vm, event.irq, event.level)
    return 0


def irq_line_status(vm: Vm, arg: int) -> int:
    """KVM_IRQ_LINE_STATUS: the same, and write back whether it was delivered (1), coalesced (0) or ignored (-1)."""
    event = vm.services.read_struct(arg, KvmIrqLevel)
    event.status = vm.hooks.irq_line(vm, event.irq, event.level)
    vm.services.write_struct(arg, event)
    return 0


def signal_msi(vm: Vm, arg: int) -> int:
    """KVM_SIGNAL_MSI: deliver a message now; > 0 delivered, 0 blocked by the guest; EINVAL without an irqchip."""
    msi = vm.services.read_struct(arg, KvmMsi)
    if not vm.hooks.irqchip_in_kernel(vm) or msi.flags & ~KVM_MSI_VALID_DEVID:
        raise OSError(errno.EINVAL, "no in-kernel irqchip, or unknown flags")
    devid = msi.devid if msi.flags & KVM_MSI_VALID_DEVID else None
    delivered = vm.hooks.set_msi(vm, msi.address_hi << 32 | msi.address_lo, msi.data, devid)
    vm.stats.values[MSI_INJECTIONS] += 1
    return delivered
