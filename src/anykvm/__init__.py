# SPDX-License-Identifier: GPL-2.0-only
"""anykvm: KVM in user space, for every architecture.

The names of the typed API (:mod:`anykvm.api`) can be imported from here. They are loaded when first used: the layers
below the API must not load it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anykvm.api import (
        ArchExit as ArchExit,
    )
    from anykvm.api import (
        ArmNisv as ArmNisv,
    )
    from anykvm.api import (
        Backend as Backend,
    )
    from anykvm.api import (
        BackendUnavailable as BackendUnavailable,
    )
    from anykvm.api import (
        Debug as Debug,
    )
    from anykvm.api import (
        Descriptor as Descriptor,
    )
    from anykvm.api import (
        Device as Device,
    )
    from anykvm.api import (
        DirtyRingFull as DirtyRingFull,
    )
    from anykvm.api import (
        Exit as Exit,
    )
    from anykvm.api import (
        FailEntry as FailEntry,
    )
    from anykvm.api import (
        GuestException as GuestException,
    )
    from anykvm.api import (
        GuestMemory as GuestMemory,
    )
    from anykvm.api import (
        Halt as Halt,
    )
    from anykvm.api import (
        Hypercall as Hypercall,
    )
    from anykvm.api import (
        InternalError as InternalError,
    )
    from anykvm.api import (
        Interrupted as Interrupted,
    )
    from anykvm.api import (
        IrqchipRoute as IrqchipRoute,
    )
    from anykvm.api import (
        IrqWindowOpen as IrqWindowOpen,
    )
    from anykvm.api import (
        Kvm as Kvm,
    )
    from anykvm.api import (
        MemoryFault as MemoryFault,
    )
    from anykvm.api import (
        MmioRead as MmioRead,
    )
    from anykvm.api import (
        MmioWrite as MmioWrite,
    )
    from anykvm.api import (
        MsiRoute as MsiRoute,
    )
    from anykvm.api import (
        PioIn as PioIn,
    )
    from anykvm.api import (
        PioOut as PioOut,
    )
    from anykvm.api import (
        Route as Route,
    )
    from anykvm.api import (
        Shutdown as Shutdown,
    )
    from anykvm.api import (
        Stats as Stats,
    )
    from anykvm.api import (
        SystemEvent as SystemEvent,
    )
    from anykvm.api import (
        SystemEventType as SystemEventType,
    )
    from anykvm.api import (
        Unknown as Unknown,
    )
    from anykvm.api import (
        UnsupportedArchitecture as UnsupportedArchitecture,
    )
    from anykvm.api import (
        Vcpu as Vcpu,
    )
    from anykvm.api import (
        Vm as Vm,
    )
    from anykvm.api import (
        architectures as architectures,
    )
    from anykvm.api import (
        dirty_pages as dirty_pages,
    )
    from anykvm.api import (
        resolve as resolve,
    )

__all__ = [
    "ArchExit",
    "ArmNisv",
    "Backend",
    "BackendUnavailable",
    "Debug",
    "Descriptor",
    "Device",
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
    "dirty_pages",
    "resolve",
]


def __getattr__(name: str) -> object:
    if name in __all__:
        return getattr(importlib.import_module("anykvm.api"), name)
    raise AttributeError(f"module 'anykvm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
