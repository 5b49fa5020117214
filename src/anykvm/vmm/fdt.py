# SPDX-License-Identifier: GPL-2.0-only
"""The device tree of an arm64 machine.

Sources: the Devicetree Specification 0.4; ``Documentation/devicetree/bindings``: ``arm/cpus.yaml``, ``arm/psci.yaml``,
``interrupt-controller/arm,gic.yaml`` and ``arm,gic-v3.yaml``, ``timer/arm,arch_timer.yaml``, ``serial/pl011.yaml``,
``virtio/mmio.yaml``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import fdt  # type: ignore[import-untyped]

from . import memory
from .config import encode_command_line

_SPI: Final = 0
_PPI: Final = 1
_EDGE_RISING: Final = 1
_LEVEL_HIGH: Final = 4
_LEVEL_LOW: Final = 8

_GIC_PHANDLE: Final = 1
_CLOCK_PHANDLE: Final = 2
_CLOCK_HZ: Final = 24_000_000
_RNG_SEED_SIZE: Final = 64


@dataclass(frozen=True)
class MachineDescription:
    """What the device tree tells the guest."""

    mpidrs: Sequence[int]
    """The affinity fields of each vCPU's MPIDR_EL1, boot vCPU first."""
    ram_size: int
    """In bytes, from ``memory.RAM_BASE``."""
    gic: str
    """``"v2"`` or ``"v3"``."""
    command_line: str
    initrd: tuple[int, int] | None
    """Guest-physical start and end."""
    virtio_slots: int
    """How many virtio transports there are."""


def build(machine: MachineDescription) -> bytes:
    """The flattened tree."""
    tree: Any = fdt.FDT()
    root = tree.root
    _set(root, "compatible", "anykvm,virt", "linux,dummy-virt")
    _set(root, "model", "anykvm,virt")
    _set(root, "#address-cells", 2)
    _set(root, "#size-cells", 2)
    _set(root, "interrupt-parent", _GIC_PHANDLE)
    root.append(_chosen(machine))
    root.append(_memory(machine))
    root.append(_cpus(machine))
    root.append(_psci())
    root.append(_timer(machine))
    root.append(_gic(machine))
    root.append(_clock())
    root.append(_uart())
    for index in range(machine.virtio_slots):
        root.append(_virtio(index))
    blob: bytes = tree.to_dtb(version=17, last_comp_version=16, boot_cpuid_phys=machine.mpidrs[0] & 0xFFFFFFFF)
    return blob


def _node(name: str) -> Any:
    return fdt.Node(name)


def _set(node: Any, name: str, *values: int | str) -> None:
    """Set a property: cells, strings, or nothing (a boolean)."""
    if not values:
        node.append(fdt.Property(name))
    elif isinstance(values[0], str):
        node.append(fdt.PropStrings(name, *values))
    else:
        node.append(fdt.PropWords(name, *values))


def _cells(value: int) -> tuple[int, int]:
    return value >> 32, value & 0xFFFFFFFF


def _reg(*regions: memory.Region) -> list[int]:
    return [cell for region in regions for number in (region.base, region.size) for cell in _cells(number)]


def _chosen(machine: MachineDescription) -> Any:
    node = _node("chosen")
    # As bytes: the line may be empty, or not in ASCII.
    node.append(fdt.PropBytes("bootargs", data=encode_command_line(machine.command_line) + b"\0"))
    _set(node, "stdout-path", f"/pl011@{memory.UART.base:x}")
    if machine.initrd is not None:
        start, end = machine.initrd
        _set(node, "linux,initrd-start", *_cells(start))
        _set(node, "linux,initrd-end", *_cells(end))
    # Without it the guest's random numbers are not ready for long, and each system call reseeds. kaslr-seed is left
    # out: it makes kernels isolate their page tables on this CPU, which makes system calls three times slower.
    node.append(fdt.PropBytes("rng-seed", data=os.urandom(_RNG_SEED_SIZE)))
    return node


