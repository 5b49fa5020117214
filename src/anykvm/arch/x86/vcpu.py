# SPDX-License-Identifier: GPL-2.0-only
"""A vCPU's x86 half: what the create ladder builds, reset, the interrupt line into the CPU, half-done instructions.

The CPU of the engine is cheap until its first use. ``load`` does that first use (registers set to their reset values,
the line as it is now), so a vCPU that is only created and destroyed never pays for it.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from anykvm.engine import Cpu
from anykvm.uapi import common
from anykvm.uapi import x86 as uapi
from anykvm.virt import preempt
from anykvm.virt.ladder import BuildStep, Ladder
from anykvm.virt.stats import VCPU_IRQ_INJECTIONS

from ..memory import connect_ring
from ..sleep import Sleep
from . import cpuid, engine, hyperv_cpuid, idle, inject, lapic_x2apic, smm, sysregs, timer, tpr
from .engine import LINE_INTR
from .hyperv_vcpu import HypervVcpu
from .vcpu_state import DEFAULT_MAXPHYADDR, VcpuState
from .xen_vcpu import XenVcpu
from .xsave import XFEATURE_FP

if TYPE_CHECKING:
    from anykvm.virt.vcpu import Vcpu

    from .engine import CpuidLeaf, CpuLike
    from .irqchip import IrqChip
    from .lapic import Lapic

PIO_PAGE_SIZE: Final = 4096
MCE_BANK_BYTES: Final = 4 * 8
APIC_BASE_KNOWN: Final = uapi.MSR_IA32_APICBASE_BSP | uapi.MSR_IA32_APICBASE_ENABLE
_APIC_MODE: Final = uapi.MSR_IA32_APICBASE_ENABLE | uapi.MSR_IA32_APICBASE_X2APIC


class X86Vcpu(VcpuState):
    """``vcpu.arch``; also what its local APIC knows of it (:class:`.lapic.VcpuSide`)."""

    __slots__ = ()

    # The create ladder.

    def build_steps(self) -> tuple[BuildStep, ...]:
        """What a running vCPU uses, in the order in which it is built; what comes later may use what came before."""
        return _STEPS

    def _build_struct(self, ladder: Ladder) -> None:
        services = self.vcpu.services
        ladder.acquire("x86 vcpu", services.charge, services.free, "x86 vcpu", 0)

    def _build_wait_queue(self, ladder: Ladder) -> None:
        services = self.vcpu.services
        self.sleep = Sleep(ladder.acquire("wait queue", services.mutex, services.free_mutex, "vcpu wait queue"))

    def _build_cpu(self, ladder: Ladder) -> None:
        self.cpu = ladder.acquire("cpu", self._make_cpu, self._free_cpu)

    def _build_lapic(self, ladder: Ladder) -> None:
        chip = self.vm.irqchip
        if chip is not None:
            self.lapic = ladder.acquire("lapic", self._make_lapic, chip.free_lapic, chip)

    def _build_words(self, ladder: Ladder) -> None:
        self.words = ladder.acquire("run page words", vcpu_words, memoryview.release, self.vcpu)

    def _build_pio_page(self, ladder: Ladder) -> None:
        # It is part of the mapping that the run page begins.
        services = self.vcpu.services
        ladder.acquire("pio page", services.charge, services.free, "pio page", PIO_PAGE_SIZE)

    def _build_mce_banks(self, ladder: Ladder) -> None:
        services = self.vcpu.services
        size = sysregs.KVM_MAX_MCE_BANKS * MCE_BANK_BYTES
        banks = ladder.acquire("mce banks", services.alloc, services.free, "mce banks", size)
        self.mce_banks = banks.view.cast("Q")

    def _build_wbinvd_mask(self, ladder: Ladder) -> None:
        # A bit for each physical CPU that ran the guest since its last WBINVD, and may have dirty lines of its memory.
        services = self.vcpu.services
        mask = ladder.acquire(
            "wbinvd mask", services.alloc, services.free, "wbinvd mask", (services.cpus.number + 7) // 8
        )
        self.wbinvd_mask = mask.view

    def _reset(self, ladder: Ladder) -> None:
        """The last step: it acquires nothing, and nothing takes it back. The registers wait for the CPU's first use."""
        ladder.push("reset", None)
        preempt.load(self.vcpu)
        in_kernel = self.vm.irqchip is not None
        runnable = not in_kernel or self.bsp
        self.mp_state = common.KVM_MP_STATE_RUNNABLE if runnable else common.KVM_MP_STATE_UNINITIALIZED
        preempt.put(self.vcpu)

    def _make_cpu(self) -> CpuLike:
        cpu: CpuLike = self.vcpu.services.obtain("cpu", "cpu", Cpu, self.vm.machine)
        return cpu

    def _free_cpu(self, cpu: CpuLike) -> None:
        self.vcpu.services.give_back("cpu", cpu)

    def _make_lapic(self, chip: IrqChip) -> Lapic:
        return chip.create_lapic(self, bsp=self.bsp)

    # The CPU.

    def load(self) -> CpuLike:
        """Give the CPU for use, made ready the first time."""
        if not self.live:
            cpu = self.cpu
            cpu.reset()
            cpu.xcr0 = XFEATURE_FP  # x87 alone, as after RESET; INIT leaves it
            connect_ring(self.vcpu, cpu)
            if self.tsc_khz:
                cpu.tsc_khz = self.tsc_khz
            timer.start_tsc(self)
            self.tell_cpuid()
            # A vCPU is reset when it is made, when it has no CPUID yet.
            cpu.gpr[engine.RDX] = inject.FAMILY_MODEL
            self.live = True
            self.filter_stale = True
            self.attention = True
            self.drive_line()
        return self.cpu

    def coherent(self) -> CpuLike:
        """Give the CPU with no instruction half done, so that registers can be written."""
        cpu = self.load()
        self.complete_io()
        return cpu

    # CPUID.

    def set_cpuid(self, leaves: tuple[CpuidLeaf, ...]) -> None:
        """KVM_SET_CPUID2; EINVAL for a change once the vCPU has run."""
        if self.has_run:
            if idle.kvm_leaves(self, leaves) != self.cpuid:
                raise OSError(errno.EINVAL, "a vCPU's CPUID is fixed once it has run")
            return
        self.cpuid = leaves = idle.kvm_leaves(self, leaves)
        self.pv_features = cpuid.find_kvm_features(leaves)
        self.hyperv_enabled = hyperv_cpuid.enabled(leaves)
        if self.hyperv_enabled or self.hyperv is not None:
            self.own_hyperv().rights.read(leaves)
        if self.lapic is not None:
            features = self.cpuid_leaf(1)
            lapic_x2apic.set_features(self.lapic, features[5] if features is not None else 0)
        sizes = self.cpuid_leaf(0x80000008)
        self.maxphyaddr = sizes[3] & 0xFF if sizes is not None and sizes[3] & 0xFF else DEFAULT_MAXPHYADDR
        if self.live:
            self.tell_cpuid()

    def own_hyperv(self) -> HypervVcpu:
        """The vCPU's part of Hyper-V's interface, made the first time."""
        own = self.hyperv
        if own is None:
            own = self.hyperv = HypervVcpu(self)
            own.rights.read(self.cpuid)
        return own

    def own_xen(self) -> XenVcpu:
        """The vCPU's part of Xen's interface, made the first time."""
        own = self.xen
        if own is None:
            own = self.xen = XenVcpu(self)
        return own

    def tell_cpuid(self) -> None:
        """Tell the engine what CPUID answers."""
        # Without one, everything reads as zero.
        self.cpu.set_cpuid(list(self.cpuid) or [(0, 0, 0, 0, 0, 0, 0)])

    def cpuid_leaf(self, function: int) -> CpuidLeaf | None:
        """A leaf of this vCPU's CPUID."""
        return cpuid.find(self.cpuid, function)

    # The local APIC, in the kernel or userspace's.

    @property
    def apic_base(self) -> int:
        """IA32_APIC_BASE."""
        return self.lapic.base_msr if self.lapic is not None else self.user_apic_base

    def check_apic_base(self, value: int, *, host: bool = True) -> None:
        """EINVAL for reserved bits, x2APIC mode where CPUID has none, and a change of mode the guest cannot make."""
        old = self.apic_base
        if value == old:
            return
        features = self.cpuid_leaf(1)
        known = APIC_BASE_KNOWN
        if features is not None and features[5] & uapi.CPUID_1_ECX_X2APIC:
            known |= uapi.MSR_IA32_APICBASE_X2APIC
        mode, old_mode = value & _APIC_MODE, old & _APIC_MODE
        wrong = value >> self.maxphyaddr or value & 0xFFF & ~known or mode == uapi.MSR_IA32_APICBASE_X2APIC
        if not host:
            # From x2APIC mode only to disabled, and into it only from xAPIC mode.
            wrong = wrong or (old_mode == _APIC_MODE and mode == uapi.MSR_IA32_APICBASE_ENABLE)
            wrong = wrong or (old_mode == 0 and mode == _APIC_MODE)
        if wrong:
            raise OSError(errno.EINVAL, f"IA32_APIC_BASE cannot be {value:#x}")

    def set_apic_base(self, value: int) -> None:
        """Write IA32_APIC_BASE, which has been checked."""
        if self.lapic is not None:
            self.lapic.set_base(value)
        else:
            self.user_apic_base = value

    @property
    def cr8(self) -> int:
        """The task priority."""
        return self.lapic.cr8 if self.lapic is not None else self.user_cr8

    def write_cr8(self, value: int) -> None:
        """Set the task priority, from userspace."""
        if self.lapic is not None:
            self.lapic.set_cr8(value)
        else:
            self.user_cr8 = value
        self.cpu.cr8 = value

    def queue_interrupt(self, vector: int | None) -> None:
        """Let the guest take this external interrupt as soon as it can; None takes it back."""
        lapic = self.lapic
        if lapic is not None:
            with lapic.bus.lock:
                self.injected_irq = vector
                self._drive()
        else:
            self.injected_irq = vector
            self._drive()

    def drive_line(self) -> None:
        """Bring the CPU's interrupt line in line with what is pending."""
        if self.lapic is not None:
            with self.lapic.bus.lock:
                self._drive()
        else:
            self._drive()

    @property
    def intr_waits(self) -> bool:
        """Whether there is an interrupt for the CPU: its local APIC's or PIC's, userspace's, or Xen's upcall."""
        return self.chip_line or self.injected_irq is not None or self.xen_line

    def _drive(self) -> None:
        if self.live:
            self.cpu.set_irq(LINE_INTR, self.intr_waits)

    def set_xen_line(self, level: bool) -> None:
        """Whether Xen's upcall waits, as the vCPU's page says."""
        if level != self.xen_line:
            self.xen_line = level
            self.drive_line()

    def kick(self) -> None:
        """Make the vCPU look at everything that is not the guest itself; from any thread."""
        self.attention = True
        if self.live:
            self.cpu.kick()
        self.sleep.wake()

    # What the local APIC tells (VcpuSide).

    def set_intr(self, level: bool) -> None:
        """The local APIC's line, from any thread with the APIC bus's lock held."""
        self.chip_line = level
        self._drive()
        if level:
            self.vcpu.stats.values[VCPU_IRQ_INJECTIONS] += 1
            if self.sleep.asleep:
                self.sleep.wake()

    def nmi(self) -> None:
        """An NMI has come, from any thread."""
        self.nmi_pending = True
        self.kick()

    def smi(self) -> None:
        """An SMI has come, from any thread."""
        smm.request(self)

    @property
    def latches_init(self) -> bool:
        """In system management mode INIT waits, and start-up IPIs are lost."""
        return self.smm.active

    @property
    def nmi_waits(self) -> bool:
        """Whether an NMI is to be handed to the engine."""
        return self.nmi_pending or self.nmi_injected

    def tpr_touched(self, write: bool) -> None:
        """The guest accessed the task priority in its APIC page, and userspace wants to know."""
        tpr.note_access(self, write)

    def apic_event(self) -> None:
        """INIT or a start-up IPI waits, from any thread."""
        self.kick()

    def set_cr8(self, cr8: int) -> None:
        """The guest wrote the task priority in its APIC page."""
        self.cpu.cr8 = cr8

    def tsc_to_ns(self, tsc: int) -> int:
        """When the guest's TSC reads this, in ns on the services' clock."""
        cpu = self.cpu
        return self.vcpu.services.now() + timer.signed(tsc - cpu.tsc) * 1_000_000 // cpu.tsc_khz

    def init(self) -> None:
        """INIT."""
        inject.init(self)

    def start(self, vector: int) -> None:
        """A start-up IPI."""
        inject.start(self, vector)

    def turned_on(self) -> None:
        """The guest enabled its local APIC."""
        if self.xen is not None:
            self.xen.missed = self.attention = True

    def sint_eoi(self, vector: int) -> None:
        """The guest ended one of Hyper-V's synthetic interrupts."""
        self.own_hyperv().synic.ended(vector)

    def ioapic_eoi(self, vector: int) -> None:
        """The guest ended an interrupt of userspace's IOAPIC."""
        self.eoi_vector = vector
        self.attention = True


_STEPS: Final = (
    BuildStep("x86 vcpu", X86Vcpu._build_struct),
    BuildStep("wait queue", X86Vcpu._build_wait_queue),
    BuildStep("lapic", X86Vcpu._build_lapic),
    BuildStep("run page words", X86Vcpu._build_words),
    BuildStep("pio page", X86Vcpu._build_pio_page),
    BuildStep("mce banks", X86Vcpu._build_mce_banks),
    BuildStep("wbinvd mask", X86Vcpu._build_wbinvd_mask),
    BuildStep("cpu", X86Vcpu._build_cpu),
    BuildStep("reset", X86Vcpu._reset),
)


def vcpu_words(vcpu: Vcpu) -> memoryview[int]:
    """The run page and what follows it as 64-bit words."""
    return vcpu.page.cast("Q")
