# SPDX-License-Identifier: GPL-2.0-only
"""The in-kernel interrupt controllers and the PIT of x86, as requests carry their state.

Source: ``arch/x86/include/uapi/asm/kvm.h``; ``Documentation/virt/kvm/api.rst``, sections 4.26, 4.57 and 4.71 to 4.73.
"""

from __future__ import annotations

from ctypes import Structure, Union, c_char, c_int64, c_uint8, c_uint16, c_uint32, c_uint64
from typing import Final

# kvm_irqchip.chip_id, and a routing entry's irqchip.
KVM_IRQCHIP_PIC_MASTER: Final = 0
KVM_IRQCHIP_PIC_SLAVE: Final = 1
KVM_IRQCHIP_IOAPIC: Final = 2
KVM_NR_IRQCHIPS: Final = 3
KVM_IOAPIC_NUM_PINS: Final = 24


class KvmPicState(Structure):
    """One 8259A."""

    _fields_ = tuple(
        (name, c_uint8)
        for name in (
            *("last_irr", "irr", "imr", "isr", "priority_add", "irq_base", "read_reg_select", "poll"),
            *("special_mask", "init_state", "auto_eoi", "rotate_on_auto_eoi", "special_fully_nested_mode"),
            *("init4", "elcr", "elcr_mask"),
        )
    )


class KvmIoapicState(Structure):
    """The IOAPIC."""

    class Redirect(Union):
        """One redirection entry, as 64 bits or by field."""

        class Fields(Structure):
            """The fields of a redirection entry."""

            _fields_ = (
                ("vector", c_uint8),
                ("delivery_mode", c_uint8, 3),
                ("dest_mode", c_uint8, 1),
                ("delivery_status", c_uint8, 1),
                ("polarity", c_uint8, 1),
                ("remote_irr", c_uint8, 1),
                ("trig_mode", c_uint8, 1),
                ("mask", c_uint8, 1),
                ("reserve", c_uint8, 7),
                ("reserved", c_uint8 * 4),
                ("dest_id", c_uint8),
            )

        _fields_ = (("bits", c_uint64), ("fields", Fields))

    _fields_ = (
        ("base_address", c_uint64),
        ("ioregsel", c_uint32),
        ("id", c_uint32),
        ("irr", c_uint32),
        ("pad", c_uint32),
        ("redirtbl", Redirect * KVM_IOAPIC_NUM_PINS),
    )


KVM_APIC_REG_SIZE: Final = 0x400


class KvmLapicState(Structure):
    """KVM_GET_LAPIC and KVM_SET_LAPIC: the first 1024 bytes of the local APIC's register page."""

    _fields_ = (("regs", c_char * KVM_APIC_REG_SIZE),)


class KvmPitChannelState(Structure):
    """One counter of the 8254; ``count_load_time`` in ns of the host's monotonic clock."""

    _fields_ = (
        ("count", c_uint32),
        ("latched_count", c_uint16),
        *(
            (name, c_uint8)
            for name in (
                *("count_latched", "status_latched", "status", "read_state", "write_state", "write_latch"),
                *("rw_mode", "mode", "bcd", "gate"),
            )
        ),
        ("count_load_time", c_int64),
    )


KVM_PIT_FLAGS_HPET_LEGACY: Final = 0x00000001
KVM_PIT_FLAGS_SPEAKER_DATA_ON: Final = 0x00000002
KVM_PIT_SPEAKER_DUMMY: Final = 1


class KvmPitState(Structure):
    """KVM_GET_PIT and KVM_SET_PIT."""

    _fields_ = (("channels", KvmPitChannelState * 3),)


class KvmPitState2(Structure):
    """KVM_GET_PIT2 and KVM_SET_PIT2."""

    _fields_ = (("channels", KvmPitChannelState * 3), ("flags", c_uint32), ("reserved", c_uint32 * 9))


class KvmPitConfig(Structure):
    """KVM_CREATE_PIT2: KVM_PIT_SPEAKER_DUMMY makes port 0x61 part of it."""

    _fields_ = (("flags", c_uint32), ("pad", c_uint32 * 15))


class KvmReinjectControl(Structure):
    """KVM_REINJECT_CONTROL: whether ticks the guest missed are delivered later."""

    _fields_ = (("pit_reinject", c_uint8), ("reserved", c_uint8 * 31))
