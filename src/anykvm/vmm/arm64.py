# SPDX-License-Identifier: GPL-2.0-only
"""An arm64 machine's vCPUs and interrupt controller, and how Linux is entered on it.

Sources: ``Documentation/virt/kvm/devices/arm-vgic.rst`` and ``arm-vgic-v3.rst``, ``Documentation/virt/kvm/api.rst``
(4.82), ``Documentation/arch/arm64/booting.rst`` ("Call the kernel image").
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from anykvm.api import Device, Kvm, Vcpu, Vm
from anykvm.api.arm64 import spi
from anykvm.uapi import arm64, common

from . import fdt, image, memory
from .config import MachineConfig
from .errors import VmmError
from .irq import IrqLine
from .platform import Board
from .ram import Ram
from .serial import Pl011

_DEFAULT_ADDRESS_BITS: Final = 40  # arm64 VMs of type 0
_MPIDR_EL1: Final = arm64.sys_reg(3, 0, 0, 0, 5)
_MPIDR_AFFINITY: Final = 0xFF_00FF_FFFF
_PSTATE_EL1H_MASKED: Final = 0x3C5  # EL1 with its own stack, DAIF set
_GIC_TYPES: Final = {"v2": common.KVM_DEV_TYPE_ARM_VGIC_V2, "v3": common.KVM_DEV_TYPE_ARM_VGIC_V3}


def address_bits(kvm: Kvm) -> int:
    """How wide guest-physical addresses are in a VM of type 0."""
    limit = kvm.check_extension(common.KVM_CAP_ARM_VM_IPA_SIZE)
    return min(limit, _DEFAULT_ADDRESS_BITS) if limit else _DEFAULT_ADDRESS_BITS


def create_gic(vm: Vm, gic: str) -> Device:
    """Make the in-kernel interrupt controller; before the vCPUs."""
    try:
        return vm.create_device(_GIC_TYPES[gic])
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        other = "v2" if gic == "v3" else "v3"
        raise VmmError(f"this KVM has no GIC{gic}: use --gic {other}") from None


def finish_gic(device: Device, gic: str) -> None:
    """Give the controller its interrupts and addresses and initialise it; after the vCPUs."""
    device.set_attr(arm64.KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, memory.GIC_INTERRUPTS, size=4)
    group = arm64.KVM_DEV_ARM_VGIC_GRP_ADDR
    if gic == "v2":
        device.set_attr(group, arm64.KVM_VGIC_V2_ADDR_TYPE_DIST, memory.GIC_DISTRIBUTOR.base)
        device.set_attr(group, arm64.KVM_VGIC_V2_ADDR_TYPE_CPU, memory.GIC_V2_CPU_INTERFACE.base)
    else:
        device.set_attr(group, arm64.KVM_VGIC_V3_ADDR_TYPE_DIST, memory.GIC_DISTRIBUTOR.base)
        device.set_attr(group, arm64.KVM_VGIC_V3_ADDR_TYPE_REDIST, memory.GIC_V3_REDISTRIBUTORS.base)
    device.set_attr(arm64.KVM_DEV_ARM_VGIC_GRP_CTRL, arm64.KVM_DEV_ARM_VGIC_CTRL_INIT, None)


def init_vcpus(vm: Vm, vcpus: list[Vcpu]) -> None:
    """Reset all vCPUs; those but the first are off until the guest turns them on (PSCI CPU_ON)."""
    target = vm.preferred_target()
    for index, vcpu in enumerate(vcpus):
        features = [arm64.KVM_ARM_VCPU_PSCI_0_2]
        if index:
            features.append(arm64.KVM_ARM_VCPU_POWER_OFF)
        vcpu.init(target, features)


def mpidr(vcpu: Vcpu) -> int:
    """The affinity fields of a vCPU's MPIDR_EL1: what names it in the device tree."""
    return vcpu.get_one_reg(_MPIDR_EL1) & _MPIDR_AFFINITY


def enter_linux(vcpu: Vcpu, entry: int, device_tree: int) -> None:
    """Set the boot vCPU's registers; both arguments are guest-physical addresses."""
    vcpu.set_one_reg(arm64.REG_PSTATE, _PSTATE_EL1H_MASKED)
    vcpu.set_one_reg(arm64.REG_PC, entry)
    vcpu.set_one_reg(arm64.x_reg(0), device_tree)
    for number in (1, 2, 3):
        vcpu.set_one_reg(arm64.x_reg(number), 0)


class Arm64:
    """The platform."""

    not_ram = memory.RAM_BASE

    def load_kernel(self, config: MachineConfig) -> None:
        """Read the Image, and unpack it where it is packed."""
        self._config = config
        self._kernel = image.load_kernel(config.kernel)

    def address_bits(self, kvm: Kvm) -> int:
        """How wide guest-physical addresses are in a VM of type 0."""
        return address_bits(kvm)

    def place(self, initrd_size: int, ram_size: int) -> None:
        """Kernel, device tree, initrd: in this order."""
        self._layout = image.place(self._kernel, initrd_size, ram_size)

    def ram_parts(self, ram_size: int) -> Sequence[tuple[int, int, int]]:
        """In one piece."""
        return [(memory.RAM_BASE, 0, ram_size)]

    def create_interrupt_controller(self, stack: ExitStack, kvm: Kvm, vm: Vm) -> None:
        """The GIC."""
        self._gic = stack.enter_context(create_gic(vm, self._config.gic))

    def init_vcpus(self, vm: Vm, vcpus: list[Vcpu]) -> None:
        """Reset the vCPUs, finish the GIC."""
        init_vcpus(vm, vcpus)
        finish_gic(self._gic, self._config.gic)
        self._mpidrs = [mpidr(vcpu) for vcpu in vcpus]

    def add_devices(self, board: Board) -> Pl011:
        """The UART; all else is virtio."""
        uart = Pl011(IrqLine(board.vm, spi(32 + memory.UART_IRQ.spi)), board.wake)
        board.bus.attach(memory.UART, uart)
        return uart

    def virtio_slot(self, index: int) -> memory.Region:
        """The registers of the virtio transport number `index`."""
        return memory.virtio_slot(index)

    def virtio_irq(self, index: int) -> int:
        """Its SPI."""
        return spi(32 + memory.virtio_irq(index).spi)

    def load(self, ram: Ram, initrd: image.Content | None, virtio_slots: int) -> None:
        """Device tree, kernel, initrd."""
        layout = self._layout
        tree = fdt.build(
            fdt.MachineDescription(
                mpidrs=self._mpidrs,
                ram_size=self._config.memory,
                gic=self._config.gic,
                command_line=self._config.command_line,
                initrd=(layout.initrd, layout.initrd + initrd.size) if initrd is not None else None,
                virtio_slots=virtio_slots,
            )
        )
        ram.write(layout.device_tree, tree)
        with ram.view(layout.kernel, self._kernel.content.size) as view:
            self._kernel.content.load(view)
        if initrd is not None:
            with ram.view(layout.initrd, initrd.size) as view:
                initrd.load(view)

    def enter(self, vcpu: Vcpu) -> None:
        """With the device tree's address in x0."""
        enter_linux(vcpu, self._layout.kernel, self._layout.device_tree)

    def program_counter(self, vcpu: Vcpu) -> int:
        """The PC."""
        return vcpu.get_one_reg(arm64.REG_PC)
