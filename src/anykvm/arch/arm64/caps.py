# SPDX-License-Identifier: GPL-2.0-only
"""KVM_CHECK_EXTENSION: what arm64 offers, besides what common code answers for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anykvm.uapi import caps

from .vm import FEATURE_ID_RANGE, IPA_SHIFT_MAX

if TYPE_CHECKING:
    from anykvm.virt.vm import Vm

OFFERED: Final = {
    caps.KVM_CAP_IRQCHIP: 1,
    caps.KVM_CAP_ONE_REG: 1,
    caps.KVM_CAP_ARM_PSCI: 1,
    caps.KVM_CAP_ARM_PSCI_0_2: 1,
    caps.KVM_CAP_MP_STATE: 1,
    caps.KVM_CAP_VCPU_EVENTS: 1,
    caps.KVM_CAP_VCPU_ATTRIBUTES: 1,
    caps.KVM_CAP_ARM_IRQ_LINE_LAYOUT_2: 1,
    caps.KVM_CAP_ARM_INJECT_EXT_DABT: 1,
    caps.KVM_CAP_ARM_SET_DEVICE_ADDR: 1,
    caps.KVM_CAP_ARM_VM_IPA_SIZE: IPA_SHIFT_MAX,
    # Which levels run->s.regs.device_irq_level shows: both timers'.
    caps.KVM_CAP_ARM_USER_IRQ: 1,
    caps.KVM_CAP_COUNTER_OFFSET: 1,
    caps.KVM_CAP_ARM_SUPPORTED_REG_MASK_RANGES: 1 << FEATURE_ID_RANGE,
}


def check_extension(cap: int, vm: Vm | None) -> int:
    """What KVM_CHECK_EXTENSION returns; 0 for everything not listed."""
    return OFFERED.get(cap, 0)
