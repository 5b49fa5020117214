# SPDX-License-Identifier: GPL-2.0-only
"""x86's ioctls on a VM fd."""

from __future__ import annotations

import errno
from collections.abc import Callable
from ctypes import sizeof
from typing import TYPE_CHECKING, Final

from anykvm.uapi import common
from anykvm.uapi import x86 as uapi

from . import hyperv, msr_filter, timer, xen, xen_evtchn
from .vm import KVM_MAX_VCPU_IDS

if TYPE_CHECKING:
    from anykvm.virt.vm import Vm

TSS_PAGES: Final = 3
KVM_MIN_ALLOC_MMU_PAGES: Final = 64
_CHIP_DATA: Final = common.KvmIrqchip.chip.offset
_CHIP_SIZE: Final = 512


def create_irqchip(vm: Vm, arg: int) -> int:
    """KVM_CREATE_IRQCHIP: PICs, IOAPIC, and a local APIC for each vCPU to come; EEXIST, EINVAL once there are vCPUs."""
    with vm.lock:
        vm.arch.create_irqchip()
    return 0


def get_irqchip(vm: Vm, arg: int) -> int:
    """KVM_GET_IRQCHIP; ENXIO without, EINVAL."""
    services = vm.services
    chip_id = services.read_struct(arg, common.KvmIrqchip).chip_id
    services.copy_to_user(arg + _CHIP_DATA, vm.arch.chip().get_chip(chip_id))
    return 0


def set_irqchip(vm: Vm, arg: int) -> int:
    """KVM_SET_IRQCHIP; ENXIO without, EINVAL."""
    services = vm.services
    chip_id = services.read_struct(arg, common.KvmIrqchip).chip_id
    vm.arch.chip().set_chip(chip_id, services.copy_from_user(arg + _CHIP_DATA, _CHIP_SIZE))
    return 0


def create_pit2(vm: Vm, arg: int) -> int:
    """KVM_CREATE_PIT2; EEXIST, ENOENT without the in-kernel PICs and IOAPIC."""
    config = vm.services.read_struct(arg, uapi.KvmPitConfig)
    return _create_pit(vm, config.flags)


def create_pit(vm: Vm, arg: int) -> int:
    """KVM_CREATE_PIT: with the speaker's port."""
    return _create_pit(vm, uapi.KVM_PIT_SPEAKER_DUMMY)


def _create_pit(vm: Vm, flags: int) -> int:
    with vm.lock:
        chip = vm.arch.irqchip
        if chip is None:
            raise OSError(errno.ENOENT, "a PIT needs the in-kernel PICs and IOAPIC")
        chip.create_pit(flags)
    return 0


def _get_pit(vm: Vm, arg: int, size: int) -> int:
    state = vm.arch.chip().get_pit().get_state()
    vm.services.copy_to_user(arg, state[:size].ljust(size, b"\0"))
    return 0


def _set_pit(vm: Vm, arg: int, size: int) -> int:
    state = vm.services.copy_from_user(arg, size)
    pit = vm.arch.chip().get_pit()
    # The older structure has no flags: they stay.
    pit.set_state(state + pit.get_state()[size:])
    return 0


def get_pit(vm: Vm, arg: int) -> int:
    """KVM_GET_PIT; ENXIO."""
    vm.services.read_struct(arg, uapi.KvmPitState)  # a bad address comes first, as in the kernel
    return _get_pit(vm, arg, sizeof(uapi.KvmPitState))


def set_pit(vm: Vm, arg: int) -> int:
    """KVM_SET_PIT; ENXIO."""
    return _set_pit(vm, arg, sizeof(uapi.KvmPitState))


def get_pit2(vm: Vm, arg: int) -> int:
    """KVM_GET_PIT2; ENXIO."""
    return _get_pit(vm, arg, sizeof(uapi.KvmPitState2))


def set_pit2(vm: Vm, arg: int) -> int:
    """KVM_SET_PIT2; ENXIO."""
    return _set_pit(vm, arg, sizeof(uapi.KvmPitState2))


def reinject_control(vm: Vm, arg: int) -> int:
    """KVM_REINJECT_CONTROL; ENXIO without a PIT."""
    control = vm.services.read_struct(arg, uapi.KvmReinjectControl)
    vm.arch.chip().reinject_control(bool(control.pit_reinject))
    return 0


def set_tss_addr(vm: Vm, arg: int) -> int:
    """KVM_SET_TSS_ADDR: three pages below 4 GiB; EINVAL. Real mode needs no TSS here: the address is kept."""
    if arg > 0xFFFFFFFF - TSS_PAGES * 4096 + 1:
        raise OSError(errno.EINVAL, f"three pages at {arg:#x} are not below 4 GiB")
    vm.arch.tss_addr = arg
    return 0


def set_nr_mmu_pages(vm: Vm, arg: int) -> int:
    """KVM_SET_NR_MMU_PAGES: kept, for there is no shadow MMU; EINVAL for fewer than 64."""
    if arg < KVM_MIN_ALLOC_MMU_PAGES:
        raise OSError(errno.EINVAL, f"an MMU has at least {KVM_MIN_ALLOC_MMU_PAGES} pages, not {arg}")
    vm.arch.mmu_pages = arg & 0xFFFFFFFF
    return 0


