# SPDX-License-Identifier: GPL-2.0-only
"""Sequences written by hand, by name: what a generator seldom finds. They are recorded as the generated ones are."""

from __future__ import annotations

from differential_generate import memory, start
from differential_guests import GUESTS
from differential_player import Operation

VM: Operation = ["make", "vm0", "sys", "KVM_CREATE_VM", 0]
IRQCHIP: Operation = ["ioctl", "vm0", "KVM_CREATE_IRQCHIP", 0]
SPLIT: Operation = ["ioctl", "vm0", "KVM_ENABLE_CAP", ["KvmEnableCap", {"cap": 121, "args.0": 24}]]
PIT: Operation = ["ioctl", "vm0", "KVM_CREATE_PIT2", ["KvmPitConfig", {}]]
REGS: Operation = ["ioctl", "cpu0", "KVM_GET_REGS", ["KvmRegs", {}]]
STATE: list[Operation] = [
    REGS,
    ["ioctl", "cpu0", "KVM_GET_SREGS", ["KvmSregs", {}]],
    ["ioctl", "cpu0", "KVM_GET_SREGS2", ["KvmSregs2", {}]],
    ["ioctl", "cpu0", "KVM_GET_FPU", ["KvmFpu", {}]],
    ["ioctl", "cpu0", "KVM_GET_XCRS", ["KvmXcrs", {}]],
    ["ioctl", "cpu0", "KVM_GET_DEBUGREGS", ["KvmDebugregs", {}]],
    ["ioctl", "cpu0", "KVM_GET_VCPU_EVENTS", ["KvmVcpuEvents", {}]],
    ["ioctl", "cpu0", "KVM_GET_MP_STATE", ["KvmMpState", {}]],
    ["ioctl", "cpu0", "KVM_GET_LAPIC", ["KvmLapicState", {}]],
]


def vcpu(name: str = "cpu0", vcpu_id: int = 0) -> Operation:
    return ["make", name, "vm0", "KVM_CREATE_VCPU", vcpu_id]


def cap(number: int, value: int = 0, flags: int = 0) -> Operation:
    return ["ioctl", "vm0", "KVM_ENABLE_CAP", ["KvmEnableCap", {"cap": number, "args.0": value, "flags": flags}]]


def slot(number: int, gpa: int, size: int, flags: int = 0, where: str = "@ram") -> Operation:
    sets = {"slot": number, "flags": flags, "guest_phys_addr": gpa, "memory_size": size, "userspace_addr": where}
    return ["ioctl", "vm0", "KVM_SET_USER_MEMORY_REGION", ["KvmUserspaceMemoryRegion", sets]]


def dirty(number: int, where: str = "@ram+983040") -> Operation:
    return ["ioctl", "vm0", "KVM_GET_DIRTY_LOG", ["KvmDirtyLog", {"slot": number, "dirty_bitmap": where}]]


def chip(number: int) -> Operation:
    return ["ioctl", "vm0", "KVM_GET_IRQCHIP", ["KvmIrqchip", {"chip_id": number}]]


def lapic(state: dict[str, int]) -> Operation:
    return ["ioctl", "cpu0", "KVM_SET_MP_STATE", ["KvmMpState", state]]


