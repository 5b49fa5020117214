# SPDX-License-Identifier: GPL-2.0-only
"""arm64 as common code sees it."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from anykvm.uapi import common
from anykvm.virt.memory import SlotChange

from ..memory import EngineMemory
from . import caps, run, vcpu_ioctl, vm_ioctl
from . import irqchip as chip_inputs
from .vcpu import Arm64Vcpu
from .vgic import VGIC_MAX_RESERVED, VGIC_NR_PRIVATE_IRQS, VGIC_V3_MAX_CPUS
from .vgic_device import VgicV2Device, VgicV3Device
from .vm import Arm64Vm

if TYPE_CHECKING:
    from anykvm.virt.device import DeviceOps
    from anykvm.virt.memory import MemorySlot
    from anykvm.virt.vcpu import Vcpu
    from anykvm.virt.vm import Vm


class Arm64Hooks(EngineMemory):
    """The contract, for arm64."""

    name = "arm64"
    max_vcpus = VGIC_V3_MAX_CPUS
    max_vcpu_ids = VGIC_V3_MAX_CPUS
    irqchip_pins = (VGIC_MAX_RESERVED + 1 - VGIC_NR_PRIVATE_IRQS,)
    vcpu_stats = ("sysreg_exit_stat",)

    # The system fd.

    def check_extension(self, cap: int, vm: Vm | None) -> int:
        """KVM_CHECK_EXTENSION."""
        return caps.check_extension(cap, vm)

    def dev_ioctl(self, request: int, arg: int) -> int:
        """arm64 has no ioctl of its own on the system fd."""
        raise OSError(errno.EINVAL, f"request {request:#x} is not one of the system fd")

    # A VM.

    def vm_init(self, vm: Vm, vm_type: int) -> None:
        """Make ``vm.arch``; EINVAL."""
        vm.arch = Arm64Vm(vm, vm_type)

    def vm_destroy(self, vm: Vm) -> None:
        """Free ``vm.arch``."""
        vm.arch.close()

    def vm_ioctl(self, vm: Vm, request: int, arg: int) -> int:
        """arm64's ioctls on a VM fd; ENOTTY."""
        serve = vm_ioctl.IOCTLS.get(request)
        if serve is None:
            raise OSError(errno.ENOTTY, f"request {request:#x} is not one of a VM fd")
        return serve(vm, arg)

    def vm_enable_cap(self, vm: Vm, cap: int, flags: int, args: tuple[int, int, int, int]) -> int:
        """arm64 has nothing to enable."""
        raise OSError(errno.EINVAL, f"capability {cap} cannot be enabled")

    # Memory.

    def prepare_memory_region(self, vm: Vm, old: MemorySlot | None, new: MemorySlot | None, change: SlotChange) -> None:
        """EFAULT for a slot beyond the guest's address space."""
        if new is not None and new.gpa + new.size > vm.arch.ipa_size:
            raise OSError(errno.EFAULT, f"the slot ends beyond the guest's address space of {vm.arch.ipa_size:#x}")

    # Interrupts.

    def irqchip_in_kernel(self, vm: Vm) -> bool:
        """Whether there is a GIC."""
        return vm.arch.vgic is not None

    def intc_initialized(self, vm: Vm) -> bool:
        """Whether the GIC can take interrupts."""
        chip = vm.arch.vgic
        return chip is not None and chip.vgic.initialized

    def irq_line(self, vm: Vm, irq: int, level: int) -> int:
        """KVM_IRQ_LINE."""
        return chip_inputs.irq_line(vm.arch, irq, level)

    def set_irq(self, vm: Vm, irqchip: int, pin: int, level: int, source: int) -> int:
        """Drive an SPI."""
        return chip_inputs.set_pin(vm.arch, pin, level)

    def set_msi(self, vm: Vm, address: int, data: int, devid: int | None) -> int:
        """There is no ITS: no message is an interrupt; ENODEV, as in the kernel."""
        raise OSError(errno.ENODEV, "the VM has no ITS: there are no message-signalled interrupts")

    def default_routing(self, vm: Vm) -> list[tuple[int, int, int]]:
        """GSI n is SPI 32 + n."""
        chip = vm.arch.vgic
        return [(pin, 0, pin) for pin in range(chip.vgic.nr_spis)] if chip is not None else []

    def device_types(self) -> dict[int, type[DeviceOps]]:
        """The GICs."""
        return {
            common.KVM_DEV_TYPE_ARM_VGIC_V2: VgicV2Device,
            common.KVM_DEV_TYPE_ARM_VGIC_V3: VgicV3Device,
        }

    # A vCPU: the four that make and unmake it.

    def vcpu_precreate(self, vm: Vm, vcpu_id: int) -> None:
        """EBUSY once the GIC is initialised, EINVAL for an id its model does not have."""
        chip = vm.arch.vgic
        if chip is not None and chip.vgic.initialized:
            raise OSError(errno.EBUSY, "the GIC is initialised: its number of vCPUs is fixed")
        if vcpu_id >= vm.max_vcpus:
            raise OSError(errno.EINVAL, f"vcpu_id {vcpu_id} is too large: this VM has ids below {vm.max_vcpus}")

    def vcpu_create(self, vcpu: Vcpu) -> None:
        """Build ``vcpu.arch``; the target is unknown until KVM_ARM_VCPU_INIT."""
        vcpu.arch = arch = Arm64Vcpu(vcpu, vcpu.vm.arch)
        with vcpu.arch_ladder as ladder:
            for step in arch.build_steps():
                step.build(arch, ladder)

    def vcpu_postcreate(self, vcpu: Vcpu) -> None:
        """Nothing."""

    def vcpu_destroy(self, vcpu: Vcpu) -> None:
        """The ladder, backwards."""
        vcpu.arch_ladder.unwind()

    # A vCPU that exists.

    def vcpu_ioctl(self, vcpu: Vcpu, request: int, arg: int) -> int:
        """arm64's ioctls on a vCPU fd; EINVAL."""
        serve = vcpu_ioctl.IOCTLS.get(request)
        if serve is None:
            raise OSError(errno.EINVAL, f"request {request:#x} is not one of a vCPU fd")
        return serve(vcpu.arch, arg)

    # Not wrapped in a method: it is on the way of every exit.
    vcpu_run = staticmethod(run.vcpu_run)

    def vcpu_complete_io(self, vcpu: Vcpu) -> None:
        """Finish the instruction userspace was asked about."""
        vcpu.arch.complete_io()

    def vcpu_kick(self, vcpu: Vcpu) -> None:
        """Make the vCPU look up."""
        vcpu.arch.kick()
