# SPDX-License-Identifier: GPL-2.0-only
"""The local APIC of a vCPU: the xAPIC's register page, priorities, IPIs, the interrupt line into the CPU.

Which local APIC a message means is :mod:`.apic_bus`, the timer is :mod:`.lapic_timer`, x2APIC mode
:mod:`.lapic_x2apic`.

Invariant: ``line`` is what the CPU's interrupt line was last told, and it is high if and only if the highest vector in
IRR is of a higher class than the processor priority, or an interrupt of the PICs (or of userspace, with a split
irqchip) may come in at LINT0. Whatever changes one of these calls :meth:`Lapic.update`, with the bus's lock held.

Source: Intel SDM volume 3, chapter "Advanced Programmable Interrupt Controller"; ``arch/x86/kvm/lapic.c``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from anykvm.virt.ladder import Ladder

from . import lapic_init
from .apic_bus import DM_EXTINT, DM_FIXED, DM_INIT, DM_LOWEST, DM_NMI, DM_SMI, DM_STARTUP
from .lapic_init import EVENT_INIT, EVENT_SIPI
from .lapic_regs import (
    APIC_EOI,
    APIC_LVT0,
    APIC_LVTT,
    APIC_TPR,
    LVT_BITS,
    LVT_MASKED,
    SVR_ENABLED,
    WRITERS,
    get_state,
    read_register,
    set_state,
)
from .lapic_timer import Deadline, LapicTimer
from .lapic_x2apic import write_base

if TYPE_CHECKING:
    from .apic_bus import ApicBus, VcpuSide

APIC_DEFAULT_BASE: Final = 0xFEE00000
APIC_MMIO_SIZE: Final = 0x1000
MSR_APICBASE_BSP: Final = 1 << 8
MSR_APICBASE_ENABLE: Final = 1 << 11

SPURIOUS: Final = 256
"""What :meth:`Lapic.ack` answers if there is nothing left to acknowledge: no interrupt is delivered."""

_NO_FLOOR: Final = 1 << 16
_BITS: Final = tuple(1 << vector for vector in range(256))


class Lapic:
    """One local APIC. IRR, ISR and TMR are bitmaps by vector; ``floor`` is the lowest vector that can be delivered."""

    __slots__ = (
        "accepts_pic",
        "apic_id",
        "auto_eoi",
        "base",
        "base_msr",
        "bsp",
        "bus",
        "cmci",
        "deadline_bit",
        "dfr",
        "enabled",
        "floor",
        "hw_enabled",
        "icr",
        "icr2",
        "irr",
        "isr",
        "ladder",
        "ldr",
        "line",
        "lvt",
        "mmio_hole",
        "page",
        "pending_events",
        "ppr",
        "report_tpr",
        "side",
        "sints",
        "sipi_vector",
        "svr",
        "tdcr",
        "timer",
        "tmr",
        "tpr",
        "user_vector",
        "x2apic",
        "x2apic_bit",
    )

    irr: int
    isr: int
    tmr: int
    tpr: int
    ppr: int
    floor: int
    apic_id: int
    ldr: int
    dfr: int
    svr: int
    icr: int
    icr2: int
    tdcr: int
    lvt: dict[int, int]
    base: int
    base_msr: int
    page: bytes
    timer: LapicTimer
    side: VcpuSide
    bus: ApicBus
    x2apic: bool
    cmci: bool
    ladder: Ladder
    """What this was built of; unwinding it takes the vCPU's local APIC away."""

    def __init__(
        self,
        side: VcpuSide,
        bus: ApicBus,
        *,
        bsp: bool,
        now: Callable[[], int],
        make_deadline: Callable[[Callable[[], None]], Deadline],
    ) -> None:
        self.side = side
        self.bus = bus
        self.bsp = bsp
        self.timer = LapicTimer(now, make_deadline(self._timer_deadline), side.tsc_to_ns)
        self.x2apic = False
        self.report_tpr = self.cmci = False
        self.x2apic_bit = self.deadline_bit = 0
        self.sints = self.auto_eoi = 0
        """The vectors of Hyper-V's synthetic interrupts, and those that are over when they are taken, as bitmaps."""
        self.line = False
        self.accepts_pic = False
        self.hw_enabled = False
        self.enabled = False
        self.mmio_hole = True
        """KVM_X86_QUIRK_LAPIC_MMIO_HOLE: a disabled local APIC still answers at its address, with all ones."""
        self.user_vector = -1
        """The external interrupt that userspace injected (split irqchip), -1 if there is none."""
        self.pending_events = 0
        self.sipi_vector = 0
        self.page = b""
        self.reset()

    def online(self) -> None:
        """The vCPU is online: from here on messages reach it."""
        self.bus.add(self)

    def close(self) -> None:
        """The vCPU goes away: no message reaches it and no timer expires any more."""
        self.bus.remove(self)
        with self.bus.lock:
            self.timer.stop()

    def reset(self, init: bool = False) -> None:
        """Reset: at power-on, or by INIT, which keeps the APIC base and the ID."""
        with self.bus.lock:
            if not init:
                self.base_msr = APIC_DEFAULT_BASE | MSR_APICBASE_ENABLE | self.bsp * MSR_APICBASE_BSP
                self.base = APIC_DEFAULT_BASE
                self.apic_id = self.side.vcpu_id & 0xFF
                self.hw_enabled = True
                self.x2apic = False
            self.page = b""
            self.timer.stop()
            self.timer.set_mode(False, False)
            self.timer.set_divide(0)
            self.lvt = dict.fromkeys(LVT_BITS, LVT_MASKED)
            if self.bsp:
                # The boot processor starts in virtual wire mode, as firmware would leave it.
                self.lvt[APIC_LVT0] = DM_EXTINT << 8
            self.tpr = self.icr = self.icr2 = self.tdcr = 0
            if not self.x2apic:
                self.ldr = 0
            self.irr = self.isr = self.tmr = 0
            self.dfr = 0xFFFFFFFF
            self.svr = 0xFF
            self.enables_changed()

    # Priorities and the line; the bus's lock is held.

    def update(self) -> None:
        """Bring the CPU's line in line with what is pending."""
        line = self.irr.bit_length() > self.floor or (self.accepts_pic and (self.bus.extint or self.user_vector >= 0))
        if line != self.line:
            self.line = line
            self.side.set_intr(line)

    def _update_ppr(self) -> None:
        isr = self.isr
        ppr = isr.bit_length() - 1 & 0xF0 if isr else 0
        tpr = self.tpr
        if tpr & 0xF0 >= ppr:
            ppr = tpr
        self.ppr = ppr
        self.floor = (ppr & 0xF0) + 16 if self.hw_enabled else _NO_FLOOR
        self.update()

    def enables_changed(self) -> None:
        """The APIC base, SVR or LINT0 changed."""
        self.enabled = self.hw_enabled and self.svr & SVR_ENABLED != 0
        lvt0 = self.lvt[APIC_LVT0]
        bus = self.bus
        self.accepts_pic = not self.hw_enabled or (not lvt0 & LVT_MASKED and lvt0 >> 8 & 7 == DM_EXTINT)
        for lapics, member in (
            (bus.pic_takers, self.accepts_pic),
            (bus.nmi_takers, not lvt0 & LVT_MASKED and lvt0 >> 8 & 7 == DM_NMI),
        ):
            if member and self not in lapics:
                lapics.append(self)
            elif not member and self in lapics:
                lapics.remove(self)
        bus.changed()
        self._update_ppr()

    def matches_logical(self, dest: int) -> bool:
        """Tell whether a logical destination (8 bits; x2APIC: 32) includes this APIC: flat or cluster model."""
        if not self.enabled:
            return False
        if self.x2apic:
            return self.ldr >> 16 == dest >> 16 and self.ldr & dest & 0xFFFF != 0
        ldr = self.ldr >> 24
        if self.dfr >> 28 == 0xF:
            return ldr & dest != 0
        return self.dfr >> 28 == 0 and ldr >> 4 == dest >> 4 and ldr & dest & 0xF != 0

    # Messages; the bus's lock is held.

    def interrupt(self, vector: int) -> int:
        """Raise an edge-triggered interrupt, from any thread; 1, or 0 if it is discarded."""
        with self.bus.lock:
            return self.accept(DM_FIXED, vector, False)

    def accept(self, mode: int, vector: int, level: bool, asserted: bool = True) -> int:
        """Take a message; 1, or 0 if it is discarded."""
        if mode <= DM_LOWEST:
            if not self.enabled or (level and not asserted):
                return 0
            bit = _BITS[vector]
            if level:
                self.tmr |= bit
            elif self.tmr & bit:
                self.tmr ^= bit
            self.irr |= bit
            if vector >= self.floor and not self.line:
                self.line = True
                self.side.set_intr(True)
            return 1
        if mode == DM_NMI:
            self.side.nmi()
            return 1
        if mode == DM_SMI:
            self.side.smi()
            return 1
        if mode == DM_INIT:
            if level and not asserted:
                return 0
            self.pending_events = EVENT_INIT
        elif mode == DM_STARTUP:
            self.sipi_vector = vector
            self.pending_events |= EVENT_SIPI
        else:
            return 0
        self.side.apic_event()
        return 1

    def local_deliver(self, register: int) -> int:
        """Deliver the interrupt of a local vector table entry, unless it is masked."""
        entry = self.lvt[register]
        if not self.hw_enabled or entry & LVT_MASKED:
            return 0
        return self.accept(entry >> 8 & 7, entry & 0xFF, entry & 0x8000 != 0)

    def _timer_deadline(self) -> None:
        with self.bus.lock:
            if self.timer.fire():
                self.local_deliver(APIC_LVTT)

    # What the CPU does, on the vCPU's own thread.

    def ack(self) -> int:
        """Acknowledge the highest interrupt that can be delivered: its vector, or SPURIOUS if it went away."""
        bus = self.bus
        with bus.lock:
            if self.accepts_pic and (bus.extint or self.user_vector >= 0):
                vector, ended = self._ack_extint()
                if not ended or bus.pic is None:
                    return vector
                pic = bus.pic
            else:
                return self._ack_highest()
        pic.ended(ended)
        return vector

    def _ack_extint(self) -> tuple[int, int]:
        """Give the vector at LINT0, and the pins of the PICs whose interrupt is over by that; the lock is held."""
        if self.bus.extint and self.bus.pic is not None:
            return self.bus.pic.acknowledge()
        vector, self.user_vector = self.user_vector, -1
        self.update()
        return vector, 0

    def _ack_highest(self) -> int:
        """Take the highest vector into service; the lock is held."""
        vector = self.irr.bit_length() - 1
        if vector < self.floor:
            self.update()
            return SPURIOUS
        bit = _BITS[vector]
        self.irr ^= bit
        if bit & self.auto_eoi:
            self.update()
            return vector
        self.isr |= bit
        # It was above the processor priority, so its class is that now, and nothing left in IRR is above it.
        self.ppr = vector & 0xF0
        self.floor = self.ppr + 16
        if self.line:
            self.update()
        return vector

    def eoi(self) -> None:
        """End of interrupt; the APIC is enabled."""
        bus = self.bus
        with bus.lock:
            isr = self.isr
            if not isr:
                return
            vector = isr.bit_length() - 1
            bit = _BITS[vector]
            self.isr = isr = isr ^ bit
            # As _update_ppr, where the priority can only fall and the line only rise.
            ppr = isr.bit_length() - 1 & 0xF0 if isr else 0
            if self.tpr & 0xF0 >= ppr:
                ppr = self.tpr
            self.ppr = ppr
            self.floor = (ppr & 0xF0) + 16
            if self.irr and not self.line:
                self.update()
            level = self.tmr & bit != 0
        if (level or vector in bus.eoi_vectors or bit & self.sints) and bus.on_eoi is not None:
            bus.on_eoi(self, vector, level)

    def set_tpr(self, tpr: int) -> None:
        """Set the task priority, 8 bits."""
        with self.bus.lock:
            self.tpr = tpr
            self._update_ppr()

    @property
    def cr8(self) -> int:
        """CR8: the class of the task priority."""
        return self.tpr >> 4

    def set_cr8(self, value: int) -> None:
        """The guest, or userspace, wrote CR8."""
        self.set_tpr((value & 0xF) << 4)

    def set_tsc_deadline(self, value: int) -> None:
        """Write IA32_TSC_DEADLINE; ignored in the timer's other modes."""
        with self.bus.lock:
            if self.hw_enabled and self.timer.tsc_mode:
                self.timer.start_tsc(value)

    def set_user_vector(self, vector: int) -> bool:
        """KVM_INTERRUPT with a split irqchip; False (EEXIST) if the one before has not been taken yet."""
        with self.bus.lock:
            if self.user_vector >= 0:
                return False
            self.user_vector = vector
            self.update()
            return True

    def accept_events(self) -> None:
        """Do what INIT and start-up IPIs ask for. Called whenever ``pending_events`` is not 0, and before
        KVM_GET_MP_STATE.
        """
        lapic_init.accept(self)

    # IA32_APIC_BASE.

    def set_base(self, value: int, reserved: int = 0) -> bool:
        """Write IA32_APIC_BASE; False (#GP) for reserved bits: those, x2APIC mode where CPUID has none, and
        ``reserved``, the bits beyond the guest's physical addresses.
        """
        return value == self.base_msr or write_base(self, value, reserved)

    # The register page.

    def read(self, addr: int, size: int) -> int | None:
        """A guest's read; None if the address is not this APIC's, or it is disabled and leaves it to others."""
        offset = addr - self.base
        if not 0 <= offset < APIC_MMIO_SIZE:
            return None
        if not self.hw_enabled or self.x2apic:
            return (1 << size * 8) - 1 if self.mmio_hole else None
        part = offset & 15
        if part + size > 4:
            return 0
        value = read_register(self, offset & 0xFF0)
        if self.report_tpr and offset & 0xFF0 == APIC_TPR:
            self.side.tpr_touched(False)
        return value if size == 4 else value >> part * 8 & (1 << size * 8) - 1

    def write(self, addr: int, size: int, value: int) -> bool:
        """A guest's write; False if the address is not this APIC's, or it is disabled and leaves it to others.

        A register is 32 bits and is written whole; other writes are ignored.
        """
        offset = addr - self.base
        if not 0 <= offset < APIC_MMIO_SIZE:
            return False
        if not self.hw_enabled or self.x2apic:
            return self.mmio_hole
        if offset == APIC_EOI and size == 4:
            self.eoi()
        elif size == 4 and not offset & 15:
            writer = WRITERS.get(offset)
            if writer is not None:
                writer(self, value)
        return True

    def get_state(self, wide_id: bool = False) -> bytes:
        """Give the register page, 1024 bytes."""
        return get_state(self, wide_id)

    def set_state(self, page: bytes, wide_id: bool = False) -> bool:
        """Load a register page of 1024 bytes; False for an ID that cannot be."""
        return set_state(self, page, wide_id)
