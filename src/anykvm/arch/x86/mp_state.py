# SPDX-License-Identifier: GPL-2.0-only
"""Whether a vCPU runs, halts, or waits for INIT and start-up (KVM_GET_MP_STATE, KVM_SET_MP_STATE; api.rst 4.38, 4.39).

Without an in-kernel local APIC a vCPU is always runnable: HLT is an exit, and nothing could start it.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from anykvm.uapi import common

from . import idle
from .lapic_init import EVENT_SIPI

if TYPE_CHECKING:
    from .vcpu import X86Vcpu

_WITH_LAPIC: Final = (
    common.KVM_MP_STATE_RUNNABLE,
    common.KVM_MP_STATE_UNINITIALIZED,
    common.KVM_MP_STATE_INIT_RECEIVED,
    common.KVM_MP_STATE_HALTED,
    common.KVM_MP_STATE_SIPI_RECEIVED,
    common.KVM_MP_STATE_AP_RESET_HOLD,
)


def get(vcpu: X86Vcpu) -> int:
    """KVM_GET_MP_STATE: INIT and start-up IPIs that wait are taken first."""
    lapic = vcpu.lapic
    if lapic is not None and lapic.pending_events:
        lapic.accept_events()
    return idle.shown_state(vcpu)


def set_(vcpu: X86Vcpu, state: int) -> None:
    """KVM_SET_MP_STATE; EINVAL for a state x86 does not have, or one that needs an in-kernel local APIC."""
    lapic = vcpu.lapic
    if state not in _WITH_LAPIC:
        raise OSError(errno.EINVAL, f"an x86 vCPU has no state {state}")
    waits = state in (common.KVM_MP_STATE_INIT_RECEIVED, common.KVM_MP_STATE_SIPI_RECEIVED)
    if waits and (vcpu.smm.active or vcpu.smm.pending):
        raise OSError(errno.EINVAL, "system management mode holds INIT off")
    if lapic is None:
        if state != common.KVM_MP_STATE_RUNNABLE:
            raise OSError(errno.EINVAL, "without an in-kernel local APIC a vCPU is always runnable")
    elif state == common.KVM_MP_STATE_SIPI_RECEIVED:
        state = common.KVM_MP_STATE_INIT_RECEIVED
        with lapic.bus.lock:
            lapic.pending_events |= EVENT_SIPI
    vcpu.mp_state = state
    vcpu.pv_unhalted = vcpu.halted_unseen = False
    vcpu.attention = True
