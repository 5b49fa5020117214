# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of Xen's interface share: a VM that userspace runs as Xen's, and its guests."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import pytest
from x86_guest_board import Board
from x86_hyperv_rig import APIC_ON, DONE, wrmsr

from anykvm.api import Vcpu
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

MSR = 0x40000200
CALLS, SHARED, INFO, STATE, BLOCK = 0x30000, 0x40000, 0x41000, 0x42000, 0x43000
PENDING, MASK = SHARED + 0x800, SHARED + 0xA00
VECTOR = 0x51
PRIORITY = X.KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL
INTERCEPT, SEND = X.KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL, X.KVM_XEN_HVM_CONFIG_EVTCHN_SEND
# Tells of the upcall, and lowers it.
HANDLER = f".code64\npush %rax; mov $0x77, %al; out %al, $0xe9; movq $0, {INFO}; movq $0, {INFO + 8}; pop %rax; iretq"
WINDOW = "sti; nop; nop; cli;"


def only_here(board: Board) -> Board:
    """Xen's guests run on the software backend: a machine's KVM may lack it, or serve VMCALL by itself."""
    if not board.software or board.vm.check_extension(C.KVM_CAP_XEN_HVM) & INTERCEPT == 0:
        pytest.skip("this KVM has not Xen's interface, or serves VMCALL by itself")
    return board


def configure(board: Board, flags: int = INTERCEPT | SEND, **more: int) -> None:
    board.vm.ioctl(X.KVM_XEN_HVM_CONFIG, X.KvmXenHvmConfig(flags=flags, msr=MSR, **more))


def hvm(kind: int, **values: Any) -> X.KvmXenHvmAttr:
    """An attribute of the VM; ``evtchn`` and ``shared_info`` are filled in by name, with dots as ``__``."""
    return fill(X.KvmXenHvmAttr(type=kind), values)


def own(kind: int, **values: Any) -> X.KvmXenVcpuAttr:
    """An attribute of a vCPU."""
    return fill(X.KvmXenVcpuAttr(type=kind), values)


def fill(request: Any, values: dict[str, Any]) -> Any:
    for name, value in values.items():
        *path, last = name.split("__")
        at = request.u
        for part in path:
            at = getattr(at, part)
        setattr(at, last, value)
    return request


def set_hvm(board: Board, kind: int, **values: Any) -> None:
    board.vm.ioctl(X.KVM_XEN_HVM_SET_ATTR, hvm(kind, **values))


def set_own(vcpu: Vcpu, kind: int, **values: Any) -> None:
    vcpu.ioctl(X.KVM_XEN_VCPU_SET_ATTR, own(kind, **values))


def get_own(vcpu: Vcpu, kind: int) -> Any:
    request = own(kind)
    vcpu.ioctl(X.KVM_XEN_VCPU_GET_ATTR, request)
    return request.u


def guest(board: Board, source: str, *, vector: int = VECTOR, flags: int = INTERCEPT | SEND) -> Vcpu:
    """A vCPU of a Xen guest in 64-bit mode, with its pages, and an upcall at the vector."""
    board.load(HANDLER, 0x2000)
    board.gate(VECTOR, 0x2000)
    configure(board, flags)
    vcpu = board.long(source)
    set_hvm(board, X.KVM_XEN_ATTR_TYPE_LONG_MODE, long_mode=1)
    set_hvm(board, X.KVM_XEN_ATTR_TYPE_SHARED_INFO, shared_info__gfn=SHARED >> 12)
    set_hvm(board, X.KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, vector=vector)
    set_own(vcpu, X.KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, gpa=INFO)
    return vcpu


def call(number: int, first: int = 0, second: int = 0, third: int = 0) -> str:
    """Make a hypercall of Xen's, and write its result to the port."""
    operands = f"movabs ${first}, %rdi; mov ${second}, %rsi; mov ${third}, %rdx;"
    return f"mov ${number}, %eax; {operands} vmcall; out %eax, $0xe9;"


def bits(board: Board, at: int) -> int:
    return int(struct.unpack("<Q", board.memory.read(at, 8))[0])


def route(board: Board, gsi: int, vcpu_id: int, port: int, priority: int = PRIORITY) -> None:
    entry = C.KvmIrqRoutingEntry(gsi=gsi, type=C.KVM_IRQ_ROUTING_XEN_EVTCHN)
    ctypes.memmove(ctypes.addressof(entry.u), bytes(X.KvmIrqRoutingXenEvtchn(port, vcpu_id, priority)), 12)
    buffer = ctypes.create_string_buffer(bytes(C.KvmIrqRouting(nr=1)) + bytes(entry))
    board.vm.ioctl(C.KVM_SET_GSI_ROUTING, ctypes.addressof(buffer))


__all__ = ["APIC_ON", "DONE", "wrmsr"]
