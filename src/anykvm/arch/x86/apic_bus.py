# SPDX-License-Identifier: GPL-2.0-only
"""The APIC bus: which local APICs a message goes to, and how it gets there.

IPIs, the IOAPIC's interrupts and MSIs all are messages: a destination, a delivery mode, a vector. One lock, the bus's,
guards the state of every local APIC, of the IOAPIC and of the PICs of a VM. It nests inside every other lock but those
of the timers; what a vCPU is told (:class:`VcpuSide`) is told with it held.

Source: Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller"; ``arch/x86/kvm/lapic.c``.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final, Protocol

from .lapic_regs import APIC_LVT0

if TYPE_CHECKING:
    from anykvm.virt.services import Mutex

    from .lapic import Lapic
    from .pic import PicPair

# Delivery modes, as in bits 10:8 of ICR, LVTs, redirection entries and MSI data.
DM_FIXED: Final = 0
DM_LOWEST: Final = 1
DM_SMI: Final = 2
DM_NMI: Final = 4
DM_INIT: Final = 5
DM_STARTUP: Final = 6
DM_EXTINT: Final = 7

BROADCAST: Final = 0xFF
"""The xAPIC destination that is everybody, physical or logical."""
X2APIC_BROADCAST: Final = 0xFFFFFFFF
"""The same for those in x2APIC mode."""
EVERYBODY: Final = 1 << 32
"""A destination for all, in either mode; no message can name it."""

SHORTHAND_NONE: Final = 0
SHORTHAND_SELF: Final = 1
SHORTHAND_ALL: Final = 2


class VcpuSide(Protocol):
    """What a local APIC asks of its vCPU. The first four come from any thread with the bus's lock held, and must not
    call back; the others come on the vCPU's own thread.
    """

    vcpu_id: int
    mp_state: int
    """One of KVM_MP_STATE_*."""

    @property
    def latches_init(self) -> bool:
        """Whether INIT has to wait, and start-up IPIs are lost: the CPU is in system management mode."""

    def set_intr(self, level: bool) -> None:
        """Drive the CPU's interrupt line; a rising one wakes a halted vCPU."""

    def nmi(self) -> None:
        """An NMI has come; it wakes a halted vCPU."""

    def smi(self) -> None:
        """A system management interrupt has come; it wakes a halted vCPU."""

    def apic_event(self) -> None:
        """INIT or a start-up IPI waits in ``pending_events``: make the vCPU call :meth:`Lapic.accept_events`."""

    def tpr_touched(self, write: bool) -> None:
        """The guest accessed its task priority register (on its own thread), with ``report_tpr`` set."""

    def set_cr8(self, cr8: int) -> None:
        """The task priority was written by other means than CR8."""

    def init(self) -> None:
        """Reset the CPU's registers as INIT does."""

    def start(self, vector: int) -> None:
        """Begin in real mode at ``vector`` << 12: CS selector ``vector`` << 8, IP 0."""

    def tsc_to_ns(self, tsc: int) -> int:
        """When the guest's TSC reads ``tsc``, in ns on the services' clock."""

    def ioapic_eoi(self, vector: int) -> None:
        """The guest ended an interrupt of userspace's IOAPIC: leave with KVM_EXIT_IOAPIC_EOI (split irqchip)."""

    def turned_on(self) -> None:
        """The guest enabled the local APIC in SVR, with the bus's lock held: interrupts that it missed may come now."""

    def sint_eoi(self, vector: int) -> None:
        """The guest ended an interrupt whose vector a synthetic source of Hyper-V's has."""


