# SPDX-License-Identifier: GPL-2.0-only
"""What a VM handle has on x86: the interrupt controllers' state, the PIT, the clock, addresses KVM wants to know."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import NamedTuple

from anykvm.api.handle import Handle
from anykvm.uapi.common import KVM_GET_IRQCHIP, KVM_SET_BOOT_CPU_ID, KVM_SET_IRQCHIP, KvmIrqchip
from anykvm.uapi.x86 import (
    KVM_CREATE_PIT2,
    KVM_GET_CLOCK,
    KVM_GET_PIT2,
    KVM_MSR_FILTER_DEFAULT_DENY,
    KVM_MSR_FILTER_MAX_RANGES,
    KVM_PIT_SPEAKER_DUMMY,
    KVM_REINJECT_CONTROL,
    KVM_SET_CLOCK,
    KVM_SET_IDENTITY_MAP_ADDR,
    KVM_SET_PIT2,
    KVM_SET_TSS_ADDR,
    KVM_X86_SET_MSR_FILTER,
    KvmClockData,
    KvmMsrFilter,
    KvmPitConfig,
    KvmPitState2,
    KvmReinjectControl,
)


class MsrRange(NamedTuple):
    """A range of an MSR filter: from ``base`` on, one bit each in ``allowed`` (lowest first).

    ``flags`` says what the bits are about: KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE.

    >>> MsrRange(flags=1, base=0x10, allowed=[True, False]).base
    16
    """

    flags: int
    base: int
    allowed: list[bool]


class X86Machine(Handle):
    """What :class:`Vm` has on x86; elsewhere these are OSError ENOTTY."""

    def set_tss_addr(self, address: int) -> None:
        """Three pages of guest-physical addresses below 4 GiB that the guest does not use (api.rst 4.36).

        Errors: EINVAL, EEXIST, EBADF.
        """
        self.ioctl(KVM_SET_TSS_ADDR, address)

    def set_identity_map_addr(self, address: int) -> None:
        """One page of guest-physical addresses below 4 GiB that the guest does not use (api.rst 4.40).

        Errors: EINVAL once there are vCPUs, EBADF.
        """
        value = ctypes.c_uint64(address)
        self.ioctl(KVM_SET_IDENTITY_MAP_ADDR, ctypes.addressof(value))

    def set_boot_cpu_id(self, vcpu_id: int) -> None:
        """Which vcpu_id is the boot processor, 0 by default (api.rst 4.41). Errors: EBUSY once there are vCPUs, EINVAL,
        EBADF.
        """
        self.ioctl(KVM_SET_BOOT_CPU_ID, vcpu_id)

    def get_irqchip(self, chip_id: int) -> bytes:
        """The state of KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE or _IOAPIC, 512 bytes (api.rst 4.26).

        ``KvmPicState`` and ``KvmIoapicState`` read it. Errors: EINVAL, ENXIO without an in-kernel irqchip, EBADF.
        """
        chip = KvmIrqchip(chip_id=chip_id)
        self.ioctl(KVM_GET_IRQCHIP, chip)
        return bytes(chip.chip)

    def set_irqchip(self, chip_id: int, state: bytes) -> None:
        """Load what :meth:`get_irqchip` gave (api.rst 4.27). Errors: EINVAL, ENXIO, EBADF."""
        chip = KvmIrqchip(chip_id=chip_id)
        ctypes.memmove(ctypes.addressof(chip) + KvmIrqchip.chip.offset, state, min(len(state), KvmIrqchip.chip.size))
        self.ioctl(KVM_SET_IRQCHIP, chip)

    def create_pit2(self, *, speaker: bool = False) -> None:
        """Make the in-kernel PIT, with port 0x61 if ``speaker`` (api.rst 4.71).

        Errors: EEXIST, ENOENT without the in-kernel PICs and IOAPIC, EBADF.
        """
        self.ioctl(KVM_CREATE_PIT2, KvmPitConfig(flags=KVM_PIT_SPEAKER_DUMMY if speaker else 0))

    def get_pit2(self) -> KvmPitState2:
        """The PIT's state (api.rst 4.72). Errors: ENXIO, EBADF."""
        state = KvmPitState2()
        self.ioctl(KVM_GET_PIT2, state)
        return state

    def set_pit2(self, state: KvmPitState2) -> None:
        """Load the PIT's state (api.rst 4.73). Errors: ENXIO, EBADF."""
        self.ioctl(KVM_SET_PIT2, state)

    def reinject_control(self, reinject: bool) -> None:
        """Whether the PIT's ticks the guest missed come later (api.rst 4.100). Errors: ENXIO, EBADF."""
        self.ioctl(KVM_REINJECT_CONTROL, KvmReinjectControl(pit_reinject=reinject))

    def get_clock(self) -> KvmClockData:
        """kvmclock now, in ns (api.rst 4.29). Errors: EBADF."""
        clock = KvmClockData()
        self.ioctl(KVM_GET_CLOCK, clock)
        return clock

    def set_clock(self, clock: KvmClockData | int) -> None:
        """Set kvmclock, in ns (api.rst 4.30). Errors: EINVAL for unknown flags, EBADF."""
        self.ioctl(KVM_SET_CLOCK, KvmClockData(clock=clock) if isinstance(clock, int) else clock)

    def set_msr_filter(self, ranges: Iterable[MsrRange] = (), *, deny: bool = False) -> None:
        """Which MSRs the guest may read and write (api.rst 4.97); ``deny`` is for those in no range.

        What is denied is #GP, or an exit with KVM_CAP_X86_USER_SPACE_MSR. Errors: EINVAL, EBADF; ValueError for more
        than 16 ranges.
        """
        request = KvmMsrFilter(flags=KVM_MSR_FILTER_DEFAULT_DENY if deny else 0)
        bitmaps = []
        for number, one in enumerate(ranges):
            if number >= KVM_MSR_FILTER_MAX_RANGES:
                raise ValueError(f"an MSR filter has at most {KVM_MSR_FILTER_MAX_RANGES} ranges")
            bits = sum(allowed << bit for bit, allowed in enumerate(one.allowed))
            size = (len(one.allowed) + 63) // 64 * 8
            bitmaps.append(ctypes.create_string_buffer(bits.to_bytes(size, "little"), size))
            entry = request.ranges[number]
            entry.flags, entry.nmsrs, entry.base = one.flags, len(one.allowed), one.base
            entry.bitmap = ctypes.addressof(bitmaps[-1])
        self.ioctl(KVM_X86_SET_MSR_FILTER, request)
