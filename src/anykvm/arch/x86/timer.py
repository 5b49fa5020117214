# SPDX-License-Identifier: GPL-2.0-only
"""Time: the time-stamp counter, and kvmclock, which tells the guest how to make nanoseconds of it.

The local APIC's timer and the PIT are with their chips. All vCPUs of a VM have one TSC offset unless userspace or the
guest moves one, so kvmclock is the same everywhere (PVCLOCK_TSC_STABLE_BIT) and its page is written once.

Source: ``Documentation/virt/kvm/x86/msr.rst`` and ``timekeeping.rst``; api.rst 4.29, 4.30.
"""

from __future__ import annotations

import errno
import time
from ctypes import sizeof
from typing import TYPE_CHECKING, Final

from anykvm.engine import host_has_tsc, host_tick_khz, host_ticks
from anykvm.uapi import x86 as uapi

from . import xen_vcpu

if TYPE_CHECKING:
    from .engine import CpuLike
    from .vcpu import X86Vcpu
    from .vm import X86Vm

PVCLOCK_TSC_STABLE_BIT: Final = 1 << 0
PVCLOCK_GUEST_STOPPED: Final = 1 << 1
_NS: Final = 1_000_000_000
U64: Final = 0xFFFFFFFFFFFFFFFF
_SYSTEM_TIME_ENABLE: Final = uapi.KVM_MSR_ENABLED
_TIME_SIZE: Final = sizeof(uapi.PvclockVcpuTimeInfo)


class KvmClock:
    """A VM's clock: nanoseconds since it was made, or since userspace set it."""

    __slots__ = ("_vm", "offset", "wall_msr")

    def __init__(self, vm: X86Vm) -> None:
        self._vm = vm
        self.offset = vm.vm.services.now()
        self.wall_msr: int = 0

    def now(self) -> int:
        """The clock, in ns."""
        return self._vm.vm.services.now() - self.offset & U64

    def set(self, value: int) -> None:
        """Move it; every vCPU writes its page anew before it goes on."""
        self.offset = self._vm.vm.services.now() - value
        for vcpu in self._vm.vcpus:
            vcpu.clock_stale = True
            vcpu.kick()


def scale(khz: int) -> tuple[int, int]:
    """Give pvclock's multiplier and shift: ``ns = (tsc << shift) * multiplier >> 32``.

    >>> scale(1_000_000)
    (2147483648, 1)
    """
    shift = 0
    hz = khz * 1000
    while hz > 2 * _NS:
        hz >>= 1
        shift -= 1
    while hz <= _NS:
        hz <<= 1
        shift += 1
    # From the exact rate, so that halving does not cost precision.
    exact = khz * 1000
    multiplier = (_NS << 32) // (exact << shift) if shift >= 0 else (_NS << 32 - shift) // exact
    return multiplier, shift


# The time-stamp counter.


def read_tsc(vcpu: X86Vcpu) -> int:
    """The guest's TSC now."""
    return vcpu.cpu.tsc


def set_counter(cpu: CpuLike, value: int) -> None:
    """Make the TSC read as ``value`` now."""
    cpu.tsc_offset = signed(cpu.tsc_offset + value - cpu.tsc)


def signed(value: int) -> int:
    """The number that 64 bits mean in two's complement."""
    value &= U64
    return value - (1 << 64) if value >> 63 else value


def write_tsc(vcpu: X86Vcpu, value: int, host: bool) -> None:
    """Set it. A write that is within a second of the VM's own TSC, or userspace's zero, means that one exactly."""
    cpu = vcpu.cpu
    vm = vcpu.vm
    if not host:
        # The guest's own move shows in IA32_TSC_ADJUST; userspace's does not.
        moved = vcpu.msrs.get(uapi.MSR_IA32_TSC_ADJUST, 0) + value - cpu.tsc
        vcpu.msrs[uapi.MSR_IA32_TSC_ADJUST] = moved & U64
    if host and vm.tsc_offset is not None:
        old = cpu.tsc_offset
        cpu.tsc_offset = vm.tsc_offset
        distance = abs(cpu.tsc - value)
        if value == 0 or distance < cpu.tsc_khz * 1000:
            if cpu.tsc_offset != old:
                vcpu.clock_stale = vcpu.attention = True
            return
    set_counter(cpu, value)
    if host:
        vm.tsc_offset = cpu.tsc_offset
    vcpu.clock_stale = vcpu.attention = True


def adjust_tsc(vcpu: X86Vcpu, delta: int) -> None:
    """Move it by that many ticks."""
    vcpu.cpu.tsc_offset = signed(vcpu.cpu.tsc_offset + delta)
    vcpu.clock_stale = vcpu.attention = True


def start_tsc(vcpu: X86Vcpu) -> None:
    """Give a vCPU the VM's TSC; the first one to need it starts it at zero."""
    cpu = vcpu.cpu
    vm = vcpu.vm
    with vm.config_lock:
        if vm.tsc_offset is None:
            set_counter(cpu, 0)
            vm.tsc_offset = cpu.tsc_offset
        else:
            cpu.tsc_offset = vm.tsc_offset


# The TSC deadline, which is the local APIC's.


def read_deadline(vcpu: X86Vcpu) -> int:
    """IA32_TSC_DEADLINE: 0 once it has passed, and in the timer's other modes."""
    return vcpu.lapic.timer.tsc_deadline if vcpu.lapic is not None else 0


