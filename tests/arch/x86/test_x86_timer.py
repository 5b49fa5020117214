# SPDX-License-Identifier: GPL-2.0-only
"""Time: the TSC, kvmclock's page, the wall clock."""

from __future__ import annotations

import ctypes
import errno
import time

from hypothesis import given
from hypothesis import strategies as st
from x86_fake import Rig, errno_of

from anykvm.arch.x86 import timer
from anykvm.engine import Event
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X


@given(st.integers(1000, 20_000_000))
def test_the_scale_turns_ticks_into_nanoseconds(khz: int) -> None:
    multiplier, shift = timer.scale(khz)
    assert multiplier < 1 << 32
    ticks = khz * 1000 * 10
    scaled = ticks << shift if shift >= 0 else ticks >> -shift
    assert abs((scaled * multiplier >> 32) - 10_000_000_000) < 2000


def test_one_tsc_for_all(rig: Rig) -> None:
    rig.create_vcpu()
    rig.create_vcpu()
    rig.vcpu(0).load()
    rig.cpu(1).__class__.ticks += 5000
    rig.vcpu(1).load()
    assert rig.get_msr(X.MSR_IA32_TSC, 0) == rig.get_msr(X.MSR_IA32_TSC, 1) == 5000


def test_moving_it(rig: Rig) -> None:
    rig.create_vcpu()
    assert rig.set_msr(X.MSR_IA32_TSC, 1 << 50)
    assert rig.get_msr(X.MSR_IA32_TSC) == 1 << 50
    assert rig.set_msr(X.MSR_IA32_TSC, (1 << 50) + 999)
    assert rig.get_msr(X.MSR_IA32_TSC) == 1 << 50, "within a second it is the same one"
    rig.run((Event.MSR_WRITE, X.MSR_IA32_TSC, 0, 77), (Event.SHUTDOWN,))
    assert rig.get_msr(X.MSR_IA32_TSC) == 77
    moved = rig.get_msr(X.MSR_IA32_TSC_ADJUST)
    assert moved == (1 << 64) - (1 << 50) + 77, "the guest's own move shows there, userspace's does not"
    rig.run((Event.MSR_WRITE, X.MSR_IA32_TSC_ADJUST, 0, moved + 100), (Event.SHUTDOWN,))
    assert rig.get_msr(X.MSR_IA32_TSC) == 177
    assert rig.get_msr(X.MSR_IA32_TSC_ADJUST) == moved + 100


def test_its_rate(rig: Rig) -> None:
    assert rig.ioctl(rig.fd, X.KVM_GET_TSC_KHZ) == timer.own_khz()
    rig.ioctl(rig.fd, X.KVM_SET_TSC_KHZ, 2_000_000)
    fd = rig.create_vcpu()
    assert rig.ioctl(fd, X.KVM_GET_TSC_KHZ) == 2_000_000
    assert errno_of(rig.ioctl, rig.fd, X.KVM_SET_TSC_KHZ, 1) == errno.EINVAL
    rig.vcpu().load()
    assert rig.cpu().tsc_khz == 2_000_000
    rig.ioctl(fd, X.KVM_SET_TSC_KHZ, 3_000_000)
    assert rig.cpu().tsc_khz == 3_000_000
    assert errno_of(rig.ioctl, fd, X.KVM_SET_TSC_KHZ, 2_000_000_000) == errno.EINVAL


def test_its_offset_as_an_attribute(rig: Rig) -> None:
    fd = rig.create_vcpu()
    value = ctypes.c_uint64(5)
    attr = C.KvmDeviceAttr(0, X.KVM_VCPU_TSC_CTRL, X.KVM_VCPU_TSC_OFFSET, ctypes.addressof(value))
    rig.ioctl(fd, C.KVM_HAS_DEVICE_ATTR, attr)
    rig.ioctl(fd, C.KVM_SET_DEVICE_ATTR, attr)
    assert rig.cpu().tsc_offset == 5
    value.value = 0
    rig.ioctl(fd, C.KVM_GET_DEVICE_ATTR, attr)
    assert value.value == 5
    attr.attr = 9
    for request in (C.KVM_HAS_DEVICE_ATTR, C.KVM_GET_DEVICE_ATTR, C.KVM_SET_DEVICE_ATTR):
        assert errno_of(rig.ioctl, fd, request, attr) == errno.ENXIO


