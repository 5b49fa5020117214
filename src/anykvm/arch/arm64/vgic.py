# SPDX-License-Identifier: GPL-2.0-only
"""The virtual GIC's core: which interrupt is pending where, and the state machine of acknowledge and end.

Both models use it: :mod:`.vgic_v2` and :mod:`.vgic_v3` are register frames over this. Unlike the kernel's
(``arch/arm64/kvm/vgic/vgic.c``) there are no list registers: the CPU interface works on the interrupts themselves.

Invariant: bit ``n`` of :attr:`VgicCpu.ready` is set if and only if interrupt ``n`` is enabled, pending, not active and
targets that vCPU. Whatever changes one of these calls :meth:`Vgic.refresh`; whatever changes what the CPU interface
lets through (priority mask, group enables, running priority) calls :meth:`Vgic.update`. Both with ``Vgic.lock`` held.

Source: Arm IHI 0048 (GICv2) and IHI 0069 (GICv3), the chapters on interrupt handling and prioritisation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from anykvm.uapi.common import KVM_DEV_TYPE_ARM_VGIC_V2

if TYPE_CHECKING:
    from anykvm.virt.services import Mutex

VGIC_NR_SGIS: Final = 16
VGIC_NR_PRIVATE_IRQS: Final = 32
VGIC_NR_IRQS_LEGACY: Final = 256
VGIC_MAX_RESERVED: Final = 1023
VGIC_V2_MAX_CPUS: Final = 8
VGIC_V3_MAX_CPUS: Final = 512
VGIC_PRIORITY_MASK: Final = 0xF8
"""Five bits of priority are implemented, as in most hardware the kernel runs on."""
INTID_SPURIOUS: Final = 1023
IDLE_PRIORITY: Final = 0x100
"""The running priority, one above the lowest, when no interrupt is active."""

AFFINITY_MASK: Final = 0xFFFFFF
"""Aff2, Aff1, Aff0: the affinity levels this GIC routes by."""

LINE_NONE: Final = 0
LINE_IRQ: Final = 1
LINE_FIQ: Final = 2


class VgicIrq:
    """One interrupt: a vCPU's own (SGI 0 to 15, PPI 16 to 31) or a shared one (SPI, from 32)."""

    __slots__ = (
        "active",
        "active_source",
        "bit",
        "edge",
        "enabled",
        "group",
        "intid",
        "latch",
        "level",
        "mpidr",
        "priority",
        "source",
        "target",
        "targets",
    )

    def __init__(self, intid: int, target: VgicCpu | None, group: int) -> None:
        self.intid = intid
        self.bit = 1 << intid
        self.target = target
        self.targets = 0
        self.mpidr = 0
        self.group = group
        self.enabled = intid < VGIC_NR_SGIS
        self.edge = intid < VGIC_NR_SGIS
        self.latch = False
        self.level = False
        self.active = False
        self.priority = 0
        self.source = 0
        self.active_source = 0

    @property
    def pending(self) -> bool:
        """What GICD_ISPENDR shows."""
        return self.latch or (self.level and not self.edge)


class VgicCpu:
    """One vCPU's side: private interrupts and CPU interface. ``index`` is the vcpu_idx, from the GIC's init on."""

    __slots__ = (
        "ackctl",
        "ap0r",
        "apr",
        "best",
        "bpr0",
        "bpr1",
        "cbpr",
        "eoimode",
        "group0_is_fiq",
        "grpen0",
        "grpen1",
        "index",
        "line",
        "mpidr",
        "output",
        "pmr",
        "private",
        "rd_last",
        "ready",
        "vcpu_id",
    )

    def __init__(
        self, vcpu_id: int, mpidr: int, output: Callable[[int, int], None], *, group0_is_fiq: bool = False
    ) -> None:
        self.index = -1
        self.vcpu_id = vcpu_id
        self.mpidr = mpidr
        self.private: list[VgicIrq] = []
        self.output = output
        # GICv2 lets the guest choose (GICC_CTLR.FIQEn), GICv3 does not.
        self.group0_is_fiq = group0_is_fiq
        self.ready = 0
        self.best: VgicIrq | None = None
        self.line = LINE_NONE
        self.rd_last = False
        self.reset()

    def reset(self) -> None:
        """Put the CPU interface in its reset state: nothing enabled, everything masked."""
        self.pmr = 0
        self.grpen0 = False
        self.grpen1 = False
        self.ackctl = False
        self.cbpr = False
        self.eoimode = False
        self.bpr0 = 2
        self.bpr1 = 3
        self.apr = 0
        self.ap0r = 0

    def running_priority(self) -> int:
        """The priority of the highest active interrupt, IDLE_PRIORITY if there is none."""
        apr = self.apr | self.ap0r
        return ((apr & -apr).bit_length() - 1) << 3 if apr else IDLE_PRIORITY


