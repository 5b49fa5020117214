# SPDX-License-Identifier: GPL-2.0-only
"""What a machine is to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .errors import VmmError
from .memory import MIB, VIRTIO_SLOTS

ARCHITECTURES: Final = ("arm64", "x86")
"""Those this VMM has a machine for."""
GICS: Final = ("v2", "v3")
ENTRIES: Final = ("auto", "linux", "pvh")
FIRMWARES: Final = ("acpi", "mptable")
GIC_V2_MAX_VCPUS: Final = 8  # GICD_ITARGETSRn has one bit per CPU interface, in a byte
COMMAND_LINE_SIZE: Final = 2048  # arch/arm64/include/uapi/asm/setup.h, with the final zero byte
MAX_DISKS: Final = VIRTIO_SLOTS - 1


@dataclass(frozen=True)
class DiskConfig:
    """A raw disk image."""

    path: Path
    read_only: bool = False


@dataclass(frozen=True)
class MachineConfig:
    """A machine, as asked for; sizes in bytes."""

    kernel: Path
    initrd: Path | None = None
    command_line: str = ""
    vcpus: int = 1
    memory: int = 512 * MIB
    disks: Sequence[DiskConfig] = field(default_factory=tuple)
    gic: str = "v3"
    arch: str = "arm64"
    backend: str = "auto"
    entry: str = "auto"
    """x86: how the kernel is entered. ``auto`` is ``pvh`` for an ELF kernel that has such an entry, else ``linux``."""
    firmware: str = "acpi"
    """x86: what tells the kernel of the machine."""


def encode_command_line(line: str) -> bytes:
    """The bytes that a kernel is given: UTF-8, and as they were where a person gave bytes that are not."""
    return line.encode("utf-8", "surrogateescape")


def check_config(config: MachineConfig) -> None:
    """Refuse with one line what can be seen to be impossible before anything is made."""
    if config.gic not in GICS:
        raise VmmError(f"no interrupt controller {config.gic!r}: choose --gic v2 or v3")
    if config.entry not in ENTRIES:
        raise VmmError(f"no kernel entry {config.entry!r}: choose --entry {', '.join(ENTRIES)}")
    if config.firmware not in FIRMWARES:
        raise VmmError(f"no firmware {config.firmware!r}: choose --firmware {' or '.join(FIRMWARES)}")
    if config.vcpus < 1:
        raise VmmError(f"a machine with {config.vcpus} vCPUs cannot run: give at least --smp 1")
    if config.gic == "v2" and config.vcpus > GIC_V2_MAX_VCPUS:
        raise VmmError(
            f"a GICv2 has {GIC_V2_MAX_VCPUS} CPUs at most, not {config.vcpus}: "
            f"use --gic v3, or --smp {GIC_V2_MAX_VCPUS}"
        )
    if len(config.disks) > MAX_DISKS:
        raise VmmError(f"{len(config.disks)} disks are too many: a machine has {MAX_DISKS} at most")
    try:
        line = encode_command_line(config.command_line)
    except UnicodeEncodeError:
        raise VmmError("the kernel command line has characters that are none: check --append") from None
    if len(line) >= COMMAND_LINE_SIZE:
        raise VmmError(
            f"the kernel command line is {len(line)} bytes, and a kernel takes {COMMAND_LINE_SIZE - 1}: "
            "shorten --append"
        )
    if b"\0" in line:
        raise VmmError("the kernel command line has a zero byte in it: check --append")
