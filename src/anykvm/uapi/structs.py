# SPDX-License-Identifier: GPL-2.0-only
"""The structures that requests point at, the same on every architecture.

A structure is named after the kernel's (``struct kvm_irq_level`` is ``KvmIrqLevel``), its fields keep their names.
Arrays of no fixed length at a structure's end have length 0 here, as in C. Source: ``include/uapi/linux/kvm.h``.
"""

from __future__ import annotations

from ctypes import Structure, Union, c_char, c_int16, c_int32, c_uint8, c_uint16, c_uint32, c_uint64


class KvmUserspaceMemoryRegion(Structure):
    """KVM_SET_USER_MEMORY_REGION: a memory slot; sizes and addresses in bytes, size 0 deletes."""

    _fields_ = (
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
    )


class KvmUserspaceMemoryRegion2(Structure):
    """KVM_SET_USER_MEMORY_REGION2: a memory slot that may name a guest_memfd."""

    _fields_ = (
        ("slot", c_uint32),
        ("flags", c_uint32),
        ("guest_phys_addr", c_uint64),
        ("memory_size", c_uint64),
        ("userspace_addr", c_uint64),
        ("guest_memfd_offset", c_uint64),
        ("guest_memfd", c_uint32),
        ("pad1", c_uint32),
        ("pad2", c_uint64 * 14),
    )


class KvmDirtyLog(Structure):
    """KVM_GET_DIRTY_LOG: where to write one bit per page, rounded up to 64 bits."""

    class _Bitmap(Union):
        _fields_ = (("dirty_bitmap", c_uint64), ("padding2", c_uint64))

    _anonymous_ = ("_bitmap",)
    _fields_ = (("slot", c_uint32), ("padding1", c_uint32), ("_bitmap", _Bitmap))


class KvmClearDirtyLog(Structure):
    """KVM_CLEAR_DIRTY_LOG: which pages of a slot to make clean again; ``first_page`` is a multiple of 64."""

    class _Bitmap(Union):
        _fields_ = (("dirty_bitmap", c_uint64), ("padding2", c_uint64))

    _anonymous_ = ("_bitmap",)
    _fields_ = (("slot", c_uint32), ("num_pages", c_uint32), ("first_page", c_uint64), ("_bitmap", _Bitmap))


class KvmDirtyGfn(Structure):
    """One entry of a vCPU's dirty ring; ``slot`` is as_id << 16 | slot, ``offset`` in pages from the slot's start."""

    _fields_ = (("flags", c_uint32), ("slot", c_uint32), ("offset", c_uint64))


class KvmMemoryAttributes(Structure):
    """KVM_SET_MEMORY_ATTRIBUTES: attributes of a guest-physical range, in bytes."""

    _fields_ = (("address", c_uint64), ("size", c_uint64), ("attributes", c_uint64), ("flags", c_uint64))


class KvmCreateGuestMemfd(Structure):
    """KVM_CREATE_GUEST_MEMFD: size in bytes."""

    _fields_ = (("size", c_uint64), ("flags", c_uint64), ("reserved", c_uint64 * 6))


class KvmPreFaultMemory(Structure):
    """KVM_PRE_FAULT_MEMORY: a guest-physical range in bytes, advanced by what was done."""

    _fields_ = (("gpa", c_uint64), ("size", c_uint64), ("flags", c_uint64), ("padding", c_uint64 * 5))


class KvmIrqLevel(Structure):
    """KVM_IRQ_LINE: the line (as the architecture encodes it) and its level, 0 or 1."""

    class _Irq(Union):
        _fields_ = (("irq", c_uint32), ("status", c_int32))

    _anonymous_ = ("_irq",)
    _fields_ = (("_irq", _Irq), ("level", c_uint32))


class KvmIrqchip(Structure):
    """KVM_GET_IRQCHIP and KVM_SET_IRQCHIP: 512 bytes of a chip's state."""

    class _Chip(Union):
        _fields_ = (("dummy", c_uint8 * 512),)

    _fields_ = (("chip_id", c_uint32), ("pad", c_uint32), ("chip", _Chip))


class KvmIrqRoutingIrqchip(Structure):
    """A GSI that goes to a pin of an in-kernel interrupt controller."""

    _fields_ = (("irqchip", c_uint32), ("pin", c_uint32))


class KvmIrqRoutingMsi(Structure):
    """A GSI that is a message-signalled interrupt."""

    class _Devid(Union):
        _fields_ = (("pad", c_uint32), ("devid", c_uint32))

    _anonymous_ = ("_devid",)
    _fields_ = (("address_lo", c_uint32), ("address_hi", c_uint32), ("data", c_uint32), ("_devid", _Devid))


class KvmIrqRoutingEntry(Structure):
    """One GSI and where it goes; ``type`` says which member of ``u`` counts."""

    class _Route(Union):
        _fields_ = (("irqchip", KvmIrqRoutingIrqchip), ("msi", KvmIrqRoutingMsi), ("pad", c_uint32 * 8))

    _fields_ = (("gsi", c_uint32), ("type", c_uint32), ("flags", c_uint32), ("pad", c_uint32), ("u", _Route))


