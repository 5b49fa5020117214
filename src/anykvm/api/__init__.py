# SPDX-License-Identifier: GPL-2.0-only
"""The typed API: one class per kind of file descriptor, written once over the KVM ABI.

    with GuestMemory(64 << 20) as memory, Kvm() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu: ...

The examples in the methods' docstrings run: ``kvm``, ``vm``, ``vcpu`` (vcpu_id 0, initialised) and ``memory`` (1
MiB) are there, on the software backend for arm64, together with every name of this package.
"""

from anykvm.api.backend import (
    Backend,
    BackendUnavailable,
    UnsupportedArchitecture,
    architectures,
    resolve,
)
from anykvm.api.coalesced import coalesced_writes
from anykvm.api.device import Device
from anykvm.api.dirty_ring import DirtyPage, DirtyRing
from anykvm.api.exits import (
    ArchExit,
    ArmNisv,
    Debug,
    DirtyRingFull,
    Exit,
    FailEntry,
    GuestException,
    Halt,
    Hypercall,
    InternalError,
    Interrupted,
    IrqWindowOpen,
    MemoryFault,
    MmioRead,
    MmioWrite,
    PioIn,
    PioOut,
    Shutdown,
    SystemEvent,
    SystemEventType,
    Unknown,
)
from anykvm.api.kvm import Kvm
from anykvm.api.memory import GuestMemory
from anykvm.api.routing import IrqchipRoute, MsiRoute, Route
from anykvm.api.stats import Descriptor, Stats
from anykvm.api.vcpu import Vcpu
from anykvm.api.vm import Vm
from anykvm.api.vm_memory import dirty_pages

__all__ = [
    "ArchExit",
    "ArmNisv",
    "Backend",
    "BackendUnavailable",
    "Debug",
    "Descriptor",
    "Device",
    "DirtyPage",
    "DirtyRing",
    "DirtyRingFull",
    "Exit",
    "FailEntry",
    "GuestException",
    "GuestMemory",
    "Halt",
    "Hypercall",
    "InternalError",
    "Interrupted",
    "IrqWindowOpen",
    "IrqchipRoute",
    "Kvm",
    "MemoryFault",
    "MmioRead",
    "MmioWrite",
    "MsiRoute",
    "PioIn",
    "PioOut",
    "Route",
    "Shutdown",
    "Stats",
    "SystemEvent",
    "SystemEventType",
    "Unknown",
    "UnsupportedArchitecture",
    "Vcpu",
    "Vm",
    "architectures",
    "coalesced_writes",
    "dirty_pages",
    "resolve",
]
