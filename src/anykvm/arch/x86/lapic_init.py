# SPDX-License-Identifier: GPL-2.0-only
"""INIT and start-up IPIs, as a local APIC holds them until its vCPU takes them.

Source: ``kvm_apic_accept_events`` in ``arch/x86/kvm/lapic.c``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anykvm.uapi.constants import KVM_MP_STATE_INIT_RECEIVED, KVM_MP_STATE_RUNNABLE

if TYPE_CHECKING:
    from .lapic import Lapic

EVENT_INIT: Final = 1
EVENT_SIPI: Final = 2
_MSR_APICBASE_BSP: Final = 1 << 8


def accept(lapic: Lapic) -> None:
    """Do what those in ``pending_events`` ask for. Where the CPU latches INIT it goes on waiting."""
    side = lapic.side
    with lapic.bus.lock:
        if side.latches_init:
            lapic.pending_events &= ~EVENT_SIPI
            return
        events, lapic.pending_events = lapic.pending_events, 0
        vector = lapic.sipi_vector
    if events & EVENT_INIT:
        lapic.reset(init=True)
        side.init()
        side.mp_state = KVM_MP_STATE_RUNNABLE if lapic.base_msr & _MSR_APICBASE_BSP else KVM_MP_STATE_INIT_RECEIVED
    if events & EVENT_SIPI and side.mp_state == KVM_MP_STATE_INIT_RECEIVED:
        side.start(vector)
        side.mp_state = KVM_MP_STATE_RUNNABLE
