# SPDX-License-Identifier: GPL-2.0-only
"""The in-kernel interrupt controller as the VM sees it: creation, addresses, initialisation, inputs.

The order a VM is put together in is userspace's choice: the GIC before or after the vCPUs, addresses before or after
both. What each step refuses is the kernel's (``arch/arm64/kvm/vgic/vgic-init.c``, ``vgic-kvm-device.c``).
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from anykvm.uapi import arm64 as uapi
from anykvm.uapi.common import KVM_DEV_TYPE_ARM_VGIC_V2

from . import vgic_redist, vgic_v2, vgic_v3
from .vgic import LINE_FIQ, LINE_IRQ, VGIC_NR_PRIVATE_IRQS, VGIC_V2_MAX_CPUS, VGIC_V3_MAX_CPUS, Vgic, VgicCpu

if TYPE_CHECKING:
    from anykvm.virt.vcpu import Vcpu

    from .vcpu import Arm64Vcpu
    from .vm import Arm64Vm


class DistributorIo:
    """The distributor's frame on the in-kernel bus."""

    __slots__ = ("_frame", "base", "vgic")

    def __init__(self, vgic: Vgic, base: int, v3: bool) -> None:
        self.vgic = vgic
        self.base = base
        self._frame = (vgic_v3.dist_read, vgic_v3.dist_write) if v3 else (vgic_v2.dist_read, vgic_v2.dist_write)

    def read(self, vcpu: Vcpu, addr: int, size: int) -> int:
        """A guest's read."""
        return self._frame[0](self.vgic, vcpu.arch.vgic, addr - self.base, size)

    def write(self, vcpu: Vcpu, addr: int, size: int, value: int) -> bool:
        """A guest's write."""
        self._frame[1](self.vgic, vcpu.arch.vgic, addr - self.base, size, value)
        return True


class CpuInterfaceIo:
    """GICv2's CPU interface on the in-kernel bus: each vCPU finds its own at the same address."""

    __slots__ = ("base", "vgic")

    def __init__(self, vgic: Vgic, base: int) -> None:
        self.vgic = vgic
        self.base = base

    def read(self, vcpu: Vcpu, addr: int, size: int) -> int:
        """A guest's read."""
        return vgic_v2.cpu_read(self.vgic, vcpu.arch.vgic, addr - self.base, size)

    def write(self, vcpu: Vcpu, addr: int, size: int, value: int) -> bool:
        """A guest's write."""
        vgic_v2.cpu_write(self.vgic, vcpu.arch.vgic, addr - self.base, size, value)
        return True