def _memory(machine: MachineDescription) -> Any:
    node = _node(f"memory@{memory.RAM_BASE:x}")
    _set(node, "device_type", "memory")
    _set(node, "reg", *_reg(memory.Region(memory.RAM_BASE, machine.ram_size)))
    return node


def _cpus(machine: MachineDescription) -> Any:
    node = _node("cpus")
    # Two cells as soon as one MPIDR has an Aff3.
    wide = any(mpidr >> 32 for mpidr in machine.mpidrs)
    _set(node, "#address-cells", 2 if wide else 1)
    _set(node, "#size-cells", 0)
    for mpidr in machine.mpidrs:
        cpu = _node(f"cpu@{mpidr:x}")
        _set(cpu, "device_type", "cpu")
        _set(cpu, "compatible", "arm,armv8")
        _set(cpu, "enable-method", "psci")
        _set(cpu, "reg", *(_cells(mpidr) if wide else (mpidr,)))
        node.append(cpu)
    return node


def _psci() -> Any:
    node = _node("psci")
    _set(node, "compatible", "arm,psci-1.0", "arm,psci-0.2")
    _set(node, "method", "hvc")
    return node


def _timer(machine: MachineDescription) -> Any:
    node = _node("timer")
    _set(node, "compatible", "arm,armv8-timer")
    # With a GICv2 bits 8 to 15 say which CPUs (at most eight of them).
    cpus = ((1 << min(len(machine.mpidrs), 8)) - 1) << 8 if machine.gic == "v2" else 0
    _set(node, "interrupts", *(cell for ppi in memory.TIMER_PPIS for cell in (_PPI, ppi, _LEVEL_LOW | cpus)))
    _set(node, "always-on")
    return node


def _gic(machine: MachineDescription) -> Any:
    node = _node(f"interrupt-controller@{memory.GIC_DISTRIBUTOR.base:x}")
    if machine.gic == "v2":
        _set(node, "compatible", "arm,cortex-a15-gic")
        distributor = memory.Region(memory.GIC_DISTRIBUTOR.base, 0x1000)
        _set(node, "reg", *_reg(distributor, memory.GIC_V2_CPU_INTERFACE))
    else:
        _set(node, "compatible", "arm,gic-v3")
        size = memory.GIC_V3_REDISTRIBUTOR_SIZE * len(machine.mpidrs)
        _set(node, "reg", *_reg(memory.GIC_DISTRIBUTOR, memory.Region(memory.GIC_V3_REDISTRIBUTORS.base, size)))
        _set(node, "#redistributor-regions", 1)
    _set(node, "interrupt-controller")
    _set(node, "#interrupt-cells", 3)
    _set(node, "#address-cells", 2)
    _set(node, "#size-cells", 2)
    _set(node, "phandle", _GIC_PHANDLE)
    return node


def _clock() -> Any:
    node = _node("apb-pclk")
    _set(node, "compatible", "fixed-clock")
    _set(node, "#clock-cells", 0)
    _set(node, "clock-frequency", _CLOCK_HZ)
    _set(node, "clock-output-names", "clk24mhz")
    _set(node, "phandle", _CLOCK_PHANDLE)
    return node


def _uart() -> Any:
    node = _node(f"pl011@{memory.UART.base:x}")
    _set(node, "compatible", "arm,pl011", "arm,primecell")
    _set(node, "reg", *_reg(memory.UART))
    _set(node, "interrupts", _SPI, memory.UART_IRQ.spi, _LEVEL_HIGH)
    _set(node, "clocks", _CLOCK_PHANDLE, _CLOCK_PHANDLE)
    _set(node, "clock-names", "uartclk", "apb_pclk")
    return node


def _virtio(index: int) -> Any:
    region = memory.virtio_slot(index)
    node = _node(f"virtio_mmio@{region.base:x}")
    _set(node, "compatible", "virtio,mmio")
    _set(node, "reg", *_reg(region))
    _set(node, "interrupts", _SPI, memory.virtio_irq(index).spi, _LEVEL_HIGH)
    _set(node, "dma-coherent")
    return node
