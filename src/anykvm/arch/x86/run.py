# SPDX-License-Identifier: GPL-2.0-only
"""KVM_RUN: run the guest, serve in the kernel what can be served, come back for the rest.

One loop over the engine's events. A port or device access goes to the local APIC and the in-kernel buses first; what
nobody there takes is KVM_EXIT_IO or KVM_EXIT_MMIO, one exit for each access, and userspace's answer is in the run page
when KVM_RUN is called again.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from anykvm.engine import Event
from anykvm.uapi import common
from anykvm.uapi import x86 as uapi
from anykvm.uapi.run import KvmRun
from anykvm.virt import stats
from anykvm.virt.dirty_ring import DirtyRingFull

from . import debug, emulation, half_done, hypercall, idle, inject, msrs, pv, quirks, smm, sync_regs, timer, tpr
from .engine import SPURIOUS
from .half_done import EXIT_DATA, MID_INSTRUCTION, PIO_PAGE

if TYPE_CHECKING:
    from anykvm.virt.vcpu import Vcpu

    from .engine import CpuLike
    from .vcpu import X86Vcpu

STATS: Final = ("io_exits", "msr_exits", "hypercalls", "request_irq_exits", "nmi_injections")
_EXITS: Final = stats.EXITS
_IO_EXITS: Final = stats.FIRST_ARCH_STAT
_MSR_EXITS: Final = _IO_EXITS + 1
_HYPERCALLS: Final = _IO_EXITS + 2
_REQUEST_IRQ_EXITS: Final = _IO_EXITS + 3
_NMI_INJECTIONS: Final = _IO_EXITS + 4

_MMIO: Final = struct.Struct("<QQIB")
# From exit_reason on: that, what _OUT has, and io.
_IO: Final = struct.Struct("<IBBHQQBBHIQ").pack_into
_IO_OFFSET: Final = KvmRun.exit_reason.offset
_EXIT_IO: Final = common.KVM_EXIT_IO
_DATA: Final = {size: struct.Struct(code).pack_into for size, code in ((2, "<H"), (4, "<I"))}
_IF: Final = uapi.X86_EFLAGS_IF
_INTERNAL: Final = struct.Struct("<II16Q")
# ready_for_interrupt_injection, if_flag, flags, cr8, apic_base.
_OUT: Final = struct.Struct("<BBHQQ")
_OUT_OFFSET: Final = KvmRun.ready_for_interrupt_injection.offset
# In 64-bit words.
_CR8: Final = KvmRun.cr8.offset // 8
_VALID_REGS: Final = KvmRun.kvm_valid_regs.offset // 8
_DIRTY_REGS: Final = KvmRun.kvm_dirty_regs.offset // 8
_MMIO_DATA: Final = EXIT_DATA + 8

_KICK: Final = int(Event.KICK)
_MMIO_READ: Final = int(Event.MMIO_READ)
_MMIO_WRITE: Final = int(Event.MMIO_WRITE)
_PIO_READ: Final = int(Event.PIO_READ)
_PIO_WRITE: Final = int(Event.PIO_WRITE)
_MSR_READ: Final = int(Event.MSR_READ)
_MSR_WRITE: Final = int(Event.MSR_WRITE)
_CR8_WRITE: Final = int(Event.CR8_WRITE)
_HLT: Final = int(Event.HLT)
_IRQ_ACK: Final = int(Event.IRQ_ACK)
_IRQ_WINDOW: Final = int(Event.IRQ_WINDOW)
_HYPERCALL: Final = int(Event.HYPERCALL)
_RSM: Final = int(Event.RSM)
_SHUTDOWN: Final = int(Event.SHUTDOWN)
_BREAK: Final = int(Event.BREAK)
_FETCH: Final = int(Event.FETCH)
_SIGNAL: Final = int(Event.SIGNAL)

_RUNNABLE: Final = common.KVM_MP_STATE_RUNNABLE
_HALTED: Final = common.KVM_MP_STATE_HALTED
_UNINITIALIZED: Final = common.KVM_MP_STATE_UNINITIALIZED


def vcpu_run(vcpu: Vcpu) -> int:
    """KVM_RUN.

    EINTR when interrupted; EAGAIN for a vCPU that waits for its first INIT, when that has come; EINVAL for registers in
    the run page that cannot be.
    """
    arch: X86Vcpu = vcpu.arch
    cpu = arch.cpu if arch.live else arch.load()
    try:
        if arch.mp_state == _UNINITIALIZED:
            _wait_for_init(arch)
        words = arch.words
        if words[_DIRTY_REGS] or words[_VALID_REGS]:
            sync_regs.load(arch)
        lapic = arch.lapic
        if lapic is None and words[_CR8] != arch.user_cr8:
            _user_cr8(arch, words[_CR8])
        if arch.hypercall_mask:
            hypercall.complete(arch)
        if arch.steal_msr:
            arch.attention = True
        if arch.xen is not None:
            arch.xen.entered()
        arch.has_run = True
        # Userspace may have written to memory that holds code.
        arch.vm.machine.distrust()
        run = cpu.run
        if (arch.attention or arch.mp_state != _RUNNABLE) and not attend(arch):
            return 0
        window = vcpu.page[0] != 0 and (lapic is None or arch.vm.chip().split)
        if window or arch.window:
            arch.window = cpu.want_window = window
        mmio_bus = vcpu.vm.mmio_bus
        pio_bus = vcpu.vm.pio_bus
        values = vcpu.stats.values
        if arch.wanted_regs is not None:
            arch.complete_io()
        arch.finished = None
        reply = arch.reply
        if reply is _NOTHING:
            # This and the next as take_reply(), without a call: a write to a port or a device.
            arch.reply = None
            arch.rip_ahead = value = 0
        elif reply is not None and not arch.msr_exit:
            arch.reply = None
            arch.rip_ahead = 0
            offset, size = reply
            value = vcpu.page[offset] if size == 1 else int.from_bytes(vcpu.page[offset : offset + size], "little")
        elif reply is not None or cpu.parked != _IRQ_ACK:
            value = arch.take_reply()
        else:
            value = inject.acknowledge(arch)
        while True:
            kind, a, b, c = run(value)
            value = 0
            values[_EXITS] += 1
            if kind == _PIO_WRITE:
                if not pio_bus.write(vcpu, a, b, c):
                    return _exit_io(arch, a, b, c, True)
            elif kind == _PIO_READ:
                # c: one of a REP INS, for which userspace may have given more than one answer.
                answer = arch.batch.take(cpu, vcpu.page, a, b) if c and arch.batch is not None else None
                if answer is None:
                    answer = pio_bus.read(vcpu, a, b)
                    if answer is None:
                        return _exit_io(arch, a, b, c, False)
                value = answer
            elif kind == _MMIO_WRITE:
                if (lapic is None or not lapic.write(a, b, c)) and not mmio_bus.write(vcpu, a, b, c):
                    return _exit_mmio(arch, a, b, c, True)
                values[stats.MMIO_EXIT_KERNEL] += 1
            elif kind == _MMIO_READ:
                answer = lapic.read(a, b) if lapic is not None else None
                if answer is None:
                    answer = mmio_bus.read(vcpu, a, b)
                    if answer is None:
                        return _exit_mmio(arch, a, b, 0, False)
                values[stats.MMIO_EXIT_KERNEL] += 1
                value = answer
            elif kind == _IRQ_ACK:
                value = inject.acknowledge(arch)
            elif kind == _HLT:
                values[stats.WFI_EXIT] += 1
                if idle.halts_within(arch):
                    idle.halt(arch)
                elif arch.injected_irq is None or not cpu.rflags & uapi.X86_EFLAGS_IF:
                    vcpu.set_exit_reason(common.KVM_EXIT_HLT)
                    return 0
            elif kind == _KICK:
                arch.attention = True
            elif kind == _SIGNAL:
                vcpu.signal_pending = arch.attention = True
            elif kind == _MSR_READ:
                values[_MSR_EXITS] += 1
                got = msrs.guest_read(arch, a)
                if got is None:
                    reason = msrs.read_refusal(arch, a)
                    if msrs.exits(arch, reason):
                        msrs.fill_exit(arch, EXIT_DATA, a, 0, reason=reason, write=False)
                        return 0
                    inject.general_protection(cpu)
                else:
                    value = got
            elif kind == _MSR_WRITE:
                values[_MSR_EXITS] += 1
                reason = msrs.guest_write(arch, a, c)
                if reason:
                    if msrs.exits(arch, reason):
                        msrs.fill_exit(arch, EXIT_DATA, a, c, reason=reason, write=True)
                        return 0
                    inject.general_protection(cpu)
            elif kind == _CR8_WRITE:
                if lapic is not None:
                    lapic.set_cr8(a)
                else:
                    lowered = a < arch.user_cr8
                    arch.user_cr8 = a
                    if lowered:
                        arch.owed = 0
                        vcpu.set_exit_reason(common.KVM_EXIT_SET_TPR)
                        return 0
            elif kind == _IRQ_WINDOW:
                values[_REQUEST_IRQ_EXITS] += 1
                vcpu.set_exit_reason(common.KVM_EXIT_IRQ_WINDOW_OPEN)
                return 0
            elif kind == _HYPERCALL:
                values[_HYPERCALLS] += 1
                if not hypercall.call(arch, a):
                    return 0
            elif kind == _RSM:
                smm.leave(arch)
            elif kind == _SHUTDOWN:
                vcpu.set_exit_reason(common.KVM_EXIT_SHUTDOWN)
                return 0
            elif kind == _BREAK:
                debug.fill_exit(arch, a, EXIT_DATA)
                return 0
            elif kind == _FETCH:
                if emulation.failed(arch, a):
                    return 0
            else:
                return _exit_internal(arch, common.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kind, a, b, cpu.rip)
            if arch.attention:
                # An instruction that is half done is owed its answer, also across an EINTR.
                if kind in MID_INSTRUCTION:
                    arch.owed = value
                elif kind == _IRQ_ACK and value != SPURIOUS:
                    # Acknowledged just as something else comes first: it is on its way, as if userspace had sent it.
                    arch.queue_interrupt(value)
                if not attend(arch):
                    return 0
                values = vcpu.stats.values
                value = inject.acknowledge(arch) if cpu.parked == _IRQ_ACK else arch.owed or 0
                arch.owed = None
    finally:
        if arch.vapic_addr:
            tpr.sync_from_guest(arch)
        if not arch.reported:
            _report(arch, cpu)
        arch.reported = False


def vcpu_complete_io(vcpu: Vcpu) -> None:
    """KVM_RUN with immediate_exit: the registers in the run page count, and are left there, as ever; EINVAL."""
    arch: X86Vcpu = vcpu.arch
    cpu = arch.load()
    if arch.words[_DIRTY_REGS] or arch.words[_VALID_REGS]:
        sync_regs.load(arch)
    arch.complete_io()
    # This was KVM_RUN: the instruction is over, and what userspace writes from now on is what it means.
    arch.finished = None
    _report(arch, cpu)


def _user_cr8(arch: X86Vcpu, cr8: int) -> None:
    if cr8 > 0xF:
        raise OSError(errno.EINVAL, "CR8 has 4 bits")
    arch.write_cr8(cr8)


def _ready(arch: X86Vcpu, cpu: CpuLike, enabled: int) -> bool:
    """Whether userspace can inject an interrupt now; ``enabled`` is RFLAGS.IF."""
    lapic = arch.lapic
    if lapic is None:
        return enabled != 0 and arch.injected_irq is None and cpu.interruptible
    if not arch.vm.chip().split:
        return True
    return enabled != 0 and lapic.accepts_pic and lapic.user_vector < 0 and cpu.interruptible


def _report(arch: X86Vcpu, cpu: CpuLike) -> None:
    """What the run page says after every KVM_RUN."""
    enabled = cpu.rflags & _IF
    ready = _ready(arch, cpu, enabled)
    _OUT.pack_into(arch.vcpu.page, _OUT_OFFSET, ready, enabled != 0, arch.run_flags, arch.cr8, arch.apic_base)
    if arch.words[_VALID_REGS]:
        sync_regs.store(arch)


def attend(arch: X86Vcpu) -> bool:
    """Look at everything that is not the guest itself before it goes on; False if userspace has to see it. EINTR."""
    vcpu = arch.vcpu
    while True:
        arch.attention = False
        lapic = arch.lapic
        if lapic is not None and lapic.pending_events:
            if arch.mid_instruction and not arch.smm.active:
                arch.drop_instruction()
            lapic.accept_events()
        if arch.triple_fault:
            arch.triple_fault = False
            vcpu.set_exit_reason(common.KVM_EXIT_SHUTDOWN)
            return False
        if arch.tpr_access is not None:
            tpr.fill_exit(arch, EXIT_DATA)
            arch.attention = True
            return False
        if arch.eoi_vector >= 0:
            vcpu.page[EXIT_DATA] = arch.eoi_vector
            arch.eoi_vector = -1
            vcpu.set_exit_reason(common.KVM_EXIT_IOAPIC_EOI)
            return False
        if arch.hyperv is not None and not arch.hyperv.attend():
            return False
        if arch.xen is not None:
            arch.xen.attend()
        if arch.nmi_waits:
            vcpu.stats.values[_NMI_INJECTIONS] += 1
            if arch.mp_state == _HALTED:
                arch.mp_state = _RUNNABLE
        if arch.exception is not None or arch.nmi_waits:
            inject.deliver_pending(arch)
        if arch.smm.pending:
            smm.take(arch)
        if arch.filter_stale:
            quirks.tell_engine(arch)
        if arch.clock_stale:
            timer.update_page(arch)
        if arch.steal_msr & uapi.KVM_MSR_ENABLED:
            pv.record_steal_time(arch)
        if vcpu.signal_pending or vcpu.immediate_exit:
            arch.attention = True
            vcpu.signal_exit()
        if vcpu.dirty_ring is not None and vcpu.dirty_ring.full:
            arch.attention = True
            raise DirtyRingFull
        if arch.mp_state == _RUNNABLE:
            return True
        if arch.words[0] & 0xFF and arch.mp_state == _HALTED and _window_open(arch):
            vcpu.stats.values[_REQUEST_IRQ_EXITS] += 1
            vcpu.set_exit_reason(common.KVM_EXIT_IRQ_WINDOW_OPEN)
            arch.attention = True
            return False
        if not _wake_reason(arch):
            _sleep(arch)
        if arch.mp_state == _HALTED and _wake_reason(arch):
            arch.mp_state = _RUNNABLE
            arch.pv_unhalted = False


def _window_open(arch: X86Vcpu) -> bool:
    """Whether a vCPU that is halted could take the interrupt that userspace has for it."""
    asks = arch.lapic is None or arch.vm.chip().split
    return asks and _ready(arch, arch.cpu, arch.cpu.rflags & _IF)


def _wake_reason(arch: X86Vcpu) -> bool:
    """Whether a halted vCPU goes on: an interrupt it can take, or another vCPU's kick."""
    if arch.mp_state != _HALTED:
        return False
    if arch.pv_unhalted or arch.nmi_waits or arch.smm.waits:
        return True
    return arch.intr_waits and arch.cpu.rflags & uapi.X86_EFLAGS_IF != 0