class InKernelVgic:
    """A VM's GIC: the state machine (``vgic``), where it is, and what is on the bus."""

    def __init__(self, arch: Arm64Vm, model: int) -> None:
        self.arch = arch
        self.model = model
        self.v3 = model != KVM_DEV_TYPE_ARM_VGIC_V2
        services = arch.vm.services
        self._ladder = services.ladder("vgic")
        with self._ladder as ladder:
            ladder.acquire("vgic", services.charge, services.free, "vgic", 0)
            lock = ladder.acquire("vgic lock", services.mutex, services.free_mutex, "vgic lock")
        self.vgic = Vgic(model, group=1 if self.v3 else 0, lock=lock)
        self.max_vcpus = VGIC_V3_MAX_CPUS if self.v3 else VGIC_V2_MAX_CPUS
        self.dist_base: int | None = None
        self.cpu_base: int | None = None
        self.redists = vgic_redist.Redistributors(self)
        self.ready = False
        self.vgic.on_ack = self._acked
        self._devices: list[DistributorIo | CpuInterfaceIo] = []

    # vCPUs.

    def vcpu_init(self, vcpu: Arm64Vcpu) -> None:
        """Give a vCPU its side of the GIC and, for GICv3, its redistributor; EINVAL if that overlaps something."""
        services = self.arch.vm.services
        with services.ladder("vgic vcpu") as ladder:
            ladder.acquire("vgic vcpu", services.charge, services.free, "vgic vcpu", 0)
            cpu = VgicCpu(vcpu.vcpu_id, vcpu.mpidr, vcpu.output, group0_is_fiq=self.v3)
            if self.v3:
                ladder.step("redistributor", self._register_redist, self._unregister_redist, cpu)
            ladder.push("vgic vcpus", self.vgic.remove_vcpu, cpu)
        vcpu.vgic = cpu
        vcpu.vgic_ladder = ladder

    def vcpu_destroy(self, vcpu: Arm64Vcpu) -> None:
        """Take a vCPU's side away."""
        if vcpu.vgic is not None:
            vcpu.vgic_ladder.unwind()
            vcpu.vgic = None

    def _register_redist(self, cpu: VgicCpu) -> None:
        with self.arch.vm.slots_lock:
            self.redists.register(cpu)

    def _unregister_redist(self, cpu: VgicCpu) -> None:
        with self.arch.vm.slots_lock:
            self.redists.unregister(cpu)

    def _acked(self, intid: int) -> None:
        self.arch.vm.irq.notify_acked(0, intid - VGIC_NR_PRIVATE_IRQS)

    # Initialisation.

    def init(self) -> None:
        """vgic_init: the number of vCPUs and interrupts is fixed from here on; EBUSY while a vCPU is being created."""
        if self.vgic.initialized:
            return
        vm = self.arch.vm
        if vm.created_vcpus != vm.online_vcpus:
            raise OSError(errno.EBUSY, "a vCPU is being created: the GIC cannot be initialised now")
        self.vgic.init([vcpu.vgic for vcpu in self.arch.vcpus if vcpu.vgic is not None])
        vm.irq.set_default_routing()
        for vcpu in self.arch.vcpus:
            # A timer may have fired before there was anyone to tell.
            for timer in (vcpu.timers.vtimer, vcpu.timers.ptimer):
                if timer.level and vcpu.vgic is not None:
                    self.vgic.inject(vcpu.vgic, timer.ppi, True)

    def lazy_init(self) -> None:
        """A GICv2 initialises itself on first use; a GICv3 must have been told to (EBUSY)."""
        if self.vgic.initialized:
            return
        if self.v3:
            raise OSError(errno.EBUSY, "the GICv3 has not been initialised (KVM_DEV_ARM_VGIC_CTRL_INIT)")
        with self.arch.config_lock:
            self.init()

    def map_resources(self) -> None:
        """Put the frames on the bus, before the first vCPU runs: ENXIO without addresses, EINVAL if they overlap."""
        if self.ready:
            return
        with self.arch.vm.slots_lock, self.arch.config_lock:
            if self.ready:
                return
            if self.dist_base is None or (not self.v3 and self.cpu_base is None):
                raise OSError(errno.ENXIO, "the GIC's addresses have not been set")
            if self.v3:
                self.redists.check_complete()
                if not self.vgic.initialized:
                    raise OSError(errno.EBUSY, "the GICv3 has not been initialised (KVM_DEV_ARM_VGIC_CTRL_INIT)")
            self._check_overlap()
            self.init()
            self._register()
            self.ready = True

    def _check_overlap(self) -> None:
        dist = self.dist_base or 0
        if self.v3:
            if self.redists.overlaps(dist, uapi.KVM_VGIC_V3_DIST_SIZE):
                raise OSError(errno.EINVAL, "the GIC's distributor and redistributors overlap")
        else:
            cpu = self.cpu_base or 0
            if dist < cpu + uapi.KVM_VGIC_V2_CPU_SIZE and cpu < dist + uapi.KVM_VGIC_V2_DIST_SIZE:
                raise OSError(errno.EINVAL, "the GIC's distributor and CPU interface overlap")

    def _register(self) -> None:
        bus = self.arch.vm.mmio_bus
        dist_size = uapi.KVM_VGIC_V3_DIST_SIZE if self.v3 else uapi.KVM_VGIC_V2_DIST_SIZE
        dist = DistributorIo(self.vgic, self.dist_base or 0, self.v3)
        bus.register(dist.base, dist_size, dist)
        self._devices.append(dist)
        if not self.v3:
            cpu = CpuInterfaceIo(self.vgic, self.cpu_base or 0)
            bus.register(cpu.base, uapi.KVM_VGIC_V2_CPU_SIZE, cpu)
            self._devices.append(cpu)

    def close(self) -> None:
        """Take the frames off the bus, and free the rest; every vCPU is gone, or the GIC was never used."""
        for device in self._devices:
            self.arch.vm.mmio_bus.unregister(device)
        self._devices.clear()
        self._ladder.unwind()

    def check_range(self, addr: int, alignment: int, size: int) -> None:
        """Where a frame may be: EINVAL unaligned, E2BIG beyond the guest's address space."""
        if addr % alignment or size % alignment or addr + size > 1 << 64:
            raise OSError(errno.EINVAL, f"address {addr:#x} is not aligned to {alignment:#x}")
        if addr + size > self.arch.ipa_size:
            raise OSError(errno.E2BIG, f"address {addr:#x} is beyond the guest's {self.arch.ipa_size:#x}")


