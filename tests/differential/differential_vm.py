# SPDX-License-Identifier: GPL-2.0-only
"""Generated requests of a VM's fd."""

from __future__ import annotations

from typing import Any

from differential_guests import MEMORY
from differential_player import PAGE, Operation
from differential_values import ADDRESSES, BAD, IDS, U32, U64, VCPUS, Draw, pick
from hypothesis import strategies as st

CAPS = (
    *((121, value) for value in (24, 0, 4096, 4097)),  # SPLIT_IRQCHIP
    *((128, value) for value in (4, 8, 4096, 5000, 0)),  # MAX_VCPU_ID
    *((188, value) for value in (0, 1, 7, 8)),  # X86_USER_SPACE_MSR
    *((168, value) for value in (1, 3, 2)),  # MANUAL_DIRTY_LOG_PROTECT2
    *((116, 1), (213, 4), (213, 1 << 20)),  # DISABLE_QUIRKS, DISABLE_QUIRKS2
    *((129, value) for value in (0, 3, 4)),  # X2APIC_API
    *((143, value) for value in (0, 2, 4, 31)),  # X86_DISABLE_EXITS
    *((182, value) for value in (0, 200_000, 1 << 32)),  # HALT_POLL
    *((9999, 0), (0, 0)),
)


def region(draw: Draw) -> dict[str, Any]:
    good = draw(st.integers(0, 3))
    return {
        "slot": draw(pick([0, 0, 1, 2, 3] if good else [0, 32763, 32764, 65535, 65536, U32])),
        "flags": draw(pick([0, 0, 0, 1, 2, 3] if good else [4, 8, 32, U32])),
        "guest_phys_addr": draw(
            pick([0, 0, PAGE, 0x10000, 0x40000, 0xFEE00000] if good else [1, 4095, 1 << 47, 1 << 52, U64 & -4096])
        ),
        "memory_size": draw(
            pick([0, PAGE, 4 * PAGE, 0x10000, MEMORY] if good else [1, 4095, 1 << 31, 1 << 44, 1 << 63])
        ),
        "userspace_addr": draw(pick(["@ram", "@ram", "@ram+4096", "@ram+65536"]) if good else ADDRESSES),
    }


def vm_operation(draw: Draw, vm: str) -> Operation:
    choice = draw(st.integers(0, 24))
    ioctl: list[Any] = ["ioctl", vm]
    if choice <= 2:
        return ["make", draw(pick(VCPUS)), vm, "KVM_CREATE_VCPU", draw(IDS)]
    if choice <= 5:
        return [*ioctl, "KVM_SET_USER_MEMORY_REGION", ["KvmUserspaceMemoryRegion", region(draw)]]
    if choice == 6:
        return [*ioctl, "KVM_CREATE_IRQCHIP", 0]
    if choice == 7:
        cap, value = draw(pick(CAPS))
        sets = {"cap": cap, "args.0": value, "flags": draw(pick([0, 0, 0, 1]))}
        return [*ioctl, "KVM_ENABLE_CAP", ["KvmEnableCap", sets]]
    if choice == 8:
        return [*ioctl, "KVM_SET_BOOT_CPU_ID", draw(IDS)]
    if choice == 9:
        return [*ioctl, draw(pick(["KVM_CREATE_PIT2"])), ["KvmPitConfig", {"flags": draw(pick([0, 1, 2, U32]))}]]
    if choice == 10:
        return [*ioctl, draw(pick(["KVM_GET_PIT2", "KVM_GET_PIT"])), ["KvmPitState2", {}]]
    if choice == 11:
        slot = draw(pick([0, 0, 1, 3, 32764, 65536]))
        where = draw(pick(["@ram+983040", "@ram+983040", "@hole", "@null"]))
        return [*ioctl, "KVM_GET_DIRTY_LOG", ["KvmDirtyLog", {"slot": slot, "dirty_bitmap": where}]]
    if choice == 12:
        sets = {"slot": draw(pick([0, 0, 1, 32764])), "first_page": draw(pick([0, 0, 1, 64, U64 - 63]))}
        sets |= {"num_pages": draw(pick([0, 1, 4, 16, 64, U32])), "dirty_bitmap": draw(pick(["@ram+983040", "@hole"]))}
        return [*ioctl, "KVM_CLEAR_DIRTY_LOG", ["KvmClearDirtyLog", sets]]
    if choice == 13:
        chip = draw(pick([0, 1, 2, 3, U32]))
        return [*ioctl, "KVM_GET_IRQCHIP", ["KvmIrqchip", {"chip_id": chip}]]
    if choice == 14:
        return [*ioctl, "KVM_SET_IRQCHIP", ["KvmIrqchip", {"chip_id": draw(pick([0, 1, 2, 3]))}]]
    if choice == 15:
        request = draw(pick(["KVM_IRQ_LINE", "KVM_IRQ_LINE_STATUS"]))
        return [
            *ioctl,
            request,
            ["KvmIrqLevel", {"irq": draw(pick([0, 1, 4, 15, 23, 24, 4095, U32])), "level": draw(pick([0, 1]))}],
        ]
    if choice == 16:
        return [*ioctl, "KVM_SET_GSI_ROUTING", routing(draw)]
    if choice == 17:
        return [*ioctl, "KVM_IRQFD", ["KvmIrqfd", irqfd(draw)]]
    if choice == 18:
        return [*ioctl, "KVM_IOEVENTFD", ["KvmIoeventfd", ioeventfd(draw)]]
    if choice == 19:
        sets = {"type": draw(pick([0, 4, 5, 7, 8, 9999])), "flags": draw(pick([0, 1, 2]))}
        return (
            [*ioctl, "KVM_CREATE_DEVICE", ["KvmCreateDevice", sets]]
            if sets["type"] != 4
            else [*ioctl, "KVM_CREATE_DEVICE", "@null"]
        )
    if choice == 20:
        request, argument = draw(
            pick(
                [("KVM_GET_CLOCK", ["KvmClockData", {}]), ("KVM_SET_CLOCK", ["KvmClockData", {"clock": 5}])]
                + [("KVM_SET_CLOCK", ["KvmClockData", {"flags": n}]) for n in (1, 2, 4, 8, 64)]
                + [("KVM_SET_TSC_KHZ", n) for n in (0, 1000000, 1, 1 << 31, 1 << 32)]
                + [("KVM_GET_TSC_KHZ", 0), ("KVM_SET_TSS_ADDR", 0xFFFBD000), ("KVM_SET_TSS_ADDR", 0xFFFFE000)]
                + [("KVM_SET_TSS_ADDR", 1 << 32), ("KVM_SET_IDENTITY_MAP_ADDR", "@ram"), ("KVM_SET_TSS_ADDR", 0)]
                + [("KVM_SET_NR_MMU_PAGES", n) for n in (0, 63, 64, 1000)]
                + [("KVM_REINJECT_CONTROL", ["KvmReinjectControl", {"pit_reinject": n}]) for n in (0, 1)]
            )
        )
        return [*ioctl, request, argument]
    if choice == 21:
        sets = {
            "address_lo": draw(pick([0xFEE00000, 0xFEE01000, 0, U32])),
            "data": draw(pick([0x41, 0, 0xFFFF, 0x4441])),
        }
        return [*ioctl, "KVM_SIGNAL_MSI", ["KvmMsi", sets | {"flags": draw(pick([0, 0, 1, 2]))}]]
    if choice == 22:
        return [*ioctl, "KVM_CHECK_EXTENSION", draw(pick([0, 1, 3, 10, 25, 66, 128, 9999]))]
    if choice == 23:
        return [*ioctl, "KVM_X86_SET_MSR_FILTER", msr_filter(draw)]
    return [*ioctl, draw(pick(VM_REQUESTS)), draw(BAD)]


