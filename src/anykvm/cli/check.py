# SPDX-License-Identifier: GPL-2.0-only
"""``anykvm check``."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Final

import click

from anykvm.api import BackendUnavailable, Kvm, UnsupportedArchitecture, Vm, architectures
from anykvm.uapi import common

from . import messages, options

_CAPABILITIES: Final = {
    "max vCPUs": common.KVM_CAP_MAX_VCPUS,
    "vCPU ids": common.KVM_CAP_MAX_VCPU_ID,
    "memory slots": common.KVM_CAP_NR_MEMSLOTS,
    "address bits": common.KVM_CAP_ARM_VM_IPA_SIZE,
    "irqfd": common.KVM_CAP_IRQFD,
    "ioeventfd": common.KVM_CAP_IOEVENTFD,
    "binary stats": common.KVM_CAP_BINARY_STATS_FD,
}
_DEVICES: Final = {
    "GICv2": common.KVM_DEV_TYPE_ARM_VGIC_V2,
    "GICv3": common.KVM_DEV_TYPE_ARM_VGIC_V3,
    "ITS": common.KVM_DEV_TYPE_ARM_VGIC_ITS,
}


@dataclass
class Offer:
    """What one backend offers for one architecture."""

    backend: str
    arch: str
    usable: bool
    reason: str = ""
    """Why it is not usable."""
    capabilities: dict[str, int] = field(default_factory=dict)
    devices: list[str] = field(default_factory=list)
    note: str = ""
    """What to know before using it."""


@click.command()
@options.common
def check(as_json: bool) -> int:
    """Show what this machine offers: backends, architectures, capabilities, and why not.

    The exit status is 1 if no backend is usable.
    """
    offers = [_software(arch) for arch in architectures()]
    offers.append(_host())
    if as_json:
        click.echo(json.dumps([asdict(offer) for offer in offers], indent=1))
    else:
        for offer in offers:
            click.echo(_describe(offer))
    return 0 if any(offer.usable for offer in offers) else 1


def _software(arch: str) -> Offer:
    return _probe("software", arch)


def _host() -> Offer:
    # What the machine is; the typed API opens the device.
    from anykvm.host import EMULATES, host_arch, virtualises  # noqa: PLC0415

    offer = _probe("host", host_arch())
    if offer.usable and not virtualises():
        offer.note = f"{EMULATES}; auto means software"
    return offer


def _probe(backend: str, arch: str) -> Offer:
    try:
        with Kvm(backend, arch=arch) as kvm:
            offer = Offer(backend, arch, usable=True)
            with kvm.create_vm() as vm:
                offer.capabilities = {name: vm.check_extension(cap) for name, cap in _CAPABILITIES.items()}
                if arch == "arm64":
                    offer.devices = [name for name, kind in _DEVICES.items() if _has(vm, kind)]
            return offer
    except (BackendUnavailable, UnsupportedArchitecture) as error:
        messages.trace(error)
        return Offer(backend, arch, usable=False, reason=str(error))
    except OSError as error:
        messages.trace(error)
        return Offer(backend, arch, usable=False, reason=error.strerror or str(error))


def _has(vm: Vm, kind: int) -> bool:
    try:
        vm.create_device(kind, test=True)
    except OSError:
        return False
    return True


def _describe(offer: Offer) -> str:
    head = f"{offer.backend:9} {offer.arch:8} "
    if not offer.usable:
        return f"{head}no: {offer.reason}"
    capabilities = ", ".join(f"{name} {value}" for name, value in offer.capabilities.items() if value)
    devices = f"; {', '.join(offer.devices)}" if offer.devices else ""
    note = f"; {offer.note}" if offer.note else ""
    return f"{head}yes: {capabilities}{devices}{note}"
