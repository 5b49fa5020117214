# SPDX-License-Identifier: GPL-2.0-only
"""Hyper-V's interface, for guests that know it better than KVM's: what the whole VM has of it.

That is the hypercall page, the clocks, crash reports, reset, and the registers of a debugger's transport. A vCPU's own
part is :mod:`.hyperv_vcpu`, hypercalls are :mod:`.hyperv_calls`. What a guest sees is what its CPUID has
(:mod:`.hyperv_cpuid`); the MSRs are there for a guest whose CPUID has Hyper-V's interface, and for userspace always.

Source: the Top Level Functional Specification 6.0b; ``arch/x86/kvm/hyperv.c``.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from anykvm.uapi import common
from anykvm.uapi import x86 as uapi

from . import cpuid, timer

if TYPE_CHECKING:
    from collections.abc import Callable

    from anykvm.virt.services import EventFd
    from anykvm.virt.vm import Vm

    from .vcpu import X86Vcpu

    Msr = tuple[Callable[[X86Vcpu], int], Callable[[X86Vcpu, int, bool], None]]

_ENABLE: Final = uapi.HV_X64_MSR_ENABLE
_U64: Final = 0xFFFFFFFFFFFFFFFF
_APIC_HZ: Final = 1_000_000_000
TICK_NS: Final = 100
"""All of Hyper-V's clocks count in 100 ns."""
_PAGE: Final = struct.Struct("<IIQq")
"""The reference page: sequence, reserved, scale, offset."""


class HyperV:
    """What is the whole VM's; ``scale`` and ``offset`` make its time of the TSC once the guest has a reference page."""

    __slots__ = (
        "_seq",
        "crash_ctl",
        "crash_params",
        "emulation_control",
        "emulation_status",
        "eventfds",
        "guest_os_id",
        "hypercall",
        "offset",
        "reenlightenment",
        "reference",
        "scale",
        "syndbg",
    )

    def __init__(self) -> None:
        self.guest_os_id = 0
        self.hypercall = 0
        self.reference = 0
        self.reenlightenment = 0
        self.emulation_control = 0
        self.emulation_status = 0
        self.scale = 0
        self.offset = 0
        self._seq = 0
        self.crash_ctl = 0
        self.crash_params = [0] * uapi.HV_CRASH_PARAMETERS
        self.syndbg: dict[int, int] = {}
        """By MSR, what the debugger's transport is told."""
        self.eventfds: dict[int, EventFd] = {}
        """By connection, what HVCALL_SIGNAL_EVENT signals."""

    def update_page(self, vcpu: X86Vcpu, *, asked: bool = False) -> None:
        """Write the reference page anew, if there is one: the clock or the TSC moved, or the guest ``asked`` for it.

        A guest that has said that it will be told of a changed TSC keeps its page until then. Memory that is not there
        is ignored.
        """
        if not self.reference & _ENABLE or (self.emulation_control and not asked):
            return
        # Two vCPUs at once would leave the sequence of one with the offset of the other.
        with vcpu.vm.config_lock:
            self._write_page(vcpu)

    def _write_page(self, vcpu: X86Vcpu) -> None:
        vm = vcpu.vm
        tsc = timer.read_tsc(vcpu)
        scale = (10_000 << 64) // vcpu.cpu.tsc_khz
        address = self.reference & ~0xFFF
        # Sequence 0 says that the page means nothing for now.
        if scale > _U64 or not vm.write_guest(address, bytes(4)):
            self.scale = 0
            return
        self.scale = scale
        self.offset = vm.clock.now() // TICK_NS - (tsc * scale >> 64)
        self._seq = (self._seq + 1) % 0xFFFFFFFF or 1
        page = _PAGE.pack(0, 0, self.scale, self.offset)
        vm.write_guest(address, page)
        vm.write_guest(address, self._seq.to_bytes(4, "little"))


def reference_time(vcpu: X86Vcpu) -> int:
    """HV_X64_MSR_TIME_REF_COUNT: the VM's clock in 100 ns, by the reference page if there is one."""
    hv = vcpu.vm.hyperv
    if hv.reference & _ENABLE and hv.scale:
        return (timer.read_tsc(vcpu) * hv.scale >> 64) + hv.offset & _U64
    return vcpu.vm.clock.now() // TICK_NS


def refuse_guest(vcpu: X86Vcpu, value: int, host: bool) -> None:
    """Refuse the guest's write; userspace's is ignored, for it restores all that it saved."""
    if not host:
        raise ValueError("this MSR of Hyper-V's is read-only")


def _set_guest_os_id(vcpu: X86Vcpu, value: int, host: bool) -> None:
    hv = vcpu.vm.hyperv
    hv.guest_os_id = value
    if not value:
        hv.hypercall &= ~_ENABLE


def _set_hypercall(vcpu: X86Vcpu, value: int, host: bool) -> None:
    """The page gets the instruction and a RET; nothing happens before the guest has said what it is."""
    vm = vcpu.vm
    if not vm.hyperv.guest_os_id:
        return
    code = cpuid.hypercall_insn(vcpu.cpuid) + b"\xc3"
    if vm.xen.intercepts:
        # As Xen itself does it: OR of bit 31 to EAX tells its calls from these.
        code = b"\x0d\0\0\0\x80" + code
    if value & _ENABLE and not vm.write_guest(value & ~0xFFF, code):
        raise ValueError("there is no memory for the hypercall page")
    vm.hyperv.hypercall = value


def _set_reference(vcpu: X86Vcpu, value: int, host: bool) -> None:
    hv = vcpu.vm.hyperv
    hv.reference = value
    hv.scale = 0
    # In a VM that is being restored the memory may come later than the registers.
    if host:
        vcpu.clock_stale = vcpu.attention = True
    hv.update_page(vcpu, asked=True)


