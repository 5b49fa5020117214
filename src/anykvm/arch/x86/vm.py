# SPDX-License-Identifier: GPL-2.0-only
"""A VM's x86 half: guest-physical memory in the engine, the interrupt controllers, time, the MSR policy."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from anykvm.engine import Machine
from anykvm.uapi import x86 as uapi
from anykvm.virt.dirty_ring import mark_written

from . import irqchip, xen_evtchn
from .hyperv import HyperV
from .msr_filter import ALLOW_ALL, MsrFilter
from .timer import KvmClock
from .xen import Xen

if TYPE_CHECKING:
    from anykvm.virt.vm import Vm

    from .irqchip import IrqChip
    from .vcpu import X86Vcpu

KVM_X86_DEFAULT_VM: Final = 0
KVM_MAX_VCPUS: Final = 1024
KVM_MAX_VCPU_IDS: Final = 4096
QUIRKS: Final = (
    uapi.KVM_X86_QUIRK_LAPIC_MMIO_HOLE
    | uapi.KVM_X86_QUIRK_OUT_7E_INC_RIP
    | uapi.KVM_X86_QUIRK_MISC_ENABLE_NO_MWAIT
    | uapi.KVM_X86_QUIRK_FIX_HYPERCALL_INSN
    | uapi.KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS
)
"""The quirks there are, all of which can be disabled (KVM_CAP_DISABLE_QUIRKS2)."""


class X86Vm:
    """``vm.arch``. EINVAL for a VM type other than the default one."""

    def __init__(self, vm: Vm, vm_type: int) -> None:
        if vm_type != KVM_X86_DEFAULT_VM:
            raise OSError(errno.EINVAL, f"VM type {vm_type:#x} is not KVM_X86_DEFAULT_VM")
        self.vm = vm
        services = vm.services
        with services.ladder("arch vm") as ladder:
            ladder.acquire("x86 vm", services.charge, services.free, "x86 vm", 0)
            self.machine = ladder.acquire("machine", self._make_machine, self._free_machine)
            self.config_lock = ladder.acquire("config lock", services.mutex, services.free_mutex, "x86 config lock")
        self._ladder = ladder
        self.irqchip: IrqChip | None = None
        self.boot_cpu_id = 0
        self.max_vcpu_ids = 0
        """KVM_CAP_MAX_VCPU_ID; 0 until it is enabled or the first vCPU is made."""
        self.tss_addr = 0
        self.identity_map_addr = 0
        self.mmu_pages = 0
        self.default_tsc_khz = 0
        """KVM_SET_TSC_KHZ on the VM; 0 is the engine's own rate."""
        self.tsc_offset: int | None = None
        self.clock = KvmClock(self)
        self.hyperv: HyperV = HyperV()
        self.xen: Xen = Xen()
        self.user_space_msr = 0
        self.exception_payload = False
        self.triple_fault_event = False
        self.platform_info_readable = True
        self.hypercall_exits = 0
        self.exit_on_emulation_failure = False
        self.x2apic_ids = False
        """KVM_X2APIC_API_USE_32BIT_IDS: how KVM_GET_LAPIC and MSIs from userspace name local APICs."""
        self.x2apic_broadcast_quirk = True
        """Whether an interrupt for 0xff is for all, also for local APICs in x2APIC mode."""
        self.msr_filter: MsrFilter = ALLOW_ALL
        self.disabled_quirks = 0
        self.disabled_exits = 0
        """KVM_X86_DISABLE_EXITS_*."""

    def close(self) -> None:
        """Free what the VM holds; every vCPU is gone."""
        if self.irqchip is not None:
            self.irqchip.close()
            self.irqchip = None
        xen_evtchn.release(self)
        while self.hyperv.eventfds:
            self.vm.services.eventfd_put(self.hyperv.eventfds.popitem()[1])
        self._ladder.unwind()

    def _make_machine(self) -> Machine:
        return self.vm.services.obtain("machine", "machine", Machine, "x86")

    def _free_machine(self, machine: Machine) -> None:
        self.vm.services.give_back("machine", machine)

    @property
    def vcpus(self) -> list[X86Vcpu]:
        """The vCPUs that are online, by vcpu_idx."""
        vm = self.vm
        return [vcpu.arch for vcpu in vm.vcpu_array[: vm.online_vcpus]]

    # The interrupt controllers; the VM's lock is held.

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP; EEXIST, EINVAL once there are vCPUs."""
        self.irqchip = irqchip.create(self.vm)
        self.tell_chip()
        self.vm.irq.set_default_routing()

    def create_split_irqchip(self, reserved_pins: int) -> None:
        """KVM_CAP_SPLIT_IRQCHIP; EINVAL, EEXIST."""
        self.irqchip = irqchip.create_split(self.vm, reserved_pins)
        self.tell_chip()

    def tell_chip(self) -> None:
        """Tell the interrupt controllers, if there are any, what KVM_CAP_X2APIC_API says."""
        if self.irqchip is not None:
            self.irqchip.bus.wide = self.x2apic_ids
            self.irqchip.bus.broadcast_quirk = self.x2apic_broadcast_quirk

    def chip(self) -> IrqChip:
        """The interrupt controllers; ENXIO without."""
        if self.irqchip is None:
            raise OSError(errno.ENXIO, "the VM has no in-kernel irqchip")
        return self.irqchip

    def set_msr_filter(self, new: MsrFilter) -> None:
        """KVM_X86_SET_MSR_FILTER; vCPUs that run are kicked to see it."""
        self.msr_filter = new
        for vcpu in self.vcpus:
            vcpu.filter_stale = True
            vcpu.kick()

    def disable_quirks(self, quirks: int) -> None:
        """KVM_CAP_DISABLE_QUIRKS(2): these and no others, whatever was disabled before."""
        self.disabled_quirks = quirks
        for vcpu in self.vcpus:
            self.apply_quirks(vcpu)

    def apply_quirks(self, vcpu: X86Vcpu) -> None:
        """Tell a vCPU and its local APIC which quirks they have."""
        vcpu.filter_stale = True
        vcpu.kick()
        if vcpu.lapic is not None:
            vcpu.lapic.mmio_hole = not self.disabled_quirks & uapi.KVM_X86_QUIRK_LAPIC_MMIO_HOLE

    def flush_tlbs(self) -> None:
        """Make every vCPU forget what it knows of the guest's page tables, before any of them goes on."""
        # That is all of what the engine does for this, whatever pages it is for.
        self.machine.reprotect(0, 0, 0)

    # Memory: our view of the guest's.

    def read_guest(self, gpa: int, size: int, as_id: int = 0) -> bytes | None:
        """Copy from guest-physical memory; None where there is none (or not all in one slot)."""
        address = self.vm.memory.gpa_to_hva(gpa, size, as_id=as_id)
        if address is None:
            return None
        try:
            return self.vm.services.copy_from_user(address, size)
        except OSError:
            return None

    def write_guest(self, gpa: int, data: bytes, as_id: int = 0) -> bool:
        """Copy to guest-physical memory, and mark it dirty; False where there is none."""
        address = self.vm.memory.gpa_to_hva(gpa, len(data), write=True, as_id=as_id)
        slot = self.vm.memory.find(gpa, as_id)
        if address is None or slot is None:
            return False
        try:
            self.vm.services.copy_to_user(address, data)
        except OSError:
            return False
        if slot.dirty is not None:
            first = gpa - slot.gpa >> 12
            last = gpa + len(data) - 1 - slot.gpa >> 12
            with self.machine.stopped():
                mark_written(self.vm, slot, first, last)
        return True
