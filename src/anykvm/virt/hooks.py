# SPDX-License-Identifier: GPL-2.0-only
"""What common code asks of an architecture: the contract.

The kernel declares the same functions as ``kvm_arch_*`` in ``include/linux/kvm_host.h``. Four of them make and unmake a
vCPU, and common code calls nothing else to do so:

* :meth:`ArchHooks.vcpu_precreate` may refuse; nothing is allocated yet;
* :meth:`ArchHooks.vcpu_create` is the one hook that builds; if it fails it has cleaned up after itself, and destroy is
  not called;
* :meth:`ArchHooks.vcpu_postcreate` sees a vCPU that is online; it cannot fail;
* :meth:`ArchHooks.vcpu_destroy` is the one hook that tears down; it is called for every vCPU whose create succeeded,
  whether userspace ever saw it or not.

Hooks refuse by raising :class:`OSError` with the kernel's errno. An architecture subclasses :class:`ArchHooks`: what
has a body here is a default it need not repeat.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from anykvm.uapi.structs import KvmIrqRoutingEntry
    from anykvm.virt.device import DeviceOps
    from anykvm.virt.memory import MemorySlot, SlotChange
    from anykvm.virt.vcpu import Vcpu
    from anykvm.virt.vm import Vm


class ArchHooks(Protocol):
    """One architecture, as common code sees it."""

    name: str
    """The architecture's name, as on the command line: ``"arm64"``."""
    max_vcpus: int
    """KVM_CAP_MAX_VCPUS: how many vCPUs one VM may have."""
    max_vcpu_ids: int
    """KVM_CAP_MAX_VCPU_ID: every vcpu_id is below this."""
    vcpu_mmap_size: int = 8192
    """KVM_GET_VCPU_MMAP_SIZE in bytes: the run page and the coalesced page; x86 has a third one, for port I/O data."""
    coalesced_mmio_page: int = 1
    """KVM_CAP_COALESCED_MMIO: which page of a vCPU's mapping is the ring of coalesced writes."""
    user_mem_slots: int = 32767
    """KVM_CAP_NR_MEMSLOTS: slot numbers are below this; x86 keeps three of them for itself."""
    address_spaces: int = 1
    """KVM_CAP_MULTI_ADDRESS_SPACE, if there is more than one: x86 has another in system management mode."""
    readonly_memory: bool = True
    """KVM_CAP_READONLY_MEM: whether a slot may have KVM_MEM_READONLY."""
    irqchip_pins: tuple[int, ...] = ()
    """How many input pins each in-kernel irqchip has that a routing entry can name; the index is its number."""
    strongly_ordered: bool = False
    """Whether KVM_CAP_DIRTY_LOG_RING is offered too, and not KVM_CAP_DIRTY_LOG_RING_ACQ_REL alone: its users count on
    the order of x86's stores."""
    vcpu_stats: tuple[str, ...] = ()
    """Names of the architecture's own cumulative vCPU statistics, after the common ones (``virt/stats.py``)."""

    # The system fd.

    def check_extension(self, cap: int, vm: Vm | None) -> int:
        """KVM_CHECK_EXTENSION for what common code does not know (api.rst 4.4); 0 is no."""

    def dev_ioctl(self, request: int, arg: int) -> int:
        """Serve an architecture's own ioctl on the system fd; EINVAL for an unknown one."""

    # A VM.

    def vm_init(self, vm: Vm, vm_type: int) -> None:
        """Initialise ``vm.arch`` (kvm_arch_init_vm); EINVAL for a type the architecture does not have."""

    def vm_destroy(self, vm: Vm) -> None:
        """Free ``vm.arch``; called when every vCPU of the VM has been destroyed."""

    def vm_ioctl(self, vm: Vm, request: int, arg: int) -> int:
        """Serve an architecture's own ioctl on a VM fd; ENOTTY for an unknown one."""

    def vm_enable_cap(self, vm: Vm, cap: int, flags: int, args: tuple[int, int, int, int]) -> int:
        """KVM_ENABLE_CAP on a VM fd for what common code does not know; EINVAL for an unknown one."""

    def prepare_memory_region(self, vm: Vm, old: MemorySlot | None, new: MemorySlot | None, change: SlotChange) -> None:
        """Refuse a slot change before it is made; called with slots_lock held."""

    def commit_memory_region(self, vm: Vm, old: MemorySlot | None, new: MemorySlot | None, change: SlotChange) -> None:
        """Make a slot change visible to the guest; running vCPUs are stopped while it happens; cannot fail."""

    def harvest_dirty(self, vm: Vm, slot: MemorySlot) -> bytes:
        """Take ``slot.dirty``: return the bitmap as it was and leave it clear (KVM_GET_DIRTY_LOG).

        Two things hold when it returns: every guest write that could be lost to the caller is in what it returns, and
        the next write to a page sets its bit again. The engine sets bits from other threads, so the architecture
        either stops the vCPUs meanwhile or exchanges words atomically. Called with slots_lock held.
        """

    def clear_dirty(self, vm: Vm, slot: MemorySlot, first_page: int, mask: bytes) -> None:
        """Clear the bits of ``mask`` from ``first_page``, a multiple of 64, on (KVM_CLEAR_DIRTY_LOG).

        As with :meth:`harvest_dirty`, the next write to those pages sets the bit again and no other bit is lost.
        Called with slots_lock held.
        """

    # Interrupts.

    def irqchip_in_kernel(self, vm: Vm) -> bool:
        """Tell whether the VM has an in-kernel interrupt controller."""

    def intc_initialized(self, vm: Vm) -> bool:
        """Tell whether the interrupt controller can take interrupts yet; KVM_IRQFD gives EAGAIN before."""
        return self.irqchip_in_kernel(vm)

    def irqfd_allowed(self, vm: Vm, resample: bool) -> bool:
        """Tell whether the VM can have an irqfd, or one with a resample eventfd; EINVAL if not."""
        return self.irqchip_in_kernel(vm)

    def can_set_irq_routing(self, vm: Vm) -> bool:
        """Tell whether KVM_SET_GSI_ROUTING is possible now; EINVAL if not. x86 wants its irqchip first."""
        return True

    def has_irqchip_routes(self, vm: Vm) -> bool:
        """Tell whether a GSI can go to a pin: EINVAL if not. With x86's split irqchip there are none in the kernel."""
        return True

    def irq_line(self, vm: Vm, irq: int, level: int) -> int:
        """KVM_IRQ_LINE (api.rst 4.25); ``irq`` is the architecture's encoding; returns the status."""

    def set_irq(self, vm: Vm, irqchip: int, pin: int, level: int, source: int) -> int:
        """Drive an input pin of an in-kernel irqchip, as a routing entry names it; returns > 0 if it was delivered.

        ``source`` is one of IRQ_SOURCE_*: x86 takes a pin for high as long as any of them drives it high.

        On an end of interrupt the architecture calls ``vm.irq.notify_acked(irqchip, pin)``, which resamples irqfds.
        """

    def set_msi(self, vm: Vm, address: int, data: int, devid: int | None) -> int:
        """Deliver a message-signalled interrupt; returns > 0 delivered, 0 blocked by the guest; EINVAL if none can."""

    def own_route(self, vm: Vm, entry: KvmIrqRoutingEntry) -> tuple[int, ...]:
        """Check a route of a type that common code does not know, without flags; its type and its numbers; EINVAL.

        On an end of interrupt the architecture calls ``vm.irq.notify_acked_own`` with the same.
        """
        raise OSError(errno.EINVAL, f"{self.name} has no routes of type {entry.type}")

    def set_own_irq(self, vm: Vm, own: tuple[int, ...]) -> int:
        """Raise an interrupt whose route :meth:`own_route` gave; returns > 0 if it was delivered."""
        raise OSError(errno.EINVAL, f"{self.name} has no interrupts of type {own[0]}")

    def default_routing(self, vm: Vm) -> list[tuple[int, int, int]]:
        """Give the routing (gsi, irqchip, pin) for ``vm.irq.set_default_routing()``, which the irqchip's init calls."""
        return []

    def device_types(self) -> dict[int, type[DeviceOps]]:
        """Give the device types KVM_CREATE_DEVICE makes (api.rst 4.79): type number to class."""

    # A vCPU: the four that make and unmake it.

    def vcpu_precreate(self, vm: Vm, vcpu_id: int) -> None:
        """May refuse; nothing is allocated yet; called with the VM's lock held."""

    def vcpu_create(self, vcpu: Vcpu) -> None:
        """Build ``vcpu.arch``; on failure clean up and raise, and destroy is not called.

        ``with vcpu.arch_ladder as ladder:`` does the cleaning up, and shows its steps in ``vcpu.ladder.steps``.
        """

    def vcpu_postcreate(self, vcpu: Vcpu) -> None:
        """See a vCPU that is online; cannot fail."""

    def vcpu_destroy(self, vcpu: Vcpu) -> None:
        """Tear down what create built: ``vcpu.arch_ladder.unwind()`` if create used it."""

    # A vCPU that exists.

    def vcpu_load(self, vcpu: Vcpu, cpu: int) -> None:
        """See a vCPU come to a physical CPU that it was not on last (kvm_arch_vcpu_load); in vcpu_create too."""
        return None

    def vcpu_put(self, vcpu: Vcpu) -> None:
        """See a vCPU leave its physical CPU: preempted, or put by whoever loaded it (kvm_arch_vcpu_put)."""
        return None

    def vcpu_ioctl(self, vcpu: Vcpu, request: int, arg: int) -> int:
        """Serve an architecture's own ioctl on a vCPU fd, with the vCPU's mutex held; EINVAL for an unknown one."""

    def vcpu_run(self, vcpu: Vcpu) -> int:
        """KVM_RUN: run the guest until userspace has to act; fills ``vcpu.run``; returns 0 or raises (EINTR, ENOEXEC).

        Whenever a kick stopped the guest: ``if vcpu.signal_pending or vcpu.immediate_exit: vcpu.signal_exit()``, which
        raises EINTR.
        """

    def vcpu_complete_io(self, vcpu: Vcpu) -> None:
        """Take userspace's answer to the last exit (the data of an MMIO read) without running the guest.

        KVM_RUN with ``immediate_exit`` set calls this instead of :meth:`vcpu_run` and gives EINTR; it is what makes a
        vCPU's registers whole before they are read out (api.rst 5, on KVM_EXIT_MMIO).
        """

    def vcpu_kick(self, vcpu: Vcpu) -> None:
        """Make a vCPU that is in the guest, or asleep in WFI, look at its requests; from any thread."""
