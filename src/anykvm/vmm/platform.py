# SPDX-License-Identifier: GPL-2.0-only
"""What differs between the machines of different architectures: one object for each machine that is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from anykvm.api import Kvm, Vcpu, Vm

from .bus import Bus
from .config import MachineConfig
from .image import Content
from .memory import Region
from .outcome import Outcome
from .pio import PortBus
from .ram import Ram
from .serial_port import SerialPort


@dataclass(frozen=True)
class Board:
    """What a platform's devices are connected to."""

    vm: Vm
    bus: Bus
    ports: PortBus
    wake: Callable[[], None]
    finish: Callable[[Outcome], None]


class Platform(Protocol):
    """The calls come in the order in which they are here; ``VmmError`` refuses a machine in one line."""

    not_ram: int
    """How much of the address space is no RAM, at least (bytes)."""

    def load_kernel(self, config: MachineConfig) -> None:
        """Read and check the kernel."""

    def address_bits(self, kvm: Kvm) -> int:
        """How wide guest-physical addresses are."""

    def place(self, initrd_size: int, ram_size: int) -> None:
        """Find a place for everything (sizes in bytes)."""

    def ram_parts(self, ram_size: int) -> Sequence[tuple[int, int, int]]:
        """Where the guest sees its memory: (guest-physical address, offset in the memory, bytes)."""

    def create_interrupt_controller(self, stack: ExitStack, kvm: Kvm, vm: Vm) -> None:
        """Before the vCPUs."""

    def init_vcpus(self, vm: Vm, vcpus: list[Vcpu]) -> None:
        """All vCPUs are there: reset them, and finish the interrupt controller."""

    def add_devices(self, board: Board) -> SerialPort:
        """Put the machine's own devices on the buses; returns the console."""

    def virtio_slot(self, index: int) -> Region:
        """The registers of the virtio transport number `index`."""

    def virtio_irq(self, index: int) -> int:
        """Its interrupt, as KVM_IRQ_LINE has it."""

    def load(self, ram: Ram, initrd: Content | None, virtio_slots: int) -> None:
        """Fill memory: kernel, initrd, and what describes the machine."""

    def enter(self, vcpu: Vcpu) -> None:
        """Set the boot vCPU's registers."""

    def program_counter(self, vcpu: Vcpu) -> int:
        """Where a vCPU is, for a message."""


def create(arch: str) -> Platform:
    """The platform of an architecture of ``config.ARCHITECTURES``."""
    if arch == "x86":
        from .x86 import X86  # noqa: PLC0415  (one of them is needed)

        return X86()
    from .arm64 import Arm64  # noqa: PLC0415

    return Arm64()