class Vgic:
    """A VM's interrupt controller: the distributor and all vCPUs' sides.

    ``vcpus`` is ordered by vcpu_idx. ``lock`` guards all of it; it nests inside every other lock but the one a sleeping
    vCPU waits with.
    """

    def __init__(self, model: int, group: int, lock: Mutex) -> None:
        self.model = model
        self.lock = lock
        self.default_group = group
        self.sgi_pending_writable = model != KVM_DEV_TYPE_ARM_VGIC_V2
        self.on_ack: Callable[[int], None] | None = None
        """Told, without the lock, when the guest ends a level-triggered shared interrupt."""
        self.enabled = False
        self.initialized = False
        self.nr_spis = 0
        self.spis: list[VgicIrq] = []
        self.vcpus: list[VgicCpu] = []
        self.by_affinity: dict[int, VgicCpu] = {}

    # Building.

    def init(self, cpus: list[VgicCpu]) -> None:
        """Allocate the interrupts and open for use (vgic_init); ``cpus`` is ordered by vcpu_idx. Once."""
        with self.lock:
            if not self.nr_spis:
                self.nr_spis = VGIC_NR_IRQS_LEGACY - VGIC_NR_PRIVATE_IRQS
            self.vcpus = list(cpus)
            for index, cpu in enumerate(cpus):
                cpu.index = index
                cpu.private = [VgicIrq(intid, cpu, self.default_group) for intid in range(VGIC_NR_PRIVATE_IRQS)]
                for irq in cpu.private:
                    irq.targets = 1 << index & 0xFF
                    irq.mpidr = cpu.mpidr
            self.by_affinity = {cpu.mpidr & AFFINITY_MASK: cpu for cpu in cpus}
            first = cpus[0] if cpus else None
            self.spis = [
                VgicIrq(intid, first, self.default_group)
                for intid in range(VGIC_NR_PRIVATE_IRQS, VGIC_NR_PRIVATE_IRQS + self.nr_spis)
            ]
            self.initialized = True

    def remove_vcpu(self, cpu: VgicCpu) -> None:
        """Forget a vCPU that goes away with its VM; its shared interrupts lose their target."""
        with self.lock:
            if cpu not in self.vcpus:
                return
            self.vcpus.remove(cpu)
            for irq in self.spis:
                if irq.target is cpu:
                    irq.target = None

    def irq(self, cpu: VgicCpu | None, intid: int) -> VgicIrq | None:
        """Find an interrupt by number; None for one that does not exist."""
        if intid < VGIC_NR_PRIVATE_IRQS:
            return cpu.private[intid] if cpu is not None and cpu.private else None
        index = intid - VGIC_NR_PRIVATE_IRQS
        return self.spis[index] if index < len(self.spis) else None

    # Inputs.

    def inject(self, cpu: VgicCpu | None, intid: int, level: bool) -> bool:
        """Drive an interrupt's input line (kvm_vgic_inject_irq); tell whether the interrupt exists."""
        with self.lock:
            irq = self.irq(cpu, intid)
            if irq is None:
                return False
            if irq.edge:
                if not level:
                    irq.level = False
                    return True
                irq.level = True
                irq.latch = True
            elif irq.level == level:
                return True
            else:
                irq.level = level
            self.refresh(irq)
            return True

    # The state machine; the lock is held.

    def refresh(self, irq: VgicIrq) -> None:
        """Bring the target's ready bit and output in line with an interrupt that changed."""
        cpu = irq.target
        if cpu is None:
            return
        if irq.enabled and not irq.active and (irq.latch or (irq.level and not irq.edge)):
            cpu.ready |= irq.bit
        else:
            cpu.ready &= ~irq.bit
        self.update(cpu)

    def retarget(self, irq: VgicIrq, target: VgicCpu | None) -> None:
        """Send a shared interrupt to another vCPU."""
        old = irq.target
        if old is target:
            return
        irq.target = target
        if old is not None and old.ready & irq.bit:
            old.ready &= ~irq.bit
            self.update(old)
        self.refresh(irq)

    def update(self, cpu: VgicCpu) -> None:
        """Find the interrupt to signal, if any, and drive the vCPU's lines."""
        ready = cpu.ready
        best: VgicIrq | None = None
        line = LINE_NONE
        if ready and self.enabled:
            limit = cpu.pmr
            if cpu.apr or cpu.ap0r:
                limit = min(limit, cpu.running_priority())
            private = cpu.private
            while ready:
                low = ready & -ready
                ready ^= low
                intid = low.bit_length() - 1
                irq = private[intid] if intid < VGIC_NR_PRIVATE_IRQS else self.spis[intid - VGIC_NR_PRIVATE_IRQS]
                if irq.priority < limit and (cpu.grpen1 if irq.group else cpu.grpen0):
                    best = irq
                    limit = irq.priority
            if best is not None:
                line = LINE_FIQ if cpu.group0_is_fiq and not best.group else LINE_IRQ
        cpu.best = best
        if line != cpu.line:
            old = cpu.line
            cpu.line = line
            cpu.output(old, line)

    def update_all(self) -> None:
        """Look at every vCPU again: the distributor was switched on or off."""
        for cpu in self.vcpus:
            self.update(cpu)

    def acknowledge(self, cpu: VgicCpu, irq: VgicIrq) -> int:
        """Make the signalled interrupt active; returns its number and, for a GICv2 SGI, the source in bits 12:10."""
        value = irq.intid
        latch = False
        if irq.source:
            low = irq.source & -irq.source
            irq.source ^= low
            irq.active_source = low.bit_length() - 1
            value |= irq.active_source << 10
            latch = irq.source != 0
        irq.latch = latch
        irq.active = True
        cpu.ready &= ~irq.bit
        # The group priority: what the binary point leaves of the priority decides on preemption.
        if irq.group and not cpu.cbpr:
            cpu.apr |= 1 << ((irq.priority & -1 << max(cpu.bpr1, 3)) >> 3)
        elif irq.group:
            cpu.apr |= 1 << ((irq.priority & -2 << cpu.bpr0) >> 3)
        else:
            cpu.ap0r |= 1 << ((irq.priority & -2 << cpu.bpr0) >> 3)
        self.update(cpu)
        return value

    def drop_priority(self, cpu: VgicCpu) -> None:
        """End the highest active priority (the first half of end-of-interrupt)."""
        apr, ap0r = cpu.apr, cpu.ap0r
        if not ap0r:
            cpu.apr = apr & (apr - 1) if apr else 0
        elif not apr or (ap0r & -ap0r) <= (apr & -apr):
            cpu.ap0r = ap0r & (ap0r - 1)
        else:
            cpu.apr = apr & (apr - 1)

    def deactivate(self, cpu: VgicCpu, intid: int) -> bool:
        """Make an interrupt inactive (the second half of end-of-interrupt, or GICC_DIR); unknown numbers are ignored.

        True if ``on_ack`` is to be told, once the lock has been released.
        """
        irq = self.irq(cpu, intid)
        if irq is None:
            return False
        irq.active = False
        self.refresh(irq)
        return intid >= VGIC_NR_PRIVATE_IRQS and not irq.edge

    def end(self, cpu: VgicCpu, intid: int) -> bool:
        """End of interrupt: drop the priority and, unless the two are separate, deactivate; returns as that does."""
        self.drop_priority(cpu)
        if cpu.eoimode:
            self.update(cpu)
            return False
        irq = self.irq(cpu, intid)
        if irq is None:
            self.update(cpu)
            return False
        irq.active = False
        if irq.target is not cpu:
            self.update(cpu)
        self.refresh(irq)
        return intid >= VGIC_NR_PRIVATE_IRQS and not irq.edge

    def send_sgi(self, source: VgicCpu | None, target: VgicCpu, intid: int) -> None:
        """Make an SGI pending on one vCPU; ``source`` is remembered by GICv2 only (None for GICv3)."""
        irq = target.private[intid]
        irq.latch = True
        if source is not None:
            irq.source |= 1 << source.vcpu_id
        self.refresh(irq)