class KvmIrqRouting(Structure):
    """KVM_SET_GSI_ROUTING: the head of the whole table; ``nr`` entries follow."""

    _fields_ = (("nr", c_uint32), ("flags", c_uint32), ("entries", KvmIrqRoutingEntry * 0))


class KvmIrqfd(Structure):
    """KVM_IRQFD: an eventfd that raises a GSI."""

    _fields_ = (
        ("fd", c_uint32),
        ("gsi", c_uint32),
        ("flags", c_uint32),
        ("resamplefd", c_uint32),
        ("pad", c_uint8 * 16),
    )


class KvmIoeventfd(Structure):
    """KVM_IOEVENTFD: an eventfd signalled by a guest write; ``len`` is 0 (any), 1, 2, 4 or 8 bytes."""

    _fields_ = (
        ("datamatch", c_uint64),
        ("addr", c_uint64),
        ("len", c_uint32),
        ("fd", c_int32),
        ("flags", c_uint32),
        ("pad", c_uint8 * 36),
    )


class KvmMsi(Structure):
    """KVM_SIGNAL_MSI: one message-signalled interrupt, now."""

    _fields_ = (
        ("address_lo", c_uint32),
        ("address_hi", c_uint32),
        ("data", c_uint32),
        ("flags", c_uint32),
        ("devid", c_uint32),
        ("pad", c_uint8 * 12),
    )


class KvmCoalescedMmioZone(Structure):
    """KVM_REGISTER_COALESCED_MMIO: a range whose writes are queued instead of exiting; size in bytes."""

    class _Pio(Union):
        _fields_ = (("pad", c_uint32), ("pio", c_uint32))

    _anonymous_ = ("_pio",)
    _fields_ = (("addr", c_uint64), ("size", c_uint32), ("_pio", _Pio))


class KvmCoalescedMmio(Structure):
    """One queued write of up to 8 bytes."""

    class _Pio(Union):
        _fields_ = (("pad", c_uint32), ("pio", c_uint32))

    _anonymous_ = ("_pio",)
    _fields_ = (("phys_addr", c_uint64), ("len", c_uint32), ("_pio", _Pio), ("data", c_uint8 * 8))


class KvmCoalescedMmioRing(Structure):
    """The head of the ring page of queued writes; ``first`` is userspace's, ``last`` KVM's."""

    _fields_ = (("first", c_uint32), ("last", c_uint32), ("coalesced_mmio", KvmCoalescedMmio * 0))


class KvmEnableCap(Structure):
    """KVM_ENABLE_CAP: the capability and its arguments."""

    _fields_ = (("cap", c_uint32), ("flags", c_uint32), ("args", c_uint64 * 4), ("pad", c_uint8 * 64))


class KvmCreateDevice(Structure):
    """KVM_CREATE_DEVICE: the type in, the device's fd out."""

    _fields_ = (("type", c_uint32), ("fd", c_uint32), ("flags", c_uint32))


class KvmDeviceAttr(Structure):
    """KVM_{SET,GET,HAS}_DEVICE_ATTR: ``addr`` points at the value, whose size the group defines."""

    _fields_ = (("flags", c_uint32), ("group", c_uint32), ("attr", c_uint64), ("addr", c_uint64))


class KvmOneReg(Structure):
    """KVM_{GET,SET}_ONE_REG: ``addr`` points at the value; its size is in the id."""

    _fields_ = (("id", c_uint64), ("addr", c_uint64))


class KvmRegList(Structure):
    """KVM_GET_REG_LIST: the head; ``n`` register ids follow."""

    _fields_ = (("n", c_uint64), ("reg", c_uint64 * 0))


class KvmMpState(Structure):
    """KVM_{GET,SET}_MP_STATE: one of KVM_MP_STATE_*."""

    _fields_ = (("mp_state", c_uint32),)


class KvmInterrupt(Structure):
    """KVM_INTERRUPT: an interrupt for a vCPU without an in-kernel controller."""

    _fields_ = (("irq", c_uint32),)


class KvmTranslation(Structure):
    """KVM_TRANSLATE: a guest-virtual address in, the guest-physical one out."""

    _fields_ = (
        ("linear_address", c_uint64),
        ("physical_address", c_uint64),
        ("valid", c_uint8),
        ("writeable", c_uint8),
        ("usermode", c_uint8),
        ("pad", c_uint8 * 5),
    )


class KvmSignalMask(Structure):
    """KVM_SET_SIGNAL_MASK: the head; ``len`` bytes of the kernel's sigset follow (8 on 64-bit hosts)."""

    _fields_ = (("len", c_uint32), ("sigset", c_uint8 * 0))


class KvmStatsHeader(Structure):
    """The start of a statistics fd: how many statistics, and where each block begins (bytes)."""

    _fields_ = (
        ("flags", c_uint32),
        ("name_size", c_uint32),
        ("num_desc", c_uint32),
        ("id_offset", c_uint32),
        ("desc_offset", c_uint32),
        ("data_offset", c_uint32),
    )


class KvmStatsDesc(Structure):
    """One statistic: ``size`` 64-bit values at ``offset`` in the data block; ``name_size`` bytes of name follow."""

    _fields_ = (
        ("flags", c_uint32),
        ("exponent", c_int16),
        ("size", c_uint16),
        ("offset", c_uint32),
        ("bucket_size", c_uint32),
        ("name", c_char * 0),
    )