VM_REQUESTS = (
    *("KVM_SET_USER_MEMORY_REGION", "KVM_GET_DIRTY_LOG", "KVM_GET_IRQCHIP", "KVM_SET_IRQCHIP", "KVM_CREATE_PIT2"),
    *("KVM_GET_PIT2", "KVM_SET_PIT2", "KVM_IRQ_LINE", "KVM_SET_GSI_ROUTING", "KVM_IRQFD", "KVM_IOEVENTFD"),
    *("KVM_CREATE_DEVICE", "KVM_GET_CLOCK", "KVM_SET_CLOCK", "KVM_ENABLE_CAP", "KVM_SIGNAL_MSI"),
    *("KVM_SET_IDENTITY_MAP_ADDR", "KVM_X86_SET_MSR_FILTER", "KVM_SET_USER_MEMORY_REGION2", "KVM_CLEAR_DIRTY_LOG"),
    *("KVM_GET_REGS", "KVM_RUN", "KVM_CREATE_VM", "KVM_GET_API_VERSION", "KVM_GET_SUPPORTED_CPUID", 0xAEFF, 0x5401),
)


def routing(draw: Draw) -> list[Any]:
    def entry() -> list[Any]:
        if draw(st.booleans()):
            sets = {
                "type": 1,
                "u.irqchip.irqchip": draw(pick([0, 1, 2, 3])),
                "u.irqchip.pin": draw(pick([0, 7, 8, 23, 24])),
            }
        else:
            sets = {"type": draw(pick([2, 2, 3, 4, 0, 99])), "u.msi.address_lo": 0xFEE00000, "u.msi.data": 0x41}
        sets |= {"gsi": draw(pick([0, 1, 4, 4095, 4096])), "flags": draw(pick([0, 0, 0, 1, 2]))}
        return ["KvmIrqRoutingEntry", sets]

    entries = [entry() for _ in range(draw(st.integers(0, 3)))]
    return ["KvmIrqRouting", {"nr": len(entries), "flags": draw(pick([0, 0, 0, 1]))}, *entries]


def irqfd(draw: Draw) -> dict[str, Any]:
    fd = draw(pick(["@event0", "@event0", "@event1", "@vm0", 9999, U32]))
    return {
        "fd": fd,
        "gsi": draw(pick([0, 4, 23, 24, 4095, 99999])),
        "flags": draw(pick([0, 0, 1, 1, 2, 4])),
        "resamplefd": draw(pick(["@event1", 9999])),
    }


def ioeventfd(draw: Draw) -> dict[str, Any]:
    sets = {"addr": draw(pick([0x80010, 0xE9, 0x1000, U64 - 3])), "len": draw(pick([0, 1, 1, 2, 4, 8, 3]))}
    sets |= {"fd": draw(pick(["@event0", "@event0", "@event1", -1])), "datamatch": draw(pick([0, 0x41, 0x5A]))}
    return sets | {"flags": draw(pick([0, 1, 2, 3, 4, 5, 6, 7, 8, 16]))}


def msr_filter(draw: Draw) -> list[Any]:
    sets: dict[str, Any] = {"flags": draw(pick([0, 0, 1, 2]))}
    if draw(st.booleans()):
        sets |= {"ranges.0.flags": draw(pick([1, 2, 3, 4])), "ranges.0.nmsrs": draw(pick([1, 8, 0x3000, 0x3001]))}
        sets |= {
            "ranges.0.base": draw(pick([0x10, 0x40000090, 0xC0000080])),
            "ranges.0.bitmap": draw(pick(["@ram+917504", "@hole"])),
        }
    return ["KvmMsrFilter", sets]