def clock_page(memory: object, offset: int) -> X.PvclockVcpuTimeInfo:
    return X.PvclockVcpuTimeInfo.from_buffer_copy(memory, offset)  # type: ignore[arg-type]


def test_kvmclock(rig: Rig) -> None:
    memory = rig.add_memory(0x1000, 0x1000)
    rig.create_vcpu()
    rig.run((Event.MSR_WRITE, X.MSR_KVM_SYSTEM_TIME_NEW, 0, 0x1041), (Event.SHUTDOWN,))
    page = clock_page(memory, 0x40)
    assert page.version == 2
    assert (page.tsc_to_system_mul, page.tsc_shift, page.flags) == (1 << 31, 1, timer.PVCLOCK_TSC_STABLE_BIT)
    assert 0 < page.system_time < 60_000_000_000
    assert rig.get_msr(X.MSR_KVM_SYSTEM_TIME_NEW) == 0x1041


def test_moving_the_clock_writes_the_page_anew(rig: Rig) -> None:
    memory = rig.add_memory(0x1000, 0x1000)
    rig.create_vcpu()
    rig.run((Event.MSR_WRITE, X.MSR_KVM_SYSTEM_TIME_NEW, 0, 0x1001), (Event.SHUTDOWN,))
    rig.ioctl(rig.fd, X.KVM_SET_CLOCK, X.KvmClockData(clock=1 << 60))
    rig.cpu().kicked.clear()
    rig.run((Event.SHUTDOWN,))
    page = clock_page(memory, 0)
    assert page.version == 4
    assert page.system_time >= 1 << 60
    clock = X.KvmClockData()
    rig.ioctl(rig.fd, X.KVM_GET_CLOCK, clock)
    assert clock.clock >= page.system_time
    assert clock.flags & X.KVM_CLOCK_TSC_STABLE


def test_a_guest_is_told_that_it_was_stopped(rig: Rig) -> None:
    memory = rig.add_memory(0x1000, 0x1000)
    fd = rig.create_vcpu()
    assert errno_of(rig.ioctl, fd, X.KVM_KVMCLOCK_CTRL) == errno.EINVAL
    assert rig.set_msr(X.MSR_KVM_SYSTEM_TIME_NEW, 0x1001)
    rig.ioctl(fd, X.KVM_KVMCLOCK_CTRL)
    rig.run((Event.SHUTDOWN,))
    assert clock_page(memory, 0).flags & timer.PVCLOCK_GUEST_STOPPED


def test_a_clock_page_that_is_not_there(rig: Rig) -> None:
    rig.create_vcpu()
    rig.run((Event.MSR_WRITE, X.MSR_KVM_SYSTEM_TIME_NEW, 0, 0x9001), (Event.SHUTDOWN,))
    assert rig.cpu().log == []


def test_the_wall_clock(rig: Rig) -> None:
    memory = rig.add_memory(0x1000, 0x1000)
    rig.create_vcpu()
    rig.run((Event.MSR_WRITE, X.MSR_KVM_WALL_CLOCK_NEW, 0, 0x1010), (Event.SHUTDOWN,))
    wall = X.PvclockWallClock.from_buffer_copy(memory, 0x10)
    assert wall.version == 2
    assert abs(wall.sec - time.time()) < 60
    assert rig.get_msr(X.MSR_KVM_WALL_CLOCK) == 0x1010


def test_the_time_since_a_moment_is_added(rig: Rig) -> None:
    past = time.time_ns() - 5_000_000_000
    data = X.KvmClockData(clock=100, flags=X.KVM_CLOCK_REALTIME, realtime=past)
    rig.ioctl(rig.fd, X.KVM_SET_CLOCK, data)
    clock = X.KvmClockData()
    rig.ioctl(rig.fd, X.KVM_GET_CLOCK, clock)
    assert 5_000_000_000 <= clock.clock < 30_000_000_000


def test_flags_of_the_clock_there_are_not(rig: Rig) -> None:
    assert errno_of(rig.ioctl, rig.fd, X.KVM_SET_CLOCK, X.KvmClockData(flags=1)) == errno.EINVAL