def create(arch: Arm64Vm, model: int) -> InKernelVgic:
    """kvm_vgic_create, with the VM's lock held: EBUSY once a vCPU has run, E2BIG for too many."""
    vm = arch.vm
    if vm.created_vcpus != vm.online_vcpus:
        raise OSError(errno.EBUSY, "a vCPU is being created: no GIC can be made now")
    if any(vcpu.ready for vcpu in arch.vcpus):
        raise OSError(errno.EBUSY, "a vCPU has run: it is too late for an in-kernel GIC")
    most = VGIC_V2_MAX_CPUS if model == KVM_DEV_TYPE_ARM_VGIC_V2 else VGIC_V3_MAX_CPUS
    if vm.online_vcpus > most:
        raise OSError(errno.E2BIG, f"this GIC has at most {most} vCPUs")
    with vm.services.ladder("vgic creation") as ladder:
        vgic = ladder.acquire("vgic", InKernelVgic, InKernelVgic.close, arch, model)
        for vcpu in arch.vcpus:
            ladder.step(f"vgic vcpu {vcpu.vcpu_id}", vgic.vcpu_init, vgic.vcpu_destroy, vcpu)
    vm.max_vcpus = most
    return vgic


# KVM_IRQ_LINE and the routing's inputs.

_LINES: Final = {uapi.KVM_ARM_IRQ_CPU_IRQ: LINE_IRQ, uapi.KVM_ARM_IRQ_CPU_FIQ: LINE_FIQ}


def irq_line(arch: Arm64Vm, irq: int, level: int) -> int:
    """KVM_IRQ_LINE (api.rst 4.25): EINVAL for a line that does not exist, ENXIO for one of the wrong kind of VM."""
    kind = irq >> uapi.KVM_ARM_IRQ_TYPE_SHIFT & uapi.KVM_ARM_IRQ_TYPE_MASK
    number = irq & uapi.KVM_ARM_IRQ_NUM_MASK
    index = irq >> uapi.KVM_ARM_IRQ_VCPU_SHIFT & uapi.KVM_ARM_IRQ_VCPU_MASK
    index += (irq >> uapi.KVM_ARM_IRQ_VCPU2_SHIFT & uapi.KVM_ARM_IRQ_VCPU2_MASK) * (uapi.KVM_ARM_IRQ_VCPU_MASK + 1)
    if kind == uapi.KVM_ARM_IRQ_TYPE_CPU:
        if arch.vgic is not None:
            raise OSError(errno.ENXIO, "the in-kernel GIC drives the CPUs' lines")
        if number not in _LINES:
            raise OSError(errno.EINVAL, f"a CPU has lines 0 (IRQ) and 1 (FIQ), not {number}")
        arch.user_line(_vcpu(arch, index), _LINES[number], level != 0)
        return 0
    if kind not in (uapi.KVM_ARM_IRQ_TYPE_PPI, uapi.KVM_ARM_IRQ_TYPE_SPI):
        raise OSError(errno.EINVAL, f"interrupt type {kind} means nothing")
    if arch.vgic is None:
        raise OSError(errno.ENXIO, "the VM has no in-kernel GIC")
    if kind == uapi.KVM_ARM_IRQ_TYPE_PPI:
        vcpu = _vcpu(arch, index)
        if not 16 <= number < VGIC_NR_PRIVATE_IRQS:
            raise OSError(errno.EINVAL, f"PPIs are 16 to 31, not {number}")
        return _inject(arch.vgic, vcpu.vgic, number, level)
    if number < VGIC_NR_PRIVATE_IRQS:
        raise OSError(errno.EINVAL, f"SPIs begin at 32, not {number}")
    return _inject(arch.vgic, None, number, level)


def _vcpu(arch: Arm64Vm, index: int) -> Arm64Vcpu:
    vcpus = arch.vcpus
    if index >= len(vcpus):
        raise OSError(errno.EINVAL, f"the VM has no vCPU {index}")
    return vcpus[index]


def _inject(vgic: InKernelVgic, cpu: VgicCpu | None, intid: int, level: int) -> int:
    vgic.lazy_init()
    if not vgic.vgic.inject(cpu, intid, level != 0):
        raise OSError(errno.EINVAL, f"the GIC has no interrupt {intid}")
    return 0


def set_pin(arch: Arm64Vm, pin: int, level: int) -> int:
    """Drive the input a routing entry names: pin n is SPI 32 + n."""
    vgic = arch.vgic
    if vgic is None or pin + VGIC_NR_PRIVATE_IRQS >= VGIC_NR_PRIVATE_IRQS + (vgic.vgic.nr_spis or 0):
        raise OSError(errno.EINVAL, f"the GIC has no input pin {pin}")
    _inject(vgic, None, pin + VGIC_NR_PRIVATE_IRQS, level)
    return 1
