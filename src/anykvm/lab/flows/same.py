# SPDX-License-Identifier: GPL-2.0-only
"""A successful creation gives the same vCPU, whichever flow it went: what userspace can read, and a guest's run."""

from __future__ import annotations

from typing import Any, Final

from .backend import find
from .rig import rig

VCPUS: Final = 2
"""How many vCPUs the VM has; the first one runs the guest."""


def observe(item: dict[str, Any]) -> dict[str, Any]:
    """Create vCPUs by one flow of one architecture and tell all that can be seen of them: ``{"arch", "flow"}``."""
    with rig(item["arch"], find(item["flow"])) as made:
        vcpus = [made.vm.create_vcpu(number) for number in range(VCPUS)]
        seen: dict[str, Any] = {f"vCPU {vcpu.vcpu_id}: pages when new": made.page(vcpu) for vcpu in vcpus}
        for vcpu in vcpus:
            made.initialise(vcpu)
            seen |= {f"vCPU {vcpu.vcpu_id}: {name}": value for name, value in made.state(vcpu).items()}
        ran = made.run(vcpus[0])
        seen["guest: exits"] = ran["exits"]
        seen["guest: RAM"] = ran["ram"]
        for vcpu in vcpus:
            seen |= {f"vCPU {vcpu.vcpu_id} afterwards: {name}": value for name, value in made.state(vcpu).items()}
            seen[f"vCPU {vcpu.vcpu_id} afterwards: pages"] = made.page(vcpu)
    return seen


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of what two flows show differently."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
