# SPDX-License-Identifier: GPL-2.0-only
"""KVM_GET_VCPU_EVENTS and KVM_SET_VCPU_EVENTS (api.rst 4.31, 4.32): what is on its way to the guest.

An exception from userspace is delivered as it says; with KVM_CAP_EXCEPTION_PAYLOAD
one that is pending brings along what CR2 or DR6 becomes.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from anykvm.uapi import common
from anykvm.uapi import x86 as uapi

from . import smm
from .lapic_init import EVENT_INIT

if TYPE_CHECKING:
    from .vcpu import X86Vcpu

REPORTED: Final = uapi.KVM_VCPUEVENT_VALID_NMI_PENDING | uapi.KVM_VCPUEVENT_VALID_SHADOW | uapi.KVM_VCPUEVENT_VALID_SMM
ACCEPTED: Final = (
    REPORTED
    | uapi.KVM_VCPUEVENT_VALID_SIPI_VECTOR
    | uapi.KVM_VCPUEVENT_VALID_PAYLOAD
    | uapi.KVM_VCPUEVENT_VALID_TRIPLE_FAULT
)
_SHADOWS: Final = uapi.KVM_X86_SHADOW_INT_MOV_SS | uapi.KVM_X86_SHADOW_INT_STI


def get(vcpu: X86Vcpu) -> uapi.KvmVcpuEvents:
    """``struct kvm_vcpu_events``."""
    cpu = vcpu.load()
    events = uapi.KvmVcpuEvents(flags=REPORTED)
    if vcpu.exception is not None:
        vector, error_code = vcpu.exception
        pending = vcpu.exception_payload is not None
        # Without payloads userspace cannot tell them apart: a pending one is called injected too.
        events.exception.injected = not pending or not vcpu.vm.exception_payload
        events.exception.pending = pending
        events.exception_has_payload = pending
        events.exception_payload = vcpu.exception_payload or 0
        events.exception.nr = vector
        events.exception.has_error_code = error_code is not None
        events.exception.error_code = error_code or 0
    if vcpu.injected_irq is not None:
        events.interrupt.injected = 1
        events.interrupt.nr = vcpu.injected_irq
    # The engine has one shadow for both.
    events.interrupt.shadow = uapi.KVM_X86_SHADOW_INT_STI if cpu.shadow else 0
    events.nmi.injected = vcpu.nmi_injected
    # One that waits for the guest to unmask it is in the engine's hands.
    events.nmi.pending = vcpu.nmi_pending or bool(cpu.nmi_pending)
    events.nmi.masked = bool(cpu.nmi_masked)
    events.smi.smm = vcpu.smm.active
    events.smi.pending = vcpu.smm.pending
    events.smi.smm_inside_nmi = vcpu.smm.inside_nmi
    events.smi.latched_init = vcpu.lapic is not None and bool(vcpu.lapic.pending_events & EVENT_INIT)
    if vcpu.vm.exception_payload:
        events.flags |= uapi.KVM_VCPUEVENT_VALID_PAYLOAD
    if vcpu.vm.triple_fault_event:
        events.flags |= uapi.KVM_VCPUEVENT_VALID_TRIPLE_FAULT
        events.triple_fault.pending = vcpu.triple_fault
    return events


def check(vcpu: X86Vcpu, events: uapi.KvmVcpuEvents) -> None:
    """EINVAL for unknown flags, an exception that is none, or system management mode where it latches INIT."""
    if events.flags & ~ACCEPTED:
        raise OSError(errno.EINVAL, f"kvm_vcpu_events.flags {events.flags & ~ACCEPTED:#x} are not offered here")
    for flag, enabled in (
        (uapi.KVM_VCPUEVENT_VALID_PAYLOAD, vcpu.vm.exception_payload),
        (uapi.KVM_VCPUEVENT_VALID_TRIPLE_FAULT, vcpu.vm.triple_fault_event),
    ):
        if events.flags & flag and not enabled:
            raise OSError(errno.EINVAL, f"kvm_vcpu_events.flags {flag:#x} needs its capability enabled")
    exception = events.exception
    if not events.flags & uapi.KVM_VCPUEVENT_VALID_PAYLOAD:
        exception.pending = 0
    if (exception.injected or exception.pending) and (exception.nr > 31 or exception.nr == uapi.NMI_VECTOR):
        raise OSError(errno.EINVAL, f"there is no exception {exception.nr}")
    held = events.flags & uapi.KVM_VCPUEVENT_VALID_SMM and (events.smi.smm or events.smi.pending)
    if held and vcpu.mp_state == common.KVM_MP_STATE_INIT_RECEIVED:
        raise OSError(errno.EINVAL, "a vCPU that has received INIT is not in system management mode")


def set_(vcpu: X86Vcpu, events: uapi.KvmVcpuEvents) -> None:
    """Replace what is on its way; EINVAL, and then nothing has changed."""
    check(vcpu, events)
    cpu = vcpu.load()
    exception = events.exception
    if exception.injected or exception.pending:
        vcpu.exception = (exception.nr, exception.error_code if exception.has_error_code else None)
        has_payload = exception.pending and events.exception_has_payload
        vcpu.exception_payload = events.exception_payload if has_payload else None
    else:
        vcpu.exception = vcpu.exception_payload = None
    if events.flags & uapi.KVM_VCPUEVENT_VALID_TRIPLE_FAULT:
        vcpu.triple_fault = bool(events.triple_fault.pending)
    if events.interrupt.injected:
        vcpu.queue_interrupt(events.interrupt.nr)
    else:
        vcpu.queue_interrupt(None)
    if events.flags & uapi.KVM_VCPUEVENT_VALID_SHADOW:
        cpu.shadow = bool(events.interrupt.shadow & _SHADOWS)
    if events.flags & uapi.KVM_VCPUEVENT_VALID_NMI_PENDING:
        vcpu.nmi_pending = bool(events.nmi.pending)
        cpu.nmi_pending = False
    vcpu.nmi_injected = bool(events.nmi.injected)
    cpu.nmi_masked = bool(events.nmi.masked)
    if events.flags & uapi.KVM_VCPUEVENT_VALID_SIPI_VECTOR and vcpu.lapic is not None:
        vcpu.lapic.sipi_vector = events.sipi_vector & 0xFF
    if events.flags & uapi.KVM_VCPUEVENT_VALID_SMM:
        _set_smi(vcpu, events)
    vcpu.attention = True


def _set_smi(vcpu: X86Vcpu, events: uapi.KvmVcpuEvents) -> None:
    if vcpu.smm.active != bool(events.smi.smm):
        vcpu.coherent()
        smm.set_active(vcpu, bool(events.smi.smm))
    vcpu.smm.pending = bool(events.smi.pending)
    if events.smi.smm:
        vcpu.smm.inside_nmi = bool(events.smi.smm_inside_nmi)
    if vcpu.lapic is not None:
        with vcpu.lapic.bus.lock:
            waiting = vcpu.lapic.pending_events & ~EVENT_INIT
            vcpu.lapic.pending_events = waiting | (EVENT_INIT if events.smi.latched_init else 0)
