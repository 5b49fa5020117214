# SPDX-License-Identifier: GPL-2.0-only
"""What arm64's hooks of 5.5 and 5.6 built and took back: virt/kvm/arm/arm.c."""

from __future__ import annotations

from anykvm.arch.arm64.vcpu import Arm64Vcpu

from .flow_5_5 import OldVcpu
from .flow_5_6 import NewVcpu


class Old(OldVcpu):
    """5.5."""

    arch = Arm64Vcpu
    frame = ("arm64 vcpu", "wait queue", "cpu")
    # kvm_arch_vcpu_init(): timer, then interrupt controller.
    inner = ("timers", "vgic")

    def uninit(self) -> None:
        """kvm_arch_vcpu_uninit(), which freed what SVE has."""

    def dismantle(self) -> None:
        """kvm_arch_vcpu_free(): the timers are ended here; the interrupt controller is not thought of."""
        self.built.undo(*reversed(self.rest), "timers")
        super().dismantle()

    def vm_dies(self) -> None:
        """kvm_vgic_destroy() came first, and knew the vCPUs of the array."""
        self.built.undo("vgic")
        super().vm_dies()


class New(NewVcpu):
    """5.6."""

    arch = Arm64Vcpu

    def dismantle(self) -> None:
        """kvm_arch_vcpu_destroy(): the interrupt controller is not thought of, until 2024."""
        self.built.undo(*(name for name in reversed(self.built.names) if name != "vgic"))

    def vm_dies(self) -> None:
        """kvm_vgic_destroy() came first, and knew the vCPUs of the array."""
        self.built.undo("vgic")
        super().vm_dies()
