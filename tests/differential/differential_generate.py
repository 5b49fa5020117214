# SPDX-License-Identifier: GPL-2.0-only
"""One generator of x86 request sequences (Hypothesis), for comparing two KVMs.

It keeps track of the names it has used, so that most operations hit something; what is really open only the player
knows. Shrinking a sequence drops operations and makes numbers small.
"""

from __future__ import annotations

from differential_guests import ENTRY, GUESTS, MEMORY, code
from differential_player import PAGE, Operation
from differential_values import EVENTS, VCPUS, VMS, Draw, pick
from differential_vcpu import vcpu_operation
from differential_vm import vm_operation
from hypothesis import strategies as st


def other_operation(draw: Draw, vm: str, vcpu: str) -> list[Operation]:
    choice = draw(st.integers(0, 13))
    if choice <= 1:
        return [["make", draw(pick(VMS)), "sys", "KVM_CREATE_VM", draw(pick([0, 0, 0, 1, 2, 5, 1 << 32]))]]
    if choice == 2:
        return [["close", draw(pick([vm, vcpu, "event0", "dup0"]))]]
    if choice == 3:
        return [["dup", "dup0", draw(pick([vm, vcpu, "sys"]))]]
    if choice == 4:
        request = draw(
            pick(
                [
                    "KVM_GET_API_VERSION",
                    "KVM_CREATE_VCPU",
                    "KVM_CHECK_EXTENSION",
                    "KVM_RUN",
                    "KVM_GET_VCPU_MMAP_SIZE",
                    0xAEFF,
                    0x5401,
                ]
            )
        )
        return [["ioctl", draw(pick(["sys", "dup0", "event0", vm, vcpu])), request, draw(pick([0, 0, 1, 9999]))]]
    if choice == 5:
        return [["eventfd", draw(pick(EVENTS))]]
    if choice == 6:
        return [["signal", draw(pick(EVENTS))]]
    if choice == 7:
        return [["count", draw(pick(EVENTS))]]
    if choice == 8:
        make = draw(
            pick(
                [
                    ["make", "spare", "sys", "KVM_CREATE_VM", 0],
                    ["make", vcpu, vm, "KVM_CREATE_VCPU", draw(pick([0, 5, 6]))],
                ]
            )
        )
        return [["nofile", draw(pick([0, 0, 1]))], make, ["nofile", None], make]
    if choice == 9:
        inner = [
            ["ioctl", vm, "KVM_CHECK_EXTENSION", 9999],
            ["ioctl", vcpu, "KVM_GET_REGS", ["KvmRegs", {}]],
            ["run", vcpu, None],
        ]
        inner += [
            ["make", "child", "sys", "KVM_CREATE_VM", 0],
            ["make", "grandchild", "child", "KVM_CREATE_VCPU", 0],
            ["close", vm],
        ]
        return [["fork", inner]]
    if choice == 10:
        return [["map", draw(pick([vm, vcpu, "sys"])), draw(pick([PAGE, 3 * PAGE]))]]
    if choice == 11:
        field, value = draw(
            pick([("immediate_exit", 1), ("immediate_exit", 0), ("request_interrupt_window", 1), ("cr8", 3)])
        )
        return [["page", vcpu, field, value]]
    if choice == 12:
        return [["peek", draw(pick([0x2000, 983040, 0x20000])), 16]]
    return [["load", ENTRY, code(draw(pick(sorted(GUESTS))))]]


def ready(draw: Draw) -> list[Operation]:
    """A VM with memory and a vCPU at a guest's first instruction, as the start of many sequences."""
    guest = draw(pick(sorted(GUESTS)))
    split: Operation = ["ioctl", "vm0", "KVM_ENABLE_CAP", ["KvmEnableCap", {"cap": 121, "args.0": 24}]]
    chip: list[Operation] = draw(pick([[], [], [["ioctl", "vm0", "KVM_CREATE_IRQCHIP", 0]], [split]]))
    return [
        ["make", "vm0", "sys", "KVM_CREATE_VM", 0],
        *chip,
        *memory(),
        ["make", "cpu0", "vm0", "KVM_CREATE_VCPU", 0],
        *start("cpu0", guest),
    ]


def memory() -> list[Operation]:
    sets = {"slot": 0, "flags": 1, "guest_phys_addr": 0, "memory_size": MEMORY, "userspace_addr": "@ram"}
    return [["ioctl", "vm0", "KVM_SET_USER_MEMORY_REGION", ["KvmUserspaceMemoryRegion", sets]]]


def start(vcpu: str, guest: str) -> list[Operation]:
    return [
        ["vectors"],
        ["load", ENTRY, code(guest)],
        ["modify", vcpu, "KVM_GET_SREGS", "KVM_SET_SREGS", {"cs.base": 0, "cs.selector": 0}],
        ["ioctl", vcpu, "KVM_SET_REGS", ["KvmRegs", {"rip": ENTRY, "rsp": 0x8000, "rflags": 2}]],
    ]


@st.composite
def sequences(draw: Draw, longest: int = 24) -> list[Operation]:
    """A sequence that often begins with a VM that can run."""
    sequence = ready(draw) if draw(st.booleans()) else [["make", "vm0", "sys", "KVM_CREATE_VM", 0]]
    for _ in range(draw(st.integers(1, longest))):
        vm = "vm0" if draw(st.integers(0, 7)) else "vm1"
        vcpu = "cpu0" if draw(st.integers(0, 3)) else draw(pick(VCPUS))
        kind = draw(st.integers(0, 9))
        if kind < 4:
            sequence.append(vm_operation(draw, vm))
        elif kind < 8:
            sequence.append(vcpu_operation(draw, vcpu))
        else:
            sequence += other_operation(draw, vm, vcpu)
    return sequence