CASES: dict[str, list[Operation]] = {
    "ids": [
        VM,
        *(vcpu("cpu1", n) for n in (0, 0, 1, 7, 4095, 4096, 1 << 31, 1 << 32, 3, 3)),
        ["close", "cpu1"],
        vcpu("cpu1", 3),
    ],
    "a vCPU outlives its VM's fd": [VM, vcpu(), ["close", "vm0"], REGS, ["close", "cpu0"], vcpu()],
    "closing a vCPU keeps its id": [VM, vcpu(), ["close", "cpu0"], vcpu(), vcpu("cpu1", 1)],
    "no file descriptor": [VM, ["nofile", 0], vcpu(), vcpu(), ["nofile", None], vcpu(), vcpu()],
    "no file descriptor, a duplicate id": [VM, vcpu("cpu1"), ["nofile", 0], vcpu(), ["nofile", None], vcpu("cpu2", 1)],
    "no file descriptor for a VM": [["nofile", 0], VM, ["nofile", None], VM],
    "KVM_CAP_MAX_VCPU_ID": [VM, cap(128, 8), vcpu("cpu0", 7), vcpu("cpu1", 8), cap(128, 8), cap(128, 9)],
    "KVM_CAP_MAX_VCPU_ID, too late": [VM, vcpu(), cap(128, 8), cap(128, 4096)],
    "KVM_CAP_MAX_VCPU_ID, out of range": [VM, cap(128, 4097), cap(128, 0), cap(128, 4096, 1), cap(128, 4096)],
    "KVM_CAP_MAX_VCPU_ID and the boot CPU": [VM, ["ioctl", "vm0", "KVM_SET_BOOT_CPU_ID", 9], cap(128, 8), cap(128, 9)],
    "the boot CPU": [
        VM,
        ["ioctl", "vm0", "KVM_SET_BOOT_CPU_ID", 1],
        IRQCHIP,
        vcpu(),
        vcpu("cpu1", 1),
        *(["ioctl", name, "KVM_GET_MP_STATE", ["KvmMpState", {}]] for name in ("cpu0", "cpu1")),
        ["ioctl", "vm0", "KVM_SET_BOOT_CPU_ID", 0],
        ["ioctl", "vm0", "KVM_SET_BOOT_CPU_ID", 5000],
    ],
    "an irqchip after a vCPU": [VM, vcpu(), IRQCHIP, SPLIT, PIT],
    "two irqchips": [VM, IRQCHIP, IRQCHIP, SPLIT, PIT, PIT, vcpu(), PIT],
    "a split irqchip": [VM, SPLIT, IRQCHIP, PIT, chip(0), chip(2), vcpu(), *STATE],
    "a fresh vCPU": [VM, vcpu(), *STATE],
    "a fresh vCPU with an irqchip": [VM, IRQCHIP, vcpu(), *STATE, chip(0), chip(1), chip(2), chip(3)],
    "a fresh second vCPU": [VM, IRQCHIP, vcpu("cpu1", 0), vcpu("cpu0", 1), *STATE],
    "a fresh PIT": [VM, IRQCHIP, PIT, ["ioctl", "vm0", "KVM_GET_PIT2", ["KvmPitState2", {}]]],
    "every MP state": [VM, IRQCHIP, vcpu(), *(lapic({"mp_state": n}) for n in range(12)), *STATE],
    "every MP state without an irqchip": [VM, vcpu(), *(lapic({"mp_state": n}) for n in range(12))],
    "slots": [
        *(VM, slot(0, 0, 0x10000), slot(1, 0x8000, 0x10000), slot(1, 0x10000, 0x10000), slot(0, 0x20000, 0x10000)),
        *(slot(0, 0, 0x10000, 1), slot(0, 0, 0x8000), slot(0, 0, 0), slot(0, 0, 0), slot(32763, 1 << 32, 4096)),
        *(slot(32764, 1 << 33, 4096), slot(0, 1, 4096), slot(0, 0, 4095), slot(0, 0, 4096, where="@ram+8")),
        *(slot(2, 0x40000, 4096, 2), slot(2, 0x40000, 4096, 0), slot(2, 0x40000, 4096, 3), slot(65536, 0, 4096)),
        *(slot(3, (1 << 64) - 4096, 4096), slot(3, 1 << 45, 4096), slot(3, 1 << 52, 4096), slot(4, 0, 1 << 43)),
    ],
    "a dirty log": [
        *(VM, *memory(), vcpu(), *start("cpu0", "write memory"), dirty(0), ["run", "cpu0", None], dirty(0)),
        *(["peek", 983040, 8], ["load", 983040, "00" * 8], dirty(0), ["peek", 983040, 8], dirty(1), dirty(0, "@hole")),
    ],
    "a manual dirty log": [
        *(VM, cap(168, 1), *memory(), vcpu(), *start("cpu0", "write memory"), ["run", "cpu0", None], dirty(0)),
        *(["peek", 983040, 8], dirty(0), ["peek", 983040, 8]),
        ["ioctl", "vm0", "KVM_CLEAR_DIRTY_LOG", ["KvmClearDirtyLog", {"num_pages": 64, "dirty_bitmap": "@ram+983040"}]],
        *(dirty(0), ["peek", 983040, 8]),
    ],
    "immediate_exit": [
        *(
            VM,
            *memory(),
            vcpu(),
            *start("cpu0", "out"),
            ["page", "cpu0", "immediate_exit", 1],
            ["run", "cpu0", None],
            REGS,
        ),
        *(["page", "cpu0", "immediate_exit", 0], ["run", "cpu0", None], ["page", "cpu0", "immediate_exit", 1]),
        *(["run", "cpu0", None], REGS, ["page", "cpu0", "immediate_exit", 0], ["run", "cpu0", None], REGS),
    ],
    "wrong kinds of fds": [
        *(VM, vcpu(), ["eventfd", "event0"]),
        *(
            ["ioctl", handle, request, 0]
            for handle in ("sys", "vm0", "cpu0", "event0")
            for request in (
                "KVM_GET_API_VERSION",
                "KVM_CREATE_VCPU",
                "KVM_RUN",
                "KVM_GET_VCPU_MMAP_SIZE",
                0,
                0xAEFF,
                0x5401,
            )
        ),
        *(["map", handle, 4096] for handle in ("sys", "vm0", "cpu0")),
    ],
    "the identity map": [
        *(
            VM,
            ["ioctl", "vm0", "KVM_SET_IDENTITY_MAP_ADDR", "@hole"],
            ["ioctl", "vm0", "KVM_SET_IDENTITY_MAP_ADDR", "@ram"],
        ),
        *(vcpu(), ["ioctl", "vm0", "KVM_SET_IDENTITY_MAP_ADDR", "@hole"]),
    ],
    "a fork": [
        *(VM, *memory(), vcpu(), *start("cpu0", "out")),
        [
            "fork",
            [
                REGS,
                ["run", "cpu0", None],
                ["make", "vm1", "sys", "KVM_CREATE_VM", 0],
                ["close", "vm0"],
                vcpu("cpu1", 1),
            ],
        ],
        *(["run", "cpu0", None], vcpu("cpu1", 1)),
    ],
    "duplicates": [
        *(VM, vcpu(), ["dup", "dup0", "cpu0"], ["ioctl", "dup0", "KVM_GET_REGS", ["KvmRegs", {}]], ["close", "cpu0"]),
        *(["ioctl", "dup0", "KVM_GET_REGS", ["KvmRegs", {}]], ["close", "dup0"], vcpu()),
    ],
    "an ioeventfd": [
        *(VM, *memory(), vcpu(), ["eventfd", "event0"]),
        [
            "ioctl",
            "vm0",
            "KVM_IOEVENTFD",
            ["KvmIoeventfd", {"addr": 0xE9, "len": 1, "fd": "@event0", "flags": 3, "datamatch": 0x41}],
        ],
        *(*start("cpu0", "out"), ["run", "cpu0", None], ["count", "event0"], ["count", "event0"]),
    ],
    "an interrupt from userspace": [
        *(VM, *memory(), vcpu(), *start("cpu0", "interrupts")),
        *(["page", "cpu0", "request_interrupt_window", 1], ["run", "cpu0", None], ["run", "cpu0", None]),
        *(
            ["ioctl", "cpu0", "KVM_INTERRUPT", ["KvmInterrupt", {"irq": 0x20}]],
            ["page", "cpu0", "request_interrupt_window", 0],
        ),
        *(["run", "cpu0", None], REGS),
    ],
}
for _name in GUESTS:
    CASES[f"guest: {_name}"] = [
        *(
            VM,
            *memory(),
            vcpu(),
            *start("cpu0", _name),
            ["run", "cpu0", None],
            ["run", "cpu0", "41"],
            REGS,
            ["run", "cpu0", None],
        ),
    ]
    CASES[f"guest with MSR exits: {_name}"] = (
        [
            *(VM, cap(188, 7), *memory(), vcpu(), *start("cpu0", _name), ["run", "cpu0", None]),
            *(["run", "cpu0", "010000000000000000"], ["run", "cpu0", None], REGS),
        ]
        if "msr" in _name
        else CASES[f"guest: {_name}"]
    )
CASES = {name: case for name, case in CASES.items() if "MSR exits" not in name or "msr" in name.split(": ")[1]}
