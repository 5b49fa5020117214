# SPDX-License-Identifier: GPL-2.0-only
"""What x86's hooks of 5.5 and 5.6 built and took back: arch/x86/kvm/x86.c, with the vendor's part of it."""

from __future__ import annotations

from anykvm.arch.x86.vcpu import X86Vcpu

from .flow_5_5 import OldVcpu
from .flow_5_6 import NewVcpu


class Old(OldVcpu):
    """5.5."""

    arch = X86Vcpu
    frame = ("x86 vcpu", "wait queue")
    # kvm_arch_vcpu_init(); the run page's words stand for the mapping that init found in place.
    inner = ("run page words", "lapic", "pio page", "mce banks", "wbinvd mask")
    # vcpu_load, reset, vcpu_put: what setup was for, as the preempt notifier is only there by then.
    late = ("reset",)

    def uninit(self) -> None:
        """kvm_arch_vcpu_uninit()."""
        self.built.undo("mce banks", "lapic", "pio page", "run page words")

    def free(self) -> None:
        """kvm_arch_vcpu_free(), which kept the mask's pointer while the vCPU went."""
        super().free()
        self.built.undo("wbinvd mask")


class New(NewVcpu):
    """5.6."""

    arch = X86Vcpu