class ApicBus:
    """A VM's local APICs, as whoever sends to them sees them.

    ``pic`` are the PICs, if the VM has them, ``extint`` is their output; ``pic_takers`` are the local APICs that let it
    through, ``nmi_takers`` those whose LINT0 is in NMI mode. ``eoi_vectors`` are the vectors whose end of interrupt
    ``on_eoi(lapic, vector, level)`` wants to know, as it does of those of all level-triggered interrupts and of each
    local APIC's ``sints``; it is called without the lock.
    """

    __slots__ = (
        "_targets",
        "broadcast_quirk",
        "eoi_vectors",
        "extint",
        "lapics",
        "lock",
        "nmi_takers",
        "on_eoi",
        "pic",
        "pic_takers",
        "wide",
    )

    def __init__(self, lock: Mutex) -> None:
        self.lock = lock
        self.lapics: list[Lapic] = []
        self.pic_takers: list[Lapic] = []
        self.nmi_takers: list[Lapic] = []
        self.extint = False
        self.eoi_vectors: Collection[int] = ()
        self.on_eoi: Callable[[Lapic, int, bool], None] | None = None
        self.pic: PicPair | None = None
        self.wide = False
        """Whether MSIs may name 32 bits of destination (KVM_X2APIC_API_USE_32BIT_IDS)."""
        self.broadcast_quirk = True
        """Whether an interrupt (not an IPI) for 0xff means everybody in x2APIC mode too."""
        # Invariant: what is in here is what _find would give now.
        self._targets: dict[int, tuple[Lapic, ...]] = {}

    def add(self, lapic: Lapic) -> None:
        """A vCPU is online: one that is not must not take a message, since it may never be."""
        with self.lock:
            self.lapics.append(lapic)
            self.changed()

    def remove(self, lapic: Lapic) -> None:
        """A vCPU goes away."""
        with self.lock:
            for lapics in (self.lapics, self.pic_takers, self.nmi_takers):
                if lapic in lapics:
                    lapics.remove(lapic)
            self.changed()

    # The rest is called with the lock held, unless it says something else.

    def changed(self) -> None:
        """Forget who is meant by what: an ID, a logical destination or an enable bit changed."""
        self._targets.clear()

    def set_extint(self, level: bool) -> None:
        """Drive the PICs' output."""
        self.extint = level
        for lapic in self.pic_takers:
            lapic.update()

    def _find(self, dest: int, logical: bool) -> tuple[Lapic, ...]:
        present = [lapic for lapic in self.lapics if lapic.hw_enabled]
        if dest == EVERYBODY:
            return tuple(present)
        if dest in (BROADCAST, X2APIC_BROADCAST):
            # Everybody in the mode it is of. 0xff may be one in x2APIC mode as well.
            wide = dest == X2APIC_BROADCAST
            everybody = tuple(lapic for lapic in present if lapic.x2apic == wide)
            if everybody or wide:
                return everybody
        if logical:
            return tuple(lapic for lapic in present if lapic.matches_logical(dest))
        # Of several with one ID only the first is meant: xAPIC IDs of vCPUs from 256 on wrap around.
        return tuple(lapic for lapic in present if lapic.apic_id == dest)[:1]

    def targets(self, dest: int, logical: bool) -> tuple[Lapic, ...]:
        """Give the local APICs a destination means, by order of creation."""
        key = dest << 1 | logical
        found = self._targets.get(key)
        if found is None:
            found = self._targets[key] = self._find(dest, logical)
        return found

    def deliver(
        self,
        dest: int,
        logical: bool,
        mode: int,
        vector: int,
        level: bool,
        *,
        asserted: bool = True,
        hint: bool = False,
    ) -> int:
        """Send a message; returns how many took it, 0 for none, -1 if the destination cannot be anybody's.

        ``level`` is the trigger mode, ``hint`` an MSI's redirection hint: one of the destinations is enough.
        """
        found = self._targets.get(dest << 1 | logical)
        if found is None:
            found = self.targets(dest, logical)
        if not found:
            return -1 if dest in (BROADCAST, EVERYBODY) or not self.lapics else 0
        if dest in (BROADCAST, EVERYBODY):
            if mode == DM_LOWEST and not logical:
                mode = DM_FIXED
            if (mode == DM_LOWEST or hint) and not any(lapic.enabled for lapic in found):
                return -1
        return self.send(found, mode, vector, level, asserted=asserted, hint=hint)

    def send(
        self,
        lapics: Collection[Lapic],
        mode: int,
        vector: int,
        level: bool,
        *,
        asserted: bool = True,
        hint: bool = False,
    ) -> int:
        """Send a message to these local APICs; returns how many took it."""
        if (mode == DM_LOWEST or hint) and len(lapics) > 1:
            # As in the kernel the vector decides: it spreads vectors, and a vector stays where it is.
            enabled = [lapic for lapic in lapics if lapic.enabled]
            lapics = (enabled[vector % len(enabled)],) if enabled else ()
        taken = 0
        for lapic in lapics:
            taken += lapic.accept(mode, vector, level, asserted)
        return taken

    def send_ipi(self, source: Lapic, icr: int, dest: int) -> None:
        """Send what a write to the ICR asks for; ``dest`` is the destination field, 8 bits (x2APIC: 32)."""
        mode = icr >> 8 & 7
        vector = icr & 0xFF
        level = icr & 0x8000 != 0
        asserted = icr & 0x4000 != 0
        shorthand = icr >> 18 & 3
        if shorthand == SHORTHAND_NONE:
            self.deliver(dest, icr & 0x800 != 0, mode, vector, level, asserted=asserted)
        elif shorthand == SHORTHAND_SELF:
            source.accept(mode, vector, level, asserted)
        else:
            lapics = self.targets(EVERYBODY, False)
            if shorthand != SHORTHAND_ALL:
                lapics = tuple(lapic for lapic in lapics if lapic is not source)
            self.send(lapics, mode, vector, level, asserted=asserted)

    def from_device(self, dest: int) -> int:
        """What a destination means in an interrupt that is no IPI."""
        return EVERYBODY if dest == BROADCAST and self.broadcast_quirk else dest

    def send_msi(self, address: int, data: int) -> int:
        """Deliver a message-signalled interrupt; takes the lock; returns how many took it, 0 for none.

        EPERM, as KVM_SIGNAL_MSI has it, if there is no local APIC that it could be for. Source: Intel SDM volume 3,
        section "Message Signalled Interrupts".
        """
        dest = address >> 12 & 0xFF
        if self.wide:
            dest |= address >> 32 & 0xFFFFFF00
        with self.lock:
            taken = self.deliver(
                self.from_device(dest),
                address & 4 != 0,
                data >> 8 & 7,
                data & 0xFF,
                data & 0x8000 != 0,
                hint=address & 8 != 0,
            )
        if taken < 0:
            raise OSError(errno.EPERM, "the message is for a local APIC, and there is none")
        return taken

    def pulse_lint0(self) -> None:
        """Let a tick of the PIT through to LINT0 in NMI mode: the guest's NMI watchdog; takes the lock."""
        with self.lock:
            for lapic in list(self.nmi_takers):
                lapic.local_deliver(APIC_LVT0)
