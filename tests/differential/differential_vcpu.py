# SPDX-License-Identifier: GPL-2.0-only
"""Generated requests of a vCPU's fd: valid and invalid state."""

from __future__ import annotations

from typing import Any

from differential_guests import ENTRY
from differential_player import Operation
from differential_values import BAD, U32, U64, Draw, pick, some
from hypothesis import strategies as st

ARCHITECTURAL = (
    0x10,
    0x1B,
    0x3B,
    0x174,
    0x175,
    0x176,
    0x179,
    0x17A,
    0x1A0,
    0x200,
    0x201,
    0x250,
    0x277,
    0x2FF,
    0x400,
    0x401,
)
LONG_MODE = (0xC0000080, 0xC0000081, 0xC0000082, 0xC0000084, 0xC0000100, 0xC0000101, 0xC0000102, 0xC0000103)
PARAVIRTUAL = (0x4B564D00, 0x4B564D01, 0x4B564D04, 0x11, 0x12)
OTHERS = (0x40000090, 0xC0010015, 0xFE, 0x17, 0xCE)
MSRS = pick([*ARCHITECTURAL, *LONG_MODE, *PARAVIRTUAL, *OTHERS])

VCPU_GETS: tuple[tuple[str, list[Any]], ...] = (
    ("KVM_GET_REGS", ["KvmRegs", {}]),
    ("KVM_GET_SREGS", ["KvmSregs", {}]),
    ("KVM_GET_SREGS2", ["KvmSregs2", {}]),
    ("KVM_GET_FPU", ["KvmFpu", {}]),
    ("KVM_GET_XCRS", ["KvmXcrs", {}]),
    ("KVM_GET_DEBUGREGS", ["KvmDebugregs", {}]),
    ("KVM_GET_VCPU_EVENTS", ["KvmVcpuEvents", {}]),
    ("KVM_GET_MP_STATE", ["KvmMpState", {}]),
    ("KVM_GET_LAPIC", ["KvmLapicState", {}]),
)
SREGS: dict[str, list[Any]] = {
    "cr0": [0x11, 0x10, 0x60000010, 0x80000011, 0x80000010, 0x20000010, 1 << 32, 0x80050033],
    "cr2": [0xDEAD000, U64],
    "cr3": [0, 0x2000, 0x2018, 1 << 52, U64, 1 << 40],
    "cr4": [0, 0x20, 0x620, 1 << 12, 1 << 13, 1 << 17, 1 << 18, 1 << 31, 1 << 14, 1 << 40, 0x40000],
    "cr8": [0, 5, 15, 16, U64],
    "efer": [0, 1, 0x100, 0x400, 0x500, 0x501, 0x800, 0xD00],
    "apic_base": [0xFEE00900, 0xFEE00000, 0xFEE00800, 0xFEE00100, 0xFEE00D00, 0xFEE00400, 0xFED00900, 0, U64],
    "cs.base": [0, 0xF0000, U32],
    "cs.selector": [0, 8, 3],
    "cs.l": [0, 1],
    "cs.db": [0, 1],
    "cs.type": [11, 3, 0, 15],
    "cs.limit": [0xFFFF, U32, 0],
    "ds.unusable": [0, 1],
    "ds.dpl": [0, 3],
    "ss.present": [0, 1],
    "tr.type": [11, 3, 9],
    "idt.limit": [0, 0x3FF, 0xFFFF],
    "gdt.base": [0x1000, U64],
    "interrupt_bitmap.0": [1 << 32, 1 << 63, 0],
    "interrupt_bitmap.3": [1 << 60],
}
EVENTS_FIELDS: dict[str, list[Any]] = {
    "exception.injected": [0, 1],
    "exception.pending": [0, 1],
    "exception.nr": [2, 6, 13, 14, 31, 32],
    "exception.has_error_code": [0, 1],
    "exception.error_code": [0, 5],
    "interrupt.injected": [0, 1],
    "interrupt.nr": [0x20, 0xFF],
    "interrupt.soft": [0, 1],
    "interrupt.shadow": [0, 1, 2, 3],
    "nmi.injected": [0, 1],
    "nmi.pending": [0, 1, 2],
    "nmi.masked": [0, 1],
    "flags": [0, 1, 2, 4, 5, 7, 8, 13, 16, 32, 64, U32],
    "sipi_vector": [0, 9],
    "smi.smm": [0, 1],
    "smi.pending": [0, 1],
    "smi.latched_init": [0, 1],
    "triple_fault.pending": [0, 1],
}


