# SPDX-License-Identifier: GPL-2.0-only
"""What Debian calls things, per guest architecture. One is listed once a pull of it was tested."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import GuestError


@dataclass(frozen=True)
class Machine:
    """The Debian side of one guest architecture; everything in this package that differs between them is here."""

    arch: str
    """anykvm's name of the architecture."""
    debian: str
    """Debian's name of it (``dpkg --print-architecture``)."""
    kernel: str
    """The metapackage that depends on the newest kernel."""
    magic: tuple[tuple[int, bytes], ...]
    """(offset, bytes) pairs, any of which marks a kernel file of this architecture."""
    triplet: str
    """The GNU triplet: library folders and names of the binary utilities."""
    binutils: str
    """The package with the assembler for it."""
    console: str
    """The console device of the usual virtual machine of this architecture."""
    modules: tuple[str, ...]
    """Kernel modules in every image; the guest loads those whose device it finds."""


_GZIP = (0, b"\x1f\x8b")
_ZBOOT = (4, b"zimg")  # drivers/firmware/efi/libstub/zboot-header.S

MACHINES: dict[str, Machine] = {
    machine.arch: machine
    for machine in (
        Machine(
            arch="arm64",
            debian="arm64",
            kernel="linux-image-cloud-arm64",
            magic=((56, b"ARM\x64"), _GZIP, _ZBOOT),  # Documentation/arch/arm64/booting.rst, section 4
            triplet="aarch64-linux-gnu",
            binutils="binutils-aarch64-linux-gnu",
            console="ttyAMA0",
            modules=("virtio_mmio", "virtio_blk", "virtio_rng"),
        ),
        Machine(
            arch="amd64",
            debian="amd64",
            kernel="linux-image-cloud-amd64",
            magic=((0x202, b"HdrS"),),  # Documentation/arch/x86/boot.rst, "The real-mode kernel header"
            triplet="x86_64-linux-gnu",
            binutils="binutils-x86-64-linux-gnu",
            console="ttyS0",
            modules=("virtio_mmio", "virtio_pci", "virtio_blk", "virtio_rng"),
        ),
    )
}


def machine(arch: str) -> Machine:
    """The data of `arch`; ``GuestError`` names those there are."""
    try:
        return MACHINES[arch]
    except KeyError:
        raise GuestError(f"no Debian guest for {arch!r}: choose one of {', '.join(sorted(MACHINES))}") from None
