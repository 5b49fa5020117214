# SPDX-License-Identifier: GPL-2.0-only
"""KVM_CHECK_EXTENSION and KVM_ENABLE_CAP: what common code itself can do. The rest is the architecture's to answer."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from anykvm.uapi import caps
from anykvm.uapi.constants import KVM_DIRTY_LOG_INITIALLY_SET, KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE
from anykvm.uapi.structs import KvmEnableCap

from . import dirty_ring
from .hooks import ArchHooks
from .irq import KVM_MAX_IRQ_ROUTES

if TYPE_CHECKING:
    from .vm import Vm

_DIRTY_LOG_PROTECT2: Final = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET

_EVERYWHERE: Final[dict[int, int]] = {
    caps.KVM_CAP_USER_MEMORY: 1,
    caps.KVM_CAP_USER_MEMORY2: 1,
    caps.KVM_CAP_DESTROY_MEMORY_REGION_WORKS: 1,
    caps.KVM_CAP_JOIN_MEMORY_REGIONS_WORKS: 1,
    caps.KVM_CAP_SYNC_MMU: 1,
    caps.KVM_CAP_COALESCED_PIO: 1,
    caps.KVM_CAP_INTERNAL_ERROR_DATA: 1,
    caps.KVM_CAP_IRQFD: 1,
    caps.KVM_CAP_IRQFD_RESAMPLE: 1,
    caps.KVM_CAP_IOEVENTFD: 1,
    caps.KVM_CAP_IOEVENTFD_NO_LENGTH: 1,
    caps.KVM_CAP_IOEVENTFD_ANY_LENGTH: 1,
    caps.KVM_CAP_CHECK_EXTENSION_VM: 1,
    caps.KVM_CAP_ENABLE_CAP_VM: 1,
    caps.KVM_CAP_DEVICE_CTRL: 1,
    caps.KVM_CAP_IMMEDIATE_EXIT: 1,
    caps.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2: _DIRTY_LOG_PROTECT2,
    caps.KVM_CAP_BINARY_STATS_FD: 1,
    caps.KVM_CAP_SYSTEM_EVENT_DATA: 1,
    caps.KVM_CAP_HALT_POLL: 1,
}


def check_extension(hooks: ArchHooks, vm: Vm | None, cap: int) -> int:
    """KVM_CHECK_EXTENSION (api.rst 4.4), on the system fd or on a VM's: 0 for what does not work here."""
    known = _EVERYWHERE.get(cap)
    if known is not None:
        return known
    if cap == caps.KVM_CAP_DIRTY_LOG_RING_ACQ_REL or (cap == caps.KVM_CAP_DIRTY_LOG_RING and hooks.strongly_ordered):
        return dirty_ring.KVM_DIRTY_RING_MAX_ENTRIES * dirty_ring.ENTRY_SIZE
    if cap == caps.KVM_CAP_NR_VCPUS:
        return min(os.cpu_count() or 1, hooks.max_vcpus)
    if cap == caps.KVM_CAP_MAX_VCPUS:
        return hooks.max_vcpus if vm is None else vm.max_vcpus
    if cap == caps.KVM_CAP_MAX_VCPU_ID:
        return hooks.max_vcpu_ids
    if cap == caps.KVM_CAP_NR_MEMSLOTS:
        return hooks.user_mem_slots
    if cap == caps.KVM_CAP_MULTI_ADDRESS_SPACE:
        return hooks.address_spaces if hooks.address_spaces > 1 else 0
    if cap == caps.KVM_CAP_COALESCED_MMIO:
        return hooks.coalesced_mmio_page
    if cap == caps.KVM_CAP_READONLY_MEM:
        return int(hooks.readonly_memory)
    if cap == caps.KVM_CAP_IRQ_ROUTING:
        return KVM_MAX_IRQ_ROUTES if hooks.irqchip_pins else 0
    return hooks.check_extension(cap, vm)


def enable_cap(vm: Vm, arg: int) -> int:
    """KVM_ENABLE_CAP on a VM fd (api.rst 4.37)."""
    cap = vm.services.read_struct(arg, KvmEnableCap)
    args = (cap.args[0], cap.args[1], cap.args[2], cap.args[3])
    if cap.cap == caps.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
        allowed = _DIRTY_LOG_PROTECT2 if args[0] & KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE else 0
        if cap.flags or args[0] & ~allowed:
            raise OSError(errno.EINVAL, f"KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 cannot be {args[0]:#x}")
        vm.manual_dirty_log_protect = args[0]
        return 0
    if cap.cap == caps.KVM_CAP_HALT_POLL:
        # The most that a vCPU may poll before it sleeps: it never does.
        if cap.flags or args[0] >> 32:
            raise OSError(
                errno.EINVAL, f"KVM_CAP_HALT_POLL takes 32 bits of nanoseconds and no flags, not {args[0]:#x}"
            )
        return 0
    if cap.cap in (caps.KVM_CAP_DIRTY_LOG_RING, caps.KVM_CAP_DIRTY_LOG_RING_ACQ_REL):
        if not check_extension(vm.hooks, vm, cap.cap):
            raise OSError(errno.EINVAL, f"{vm.hooks.name} has KVM_CAP_DIRTY_LOG_RING_ACQ_REL only")
        return dirty_ring.enable(vm, args[0])
    return vm.hooks.vm_enable_cap(vm, cap.cap, cap.flags, args)