def _set_emulation_control(vcpu: X86Vcpu, value: int, host: bool) -> None:
    vcpu.vm.hyperv.emulation_control = value


def _set_emulation_status(vcpu: X86Vcpu, value: int, host: bool) -> None:
    # The TSC is never emulated behind the guest's back: what it reads is what userspace restored.
    if value and not host:
        raise ValueError("HV_X64_MSR_TSC_EMULATION_STATUS can only be cleared")
    vcpu.vm.hyperv.emulation_status = value


def _set_reenlightenment(vcpu: X86Vcpu, value: int, host: bool) -> None:
    vcpu.vm.hyperv.reenlightenment = value


# Crash reports and reset.


def _crash_param(number: int) -> Msr:
    def get(vcpu: X86Vcpu) -> int:
        return vcpu.vm.hyperv.crash_params[number]

    def put(vcpu: X86Vcpu, value: int, host: bool) -> None:
        vcpu.vm.hyperv.crash_params[number] = value

    return get, put


def _set_crash_ctl(vcpu: X86Vcpu, value: int, host: bool) -> None:
    """Userspace says what is offered; the guest that it has crashed."""
    notify = value & uapi.HV_CRASH_CTL_CRASH_NOTIFY
    if host:
        vcpu.vm.hyperv.crash_ctl = notify
    elif notify:
        vcpu.own_hyperv().request_event(common.KVM_SYSTEM_EVENT_CRASH)


def _set_reset(vcpu: X86Vcpu, value: int, host: bool) -> None:
    if value == 1:
        vcpu.own_hyperv().request_event(common.KVM_SYSTEM_EVENT_RESET)


# The debugger's transport, which is userspace's.

_SYNDBG_EXITS: Final = (uapi.HV_X64_MSR_SYNDBG_CONTROL, uapi.HV_X64_MSR_SYNDBG_PENDING_BUFFER)


def _syndbg(index: int) -> Msr:
    def get(vcpu: X86Vcpu) -> int:
        return vcpu.vm.hyperv.syndbg.get(index, 0)

    def put(vcpu: X86Vcpu, value: int, host: bool) -> None:
        vcpu.vm.hyperv.syndbg[index] = value
        if not host and index in _SYNDBG_EXITS:
            vcpu.own_hyperv().request_syndbg(index)

    return get, put


MSRS: Final[dict[int, Msr]] = {
    uapi.HV_X64_MSR_GUEST_OS_ID: (lambda vcpu: vcpu.vm.hyperv.guest_os_id, _set_guest_os_id),
    uapi.HV_X64_MSR_HYPERCALL: (lambda vcpu: vcpu.vm.hyperv.hypercall, _set_hypercall),
    uapi.HV_X64_MSR_TIME_REF_COUNT: (reference_time, refuse_guest),
    uapi.HV_X64_MSR_REFERENCE_TSC: (lambda vcpu: vcpu.vm.hyperv.reference, _set_reference),
    uapi.HV_X64_MSR_TSC_FREQUENCY: (lambda vcpu: vcpu.cpu.tsc_khz * 1000, refuse_guest),
    uapi.HV_X64_MSR_APIC_FREQUENCY: (lambda vcpu: _APIC_HZ, refuse_guest),
    **{uapi.HV_X64_MSR_CRASH_P0 + number: _crash_param(number) for number in range(uapi.HV_CRASH_PARAMETERS)},
    uapi.HV_X64_MSR_CRASH_CTL: (lambda vcpu: vcpu.vm.hyperv.crash_ctl, _set_crash_ctl),
    uapi.HV_X64_MSR_RESET: (lambda vcpu: 0, _set_reset),
    uapi.HV_X64_MSR_REENLIGHTENMENT_CONTROL: (lambda vcpu: vcpu.vm.hyperv.reenlightenment, _set_reenlightenment),
    uapi.HV_X64_MSR_TSC_EMULATION_CONTROL: (lambda vcpu: vcpu.vm.hyperv.emulation_control, _set_emulation_control),
    uapi.HV_X64_MSR_TSC_EMULATION_STATUS: (lambda vcpu: vcpu.vm.hyperv.emulation_status, _set_emulation_status),
    uapi.HV_X64_MSR_SYNDBG_OPTIONS: _syndbg(uapi.HV_X64_MSR_SYNDBG_OPTIONS),
    **{
        index: _syndbg(index)
        for index in range(uapi.HV_X64_MSR_SYNDBG_CONTROL, uapi.HV_X64_MSR_SYNDBG_PENDING_BUFFER + 1)
    },
}
"""The VM's MSRs."""


def set_eventfd(vm: Vm, arg: int) -> int:
    """KVM_HYPERV_EVENTFD: EINVAL for flags and connections that cannot be, EEXIST, ENOENT, EBADF."""
    services = vm.services
    request = services.read_struct(arg, uapi.KvmHypervEventfd)
    connection = request.conn_id
    if request.flags & ~uapi.KVM_HYPERV_EVENTFD_DEASSIGN or connection & ~uapi.KVM_HYPERV_CONN_ID_MASK:
        raise OSError(errno.EINVAL, f"kvm_hyperv_eventfd: connection {connection:#x} with flags {request.flags:#x}")
    eventfds = vm.arch.hyperv.eventfds
    with vm.lock:
        if request.flags:
            event = eventfds.pop(connection, None)
            if event is None:
                raise OSError(errno.ENOENT, f"connection {connection:#x} has no eventfd")
            services.eventfd_put(event)
            return 0
        event = services.eventfd_get(request.fd, "hyperv eventfd")
        if connection in eventfds:
            services.eventfd_put(event)
            raise OSError(errno.EEXIST, f"connection {connection:#x} has an eventfd already")
        eventfds[connection] = event
    return 0
