# SPDX-License-Identifier: GPL-2.0-only
"""A VM's arm64 half: guest-physical memory in the engine, identification registers, firmware state, the GIC."""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

from anykvm.engine import Arm64Cpu, Machine
from anykvm.uapi.common import KVM_DEV_TYPE_ARM_VGIC_V3

from . import idregs, irqchip, psci, smccc, sysregs, vgic_v3_cpuif
from . import sysreg_ids as ids
from .timer import PTIMER_PPI, VTIMER_PPI
from .vgic import VgicCpu

if TYPE_CHECKING:
    from anykvm.virt.vm import Vm

    from .irqchip import InKernelVgic
    from .sysregs import Reader, Writer
    from .vcpu import Arm64Vcpu

IPA_SHIFT_DEFAULT: Final = 40
IPA_SHIFT_MIN: Final = 32
IPA_SHIFT_MAX: Final = 44
"""ID_AA64MMFR0_EL1.PARange of the CPU: 44 bits (KVM_CAP_ARM_VM_IPA_SIZE)."""
U64: Final = 0xFFFFFFFFFFFFFFFF


class Arm64Vm:
    """``vm.arch``. EINVAL for a VM type that is not a size of the guest-physical address space."""

    def __init__(self, vm: Vm, vm_type: int) -> None:
        shift = vm_type & 0xFF or IPA_SHIFT_DEFAULT
        if vm_type & ~0xFF or not IPA_SHIFT_MIN <= shift <= IPA_SHIFT_MAX:
            raise OSError(
                errno.EINVAL, f"VM type {vm_type:#x} is not 0 or {IPA_SHIFT_MIN} to {IPA_SHIFT_MAX} address bits"
            )
        self.vm = vm
        self.ipa_size = 1 << shift
        traps = (*sysregs.TRAPS, *vgic_v3_cpuif.SYSREGS)
        services = vm.services
        with services.ladder("arch vm") as ladder:
            ladder.acquire("arm64 vm", services.charge, services.free, "arm64 vm", 0)
            self.machine = ladder.acquire("machine", self._make_machine, self._free_machine, traps)
            locks = [
                ladder.acquire(name, services.mutex, services.free_mutex, f"arm64 {name}")
                for name in ("config lock", "power lock", "user line lock")
            ]
        self._ladder = ladder
        self.config_lock, self.power_lock, self._user_line_lock = locks
        self.traps: dict[int, tuple[Reader | None, Writer | None]] = dict(sysregs.TRAPS)
        self.id_regs = idregs.defaults()
        self.features: int | None = None
        self.has_run = False
        self.psci_version = psci.LATEST
        self.std_bmap = smccc.STD_BMAP_SUPPORTED
        self.cntvoff = Arm64Cpu.counter()
        """CNTVCT_EL0 is zero when the VM is made."""
        self.timer_ppis = (VTIMER_PPI, PTIMER_PPI)
        self.vgic: InKernelVgic | None = None

    def close(self) -> None:
        """Free what the VM holds; every vCPU is gone."""
        if self.vgic is not None:
            self.vgic.close()
            self.vgic = None
        self._ladder.unwind()

    def _make_machine(self, traps: tuple[int, ...]) -> Machine:
        return self.vm.services.obtain("machine", "machine", lambda: Machine("arm64", traps, idregs.CONSTANTS))

    def _free_machine(self, machine: Machine) -> None:
        self.vm.services.give_back("machine", machine)

    # vCPUs.

    @property
    def vcpus(self) -> list[Arm64Vcpu]:
        """The vCPUs that are online, by vcpu_idx."""
        vm = self.vm
        return [vcpu.arch for vcpu in vm.vcpu_array[: vm.online_vcpus]]

    def vcpu_by_mpidr(self, mpidr: int) -> Arm64Vcpu | None:
        """The vCPU whose affinity this is."""
        affinity = mpidr & psci.MPIDR_HWID_BITMASK
        for vcpu in self.vcpus:
            if vcpu.mpidr & psci.MPIDR_HWID_BITMASK == affinity:
                return vcpu
        return None

    def configure_features(self, features: int) -> None:
        """All vCPUs of a VM have the features of the first one initialised; EINVAL for others."""
        with self.config_lock:
            if self.features is not None and self.features != features:
                raise OSError(errno.EINVAL, f"this VM's vCPUs have features {self.features:#x}, not {features:#x}")
            self.features = features

    def first_run(self, vcpu: Arm64Vcpu) -> None:
        """What has to be in place before a vCPU first runs; ENXIO, EINVAL, EBUSY from the GIC."""
        if self.vgic is not None:
            self.vgic.map_resources()
            if self.timer_ppis[0] == self.timer_ppis[1]:
                raise OSError(errno.EINVAL, "both timers have the same PPI")
        self.has_run = True

    # The counter.

    def get_cntvoff(self) -> int:
        """What the virtual counter lags the physical one by, in ticks."""
        return self.cntvoff

    def set_cntvoff(self, offset: int) -> None:
        """Move the virtual counter of every vCPU."""
        with self.config_lock:
            self.cntvoff = offset & U64
        for vcpu in self.vcpus:
            vcpu.timers.vtimer.update()
            vcpu.kick()

    # Identification registers.

    def read_pfr0(self) -> int:
        """ID_AA64PFR0_EL1: GICv3's system registers are there if the VM has a GICv3."""
        value = self.id_regs[ids.ID_AA64PFR0_EL1]
        if self.vgic is not None and self.vgic.model == KVM_DEV_TYPE_ARM_VGIC_V3:
            value |= 1 << idregs.PFR0_GIC_SHIFT
        return value

    def read_id(self, encoding: int) -> int:
        """What the guest reads from an identification register."""
        if encoding == ids.ID_AA64PFR0_EL1:
            return self.read_pfr0()
        return self.id_regs.get(encoding, idregs.CONSTANTS.get(encoding, 0))

    def set_id(self, encoding: int, value: int) -> None:
        """Userspace's write: EINVAL for what this CPU cannot be, EBUSY for a change after the VM has run."""
        if value == self.read_id(encoding):
            return
        if encoding == ids.ID_AA64PFR0_EL1:
            # Whether there is a GICv3 is not decided here.
            value &= ~idregs.PFR0_GIC_MASK
        if self.has_run:
            raise OSError(errno.EBUSY, "identification registers are fixed once a vCPU has run")
        if not idregs.acceptable(encoding, value):
            raise OSError(errno.EINVAL, f"identification register {encoding:#x} cannot be {value:#x}")
        self.id_regs[encoding] = value

    # The interrupt controller.

    def line_lock(self) -> AbstractContextManager[object]:
        """The lock under which the CPUs' lines change."""
        return self.vgic.vgic.lock if self.vgic is not None else self._user_line_lock

    def inject(self, cpu: VgicCpu, intid: int, level: bool) -> None:
        """Drive a private interrupt."""
        if self.vgic is not None:
            self.vgic.vgic.inject(cpu, intid, level)

    def vgic_vcpu_init(self, vcpu: Arm64Vcpu) -> None:
        """The create ladder's step: the vCPU's side of an in-kernel GIC, with its redistributor; EBUSY, EINVAL.

        A GIC may have been initialised after precreate looked and before the vCPU was counted. One that begins now sees
        the count, and refuses.
        """
        if self.vgic is not None:
            with self.config_lock:
                if self.vgic.vgic.initialized:
                    raise OSError(errno.EBUSY, "the GIC is initialised: its number of vCPUs is fixed")
            self.vgic.vcpu_init(vcpu)

    def vgic_vcpu_destroy(self, vcpu: Arm64Vcpu) -> None:
        """Undo :meth:`vgic_vcpu_init`, also for a GIC that was made after the vCPU."""
        if self.vgic is not None:
            self.vgic.vcpu_destroy(vcpu)

    def create_vgic(self, model: int) -> InKernelVgic:
        """KVM_CREATE_DEVICE or KVM_CREATE_IRQCHIP, with the VM's lock held; EEXIST, EBUSY, E2BIG."""
        if self.vgic is not None:
            raise OSError(errno.EEXIST, "the VM has an in-kernel GIC already")
        self.vgic = vgic = irqchip.create(self, model)
        if model == KVM_DEV_TYPE_ARM_VGIC_V3:
            self.traps.update(vgic_v3_cpuif.TRAPS)
        return vgic

    def user_line(self, vcpu: Arm64Vcpu, line: int, level: bool) -> None:
        """KVM_IRQ_LINE on a CPU's own lines, for a VM without an in-kernel GIC."""
        with self._user_line_lock:
            old = vcpu.user_lines
            new = old | line if level else old & ~line
            if old != new:
                vcpu.user_lines = new
                vcpu.output(old, new)


def writable_masks() -> bytes:
    """KVM_ARM_GET_REG_WRITABLE_MASKS: 192 words, by op1 (0, 1, 3), CRm and op2 of op0 3, CRn 0."""
    masks = [0] * 192
    for encoding in idregs.VM_ID_REGS:
        masks[encoding & 0x3F] = idregs.writable_mask(encoding)
    return b"".join(mask.to_bytes(8, "little") for mask in masks)


FEATURE_ID_RANGE: Final = 0
"""The one range KVM_ARM_GET_REG_WRITABLE_MASKS knows."""
