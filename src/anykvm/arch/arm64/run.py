# SPDX-License-Identifier: GPL-2.0-only
"""KVM_RUN: run the guest, serve in the kernel what can be served, come back for the rest.

One loop over the engine's events. A device access goes to the in-kernel bus first; what nobody there takes is
KVM_EXIT_MMIO, and userspace's answer is in the run page when KVM_RUN is called again.
"""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING, Final

from anykvm.engine import Event
from anykvm.uapi import common
from anykvm.virt import stats
from anykvm.virt.dirty_ring import DirtyRingFull

from . import inject, smccc
from .vcpu import EXIT_DATA

if TYPE_CHECKING:
    from anykvm.virt.vcpu import Vcpu

    from .vcpu import Arm64Vcpu

_MMIO: Final = struct.Struct("<QQIB")
_INTERNAL: Final = struct.Struct("<II16Q")

_EXITS: Final = stats.EXITS
_MMIO_EXIT_USER: Final = stats.MMIO_EXIT_USER
_MMIO_EXIT_KERNEL: Final = stats.MMIO_EXIT_KERNEL
_SYSREG_EXIT: Final = stats.FIRST_ARCH_STAT
_KICK: Final = int(Event.KICK)
_MMIO_READ: Final = int(Event.MMIO_READ)
_MMIO_WRITE: Final = int(Event.MMIO_WRITE)
_SYSREG_READ: Final = int(Event.SYSREG_READ)
_SYSREG_WRITE: Final = int(Event.SYSREG_WRITE)
_HVC: Final = int(Event.HVC)
_SMC: Final = int(Event.SMC)
_WFI: Final = int(Event.WFI)
_FETCH: Final = int(Event.FETCH)
_SIGNAL: Final = int(Event.SIGNAL)


def vcpu_run(vcpu: Vcpu) -> int:
    """KVM_RUN. ENOEXEC before KVM_ARM_VCPU_INIT, EINTR when interrupted, and what the GIC's setup says."""
    arch: Arm64Vcpu = vcpu.arch
    if arch.features is None:
        raise OSError(errno.ENOEXEC, "the vCPU has not been initialised with KVM_ARM_VCPU_INIT")
    cpu = arch.cpu if arch.live else arch.load()
    if not arch.ready:
        arch.vm.first_run(arch)
        arch.ready = True
    if arch.attention or arch.serror_pending:
        attend(arch)
    run = cpu.run
    bus = vcpu.vm.mmio_bus
    sysregs = arch.vm.traps
    values = vcpu.stats.values
    value = arch.take_reply() if arch.mmio else arch.owed or 0
    arch.owed = None
    while True:
        kind, a, b, c = run(value)
        value = 0
        values[_EXITS] += 1
        if kind == _SYSREG_WRITE:
            values[_SYSREG_EXIT] += 1
            writer = sysregs.get(a, _NONE)[1]
            if writer is not None:
                writer(arch, c)
            else:
                kind = _undefined(arch)
        elif kind == _MMIO_READ:
            answer = bus.read(vcpu, a, b)
            if answer is None:
                return _exit_mmio(arch, a, b, 0, False)
            values[_MMIO_EXIT_KERNEL] += 1
            value = answer
        elif kind == _MMIO_WRITE:
            if not bus.write(vcpu, a, b, c):
                return _exit_mmio(arch, a, b, c, True)
            values[_MMIO_EXIT_KERNEL] += 1
        elif kind == _WFI:
            wait_for_interrupt(arch)
            values = vcpu.stats.values
        elif kind == _SYSREG_READ:
            values[_SYSREG_EXIT] += 1
            reader = sysregs.get(a, _NONE)[0]
            if reader is not None:
                value = reader(arch)
            else:
                kind = _undefined(arch)
        elif kind == _KICK:
            arch.attention = True
        elif kind in (_HVC, _SMC):
            values[stats.HVC_EXIT] += 1
            if not (smccc.call(arch) if kind == _HVC else smccc.smc(arch, a)):
                return 0
        elif kind == _SIGNAL:
            vcpu.signal_pending = arch.attention = True
        elif kind == _FETCH:
            if not _fetch_abort(arch):
                return 0
        else:
            return _exit_internal(arch, common.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kind, a, b, cpu.pc)
        if arch.attention:
            # An instruction that is half done is owed its answer, also across an EINTR.
            if _MMIO_READ <= kind <= _SYSREG_WRITE:
                arch.owed = value
            attend(arch)
            values = vcpu.stats.values
            value = arch.owed or 0
            arch.owed = None