def write_deadline(vcpu: X86Vcpu, value: int, host: bool) -> None:
    """IA32_TSC_DEADLINE: expire when the TSC reads that; 0 stops. Ignored in the timer's other modes."""
    if vcpu.lapic is not None:
        vcpu.lapic.set_tsc_deadline(value)


# kvmclock.


def write_system_time(vcpu: X86Vcpu, value: int, host: bool) -> None:
    """MSR_KVM_SYSTEM_TIME(_NEW): where the guest wants its clock's page, and bit 0 to have it."""
    vcpu.system_time = value
    vcpu.clock_stale = bool(value & _SYSTEM_TIME_ENABLE)
    if vcpu.clock_stale and not host:
        update_page(vcpu)
    vcpu.attention = True


def update_page(vcpu: X86Vcpu) -> None:
    """Write the page, and those of other hypervisors' guests; an address without memory is ignored."""
    vcpu.clock_stale = False
    vcpu.vm.hyperv.update_page(vcpu)
    kvms = (vcpu.system_time & ~1,) if vcpu.system_time & _SYSTEM_TIME_ENABLE else ()
    for address in (*kvms, *xen_vcpu.clocks(vcpu)):
        _write_clock(vcpu, address)


def _write_clock(vcpu: X86Vcpu, address: int) -> None:
    """The TSC and the clock as they are now, and the rate."""
    old = vcpu.vm.read_guest(address, 4)
    if old is None:
        return
    version = int.from_bytes(old, "little") | 1
    multiplier, shift = scale(vcpu.cpu.tsc_khz)
    page = uapi.PvclockVcpuTimeInfo(
        version=version,
        tsc_timestamp=read_tsc(vcpu),
        system_time=vcpu.vm.clock.now(),
        tsc_to_system_mul=multiplier,
        tsc_shift=shift & 0xFF,
        flags=_flags(vcpu),
    )
    vcpu.guest_stopped = False
    # Odd while it is being written, then even again.
    vcpu.vm.write_guest(address, bytes(page))
    vcpu.vm.write_guest(address, (version + 1 & 0xFFFFFFFF).to_bytes(4, "little"))


def _flags(vcpu: X86Vcpu) -> int:
    stable = PVCLOCK_TSC_STABLE_BIT if vcpu.cpu.tsc_offset == vcpu.vm.tsc_offset else 0
    return stable | (PVCLOCK_GUEST_STOPPED if vcpu.guest_stopped else 0)


def write_wall_clock(vcpu: X86Vcpu, value: int, host: bool) -> None:
    """MSR_KVM_WALL_CLOCK(_NEW): write the time of day at which kvmclock was zero to a guest's address."""
    vm = vcpu.vm
    vm.clock.wall_msr = value
    old = vm.read_guest(value, 4) if value else None
    if old is None or host:
        return
    version = (int.from_bytes(old, "little") | 1) & 0xFFFFFFFF
    booted = time.time_ns() - vm.clock.now()
    wall = uapi.PvclockWallClock(version, booted // _NS & 0xFFFFFFFF, booted % _NS)
    vm.write_guest(value, bytes(wall))
    vm.write_guest(value, (version + 1 & 0xFFFFFFFF).to_bytes(4, "little"))


def get_clock(vm: X86Vm) -> uapi.KvmClockData:
    """KVM_GET_CLOCK; all vCPUs have one TSC, so it is stable. The time of day goes with it."""
    flags = uapi.KVM_CLOCK_TSC_STABLE | uapi.KVM_CLOCK_REALTIME
    data = uapi.KvmClockData(clock=vm.clock.now(), flags=flags, realtime=time.time_ns())
    if host_has_tsc():
        data.flags |= uapi.KVM_CLOCK_HOST_TSC
        data.host_tsc = host_ticks()
    return data


def set_clock(vm: X86Vm, data: uapi.KvmClockData) -> None:
    """KVM_SET_CLOCK; with KVM_CLOCK_REALTIME the time since that moment is added. ValueError for unknown flags."""
    known = uapi.KVM_CLOCK_TSC_STABLE | uapi.KVM_CLOCK_REALTIME | uapi.KVM_CLOCK_HOST_TSC
    if data.flags & ~known:
        raise ValueError(f"kvm_clock_data.flags cannot be {data.flags:#x}")
    value = data.clock
    if data.flags & uapi.KVM_CLOCK_REALTIME:
        passed = time.time_ns() - data.realtime
        value += max(passed, 0)
    vm.clock.set(value)


def own_khz() -> int:
    """The engine's own rate in kHz: the host's TSC's, or 1 GHz where that is no clock."""
    return host_tick_khz()


_KHZ_MAX: Final = 1_000_000_000


def check_khz(arg: int) -> int:
    """The rate KVM_SET_TSC_KHZ asks for, in kHz, 0 for the default; EINVAL for more than the engine can."""
    khz = arg & 0xFFFFFFFF
    if khz > _KHZ_MAX:
        raise OSError(errno.EINVAL, f"the TSC's rate is at most {_KHZ_MAX} kHz")
    return khz or own_khz()


def set_khz(vcpu: X86Vcpu, arg: int) -> None:
    """KVM_SET_TSC_KHZ on a vCPU; the TSC goes on from where it is. EINVAL."""
    vcpu.tsc_khz = check_khz(arg)
    if vcpu.live:
        now = vcpu.cpu.tsc
        vcpu.cpu.tsc_khz = vcpu.tsc_khz
        set_counter(vcpu.cpu, now)
        vcpu.clock_stale = vcpu.attention = True
