# SPDX-License-Identifier: GPL-2.0-only
"""A vCPU's arm64 half: what the create ladder builds, KVM_ARM_VCPU_INIT, reset, and the lines into the CPU.

The CPU of the engine is cheap until its first use. ``load`` does that first use (registers set to their reset values,
lines as they are now), so a vCPU that is only created and destroyed never pays for it.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Any, Final

from anykvm.engine import COUNTER_HZ, Cpu, Event
from anykvm.uapi import arm64 as uapi
from anykvm.uapi import common
from anykvm.uapi.run import KvmRun
from anykvm.virt.ladder import BuildStep, Ladder
from anykvm.virt.stats import VCPU_IRQ_INJECTIONS

from ..memory import connect_ring
from . import idregs, psci, sysregs
from .inject import PSTATE_EL1H_DAIF
from .power import Power
from .timer import ArchTimer, VcpuTimers
from .vgic import LINE_FIQ, LINE_IRQ

if TYPE_CHECKING:
    from anykvm.virt.vcpu import Vcpu

    from .engine import CpuLike
    from .vgic import VgicCpu
    from .vm import Arm64Vm

FEATURES_KNOWN: Final = (1 << uapi.KVM_ARM_VCPU_HAS_EL2_E2H0 + 1) - 1
FEATURES_SUPPORTED: Final = 1 << uapi.KVM_ARM_VCPU_PSCI_0_2
POWER_OFF: Final = 1 << uapi.KVM_ARM_VCPU_POWER_OFF
TARGETS: Final = (uapi.KVM_ARM_TARGET_GENERIC_V8, uapi.KVM_ARM_TARGET_CORTEX_A57)

EXIT_DATA: Final = KvmRun.mmio.offset
_SYNC_REGS: Final = KvmRun.s.offset
_SYSTEM_EVENT: Final = struct.Struct("<II16Q")

_MID_INSTRUCTION: Final = (Event.MMIO_READ, Event.MMIO_WRITE, Event.SYSREG_READ, Event.SYSREG_WRITE)


class Arm64Vcpu:
    """``vcpu.arch``.

    ``features`` is None until KVM_ARM_VCPU_INIT. ``mmio`` is the size in bytes of a device read userspace has to answer
    (negative: a write it has to take), 0 if none is outstanding. ``attention`` makes the run loop look at everything
    that is not the guest itself: signals, power, resets, a moved counter.
    """

    def __init__(self, vcpu: Vcpu, vm: Arm64Vm) -> None:
        self.vcpu = vcpu
        self.vm = vm
        self.vcpu_id = vcpu.vcpu_id
        self.mpidr = idregs.mpidr(vcpu.vcpu_id)
        self.cpu: CpuLike
        self.timers: VcpuTimers
        self.power: Power
        self.vgic: VgicCpu | None = None
        self.vgic_ladder: Ladder
        self.features: int | None = None
        self.target = -1
        self.shadow: dict[int, int] = {}
        self.live = False
        self.ready = False
        self.attention = False
        self.mmio = 0
        self.owed: int | None = None
        """What an instruction that KVM_RUN left half done (EINTR) goes on with."""
        self.serror_pending = False
        self.cntvoff = 0
        self.user_lines = 0
        """The lines userspace drives by KVM_IRQ_LINE, LINE_IRQ and LINE_FIQ, without an in-kernel irqchip."""

    # The create ladder.

    def build_steps(self) -> tuple[BuildStep, ...]:
        """What a running vCPU uses, in the order in which it is built; what comes later may use what came before."""
        return _STEPS

    def _build_struct(self, ladder: Ladder) -> None:
        services = self.vcpu.services
        ladder.acquire("arm64 vcpu", services.charge, services.free, "arm64 vcpu", 0)

    def _build_wait_queue(self, ladder: Ladder) -> None:
        services = self.vcpu.services
        self.power = Power(ladder.acquire("wait queue", services.mutex, services.free_mutex, "vcpu wait queue"))

    def _build_cpu(self, ladder: Ladder) -> None:
        self.cpu = ladder.acquire("cpu", self._make_cpu, self._free_cpu)

    def _build_vgic(self, ladder: Ladder) -> None:
        ladder.step("vgic", self.vm.vgic_vcpu_init, self.vm.vgic_vcpu_destroy, self)

    def _make_cpu(self) -> CpuLike:
        cpu: CpuLike = self.vcpu.services.obtain("cpu", "cpu", Cpu, self.vm.machine)
        return cpu

    def _free_cpu(self, cpu: CpuLike) -> None:
        self.vcpu.services.give_back("cpu", cpu)

    def _build_timers(self, ladder: Ladder) -> None:
        services = self.vcpu.services
        lock = ladder.acquire("timer lock", services.mutex, services.free_mutex, "arch timer lock")

        def make_deadline(callback: Any) -> Any:
            return ladder.acquire("timer", services.timer, services.free_timer, "arch timer", callback)

        self.timers = VcpuTimers(
            self.cpu,
            COUNTER_HZ,
            cntvoff=self.vm.get_cntvoff,
            now=services.now,
            output=self._timer_output,
            make_deadline=make_deadline,
            lock=lock,
        )
        self.timers.vtimer.ppi, self.timers.ptimer.ppi = self.vm.timer_ppis
        ladder.push("timer stop", self.timers.stop)

    # KVM_ARM_VCPU_INIT.

    def init(self, target: int, features: tuple[int, ...]) -> None:
        """KVM_ARM_VCPU_INIT (api.rst 4.82): ENOENT for an unknown feature, EINVAL for one not offered, or a change."""
        if any(features[1:]) or features[0] & ~FEATURES_KNOWN:
            raise OSError(errno.ENOENT, "KVM_ARM_VCPU_INIT has a feature bit that means nothing")
        if target not in TARGETS:
            raise OSError(errno.EINVAL, f"target {target} is not what KVM_ARM_PREFERRED_TARGET gives")
        off = features[0] & POWER_OFF
        wanted = features[0] & ~POWER_OFF
        if wanted & ~FEATURES_SUPPORTED:
            raise OSError(errno.EINVAL, f"vCPU features {wanted & ~FEATURES_SUPPORTED:#x} are not offered here")
        self.vm.configure_features(wanted)
        if self.features is not None and (target, wanted) != (self.target, self.features):
            raise OSError(errno.EINVAL, "a vCPU keeps the target and the features it was first initialised with")
        self.target = target
        self.features = wanted
        if self.live:
            if self.cpu.parked in _MID_INSTRUCTION:
                self.cpu.abandon()
            self._reset_cpu()
        self.mmio = 0
        self.owed = None
        self.serror_pending = False
        self.timers.reset()
        self.power.reset_state = None
        if off:
            self.power.off()
        else:
            self.power.on(None)
        self.attention = True

    @property
    def psci_version(self) -> int:
        """The PSCI version this vCPU's guest sees; 0.1 without KVM_ARM_VCPU_PSCI_0_2."""
        if self.features is None or not self.features & 1 << uapi.KVM_ARM_VCPU_PSCI_0_2:
            return psci.PSCI_0_1
        return self.vm.psci_version

    # The CPU.

    def load(self) -> CpuLike:
        """Give the CPU for use, made ready the first time."""
        if not self.live:
            self._reset_cpu()
            connect_ring(self.vcpu, self.cpu)
            with self.vm.line_lock():
                self.live = True
                line = self.vgic.line if self.vgic is not None else self.user_lines
                self.cpu.set_irq(0, line & LINE_IRQ != 0)
                self.cpu.set_irq(1, line & LINE_FIQ != 0)
        return self.cpu

    def _reset_cpu(self) -> None:
        cpu = self.cpu
        cpu.reset()
        cpu.set_mpidr(self.mpidr)
        cpu.cntvoff = self.cntvoff = self.vm.cntvoff
        self.shadow.clear()
        for register in sysregs.REGISTERS:
            if register.reset is not None:
                self.set_sysreg(register.encoding, register.reset)
        cpu.pstate = PSTATE_EL1H_DAIF
        if self.live:
            line = self.vgic.line if self.vgic is not None else self.user_lines
            cpu.set_irq(0, line & LINE_IRQ != 0)
            cpu.set_irq(1, line & LINE_FIQ != 0)

    def reset_to(self, pc: int, x0: int) -> None:
        """Reset by PSCI CPU_ON: start at ``pc`` with ``x0``; the caller is this vCPU's own thread."""
        cpu = self.load()
        if cpu.parked in _MID_INSTRUCTION:
            cpu.abandon()
        self.mmio = 0
        self.owed = None
        self._reset_cpu()
        self.timers.reset()
        cpu.gpr[0] = x0
        cpu.pc = pc

    def get_sysreg(self, encoding: int) -> int:
        """A system register of the engine, or what userspace last stored in one the engine does not have."""
        try:
            return self.cpu.get_sysreg(encoding)
        except KeyError:
            return self.shadow.get(encoding, 0)

    def set_sysreg(self, encoding: int, value: int) -> None:
        """Set what :meth:`get_sysreg` gives."""
        try:
            self.cpu.set_sysreg(encoding, value)
        except KeyError:
            self.shadow[encoding] = value

    def coherent(self) -> CpuLike:
        """Give the CPU with no instruction half done, so that registers can be written."""
        cpu = self.load()
        self.complete_io()
        return cpu

    def complete_io(self) -> None:
        """Finish the instruction that is half done, if one is, and stop as soon after it as possible."""
        if not self.mmio and self.owed is None:
            return
        cpu = self.cpu
        value = self.take_reply() if self.mmio else self.owed or 0
        self.owed = None
        cpu.kick()
        kind = cpu.run(value)[0]
        # What the guest met next will be met again: it is undone here, not remembered.
        if kind in (Event.HVC, Event.SMC):
            cpu.pc -= 4
        elif kind in _MID_INSTRUCTION:
            cpu.abandon()

    def take_reply(self) -> int:
        """Userspace's answer to the outstanding device read; 0 if there is none."""
        size = self.mmio
        self.mmio = 0
        if size <= 0:
            return 0
        start = EXIT_DATA + 8
        return int.from_bytes(self.vcpu.page[start : start + size], "little")

    # Lines and wake-ups, from any thread.

    def output(self, old: int, new: int) -> None:
        """Drive the CPU's lines: the in-kernel GIC's output, or userspace's (the lines' lock is held)."""
        if self.live:
            changed = old ^ new
            if changed & LINE_IRQ:
                self.cpu.set_irq(0, new & LINE_IRQ != 0)
            if changed & LINE_FIQ:
                self.cpu.set_irq(1, new & LINE_FIQ != 0)
        if new:
            self.vcpu.stats.values[VCPU_IRQ_INJECTIONS] += 1
            if self.power.asleep:
                self.power.wake()

    def kick(self) -> None:
        """Make the vCPU look at everything that is not the guest itself."""
        self.attention = True
        if self.live:
            self.cpu.kick()
        self.power.wake()

    def interrupt_pending(self) -> bool:
        """Tell whether WFI has a reason to end."""
        return self.attention or (self.vgic.line if self.vgic is not None else self.user_lines) != 0

    def _timer_output(self, timer: ArchTimer, level: bool) -> None:
        if self.vgic is not None:
            self.vm.inject(self.vgic, timer.ppi, level)
        else:
            # Userspace owns the interrupt controller: KVM_RUN returns to show it the level.
            self.kick()

    def device_irq_level(self) -> int:
        """The timers' levels as ``run->s.regs.device_irq_level`` shows them."""
        timers = self.timers
        return timers.vtimer.level * uapi.KVM_ARM_DEV_EL1_VTIMER | timers.ptimer.level * uapi.KVM_ARM_DEV_EL1_PTIMER

    def publish_device_irq_level(self) -> bool:
        """Write the levels to the run page; True if they had changed."""
        level = self.device_irq_level()
        page = self.vcpu.page
        if level == int.from_bytes(page[_SYNC_REGS : _SYNC_REGS + 8], "little"):
            return False
        page[_SYNC_REGS : _SYNC_REGS + 8] = level.to_bytes(8, "little")
        return True

    # Exits.

    def exit_system_event(self, kind: int, flags: int) -> None:
        """Fill the run page for KVM_EXIT_SYSTEM_EVENT."""
        _SYSTEM_EVENT.pack_into(self.vcpu.page, EXIT_DATA, kind, 1, flags, *(0,) * 15)
        self.vcpu.set_exit_reason(common.KVM_EXIT_SYSTEM_EVENT)


_STEPS: Final = (
    BuildStep("arm64 vcpu", Arm64Vcpu._build_struct),
    BuildStep("wait queue", Arm64Vcpu._build_wait_queue),
    BuildStep("cpu", Arm64Vcpu._build_cpu),
    BuildStep("timers", Arm64Vcpu._build_timers),
    BuildStep("vgic", Arm64Vcpu._build_vgic),
)