def _sleep(arch: X86Vcpu) -> None:
    vcpu = arch.vcpu
    now = vcpu.services.now
    started = now()
    vcpu.stats.values[stats.BLOCKING] = 1
    try:
        if arch.sleep.until(lambda: arch.attention or _wake_reason(arch)):
            vcpu.signal_pending = True
    finally:
        values = vcpu.stats.values
        values[stats.BLOCKING] = 0
        values[stats.HALT_WAIT_NS] += now() - started
        values[stats.HALT_WAKEUP] += 1


def _wait_for_init(arch: X86Vcpu) -> None:
    """A vCPU that has not been started: wait for INIT, then let userspace call again (EAGAIN)."""
    vcpu = arch.vcpu
    lapic = arch.lapic
    assert lapic is not None
    arch.attention = False
    while not (lapic.pending_events or vcpu.signal_pending or vcpu.immediate_exit):
        if arch.sleep.until(lambda: arch.attention):
            vcpu.signal_pending = True
        arch.attention = False
    if lapic.pending_events:
        lapic.accept_events()
    arch.attention = True
    if vcpu.signal_pending or vcpu.immediate_exit:
        vcpu.signal_exit()
    raise OSError(errno.EAGAIN, "the vCPU has received INIT")


def _exit_io(arch: X86Vcpu, port: int, size: int, data: int, write: bool) -> int:
    """KVM_EXIT_IO, with all that :func:`_report` would say: this is the exit that there are most of.

    ``data`` is what is written; of a REP INS, for which one exit asks for many items, the address size; else 0.
    """
    vcpu = arch.vcpu
    vcpu.stats.values[_IO_EXITS] += 1
    page = vcpu.page
    count = 1
    if write:
        if size == 1:
            page[PIO_PAGE] = data
        else:
            _DATA[size](page, PIO_PAGE, data)
        arch.reply = _NOTHING
        if port == _PORT_7E and not arch.vm.disabled_quirks & uapi.KVM_X86_QUIRK_OUT_7E_INC_RIP:
            arch.rip_ahead = half_done.out_length(arch)
    else:
        arch.reply = (PIO_PAGE, size)
        arch.batch = None
        if data:
            arch.batch = half_done.make_batch(arch.cpu, port, size, data)
            count = arch.batch.count
    cpu = arch.cpu
    enabled = cpu.rflags & _IF
    lapic = arch.lapic
    if lapic is None:
        cr8, base = arch.user_cr8, arch.user_apic_base
        ready = enabled and _ready(arch, cpu, enabled)
    else:
        cr8, base = lapic.tpr >> 4, lapic.base_msr
        ready = _ready(arch, cpu, enabled)
    flags = arch.run_flags
    _IO(page, _IO_OFFSET, _EXIT_IO, ready, enabled != 0, flags, cr8, base, write, size, port, count, PIO_PAGE)
    arch.reported = not arch.words[_VALID_REGS]
    return 0


_PORT_7E: Final = 0x7E
_NOTHING: Final = (PIO_PAGE, 0)
"""Where to find the answer to a write."""


def _exit_mmio(arch: X86Vcpu, address: int, size: int, value: int, write: bool) -> int:
    vcpu = arch.vcpu
    vcpu.stats.values[stats.MMIO_EXIT_USER] += 1
    arch.reply = _NOTHING if write else (_MMIO_DATA, size)
    _MMIO.pack_into(vcpu.page, EXIT_DATA, address, value, size, write)
    vcpu.set_exit_reason(common.KVM_EXIT_MMIO)
    return 0


def _exit_internal(arch: X86Vcpu, suberror: int, *data: int) -> int:
    words = [word & 0xFFFFFFFFFFFFFFFF for word in data]
    _INTERNAL.pack_into(arch.vcpu.page, EXIT_DATA, suberror, len(words), *words, *(0,) * (16 - len(words)))
    arch.vcpu.set_exit_reason(common.KVM_EXIT_INTERNAL_ERROR)
    return 0
