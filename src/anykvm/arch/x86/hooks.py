# SPDX-License-Identifier: GPL-2.0-only
"""x86 as common code sees it."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, Final

from anykvm.uapi import common
from anykvm.uapi import x86 as uapi
from anykvm.virt.memory import SlotChange
from anykvm.virt.services import Services

from ..memory import EngineMemory
from . import caps, hyperv_vcpu, run, system, vcpu_ioctl, vm_ioctl, xen_evtchn
from .irqchip import DEFAULT_ROUTING, IRQCHIP_PINS
from .vcpu import X86Vcpu
from .vm import KVM_MAX_VCPU_IDS, KVM_MAX_VCPUS, X86Vm

if TYPE_CHECKING:
    from anykvm.uapi.structs import KvmIrqRoutingEntry
    from anykvm.virt.device import DeviceOps
    from anykvm.virt.memory import MemorySlot
    from anykvm.virt.vcpu import Vcpu
    from anykvm.virt.vm import Vm

MAX_GPA_BITS: Final = 52


class X86Hooks(EngineMemory):
    """The contract, for x86."""

    name = "x86"
    max_vcpus = KVM_MAX_VCPUS
    max_vcpu_ids = KVM_MAX_VCPU_IDS
    vcpu_mmap_size = 3 * 4096
    strongly_ordered = True
    coalesced_mmio_page = uapi.KVM_COALESCED_MMIO_PAGE_OFFSET
    user_mem_slots = 32764
    address_spaces = 2
    irqchip_pins = IRQCHIP_PINS
    vcpu_stats = run.STATS

    def __init__(self) -> None:
        # For requests of the system fd, which belong to no VM. Not shared with a parent process.
        self._services: tuple[int, Services] | None = None

    # The system fd.

    def check_extension(self, cap: int, vm: Vm | None) -> int:
        """KVM_CHECK_EXTENSION."""
        return caps.check_extension(cap, vm)

    def dev_ioctl(self, request: int, arg: int) -> int:
        """x86's ioctls on the system fd; EINVAL."""
        serve = system.IOCTLS.get(request)
        if serve is None:
            raise OSError(errno.EINVAL, f"request {request:#x} is not one of the system fd")
        if self._services is None or self._services[0] != os.getpid():
            self._services = os.getpid(), Services()
        return serve(self._services[1], arg)

    # A VM.

    def vm_init(self, vm: Vm, vm_type: int) -> None:
        """Make ``vm.arch``; EINVAL."""
        vm.arch = X86Vm(vm, vm_type)

    def vm_destroy(self, vm: Vm) -> None:
        """Free ``vm.arch``."""
        vm.arch.close()

    def vm_ioctl(self, vm: Vm, request: int, arg: int) -> int:
        """x86's ioctls on a VM fd; ENOTTY."""
        serve = vm_ioctl.IOCTLS.get(request)
        if serve is None:
            raise OSError(errno.ENOTTY, f"request {request:#x} is not one of a VM fd")
        return serve(vm, arg)

    def vm_enable_cap(self, vm: Vm, cap: int, flags: int, args: tuple[int, int, int, int]) -> int:
        """KVM_ENABLE_CAP on a VM fd; EINVAL."""
        return caps.enable(vm, cap, flags, args)

    # Memory.

    def prepare_memory_region(self, vm: Vm, old: MemorySlot | None, new: MemorySlot | None, change: SlotChange) -> None:
        """EINVAL beyond what page tables can name; what is beyond the guest's own address bits is never seen."""
        if new is not None and new.gpa + new.size > 1 << MAX_GPA_BITS:
            raise OSError(errno.EINVAL, f"a slot ends within {MAX_GPA_BITS} address bits")

    # Interrupts.

    def irqchip_in_kernel(self, vm: Vm) -> bool:
        """Whether there are local APICs in the kernel, with or without the rest."""
        return vm.arch.irqchip is not None

    def intc_initialized(self, vm: Vm) -> bool:
        """An irqchip is ready as soon as it is there; without one KVM_IRQFD is EINVAL, not EAGAIN."""
        return True

    def irqfd_allowed(self, vm: Vm, resample: bool) -> bool:
        """Resampling needs the IOAPIC and the PICs in the kernel."""
        chip = vm.arch.irqchip
        return chip is not None and not (resample and chip.split)

    def can_set_irq_routing(self, vm: Vm) -> bool:
        """Only with an in-kernel irqchip, full or split."""
        return vm.arch.irqchip is not None

    def has_irqchip_routes(self, vm: Vm) -> bool:
        """Not with a split irqchip."""
        return vm.arch.irqchip is not None and not vm.arch.irqchip.split

    def irq_line(self, vm: Vm, irq: int, level: int) -> int:
        """KVM_IRQ_LINE: a GSI; ENXIO without an in-kernel irqchip."""
        vm.arch.chip()
        return vm.irq.set_irq(irq, level)

    def set_irq(self, vm: Vm, irqchip: int, pin: int, level: int, source: int) -> int:
        """Drive a pin of a PIC or of the IOAPIC: a device in userspace may have written to memory first."""
        vm.arch.machine.distrust()
        return int(vm.arch.chip().set_irq(irqchip, pin, level, source))

    def set_msi(self, vm: Vm, address: int, data: int, devid: int | None) -> int:
        """Deliver a message to the local APICs, as :meth:`set_irq`."""
        vm.arch.machine.distrust()
        return int(vm.arch.chip().set_msi(address, data))

    def own_route(self, vm: Vm, entry: KvmIrqRoutingEntry) -> tuple[int, ...]:
        """A synthetic interrupt of Hyper-V's: vCPU's index and source; a vCPU's event channel of Xen's; EINVAL."""
        if entry.type == common.KVM_IRQ_ROUTING_HV_SINT:
            sint = uapi.KvmIrqRoutingHvSint.from_buffer_copy(entry.u)
            return entry.type, sint.vcpu, sint.sint
        if entry.type == common.KVM_IRQ_ROUTING_XEN_EVTCHN:
            channel = uapi.KvmIrqRoutingXenEvtchn.from_buffer_copy(entry.u)
            xen_evtchn.check_priority(channel.priority)
            return entry.type, channel.vcpu, channel.port
        raise OSError(errno.EINVAL, f"x86 has no routes of type {entry.type}")

    def set_own_irq(self, vm: Vm, own: tuple[int, ...]) -> int:
        """Raise what :meth:`own_route` gave; EINVAL, ENOENT, ENOTCONN."""
        vm.arch.machine.distrust()
        kind, vcpu, number = own
        if kind == common.KVM_IRQ_ROUTING_XEN_EVTCHN:
            return xen_evtchn.raise_port(vm.arch, vcpu, number)
        target = hyperv_vcpu.find(vm.arch.vcpus, vcpu)
        if target is None or target.hyperv is None:
            raise OSError(errno.EINVAL, f"no vCPU with index {vcpu} has synthetic interrupts")
        return target.hyperv.synic.set_irq(number)

    def default_routing(self, vm: Vm) -> list[tuple[int, int, int]]:
        """GSIs 0 to 15 are pins of the PICs and of the IOAPIC, the others of the IOAPIC; none with a split irqchip."""
        chip = vm.arch.irqchip
        return list(DEFAULT_ROUTING) if chip is not None and not chip.split else []

    def device_types(self) -> dict[int, type[DeviceOps]]:
        """x86's in-kernel devices have requests of their own."""
        return {}

    # A vCPU: the four that make and unmake it.

    def vcpu_precreate(self, vm: Vm, vcpu_id: int) -> None:
        """EINVAL for an id above KVM_CAP_MAX_VCPU_ID, which is fixed from here on."""
        arch: X86Vm = vm.arch
        if not arch.max_vcpu_ids:
            arch.max_vcpu_ids = KVM_MAX_VCPU_IDS
        if vcpu_id >= arch.max_vcpu_ids:
            raise OSError(errno.EINVAL, f"vcpu_id {vcpu_id} is too large: this VM has ids below {arch.max_vcpu_ids}")

    def vcpu_create(self, vcpu: Vcpu) -> None:
        """Build ``vcpu.arch``."""
        vcpu.arch = arch = X86Vcpu(vcpu, vcpu.vm.arch)
        with vcpu.arch_ladder as ladder:
            for step in arch.build_steps():
                step.build(arch, ladder)

    def vcpu_postcreate(self, vcpu: Vcpu) -> None:
        """Messages reach its local APIC from now on; it gets the quirks that are disabled already."""
        lapic = vcpu.arch.lapic
        if lapic is not None:
            lapic.online()
        vcpu.vm.arch.apply_quirks(vcpu.arch)

    def vcpu_destroy(self, vcpu: Vcpu) -> None:
        """The ladder, backwards."""
        vcpu.arch_ladder.unwind()

    # A vCPU that exists.

    def vcpu_load(self, vcpu: Vcpu, cpu: int) -> None:
        """Remember the physical CPU: its caches may hold what the guest wrote."""
        vcpu.arch.wbinvd_mask[cpu >> 3] |= 1 << (cpu & 7)

    def vcpu_ioctl(self, vcpu: Vcpu, request: int, arg: int) -> int:
        """x86's ioctls on a vCPU fd; EINVAL."""
        serve = vcpu_ioctl.IOCTLS.get(request)
        if serve is None:
            raise OSError(errno.EINVAL, f"request {request:#x} is not one of a vCPU fd")
        return serve(vcpu.arch, arg)

    # Not wrapped in a method: it is on the way of every exit.
    vcpu_run = staticmethod(run.vcpu_run)

    def vcpu_complete_io(self, vcpu: Vcpu) -> None:
        """Finish the instruction userspace was asked about."""
        run.vcpu_complete_io(vcpu)

    def vcpu_kick(self, vcpu: Vcpu) -> None:
        """Make the vCPU look up."""
        vcpu.arch.kick()
