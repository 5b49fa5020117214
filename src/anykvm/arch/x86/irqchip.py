# SPDX-License-Identifier: GPL-2.0-only
"""The in-kernel interrupt controllers of a VM: all of them, or with a split irqchip the local APICs only.

Source: ``arch/x86/kvm/x86.c``, ``irq.c`` and ``irq_comm.c``; api.rst 4.24 to 4.27, 4.71 to 4.73, 7.5.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from anykvm.uapi.x86_irqchip import (
    KVM_IOAPIC_NUM_PINS,
    KVM_IRQCHIP_IOAPIC,
    KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
    KVM_PIT_SPEAKER_DUMMY,
)
from anykvm.virt.irq import IRQ_SOURCE_ARCH, IRQ_SOURCE_USERSPACE, KVM_MAX_IRQ_ROUTES
from anykvm.virt.ladder import Ladder

from .apic_bus import ApicBus, VcpuSide
from .ioapic import IOAPIC_DEFAULT_BASE, IOAPIC_MMIO_SIZE, Ioapic
from .lapic import Lapic
from .pic import PIC_ELCR_PORT, PIC_MASTER_PORT, PIC_SLAVE_PORT, PicPair
from .pit import PIT_PORT, PIT_PORTS, SPEAKER_PORT, SPEAKER_PORTS, Pit, Speaker

if TYPE_CHECKING:
    from anykvm.virt.bus import IoBus, IoDevice
    from anykvm.virt.vm import Vm

    from .lapic_timer import Deadline

IRQCHIP_PINS: Final = (8, 8, KVM_IOAPIC_NUM_PINS)
"""How many pins master, slave and IOAPIC have, by KVM_IRQCHIP_*."""
IRQCHIP_STATE_SIZE: Final = 512

DEFAULT_ROUTING: Final = [
    *((gsi, gsi >> 3, gsi & 7) for gsi in range(16)),
    *((gsi, KVM_IRQCHIP_IOAPIC, gsi) for gsi in range(KVM_IOAPIC_NUM_PINS)),
]
"""GSI, irqchip, pin: 0 to 15 go to the PICs and to the IOAPIC, 16 to 23 to the IOAPIC."""

_PIT_GSI: Final = 0
_PIT_IOAPIC_PINS: Final = (0, 2)
"""Where on the IOAPIC the PIT may be: as its GSI says, or where firmware tables move it."""


class IrqChip:
    """``vm.arch.irqchip``. ``pic`` and ``ioapic`` are None with a split irqchip, ``pit`` is until it is created."""

    def __init__(self, vm: Vm, reserved_pins: int | None) -> None:
        self.vm = vm
        self.split = reserved_pins is not None
        self.reserved_pins = reserved_pins or 0
        """With a split irqchip: the GSIs below this are the pins of userspace's IOAPIC."""
        self.pic: PicPair | None = None
        self.ioapic: Ioapic | None = None
        self.pit: Pit | None = None
        self._lines: dict[tuple[int, int], int] = {}
        """By irqchip and pin: a bit for each source that drives it high."""
        self._ladder = vm.services.ladder("irqchip")
        with self._ladder as ladder:
            lines = ladder.acquire("irq lines lock", vm.services.mutex, vm.services.free_mutex, "irq lines lock")
            self._lines_lock = lines
            lock = ladder.acquire("apic bus lock", vm.services.mutex, vm.services.free_mutex, "apic bus lock")
            self.bus = ApicBus(lock)
            self.bus.on_eoi = self._eoi
            if not self.split:
                self._build(ladder)

    def _build(self, ladder: Ladder) -> None:
        vm = self.vm
        services = vm.services
        routing = vm.irq
        ladder.acquire("pic", services.charge, services.free, "pic", 512)
        pic = PicPair(
            self.bus,
            notify=lambda pin: routing.notify_acked(pin >> 3, pin & 7),
            unmasked=self._pic_unmasked,
        )
        for port in (PIC_MASTER_PORT, PIC_SLAVE_PORT, PIC_ELCR_PORT):
            self._register(ladder, vm.pio_bus, port, 2, pic)
        ladder.acquire("ioapic", services.charge, services.free, "ioapic", 1024)
        ioapic = Ioapic(
            self.bus,
            has_notifier=lambda pin: routing.has_notifier(KVM_IRQCHIP_IOAPIC, pin),
            notify=lambda pin: routing.notify_acked(KVM_IRQCHIP_IOAPIC, pin),
            unmasked=self._ioapic_unmasked,
        )
        self._register(ladder, vm.mmio_bus, IOAPIC_DEFAULT_BASE, IOAPIC_MMIO_SIZE, ioapic)
        self.pic, self.ioapic = pic, ioapic

    def _register(self, ladder: Ladder, bus: IoBus, addr: int, size: int, device: IoDevice) -> None:
        with self.vm.slots_lock:
            bus.register(addr, size, device)
        ladder.push(f"{bus.name} {addr:#x}", self._unregister, bus, device)

    def _unregister(self, bus: IoBus, device: IoDevice) -> None:
        with self.vm.slots_lock:
            bus.unregister(device)

    def close(self) -> None:
        """Take everything off the buses; every vCPU has gone."""
        self._ladder.unwind()

    # Local APICs.

    def create_lapic(self, side: VcpuSide, *, bsp: bool) -> Lapic:
        """Give a vCPU its local APIC; ENOMEM. ``bsp``: it is the boot processor (KVM_SET_BOOT_CPU_ID)."""
        services = self.vm.services
        with services.ladder("lapic") as ladder:
            ladder.acquire("lapic", services.charge, services.free, "lapic", 4096)

            def make_deadline(callback: Callable[[], None]) -> Deadline:
                return ladder.acquire("timer", services.timer, services.free_timer, "lapic timer", callback)

            lapic = Lapic(side, self.bus, bsp=bsp, now=services.now, make_deadline=make_deadline)
            ladder.push("bus", lapic.close)
        lapic.ladder = ladder
        return lapic

    @staticmethod
    def free_lapic(lapic: Lapic) -> None:
        """Take a vCPU's local APIC away."""
        lapic.ladder.unwind()

    def _eoi(self, lapic: Lapic, vector: int, level: bool) -> None:
        if lapic.sints >> vector & 1:
            lapic.side.sint_eoi(vector)
        if self.ioapic is not None:
            self.ioapic.eoi(vector, level)
        elif self.split:
            self._split_eoi(lapic, vector, level)

    def _split_eoi(self, lapic: Lapic, vector: int, level: bool) -> None:
        """Tell userspace's IOAPIC, if one of its pins sends this vector level-triggered."""
        for gsi in range(self.reserved_pins):
            for route in self.vm.irq.routes(gsi):
                if route.irqchip < 0 and route.data & 0x80FF == 0x8000 | vector:
                    lapic.side.ioapic_eoi(vector)
                    return

    # Inputs.

    def set_irq(self, irqchip: int, pin: int, level: int, source: int = IRQ_SOURCE_USERSPACE) -> int:
        """Drive the pin a routing entry names; returns > 0 delivered, 0 coalesced, -1 masked; EINVAL.

        A pin is high while any source drives it high (``__kvm_irq_line_state``).
        """
        if self.pic is None or self.ioapic is None or irqchip >= len(IRQCHIP_PINS) or pin >= IRQCHIP_PINS[irqchip]:
            raise OSError(errno.EINVAL, f"there is no pin {pin} of in-kernel irqchip {irqchip}")
        with self._lines_lock:
            others = self._lines.get((irqchip, pin), 0) & ~(1 << source)
            driven = others | (1 if level else 0) << source
            self._lines[irqchip, pin] = driven
            if irqchip == KVM_IRQCHIP_IOAPIC:
                return self.ioapic.set_irq(pin, int(driven != 0))
            return self.pic.set_irq(pin + 8 * irqchip, int(driven != 0))

    def set_msi(self, address: int, data: int) -> int:
        """Deliver a message; see :meth:`.apic_bus.ApicBus.send_msi`; EPERM."""
        return self.bus.send_msi(address, data)

    # KVM_GET_IRQCHIP and KVM_SET_IRQCHIP.

    def _chips(self, chip_id: int) -> tuple[PicPair, Ioapic]:
        if self.pic is None or self.ioapic is None:
            raise OSError(errno.ENXIO, "with a split irqchip the PICs and the IOAPIC are userspace's")
        if chip_id not in (KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC):
            raise OSError(errno.EINVAL, f"there is no irqchip {chip_id}")
        return self.pic, self.ioapic

    def get_chip(self, chip_id: int) -> bytes:
        """Give a chip's state, 512 bytes; ENXIO with a split irqchip, EINVAL."""
        pic, ioapic = self._chips(chip_id)
        state = ioapic.get_state() if chip_id == KVM_IRQCHIP_IOAPIC else pic.get_state(chip_id)
        return state.ljust(IRQCHIP_STATE_SIZE, b"\0")

    def set_chip(self, chip_id: int, state: bytes) -> None:
        """Load a chip's state; ENXIO with a split irqchip, EINVAL."""
        pic, ioapic = self._chips(chip_id)
        if chip_id == KVM_IRQCHIP_IOAPIC:
            ioapic.set_state(state)
        else:
            pic.set_state(chip_id, state)

    # The PIT.

    def create_pit(self, flags: int) -> None:
        """KVM_CREATE_PIT2 (KVM_CREATE_PIT: with KVM_PIT_SPEAKER_DUMMY); EEXIST, ENOENT with a split irqchip, ENOMEM."""
        if self.pit is not None:
            raise OSError(errno.EEXIST, "the VM has a PIT")
        if self.split:
            raise OSError(errno.ENOENT, "a PIT needs the in-kernel PICs and IOAPIC")
        vm = self.vm
        services = vm.services
        with self._ladder.guard():
            ladder = self._ladder
            ladder.acquire("pit", services.charge, services.free, "pit", 1024)

            def make_deadline(callback: Callable[[], None]) -> Deadline:
                return ladder.acquire("timer", services.timer, services.free_timer, "pit timer", callback)

            lock = ladder.acquire("pit lock", services.mutex, services.free_mutex, "pit lock")
            pit = Pit(
                lock,
                now=services.now,
                make_deadline=make_deadline,
                set_irq=lambda level: vm.irq.set_irq(_PIT_GSI, level, IRQ_SOURCE_ARCH),
                tick=self._pit_tick,
            )
            ladder.push("pit stop", pit.stop)
            vm.irq.register_ack_notifier(_PIT_GSI, pit.irq_acked)
            ladder.push("pit ack", self._forget_acks, pit)
            self._register(ladder, vm.pio_bus, PIT_PORT, PIT_PORTS, pit)
            if flags & KVM_PIT_SPEAKER_DUMMY:
                self._register(ladder, vm.pio_bus, SPEAKER_PORT, SPEAKER_PORTS, Speaker(pit))
            self.pit = pit

    def _forget_acks(self, pit: Pit) -> None:
        self.vm.irq.unregister_ack_notifier(_PIT_GSI, pit.irq_acked)

    def _pit_tick(self) -> None:
        if self.bus.nmi_takers:
            self.bus.pulse_lint0()

    def reinject_control(self, reinject: bool) -> None:
        """KVM_REINJECT_CONTROL; ENXIO without a PIT."""
        self.get_pit().set_reinject(reinject)

    def get_pit(self) -> Pit:
        """Give the PIT; ENXIO if there is none."""
        if self.pit is None:
            raise OSError(errno.ENXIO, "the VM has no in-kernel PIT")
        return self.pit

    def _pic_unmasked(self, pin: int) -> None:
        if pin == _PIT_GSI and self.pit is not None:
            self.pit.reset_reinject()

    def _ioapic_unmasked(self, pin: int) -> None:
        if pin in _PIT_IOAPIC_PINS and self.pit is not None:
            self.pit.reset_reinject()


def _check_new(vm: Vm) -> None:
    if vm.arch.irqchip is not None:
        raise OSError(errno.EEXIST, "the VM has an in-kernel irqchip")
    if vm.created_vcpus:
        raise OSError(errno.EINVAL, "the irqchip is created before the first vCPU")


def create(vm: Vm) -> IrqChip:
    """KVM_CREATE_IRQCHIP, with the VM's lock held: EEXIST, EINVAL once there are vCPUs, ENOMEM, ENOSPC.

    The caller puts it into ``vm.arch.irqchip`` and gives the VM its routing (``vm.irq.set_default_routing()``).
    """
    _check_new(vm)
    return IrqChip(vm, None)


def create_split(vm: Vm, reserved_pins: int) -> IrqChip:
    """KVM_CAP_SPLIT_IRQCHIP, with the VM's lock held: EINVAL for too many pins or once there are vCPUs, EEXIST.

    The caller puts it into ``vm.arch.irqchip``; there is no route until userspace makes some.
    """
    if reserved_pins > KVM_MAX_IRQ_ROUTES:
        raise OSError(errno.EINVAL, f"an IOAPIC has at most {KVM_MAX_IRQ_ROUTES} pins")
    _check_new(vm)
    return IrqChip(vm, reserved_pins)