def get_nr_mmu_pages(vm: Vm, arg: int) -> int:
    """KVM_GET_NR_MMU_PAGES: what was set; 0 before."""
    return int(vm.arch.mmu_pages)


def set_identity_map_addr(vm: Vm, arg: int) -> int:
    """KVM_SET_IDENTITY_MAP_ADDR; EINVAL once there are vCPUs. Nothing here needs the page: the address is kept."""
    with vm.lock:
        if vm.created_vcpus:
            raise OSError(errno.EINVAL, "the identity map's address is set before the first vCPU is created")
        vm.arch.identity_map_addr = int.from_bytes(vm.services.copy_from_user(arg, 8), "little")
    return 0


def set_boot_cpu_id(vm: Vm, arg: int) -> int:
    """KVM_SET_BOOT_CPU_ID; EBUSY once there are vCPUs, EINVAL for an id that cannot be."""
    arch = vm.arch
    with vm.lock:
        if vm.created_vcpus:
            raise OSError(errno.EBUSY, "the boot CPU is chosen before the first vCPU is created")
        if arg > KVM_MAX_VCPU_IDS or (arch.max_vcpu_ids and arg > arch.max_vcpu_ids):
            raise OSError(errno.EINVAL, f"there can be no vcpu_id {arg}")
        arch.boot_cpu_id = arg
    return 0


def get_clock(vm: Vm, arg: int) -> int:
    """KVM_GET_CLOCK."""
    vm.services.write_struct(arg, timer.get_clock(vm.arch))
    return 0


def set_clock(vm: Vm, arg: int) -> int:
    """KVM_SET_CLOCK; EINVAL for unknown flags."""
    try:
        timer.set_clock(vm.arch, vm.services.read_struct(arg, uapi.KvmClockData))
    except ValueError as error:
        raise OSError(errno.EINVAL, str(error)) from None
    return 0


def set_tsc_khz(vm: Vm, arg: int) -> int:
    """KVM_SET_TSC_KHZ on a VM: what its vCPUs will have, 0 for the default; EINVAL once there are vCPUs."""
    with vm.lock:
        if vm.created_vcpus:
            raise OSError(errno.EINVAL, "a VM's TSC rate is set before the first vCPU is created")
        vm.arch.default_tsc_khz = timer.check_khz(arg)
    return 0


def get_tsc_khz(vm: Vm, arg: int) -> int:
    """KVM_GET_TSC_KHZ on a VM: the rate in kHz."""
    return vm.arch.default_tsc_khz or timer.own_khz()


def set_msr_filter(vm: Vm, arg: int) -> int:
    """KVM_X86_SET_MSR_FILTER; EINVAL, EFAULT."""
    vm.arch.set_msr_filter(msr_filter.read(vm.services, arg))
    return 0


def _no_attr(vm: Vm, arg: int) -> int:
    request = vm.services.read_struct(arg, common.KvmDeviceAttr)
    raise OSError(errno.ENXIO, f"a VM has no attribute {request.attr} in group {request.group}")


IOCTLS: Final[dict[int, Callable[[Vm, int], int]]] = {
    common.KVM_CREATE_IRQCHIP: create_irqchip,
    common.KVM_GET_IRQCHIP: get_irqchip,
    common.KVM_SET_IRQCHIP: set_irqchip,
    uapi.KVM_CREATE_PIT: create_pit,
    uapi.KVM_CREATE_PIT2: create_pit2,
    uapi.KVM_GET_PIT: get_pit,
    uapi.KVM_SET_PIT: set_pit,
    uapi.KVM_GET_PIT2: get_pit2,
    uapi.KVM_SET_PIT2: set_pit2,
    uapi.KVM_REINJECT_CONTROL: reinject_control,
    uapi.KVM_SET_NR_MMU_PAGES: set_nr_mmu_pages,
    uapi.KVM_GET_NR_MMU_PAGES: get_nr_mmu_pages,
    uapi.KVM_SET_TSS_ADDR: set_tss_addr,
    uapi.KVM_SET_IDENTITY_MAP_ADDR: set_identity_map_addr,
    common.KVM_SET_BOOT_CPU_ID: set_boot_cpu_id,
    uapi.KVM_GET_CLOCK: get_clock,
    uapi.KVM_SET_CLOCK: set_clock,
    uapi.KVM_SET_TSC_KHZ: set_tsc_khz,
    uapi.KVM_GET_TSC_KHZ: get_tsc_khz,
    uapi.KVM_X86_SET_MSR_FILTER: set_msr_filter,
    uapi.KVM_HYPERV_EVENTFD: hyperv.set_eventfd,
    uapi.KVM_XEN_HVM_CONFIG: xen.configure,
    uapi.KVM_XEN_HVM_SET_ATTR: xen.set_attr,
    uapi.KVM_XEN_HVM_GET_ATTR: xen.get_attr,
    uapi.KVM_XEN_HVM_EVTCHN_SEND: xen_evtchn.send,
    common.KVM_SET_DEVICE_ATTR: _no_attr,
    common.KVM_GET_DEVICE_ATTR: _no_attr,
    common.KVM_HAS_DEVICE_ATTR: _no_attr,
}
