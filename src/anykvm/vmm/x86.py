# SPDX-License-Identifier: GPL-2.0-only
"""An x86 machine: a PC without PCI, with the interrupt controllers and timer that KVM has in the kernel.

Sources: ``Documentation/virt/kvm/api.rst`` (4.24 CREATE_IRQCHIP, 4.36 SET_TSS_ADDR, 4.40 SET_IDENTITY_MAP_ADDR, 4.71
CREATE_PIT2), ``Documentation/arch/x86/boot.rst``.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from anykvm.api import Kvm, Vcpu, Vm

from . import acpi, bzimage, mptable, x86_cpuid, x86_entry, x86_kernel, x86_map, x86_power
from .cmos import Cmos
from .config import MachineConfig, encode_command_line
from .errors import VmmError
from .image import Content
from .irq import IrqLine
from .memory import Region
from .platform import Board
from .ram import Ram
from .serial16550 import PORTS, Uart16550

_ADDRESS_SIZES: Final = 0x80000008  # CPUID: eax bits 7:0
_DEFAULT_ADDRESS_BITS: Final = 36


class X86:
    """The platform."""

    not_ram = x86_map.RAM_HOLE.size

    def load_kernel(self, config: MachineConfig) -> None:
        """Read what the file says of itself."""
        self._config = config
        if config.vcpus > x86_map.MAX_VCPUS:
            raise VmmError(
                f"an x86 machine has {x86_map.MAX_VCPUS} vCPUs at most, not {config.vcpus}: "
                f"use --smp {x86_map.MAX_VCPUS}"
            )
        if len(config.disks) >= x86_map.VIRTIO_SLOTS:
            raise VmmError(
                f"{len(config.disks)} disks are too many: an x86 machine has {x86_map.VIRTIO_SLOTS - 1} at most"
            )
        self._kernel = x86_kernel.open_kernel(config.kernel, config.entry)
        line = config.command_line
        if config.firmware == "mptable":
            mptable.check(config.vcpus)
            line = f"{line} {mptable.devices(len(config.disks) + 1)}"  # the other one is the entropy device
        self._command_line = encode_command_line(line)
        bzimage.check_command_line(self._kernel.command_line_size, self._command_line)

    def address_bits(self, kvm: Kvm) -> int:
        """As the CPU says it."""
        self._cpuid = kvm.get_supported_cpuid()
        sizes = [leaf.eax & 0xFF for leaf in self._cpuid if leaf.function == _ADDRESS_SIZES]
        return sizes[0] if sizes else _DEFAULT_ADDRESS_BITS

    def place(self, initrd_size: int, ram_size: int) -> None:
        """Kernel low, initrd high."""
        self._kernel.place(initrd_size, ram_size)

    def ram_parts(self, ram_size: int) -> Sequence[tuple[int, int, int]]:
        """From 0 on, around the hole below 4 GiB."""
        return x86_map.ram_parts(ram_size)

    def create_interrupt_controller(self, stack: ExitStack, kvm: Kvm, vm: Vm) -> None:
        """PICs, IOAPIC and PIT; local APICs come with the vCPUs."""
        self._tsc_deadline = x86_cpuid.has_tsc_deadline(kvm)
        vm.set_identity_map_addr(x86_map.IDENTITY_MAP)
        vm.set_tss_addr(x86_map.TSS)
        vm.create_irqchip()
        vm.create_pit2(speaker=True)

    def init_vcpus(self, vm: Vm, vcpus: list[Vcpu]) -> None:
        """CPUID and MSRs; those but the first wait for the guest to start them (INIT and SIPI)."""
        for index, vcpu in enumerate(vcpus):
            vcpu.set_cpuid2(x86_cpuid.for_vcpu(self._cpuid, index, len(vcpus), tsc_deadline=self._tsc_deadline))
            x86_entry.set_msrs(vcpu)

    def add_devices(self, board: Board) -> Uart16550:
        """UART, clock, and what powers off and resets."""
        ports = board.ports
        uart = Uart16550(IrqLine(board.vm, x86_map.UART_IRQ), board.wake)
        ports.attach(x86_map.UART_PORT, PORTS, uart)
        ports.attach(x86_map.RTC_PORT, 2, Cmos())
        ports.attach(x86_map.PM_PORT, x86_power.PM1_SIZE, x86_power.PowerManagement(board.finish), width=2)
        ports.attach(x86_map.PM_PORT + x86_power.PM_TIMER, 4, x86_power.PowerTimer(), width=4)
        ports.attach(x86_map.RESET_PORT, 1, x86_power.ResetControl(board.finish))
        ports.attach(x86_map.KEYBOARD_PORT, 1, x86_power.KeyboardController(board.finish))
        return uart

    def virtio_slot(self, index: int) -> Region:
        """The registers of the virtio transport number `index`."""
        return x86_map.virtio_slot(index)

    def virtio_irq(self, index: int) -> int:
        """Its GSI."""
        return x86_map.virtio_gsi(index)

    def load(self, ram: Ram, initrd: Content | None, virtio_slots: int) -> None:
        """Kernel, initrd, ACPI or MP tables, and the boot protocol's own."""
        config, rsdp = self._config, 0
        if config.firmware == "mptable":
            one = next((leaf for leaf in self._cpuid if leaf.function == 1), None)
            signature, features = (0, 0) if one is None else (one.eax, one.edx)
            tables = mptable.build(
                x86_map.MP_TABLES.base, config.vcpus, virtio_slots, signature=signature, features=features
            )
            ram.write(x86_map.MP_TABLES.base, tables)
        else:
            rsdp, tables = acpi.build(x86_map.ACPI_TABLES.base, config.vcpus, virtio_slots)
            ram.write(x86_map.ACPI_TABLES.base, tables)
        self._kernel.load(ram, initrd, command_line=self._command_line, rsdp=rsdp, e820=x86_map.e820(config.memory))

    def enter(self, vcpu: Vcpu) -> None:
        """At the kernel's entry point."""
        self._kernel.enter(vcpu)

    def program_counter(self, vcpu: Vcpu) -> int:
        """RIP."""
        return x86_entry.program_counter(vcpu)
