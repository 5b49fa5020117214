# SPDX-License-Identifier: GPL-2.0-only
"""System management mode: SMIs (KVM_SMI, api.rst 4.96), the way in, RSM, and the two MSRs that belong to it.

While a vCPU is in it, it sees the memory slots of address space 1 and nothing else. What it was is in memory, at
SMBASE + 0xfe00 of that address space (:mod:`.smram`), and RSM takes it from there; SMBASE too.

Source: ``enter_smm``, ``emulator_leave_smm`` in ``arch/x86/kvm/smm.c``; AMD64 manual volume 2, chapter 10.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from anykvm.engine import Event
from anykvm.uapi import common
from anykvm.uapi import x86 as uapi

from . import debug, engine, smram

if TYPE_CHECKING:
    from .vcpu import X86Vcpu

ADDRESS_SPACE: Final = 1
"""Of the memory slots that are seen in system management mode."""
SMBASE_RESET: Final = 0x30000
ENTRY: Final = 0x8000
"""Where it begins, from SMBASE on."""
_FLAT_DATA: Final = 0x8093
"""Attributes of all its segments: present, writable data, 4 GiB."""
_CR0_CLEARED: Final = uapi.X86_CR0_PE | uapi.X86_CR0_EM | uapi.X86_CR0_TS | uapi.X86_CR0_PG
_IRQ_ACK: Final = int(Event.IRQ_ACK)


class Smm:
    """What a vCPU has of it."""

    __slots__ = ("active", "base", "count", "inside_nmi", "pending")

    def __init__(self) -> None:
        self.active = False
        self.pending = False
        """An SMI waits."""
        self.inside_nmi = False
        """NMIs were masked already when it began: RSM leaves them so."""
        self.base = SMBASE_RESET
        self.count = 0
        """How many SMIs were taken since the last INIT (MSR_SMI_COUNT)."""

    @property
    def waits(self) -> bool:
        """Whether an SMI can be taken."""
        return self.pending and not self.active


def request(vcpu: X86Vcpu) -> None:
    """An SMI has come, from any thread."""
    vcpu.smm.pending = True
    vcpu.kick()


def set_active(vcpu: X86Vcpu, active: bool) -> None:
    """Be in it or not; the registers are the caller's."""
    state = vcpu.smm
    state.active = active
    if not active:
        state.inside_nmi = False
        # What was held off meanwhile: another SMI, INIT.
        vcpu.attention = True
    vcpu.run_flags = uapi.KVM_RUN_X86_SMM if active else 0
    vcpu.cpu.smm = active
    vcpu.cpu.space = ADDRESS_SPACE if active else 0


def init(vcpu: X86Vcpu) -> None:
    """INIT: SMBASE stays."""
    vcpu.smm.pending = False
    vcpu.smm.count = 0
    set_active(vcpu, False)


def take(vcpu: X86Vcpu) -> None:
    """Take the SMI that waits, unless the vCPU is in it already, or waits to be started.

    What is on its way into the guest comes first: the rest of an instruction, an exception, an interrupt that has been
    acknowledged. Then the engine is asked to come back right after it.
    """
    cpu = vcpu.cpu
    if not vcpu.smm.waits:
        return
    if vcpu.mp_state == common.KVM_MP_STATE_HALTED:
        vcpu.mp_state = common.KVM_MP_STATE_RUNNABLE
    if vcpu.mp_state != common.KVM_MP_STATE_RUNNABLE:
        return
    if vcpu.mid_instruction or cpu.raised >= 0 or cpu.parked == _IRQ_ACK:
        cpu.kick()
    else:
        enter(vcpu)


def _wide(vcpu: X86Vcpu) -> bool:
    """Whether the guest's CPUID has long mode: then the state is saved in the 64-bit format."""
    leaf = vcpu.cpuid_leaf(0x80000001)
    return leaf is not None and bool(leaf[6] & uapi.CPUID_80000001_EDX_LM)


def enter(vcpu: X86Vcpu) -> None:
    """Save the state and begin at SMBASE + 0x8000, in real mode with segments of 4 GiB."""
    cpu, state = vcpu.cpu, vcpu.smm
    state.pending = False
    state.count += 1
    # Nor could one that is in long mode all the same be saved otherwise.
    wide = _wide(vcpu) or bool(cpu.efer & uapi.EFER_LMA)
    image = smram.save(cpu, state.base, wide=wide)
    set_active(vcpu, True)
    # Where there is no memory nothing is saved, and RSM will be a shutdown.
    vcpu.vm.write_guest(state.base + smram.OFFSET, image, ADDRESS_SPACE)
    if cpu.nmi_masked:
        state.inside_nmi = True
    else:
        cpu.nmi_masked = True
    cpu.rflags = uapi.X86_EFLAGS_FIXED
    cpu.rip = ENTRY
    cpu.shadow = False
    cpu.cr0 &= ~_CR0_CLEARED
    cpu.cr4 = 0
    cpu.set_table(engine.IDT, 0, 0)
    cpu.set_dr(7, debug.DR7_RESET)
    for index in (engine.DS, engine.ES, engine.FS, engine.GS, engine.SS):
        cpu.set_segment(index, (0, 0, 0xFFFFFFFF, _FLAT_DATA))
    cpu.set_segment(engine.CS, (state.base >> 4 & 0xFFFF, state.base, 0xFFFFFFFF, _FLAT_DATA))
    if wide:
        cpu.efer = 0


def leave(vcpu: X86Vcpu) -> None:
    """RSM: be again what memory says, which the guest may have changed.

    A state that no CPU can be in, or none at all, is a triple fault.
    """
    state = vcpu.smm
    image = vcpu.vm.read_guest(state.base + smram.OFFSET, smram.SIZE, ADDRESS_SPACE)
    if not state.inside_nmi:
        vcpu.cpu.nmi_masked = False
    set_active(vcpu, False)
    try:
        if image is None:
            raise OSError("there is no memory where the state was saved")
        state.base = smram.load(vcpu, image, wide=_wide(vcpu) or smram.is_wide(image))
    except OSError:
        vcpu.triple_fault = True


# The MSRs: for userspace alone.


def _get_base(vcpu: X86Vcpu) -> int:
    return vcpu.smm.base


def _set_base(vcpu: X86Vcpu, value: int, host: bool) -> None:
    if not host:
        raise ValueError("IA32_SMBASE is userspace's")
    vcpu.smm.base = value


def _get_count(vcpu: X86Vcpu) -> int:
    return vcpu.smm.count


def _set_count(vcpu: X86Vcpu, value: int, host: bool) -> None:
    if not host:
        raise ValueError("MSR_SMI_COUNT is read-only")
    vcpu.smm.count = value


MSRS: Final = {
    uapi.MSR_IA32_SMBASE: (_get_base, _set_base),
    uapi.MSR_SMI_COUNT: (_get_count, _set_count),
}
HOST_ONLY: Final = uapi.MSR_IA32_SMBASE
"""RDMSR does not find it."""
