# SPDX-License-Identifier: GPL-2.0-only
"""What QEMU 7.2 (-accel kvm, -M pc and -M microvm) asks for before its guest runs, in its order.

Every answer that makes QEMU give up if it is another is asserted; so are the counts of MSRs, where one that is refused
aborts it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable

import pytest
from x86_guest_board import Board

from anykvm.api import Kvm, Vcpu
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

REQUIRED = {
    C.KVM_CAP_USER_MEMORY: 1,
    C.KVM_CAP_DESTROY_MEMORY_REGION_WORKS: 1,
    C.KVM_CAP_JOIN_MEMORY_REGIONS_WORKS: 1,
    C.KVM_CAP_SET_TSS_ADDR: 1,
    C.KVM_CAP_EXT_CPUID: 1,
    C.KVM_CAP_MP_STATE: 1,
    C.KVM_CAP_IRQ_ROUTING: 4096,
    C.KVM_CAP_IRQCHIP: 1,
    C.KVM_CAP_PIT2: 1,
    C.KVM_CAP_PIT_STATE2: 1,
}
USED = (
    *(C.KVM_CAP_IMMEDIATE_EXIT, C.KVM_CAP_NR_MEMSLOTS, C.KVM_CAP_NR_VCPUS, C.KVM_CAP_MAX_VCPUS, C.KVM_CAP_SYNC_MMU),
    *(C.KVM_CAP_COALESCED_MMIO, C.KVM_CAP_COALESCED_PIO, C.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, C.KVM_CAP_VCPU_EVENTS),
    *(C.KVM_CAP_DEBUGREGS, C.KVM_CAP_SIGNAL_MSI, C.KVM_CAP_IRQ_INJECT_STATUS, C.KVM_CAP_READONLY_MEM),
    *(C.KVM_CAP_IOEVENTFD, C.KVM_CAP_IRQFD, C.KVM_CAP_IRQFD_RESAMPLE, C.KVM_CAP_IOEVENTFD_ANY_LENGTH),
    *(C.KVM_CAP_XSAVE, C.KVM_CAP_XCRS, C.KVM_CAP_SREGS2, C.KVM_CAP_EXCEPTION_PAYLOAD, C.KVM_CAP_KVMCLOCK_CTRL),
    *(C.KVM_CAP_X86_TRIPLE_FAULT_EVENT, C.KVM_CAP_GET_MSR_FEATURES, C.KVM_CAP_SET_IDENTITY_MAP_ADDR),
    *(C.KVM_CAP_X86_USER_SPACE_MSR, C.KVM_CAP_BINARY_STATS_FD, C.KVM_CAP_TSC_DEADLINE_TIMER, C.KVM_CAP_ADJUST_CLOCK),
    *(C.KVM_CAP_SYS_ATTRIBUTES, C.KVM_CAP_XSAVE2, C.KVM_CAP_GET_TSC_KHZ, C.KVM_CAP_MCE),
)
ABSENT = (C.KVM_CAP_NESTED_STATE, C.KVM_CAP_X86_NOTIFY_VMEXIT)


def indices(kvm: Kvm, request: int) -> set[int]:
    """A list of MSRs, asked for as QEMU does: first without room, then with as much as it says."""
    head = X.KvmMsrList()
    with pytest.raises(OSError, match="Errno 7"):
        kvm.ioctl(request, head)
    buffer = (ctypes.c_uint32 * (1 + head.nmsrs))(head.nmsrs)
    kvm.ioctl(request, ctypes.addressof(buffer))
    return set(buffer[1 : 1 + buffer[0]])


def supported_cpuid(kvm: Kvm) -> int:
    """KVM_GET_SUPPORTED_CPUID with room that is doubled until it is enough; how many entries there are."""
    room = 1
    while True:
        buffer = ctypes.create_string_buffer(ctypes.sizeof(X.KvmCpuid2) + room * ctypes.sizeof(X.KvmCpuidEntry2))
        head = X.KvmCpuid2.from_buffer(buffer)
        head.nent = room
        try:
            kvm.ioctl(X.KVM_GET_SUPPORTED_CPUID, ctypes.addressof(buffer))
        except OSError as error:
            assert error.errno == errno.E2BIG
            room *= 2
        else:
            assert 0 < head.nent <= room
            return int(head.nent)


def saved_msrs(listed: set[int]) -> dict[int, int]:
    """What QEMU puts into a vCPU at reset: the first of its values, and those of the list it knows."""
    msrs = dict.fromkeys((X.MSR_IA32_SYSENTER_CS, X.MSR_IA32_SYSENTER_ESP, X.MSR_IA32_SYSENTER_EIP, X.MSR_STAR), 0)
    msrs[X.MSR_IA32_CR_PAT] = 0x0007040600070406
    optional = (X.MSR_VM_HSAVE_PA, X.MSR_IA32_TSC_ADJUST, X.MSR_IA32_MISC_ENABLE, X.MSR_SMI_COUNT)
    msrs |= {index: int(index == X.MSR_IA32_MISC_ENABLE) for index in optional if index in listed}
    msrs |= dict.fromkeys((X.MSR_CSTAR, X.MSR_KERNEL_GS_BASE, X.MSR_SYSCALL_MASK, X.MSR_LSTAR, X.MSR_IA32_TSC), 0)
    msrs |= dict.fromkeys((X.MSR_KVM_SYSTEM_TIME, X.MSR_KVM_WALL_CLOCK, X.MSR_KVM_ASYNC_PF_EN, X.MSR_KVM_PV_EOI_EN), 0)
    msrs |= {X.MSR_KVM_STEAL_TIME: 0, X.MSR_MTRRdefType: 0, X.MSR_MTRRfix64K_00000: 0}
    msrs |= dict.fromkeys((X.MSR_MTRRfix16K_80000, X.MSR_MTRRfix16K_A0000), 0)
    msrs |= dict.fromkeys(range(X.MSR_MTRRfix4K_C0000, X.MSR_MTRRfix4K_C0000 + 8), 0)
    msrs |= dict.fromkeys(range(X.MSR_MTRRphysBase0, X.MSR_MTRRphysBase0 + 16), 0)
    msrs |= {X.MSR_IA32_MCG_STATUS: 0, X.MSR_IA32_MCG_CTL: (1 << 64) - 1}
    banks = range(X.MSR_IA32_MC0_CTL, X.MSR_IA32_MC0_CTL + 40)
    return msrs | {index: (1 << 64) - 1 if index % 4 == 0 else 0 for index in banks}


def prepare(board: Board, *, split: bool) -> set[int]:
    """Everything up to the first vCPU; the listed MSRs."""
    kvm, vm = board.kvm, board.vm
    assert {cap: kvm.check_extension(cap) for cap in REQUIRED} == REQUIRED
    assert [cap for cap in USED if not kvm.check_extension(cap)] == []
    if board.software:
        assert [cap for cap in ABSENT if kvm.check_extension(cap)] == []
    vm.enable_cap(C.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, 3)
    vm.enable_cap(C.KVM_CAP_EXCEPTION_PAYLOAD, 1)
    vm.enable_cap(C.KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1)
    listed = indices(kvm, X.KVM_GET_MSR_INDEX_LIST)
    indices(kvm, X.KVM_GET_MSR_FEATURE_INDEX_LIST)
    vm.set_identity_map_addr(0xFEFFC000)
    vm.set_tss_addr(0xFEFFD000)
    vm.enable_cap(C.KVM_CAP_X86_USER_SPACE_MSR, X.KVM_MSR_EXIT_REASON_FILTER)
    vm.set_msr_filter([])
    if split:
        vm.enable_cap(C.KVM_CAP_SPLIT_IRQCHIP, 24)
    else:
        vm.create_irqchip()
    events = [os.eventfd(0) for _ in range(7)]
    for event in events:
        request = C.KvmIoeventfd(len=2, fd=event, datamatch=event, flags=3)
        vm.ioctl(C.KVM_IOEVENTFD, request)
    for event in events:
        vm.ioctl(C.KVM_IOEVENTFD, C.KvmIoeventfd(len=2, fd=event, datamatch=event, flags=7))
        os.close(event)
    vm.enable_cap(C.KVM_CAP_MAX_VCPU_ID, 2)
    assert supported_cpuid(kvm) > 10
    xcr0 = ctypes.c_uint64()
    kvm.ioctl(C.KVM_GET_DEVICE_ATTR, C.KvmDeviceAttr(addr=ctypes.addressof(xcr0)))
    assert xcr0.value & 3 == 3
    return listed


def create(board: Board, listed: set[int]) -> Vcpu:
    vcpu = board.vcpu()
    assert board.kvm.vcpu_mmap_size() == 3 * 4096
    assert vcpu.ioctl(X.KVM_GET_TSC_KHZ) > 0
    cap = ctypes.c_uint64()
    board.kvm.ioctl(X.KVM_X86_GET_MCE_CAP_SUPPORTED, ctypes.addressof(cap))
    cap.value = (cap.value & 0x1000100) | 10
    vcpu.ioctl(X.KVM_X86_SETUP_MCE, ctypes.addressof(cap))
    extra = {X.MSR_IA32_ARCH_CAPABILITIES: 0, X.MSR_IA32_UCODE_REV: 0x01000065}
    wanted = {index: value for index, value in extra.items() if index in listed}
    assert vcpu.set_msrs(wanted) == len(wanted)
    return vcpu


def load(vcpu: Vcpu, msrs: dict[int, int], *, full: bool) -> None:
    """kvm_arch_put_registers."""
    sregs = X.KvmSregs2()
    vcpu.ioctl(X.KVM_GET_SREGS2, sregs)
    vcpu.ioctl(X.KVM_SET_SREGS2, sregs)
    vcpu.ioctl(X.KVM_SET_TSC_KHZ, vcpu.ioctl(X.KVM_GET_TSC_KHZ))
    vcpu.set_regs(X.KvmRegs(rip=0xFFF0, rflags=2))
    area = X.KvmXsave()
    vcpu.ioctl(X.KVM_GET_XSAVE2, area)
    vcpu.ioctl(X.KVM_SET_XSAVE, area)
    vcpu.ioctl(X.KVM_SET_XCRS, vcpu.get_xcrs())
    assert vcpu.set_msrs(msrs) == len(msrs)
    flags = X.KVM_VCPUEVENT_VALID_PAYLOAD | X.KVM_VCPUEVENT_VALID_TRIPLE_FAULT | full
    events = X.KvmVcpuEvents(flags=flags)
    events.exception.nr = 0xFF
    vcpu.ioctl(X.KVM_SET_VCPU_EVENTS, events)
    vcpu.ioctl(C.KVM_SET_MP_STATE, C.KvmMpState(0))
    assert vcpu.set_msrs({X.MSR_IA32_TSC_DEADLINE: 0}) == 1
    vcpu.ioctl(X.KVM_SET_DEBUGREGS, vcpu.get_debugregs())


def save(vcpu: Vcpu, msrs: dict[int, int]) -> None:
    """kvm_arch_get_registers."""
    for request, kind in (
        (X.KVM_GET_VCPU_EVENTS, X.KvmVcpuEvents),
        (C.KVM_GET_MP_STATE, C.KvmMpState),
        (X.KVM_GET_REGS, X.KvmRegs),
        (X.KVM_GET_XSAVE2, X.KvmXsave),
        (X.KVM_GET_XCRS, X.KvmXcrs),
        (X.KVM_GET_SREGS2, X.KvmSregs2),
        (X.KVM_GET_LAPIC, X.KvmLapicState),
        (X.KVM_GET_DEBUGREGS, X.KvmDebugregs),
    ):
        vcpu.ioctl(request, kind())
    assert len(vcpu.get_msrs([*msrs, X.MSR_IA32_TSC_DEADLINE])) == len(msrs) + 1


def irqchip_routes() -> bytes:
    routes = [(gsi, gsi >> 3, gsi & 7) for gsi in range(16)] + [(gsi, 2, gsi or 2) for gsi in range(24) if gsi != 2]
    entries = b""
    for gsi, chip, pin in routes:
        entry = C.KvmIrqRoutingEntry(gsi=gsi, type=C.KVM_IRQ_ROUTING_IRQCHIP)
        entry.u.irqchip.irqchip, entry.u.irqchip.pin = chip, pin
        entries += bytes(entry)
    return bytes(C.KvmIrqRouting(nr=len(routes))) + entries


def refuses(call: Callable[[], object], number: int) -> None:
    with pytest.raises(OSError) as caught:
        call()
    assert caught.value.errno == number


@pytest.mark.parametrize("machine", ["pc", "microvm"])
def test_what_qemu_asks_for(board: Board, machine: str) -> None:
    split = machine == "microvm"
    listed = prepare(board, split=split)
    vcpus = [create(board, listed) for _ in range(2)]
    vm = board.vm
    vm.get_clock()
    if not split:
        routing = ctypes.create_string_buffer(irqchip_routes())
        vm.ioctl(C.KVM_SET_GSI_ROUTING, ctypes.addressof(routing))
        for address, size, pio in ((0xCF8, 4, True), (0xA0000, 0x20000, False), (0x70, 1, True)):
            vm.register_coalesced_mmio(address, size, pio=pio)
        vm.unregister_coalesced_mmio(0xCF8, 4, pio=True)
        vm.create_pit2()
    msrs = saved_msrs(listed)
    assert len(msrs) >= 88
    for vcpu in vcpus:
        load(vcpu, msrs, full=True)
    for vcpu in vcpus:
        save(vcpu, msrs)
    if not split:
        vm.set_pit2(vm.get_pit2())
        for chip in range(3):
            vm.set_irqchip(chip, vm.get_irqchip(chip))
        level = C.KvmIrqLevel(irq=4, level=1)
        vm.ioctl(C.KVM_IRQ_LINE_STATUS, level)
        assert level.status in (-1, 0, 1, 2)
    for vcpu in vcpus:
        vcpu.ioctl(X.KVM_TPR_ACCESS_REPORTING, X.KvmTprAccessCtl(enabled=0))
        vcpu.ioctl(X.KVM_SET_VAPIC_ADDR, X.KvmVapicAddr(0))
        base = vcpu.get_msrs([X.MSR_IA32_APICBASE])
        assert vcpu.set_msrs(base) == 1
        vcpu.ioctl(X.KVM_SET_LAPIC, vcpu.get_lapic())
        load(vcpu, msrs, full=False)
    vm.set_clock(vm.get_clock())
    for vcpu in vcpus:
        refuses(lambda vcpu=vcpu: vcpu.ioctl(X.KVM_KVMCLOCK_CTRL), errno.EINVAL)  # type: ignore[misc]