_NONE: Final = (None, None)


def attend(arch: Arm64Vcpu) -> None:
    """Look at everything that is not the guest itself before it goes on: signals, power, resets. EINTR.

    Whoever changes one of these sets ``attention`` too; it stays set while KVM_RUN is left because of one of them.
    """
    vcpu = arch.vcpu
    power = arch.power
    while True:
        arch.attention = False
        if power.reset_state is not None:
            state, power.reset_state = power.reset_state, None
            arch.reset_to(state.pc, state.x0)
        if arch.cntvoff != arch.vm.cntvoff:
            arch.cpu.cntvoff = arch.cntvoff = arch.vm.cntvoff
        if vcpu.signal_pending or vcpu.immediate_exit:
            arch.attention = True
            vcpu.signal_exit()
        if vcpu.dirty_ring is not None and vcpu.dirty_ring.full:
            arch.attention = True
            raise DirtyRingFull
        if arch.vgic is None and arch.publish_device_irq_level():
            arch.attention = True
            vcpu.signal_pending = True
            vcpu.signal_exit()
        if power.stopped:
            if power.until(lambda: arch.attention or not power.stopped):
                vcpu.signal_pending = True
        elif power.suspended:
            power.suspended = False
            wait_for_interrupt(arch)
        elif power.reset_state is None and not arch.attention:
            break
    if arch.serror_pending and not arch.mmio and inject.inject_serror(arch.cpu):
        arch.serror_pending = False


def wait_for_interrupt(arch: Arm64Vcpu) -> None:
    """WFI: sleep on the host until an interrupt is pending, masked or not, or something else wants attention."""
    vcpu = arch.vcpu
    vcpu.stats.values[stats.WFI_EXIT] += 1
    if arch.interrupt_pending():
        return
    now = vcpu.services.now
    started = now()
    vcpu.stats.values[stats.BLOCKING] = 1
    try:
        if arch.power.until(arch.interrupt_pending):
            vcpu.signal_pending = arch.attention = True
    finally:
        values = vcpu.stats.values
        values[stats.BLOCKING] = 0
        values[stats.HALT_WAIT_NS] += now() - started
        values[stats.HALT_WAKEUP] += 1


def _undefined(arch: Arm64Vcpu) -> int:
    """An undefined instruction; nothing is half done after it."""
    arch.cpu.abandon()
    inject.inject_undef(arch.cpu)
    return _KICK


def _fetch_abort(arch: Arm64Vcpu) -> bool:
    """An instruction fetch from where no memory is: the guest gets the abort, unless its vector is nowhere either.

    KVM would then take aborts for ever; here userspace is told, which is the one place where the two differ.
    """
    cpu = arch.cpu
    pc = cpu.pc
    if pc == inject.vector(cpu):
        _exit_internal(arch, common.KVM_INTERNAL_ERROR_EMULATION, pc)
        return False
    inject.inject_pabt(cpu, pc)
    return True


def _exit_mmio(arch: Arm64Vcpu, address: int, size: int, value: int, write: bool) -> int:
    vcpu = arch.vcpu
    vcpu.stats.values[_MMIO_EXIT_USER] += 1
    arch.mmio = -size if write else size
    _MMIO.pack_into(vcpu.page, EXIT_DATA, address, value, size, write)
    vcpu.set_exit_reason(common.KVM_EXIT_MMIO)
    return 0


def _exit_internal(arch: Arm64Vcpu, suberror: int, *data: int) -> int:
    words = [word & 0xFFFFFFFFFFFFFFFF for word in data]
    _INTERNAL.pack_into(arch.vcpu.page, EXIT_DATA, suberror, len(words), *words, *(0,) * (16 - len(words)))
    arch.vcpu.set_exit_reason(common.KVM_EXIT_INTERNAL_ERROR)
    return 0
