# SPDX-License-Identifier: GPL-2.0-only
"""What a vCPU has of Hyper-V's interface: its index, its APIC's MSRs, what it asks of userspace.

It is made when it is first needed: by a CPUID with Hyper-V's interface, one of its MSRs, or its capabilities.
Source: the Top Level Functional Specification 6.0b, chapters 7, 10 and 11; ``arch/x86/kvm/hyperv.c``.
"""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Final

from anykvm.uapi import common
from anykvm.uapi import x86 as uapi
from anykvm.uapi.run import KvmRun

from . import hyperv, lapic_x2apic
from .hyperv_cpuid import MAX_VCPUS, SYNIC, Rights
from .hyperv_stimer import Stimer, process
from .hyperv_synic import Synic
from .lapic_regs import APIC_TPR, WRITERS, read_register

if TYPE_CHECKING:
    from .hyperv import Msr
    from .lapic import Lapic
    from .vcpu import X86Vcpu

_EXIT: Final = KvmRun.mmio.offset
_SYNDBG: Final = _EXIT + uapi.KvmHypervExit.u.offset
_SYNDBG_STATUS: Final = _SYNDBG + 16
_U64: Final = 0xFFFFFFFFFFFFFFFF
_ENABLE: Final = uapi.HV_X64_MSR_ENABLE


class HypervVcpu:
    """``vcpu.hyperv``. The exits it wants wait here until the instruction that asked for them is over."""

    __slots__ = (
        "_event",
        "_exit",
        "_syndbg_owed",
        "_vcpu",
        "assist_page",
        "rights",
        "runtime_offset",
        "stimers",
        "synic",
        "vp_index",
    )

    def __init__(self, vcpu: X86Vcpu) -> None:
        self._vcpu = vcpu
        self.rights = Rights()
        self.vp_index = vcpu.vcpu.vcpu_idx
        self.runtime_offset = 0
        self.assist_page = 0
        self.synic = Synic(vcpu)
        self.stimers = tuple(Stimer(vcpu, index) for index in range(uapi.HV_SYNIC_STIMER_COUNT))
        self._event = 0
        self._exit: uapi.KvmHypervExit | None = None
        self._syndbg_owed = False

    # What userspace is to see.

    def request_event(self, kind: int) -> None:
        """KVM_EXIT_SYSTEM_EVENT, when this instruction is over; a crash comes before a reset."""
        self._event = max(self._event, kind)
        self._vcpu.attention = True

    def request_synic(self, msr: int) -> None:
        """KVM_EXIT_HYPERV: the guest wrote one of the synthetic interrupt controller's registers."""
        exit = uapi.KvmHypervExit(type=uapi.KVM_EXIT_HYPERV_SYNIC)
        synic = exit.u.synic
        synic.msr, synic.control = msr, self.synic.control
        synic.evt_page, synic.msg_page = self.synic.event_page, self.synic.message_page
        self._exit = exit
        self._vcpu.attention = True

    def request_syndbg(self, msr: int) -> None:
        """KVM_EXIT_HYPERV: the guest has something for the debugger; userspace answers with a status."""
        exit = uapi.KvmHypervExit(type=uapi.KVM_EXIT_HYPERV_SYNDBG)
        told = self._vcpu.vm.hyperv.syndbg
        syndbg = exit.u.syndbg
        syndbg.msr = msr
        syndbg.control = told.get(uapi.HV_X64_MSR_SYNDBG_CONTROL, 0)
        syndbg.send_page = told.get(uapi.HV_X64_MSR_SYNDBG_SEND_BUFFER, 0)
        syndbg.recv_page = told.get(uapi.HV_X64_MSR_SYNDBG_RECV_BUFFER, 0)
        syndbg.pending_page = told.get(uapi.HV_X64_MSR_SYNDBG_PENDING_BUFFER, 0)
        self._exit = exit
        self._vcpu.attention = True

    def attend(self) -> bool:
        """Before the guest goes on: leave for userspace (False), or see to the timers."""
        vcpu = self._vcpu
        page = vcpu.vcpu.page
        if self._syndbg_owed:
            self._syndbg_owed = False
            if int.from_bytes(page[_SYNDBG : _SYNDBG + 4], "little") == uapi.HV_X64_MSR_SYNDBG_CONTROL:
                status = int.from_bytes(page[_SYNDBG_STATUS : _SYNDBG_STATUS + 8], "little")
                vcpu.vm.hyperv.syndbg[uapi.HV_X64_MSR_SYNDBG_STATUS] = status
        if self._event:
            vcpu.vcpu.run.system_event.type, self._event = self._event, 0
            vcpu.vcpu.run.system_event.ndata = 0
            vcpu.vcpu.set_exit_reason(common.KVM_EXIT_SYSTEM_EVENT)
            vcpu.attention = True
            return False
        exit = self._exit
        if exit is not None:
            self._exit = None
            data = bytes(exit)
            page[_EXIT : _EXIT + len(data)] = data
            self._syndbg_owed = exit.type == uapi.KVM_EXIT_HYPERV_SYNDBG
            vcpu.vcpu.set_exit_reason(common.KVM_EXIT_HYPERV)
            vcpu.attention = True
            return False
        process(vcpu, self.stimers)
        return True


# MSRs.


def _set_vp_index(vcpu: X86Vcpu, value: int, host: bool) -> None:
    if not host or value & 0xFFFFFFFF >= MAX_VCPUS:
        raise ValueError(f"a vCPU's index is userspace's to set, and less than {MAX_VCPUS}")
    vcpu.own_hyperv().vp_index = value & 0xFFFFFFFF


def _ran() -> int:
    return time.thread_time_ns() // hyperv.TICK_NS