def vcpu_operation(draw: Draw, vcpu: str) -> Operation:
    choice = draw(st.integers(0, 27))
    ioctl: list[Any] = ["ioctl", vcpu]
    if choice <= 4:
        return [*ioctl, *draw(pick(VCPU_GETS))]
    if choice <= 6:
        sets = some(
            draw, {name: [0, 1, 0x1000, U64] for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r15")}
        )
        sets |= {
            "rip": draw(pick([ENTRY, 0, 0xFFF0])),
            "rflags": draw(pick([2, 0, 0x202, 0x100 | 2, 0x46, 1 << 17 | 2, U64])),
        }
        return [*ioctl, "KVM_SET_REGS", ["KvmRegs", sets]]
    if choice <= 9:
        return ["modify", vcpu, "KVM_GET_SREGS", "KVM_SET_SREGS", some(draw, SREGS)]
    if choice == 10:
        table = {name: values for name, values in SREGS.items() if not name.startswith("interrupt")}
        return [
            "modify",
            vcpu,
            "KVM_GET_SREGS2",
            "KVM_SET_SREGS2",
            some(draw, table | {"flags": [0, 1, 2], "pdptrs.0": [1, 0x2001]}),
        ]
    if choice == 11:
        table = {"fcw": [0x37F, 0, 0xFFFF], "fsw": [0, 0xFFFF], "ftwx": [0, 0xFF], "mxcsr": [0x1F80, 0, 0xFFFF, U32]}
        return [
            "modify",
            vcpu,
            "KVM_GET_FPU",
            "KVM_SET_FPU",
            some(draw, table | {"xmm.0": ["11" * 16], "fpr.1": ["22" * 10]}),
        ]
    if choice == 12:
        table = {
            "nr_xcrs": [0, 1, 2, 16, 17],
            "flags": [0, 1],
            "xcrs.0.value": [1, 3, 2, 0, 7, 1 << 9, U64],
            "xcrs.0.xcr": [0, 1],
        }
        return ["modify", vcpu, "KVM_GET_XCRS", "KVM_SET_XCRS", some(draw, table)]
    if choice == 13:
        table = {
            "db.0": [0x1000, U64],
            "db.3": [8],
            "dr6": [0xFFFF0FF0, 0, 0xFFFF0FFF, 1 << 32],
            "dr7": [0x400, 0, 0x401, 0xFFFF07FF, 1 << 32],
        }
        return ["modify", vcpu, "KVM_GET_DEBUGREGS", "KVM_SET_DEBUGREGS", some(draw, table | {"flags": [0, 1]})]
    if choice <= 15:
        return ["modify", vcpu, "KVM_GET_VCPU_EVENTS", "KVM_SET_VCPU_EVENTS", some(draw, EVENTS_FIELDS, 4)]
    if choice == 16:
        return [*ioctl, "KVM_SET_MP_STATE", ["KvmMpState", {"mp_state": draw(pick([0, 0, 1, 2, 3, 4, 5, 9, 10, U32]))}]]
    if choice <= 18:
        return [*ioctl, *msrs(draw)]
    if choice == 19:
        return [*ioctl, *cpuid(draw)]
    if choice == 20:
        request = draw(pick(["KVM_INTERRUPT", "KVM_INTERRUPT", "KVM_NMI", "KVM_SMI", "KVM_KVMCLOCK_CTRL"]))
        argument = ["KvmInterrupt", {"irq": draw(pick([0x20, 0xFF, 0, 256, U32]))}] if request == "KVM_INTERRUPT" else 0
        return [*ioctl, request, argument]
    if choice == 21:
        return [*ioctl, "KVM_SET_LAPIC", ["KvmLapicState", {}]]
    if choice == 22:
        request = draw(
            pick(
                [
                    "KVM_X86_SETUP_MCE",
                    "KVM_X86_SET_MCE",
                    "KVM_GET_TSC_KHZ",
                    "KVM_SET_TSC_KHZ",
                    "KVM_SET_GUEST_DEBUG",
                    "KVM_TRANSLATE",
                    "KVM_ENABLE_CAP",
                    "KVM_SET_SIGNAL_MASK",
                ]
            )
        )
        argument: Any = {
            "KVM_X86_SETUP_MCE": "@ram+131072",
            "KVM_X86_SET_MCE": [
                "KvmX86Mce",
                {"bank": draw(pick([0, 9, 10, 32, 255])), "status": draw(pick([0, 1 << 63, 5 << 61]))},
            ],
            "KVM_SET_TSC_KHZ": draw(pick([0, 1, 1000000, 1 << 31, 1 << 32])),
            "KVM_SET_GUEST_DEBUG": [
                "KvmGuestDebug",
                {"control": draw(pick([0, 1, 0x40001, 0x80001, 0x10001, 1 << 30]))},
            ],
            "KVM_TRANSLATE": ["KvmTranslation", {"linear_address": draw(pick([0, 0x1234, U64]))}],
            "KVM_ENABLE_CAP": ["KvmEnableCap", {"cap": draw(pick([0, 123, 128, 9999]))}],
            "KVM_SET_SIGNAL_MASK": ["KvmSignalMask", {"len": draw(pick([0, 4, 8, 16]))}],
        }.get(request, 0)
        return [*ioctl, request, argument]
    if choice == 23:
        group, attr = draw(pick([(0, 0), (0, 1), (1, 0)]))
        request = draw(pick(["KVM_HAS_DEVICE_ATTR", "KVM_SET_DEVICE_ATTR"]))
        return [
            *ioctl,
            request,
            ["KvmDeviceAttr", {"group": group, "attr": attr, "addr": draw(pick(["@ram", "@hole"]))}],
        ]
    if choice <= 26:
        return ["run", vcpu, draw(pick([None, None, "41", "4142", "00000000000000000000"]))]
    return [*ioctl, draw(pick(VCPU_REQUESTS)), draw(BAD)]


VCPU_REQUESTS = (
    *("KVM_GET_REGS", "KVM_SET_REGS", "KVM_GET_SREGS", "KVM_SET_SREGS", "KVM_GET_FPU", "KVM_SET_FPU", "KVM_GET_XSAVE"),
    *("KVM_SET_XSAVE", "KVM_GET_XCRS", "KVM_SET_XCRS", "KVM_GET_DEBUGREGS", "KVM_SET_DEBUGREGS", "KVM_GET_VCPU_EVENTS"),
    *("KVM_SET_VCPU_EVENTS", "KVM_GET_MP_STATE", "KVM_SET_MP_STATE", "KVM_GET_MSRS", "KVM_SET_MSRS", "KVM_SET_CPUID2"),
    *("KVM_GET_CPUID2", "KVM_GET_LAPIC", "KVM_SET_LAPIC", "KVM_INTERRUPT", "KVM_GET_ONE_REG", "KVM_SET_ONE_REG"),
    *("KVM_CREATE_VCPU", "KVM_CHECK_EXTENSION", "KVM_SET_GUEST_DEBUG", "KVM_TRANSLATE", 0xAEFF, 0x5401),
)


def msrs(draw: Draw) -> list[Any]:
    entries = [
        [
            "KvmMsrEntry",
            {"index": draw(MSRS), "data": draw(pick([0, 1, 2, 6, 0x1000, 0x0007040600070406, U32, 1 << 47, U64]))},
        ]
        for _ in range(draw(st.integers(0, 3)))
    ]
    head = ["KvmMsrs", {"nmsrs": draw(pick([len(entries)] * 8 + [257, U32]))}, *entries]
    return [draw(pick(["KVM_GET_MSRS", "KVM_SET_MSRS", "KVM_SET_MSRS"])), head]


def cpuid(draw: Draw) -> list[Any]:
    if draw(st.integers(0, 2)) == 0:
        return ["KVM_GET_CPUID2", ["KvmCpuid2", {"nent": draw(pick([0, 2, 8]))}, *[["KvmCpuidEntry2", {}]] * 8]]
    entries = [
        [
            "KvmCpuidEntry2",
            {
                "function": draw(pick([0, 1, 7, 0xD, 0x80000000, 0x80000001, 0x80000008, 0x40000000])),
                "eax": draw(pick([0, 1, 0x10, 48])),
            },
        ]
        for _ in range(draw(st.integers(0, 3)))
    ]
    return ["KVM_SET_CPUID2", ["KvmCpuid2", {"nent": draw(pick([len(entries)] * 8 + [257, U32]))}, *entries]]