def _set_vp_runtime(vcpu: X86Vcpu, value: int, host: bool) -> None:
    if not host:
        raise ValueError("HV_X64_MSR_VP_RUNTIME is read-only")
    vcpu.own_hyperv().runtime_offset = value - _ran()


def _lapic(vcpu: X86Vcpu) -> Lapic:
    if vcpu.lapic is None:
        raise ValueError("the local APIC is not in the kernel")
    return vcpu.lapic


def _refuse_eoi(vcpu: X86Vcpu) -> int:
    raise ValueError("HV_X64_MSR_EOI can only be written")


def _read_icr(vcpu: X86Vcpu) -> int:
    lapic = _lapic(vcpu)
    return lapic.icr | lapic.icr2 << 32


def _write_icr(vcpu: X86Vcpu, value: int, host: bool) -> None:
    lapic = _lapic(vcpu)
    lapic_x2apic.send(lapic, value, dest=value >> 32 if lapic.x2apic else value >> 56)


def _set_assist_page(vcpu: X86Vcpu, value: int, host: bool) -> None:
    """The page's first word would tell that an interrupt needs no EOI, which it never does here."""
    if value & _ENABLE and not vcpu.vm.write_guest(value & ~0xFFF, bytes(4)):
        raise ValueError("there is no memory for the assist page")
    vcpu.own_hyperv().assist_page = value


def _synic(index: int) -> Msr:
    return (
        lambda vcpu: vcpu.own_hyperv().synic.read(index),
        lambda vcpu, value, host: vcpu.own_hyperv().synic.write(index, value, host=host),
    )


def _stimer(number: int) -> tuple[Msr, Msr]:
    config: Msr = (
        lambda vcpu: vcpu.own_hyperv().stimers[number].config,
        lambda vcpu, value, host: vcpu.own_hyperv().stimers[number].set_config(value, host=host),
    )
    count: Msr = (
        lambda vcpu: vcpu.own_hyperv().stimers[number].count,
        lambda vcpu, value, host: vcpu.own_hyperv().stimers[number].set_count(value, host=host),
    )
    return config, count


MSRS: Final[dict[int, Msr]] = {
    **hyperv.MSRS,
    uapi.HV_X64_MSR_VP_INDEX: (lambda vcpu: vcpu.own_hyperv().vp_index, _set_vp_index),
    uapi.HV_X64_MSR_VP_RUNTIME: (lambda vcpu: _ran() + vcpu.own_hyperv().runtime_offset & _U64, _set_vp_runtime),
    uapi.HV_X64_MSR_EOI: (_refuse_eoi, lambda vcpu, value, host: _lapic(vcpu).eoi()),
    uapi.HV_X64_MSR_ICR: (_read_icr, _write_icr),
    uapi.HV_X64_MSR_TPR: (
        lambda vcpu: read_register(_lapic(vcpu), APIC_TPR),
        lambda vcpu, value, host: WRITERS[APIC_TPR](_lapic(vcpu), value & 0xFFFFFFFF),
    ),
    uapi.HV_X64_MSR_VP_ASSIST_PAGE: (lambda vcpu: vcpu.own_hyperv().assist_page, _set_assist_page),
    **{index: _synic(index) for index in SYNIC},
    **{
        uapi.HV_X64_MSR_STIMER0_CONFIG + 2 * number + part: msr
        for number in range(uapi.HV_SYNIC_STIMER_COUNT)
        for part, msr in enumerate(_stimer(number))
    },
}
"""All of Hyper-V's MSRs."""

SAVED: Final = (
    *hyperv.MSRS,
    uapi.HV_X64_MSR_VP_INDEX,
    uapi.HV_X64_MSR_VP_RUNTIME,
    uapi.HV_X64_MSR_SCONTROL,
    uapi.HV_X64_MSR_STIMER0_CONFIG,
    uapi.HV_X64_MSR_VP_ASSIST_PAGE,
)
"""Those in KVM_GET_MSR_INDEX_LIST: as in the kernel one of a group stands for the others."""


def check_guest(vcpu: X86Vcpu, index: int) -> None:
    """KeyError for an MSR of Hyper-V's and a guest without its interface, ValueError if its CPUID has not this one."""
    if not vcpu.hyperv_enabled:
        raise KeyError(index)
    if not vcpu.own_hyperv().rights.has_msr(index):
        raise ValueError(f"the guest's CPUID does not have Hyper-V's MSR {index:#x}")


def find(vcpus: list[X86Vcpu], vp_index: int) -> X86Vcpu | None:
    """Find the vCPU with an index of Hyper-V's."""
    return next((vcpu for vcpu in vcpus if index_of(vcpu) == vp_index), None)


def index_of(vcpu: X86Vcpu) -> int:
    """A vCPU's index of Hyper-V's: in the order of creation, unless userspace set another."""
    return vcpu.hyperv.vp_index if vcpu.hyperv is not None else vcpu.vcpu.vcpu_idx


# Capabilities.


def enable_synic(vcpu: X86Vcpu, *, keep_pages: bool) -> None:
    """KVM_CAP_HYPERV_SYNIC, or with ``keep_pages`` KVM_CAP_HYPERV_SYNIC2; EINVAL without an irqchip, ENOMEM."""
    if vcpu.lapic is None:
        raise OSError(errno.EINVAL, "synthetic interrupts need the local APIC in the kernel")
    own = vcpu.own_hyperv()
    if not own.synic.active:
        ladder = vcpu.vcpu.arch_ladder
        with ladder.guard():
            for stimer in own.stimers:
                stimer.build(ladder)
    own.synic.activate(keep_pages=keep_pages)


def enforce_cpuid(vcpu: X86Vcpu, on: bool) -> None:
    """KVM_CAP_HYPERV_ENFORCE_CPUID."""
    vcpu.own_hyperv().rights.enforced = on
