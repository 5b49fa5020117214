# SPDX-License-Identifier: GPL-2.0-only
"""What a VM and the system fd answer: CPUID, capabilities, addresses, chips, memory."""

from __future__ import annotations

import ctypes
import errno

import pytest
from x86_fake import Rig, errno_of

from anykvm.arch.x86 import cpuid
from anykvm.engine import Event
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

Leaf = tuple[int, int, int, int, int, int, int]


def supported(rig: Rig, room: int = 256) -> dict[tuple[int, int], Leaf]:
    buffer = ctypes.create_string_buffer(room.to_bytes(4, "little"), 8 + 40 * room)
    rig.ioctl(rig.system, X.KVM_GET_SUPPORTED_CPUID, buffer)
    count = X.KvmCpuid2.from_buffer(buffer).nent
    return {leaf[:2]: leaf for leaf in cpuid.decode(buffer.raw[8 : 8 + 40 * count])}


def set_cpuid(rig: Rig, leaves: list[Leaf], index: int = 0) -> int:
    raw = cpuid.encode(tuple(leaves))
    buffer = ctypes.create_string_buffer(len(leaves).to_bytes(8, "little") + raw, 8 + len(raw))
    return rig.set(X.KVM_SET_CPUID2, buffer, index)


# CPUID.


def test_nothing_is_offered_that_the_engine_cannot_do(rig: Rig) -> None:
    leaves = supported(rig)
    ecx, edx = leaves[1, 0][5], leaves[1, 0][6]
    for never in (X.CPUID_1_ECX_AVX, X.CPUID_1_ECX_PCID):
        assert not ecx & never
    assert not ecx & (X.CPUID_1_ECX_VMX | X.CPUID_1_ECX_MWAIT | X.CPUID_1_ECX_OSXSAVE)
    for kvms in (X.CPUID_1_ECX_HYPERVISOR, X.CPUID_1_ECX_X2APIC, X.CPUID_1_ECX_TSC_DEADLINE):
        assert ecx & kvms
    assert edx & X.CPUID_1_EDX_APIC
    assert not leaves[7, 0][4] & (X.CPUID_7_EBX_INVPCID | X.CPUID_7_EBX_MPX)
    assert not leaves[7, 0][5] & (X.CPUID_7_ECX_PKU | X.CPUID_7_ECX_LA57)
    assert not leaves[0x80000001, 0][5] & X.CPUID_80000001_ECX_SVM
    assert leaves[0x80000001, 0][6] & X.CPUID_80000001_EDX_LM


def test_extended_state_is_x87_and_sse(rig: Rig) -> None:
    leaves = supported(rig)
    assert leaves[0xD, 0][3:] == (3, 576, 576, 0)
    assert leaves[0xD, 1][3:] == (1, 0, 0, 0)
    assert (0xD, 2) not in leaves
    assert leaves[0xD, 0][2] == X.KVM_CPUID_FLAG_SIGNIFCANT_INDEX


def test_the_paravirtual_leaves(rig: Rig) -> None:
    leaves = supported(rig)
    signature = b"".join(word.to_bytes(4, "little") for word in leaves[X.KVM_CPUID_SIGNATURE, 0][4:])
    assert signature == X.KVM_SIGNATURE
    assert leaves[X.KVM_CPUID_SIGNATURE, 0][3] == X.KVM_CPUID_FEATURES
    features = leaves[X.KVM_CPUID_FEATURES, 0][3]
    assert features >> X.KVM_FEATURE_CLOCKSOURCE2 & 1
    assert features >> X.KVM_FEATURE_CLOCKSOURCE_STABLE_BIT & 1
    for present in (X.KVM_FEATURE_STEAL_TIME, X.KVM_FEATURE_ASYNC_PF, X.KVM_FEATURE_PV_SEND_IPI):
        assert features >> present & 1
    for absent in (X.KVM_FEATURE_PV_EOI, X.KVM_FEATURE_PV_TLB_FLUSH, X.KVM_FEATURE_MIGRATION_CONTROL):
        assert not features >> absent & 1


def test_the_highest_leaves(rig: Rig) -> None:
    leaves = supported(rig)
    assert leaves[0, 0][3] == 0xD
    assert leaves[0x80000000, 0][3] == 0x80000008
    assert leaves[0x80000008, 0][3] == 0x3028
    assert leaves[0x80000008, 0][5] == 0
    assert (0x80000009, 0) not in leaves


def test_too_little_room(rig: Rig) -> None:
    count = len(supported(rig))
    assert errno_of(supported, rig, count - 1) == errno.E2BIG
    assert len(supported(rig, count)) == count


def test_nothing_is_emulated(rig: Rig) -> None:
    buffer = ctypes.create_string_buffer((1).to_bytes(4, "little"), 48)
    rig.ioctl(rig.system, X.KVM_GET_EMULATED_CPUID, buffer)
    assert buffer.raw[8:] == bytes(40)


def test_a_vcpus_cpuid_there_and_back(rig: Rig) -> None:
    rig.create_vcpu()
    leaves: list[Leaf] = [(0, 0, 0, 1, 2, 3, 4), (7, 0, 1, 5, 6, 7, 8), (7, 1, 1, 9, 9, 9, 9)]
    set_cpuid(rig, leaves)
    buffer = ctypes.create_string_buffer((3).to_bytes(4, "little"), 8 + 120)
    rig.set(X.KVM_GET_CPUID2, buffer)
    assert cpuid.decode(buffer.raw[8:]) == tuple(leaves)
    small = ctypes.create_string_buffer((2).to_bytes(4, "little"), 8 + 80)
    assert errno_of(rig.set, X.KVM_GET_CPUID2, small) == errno.E2BIG


def test_the_cpu_is_told(rig: Rig) -> None:
    rig.create_vcpu()
    rig.vcpu().load()
    assert rig.cpu().cpuid == [(0, 0, 0, 0, 0, 0, 0)], "without one everything reads as zero"
    set_cpuid(rig, [(1, 0, 0, 1, 2, 3, 4)])
    assert rig.cpu().cpuid == [(1, 0, 0, 1, 2, 3, 4)]


def test_the_older_request(rig: Rig) -> None:
    rig.create_vcpu()
    entry = X.KvmCpuidEntry(function=1, eax=2, ebx=3, ecx=4, edx=5)
    buffer = ctypes.create_string_buffer((1).to_bytes(8, "little") + bytes(entry), 8 + 24)
    rig.set(X.KVM_SET_CPUID, buffer)
    assert rig.vcpu().cpuid == ((1, 0, 0, 2, 3, 4, 5),)


def test_cpuid_is_fixed_once_the_vcpu_has_run(rig: Rig) -> None:
    rig.create_vcpu()
    set_cpuid(rig, [(0, 0, 0, 1, 2, 3, 4)])
    rig.run((Event.HLT,))
    set_cpuid(rig, [(0, 0, 0, 1, 2, 3, 4)])
    assert errno_of(set_cpuid, rig, [(0, 0, 0, 9, 2, 3, 4)]) == errno.EINVAL


def test_too_many_leaves(rig: Rig) -> None:
    rig.create_vcpu()
    assert errno_of(set_cpuid, rig, [(0, 0, 0, 0, 0, 0, 0)] * 257) == errno.E2BIG


def test_the_size_of_addresses_comes_from_cpuid(rig: Rig) -> None:
    rig.create_vcpu()
    assert rig.vcpu().maxphyaddr == 36
    set_cpuid(rig, [(0x80000008, 0, 0, 0x302E, 0, 0, 0)])
    assert rig.vcpu().maxphyaddr == 46


def test_a_subleaf_counts_only_where_it_is_flagged() -> None:
    leaves: tuple[Leaf, ...] = ((1, 5, 0, 1, 0, 0, 0), (4, 0, 1, 2, 0, 0, 0), (4, 1, 1, 3, 0, 0, 0))
    assert cpuid.find(leaves, 1, 9) == leaves[0]
    assert cpuid.find(leaves, 4, 1) == leaves[2]
    assert cpuid.find(leaves, 4, 2) is None


# Capabilities.


@pytest.mark.parametrize(
    ("cap", "value"),
    [
        (C.KVM_CAP_IRQCHIP, 1),
        (C.KVM_CAP_USER_MEMORY, 1),
        (C.KVM_CAP_SET_TSS_ADDR, 1),
        (C.KVM_CAP_EXT_CPUID, 1),
        (C.KVM_CAP_MP_STATE, 1),
        (C.KVM_CAP_IRQ_ROUTING, 4096),
        (C.KVM_CAP_NR_MEMSLOTS, 32764),
        (C.KVM_CAP_MAX_VCPUS, 1024),
        (C.KVM_CAP_MAX_VCPU_ID, 4096),
        (C.KVM_CAP_MCE, 32),
        (C.KVM_CAP_XSAVE2, 4096),
        (C.KVM_CAP_SYNC_REGS, 7),
        (C.KVM_CAP_X86_SMM, 1),
        (C.KVM_CAP_MULTI_ADDRESS_SPACE, 2),
        (C.KVM_CAP_TSC_DEADLINE_TIMER, 1),
        (C.KVM_CAP_ASYNC_PF, 1),
        (C.KVM_CAP_NESTED_STATE, 0),
    ],
)
def test_capabilities(rig: Rig, cap: int, value: int) -> None:
    assert rig.ioctl(rig.system, C.KVM_CHECK_EXTENSION, cap) == value
    assert rig.ioctl(rig.fd, C.KVM_CHECK_EXTENSION, cap) == value


def test_what_programs_cannot_do_without(rig: Rig) -> None:
    assert rig.ioctl(rig.system, C.KVM_GET_VCPU_MMAP_SIZE) == 12288
    for cap in (3, 4, 7, 14, 21, 30, 33, 35):
        assert rig.ioctl(rig.system, C.KVM_CHECK_EXTENSION, cap) > 0


@pytest.mark.parametrize("cap", [C.KVM_CAP_X86_SMM, C.KVM_CAP_IRQCHIP, 9999])
def test_what_cannot_be_enabled(rig: Rig, cap: int) -> None:
    assert errno_of(rig.enable, cap, 1) == errno.EINVAL


def test_flags_of_enabling(rig: Rig) -> None:
    assert errno_of(rig.enable, C.KVM_CAP_MAX_VCPU_ID, 8, 1) == errno.EINVAL


def test_nothing_is_enabled_on_a_vcpu(rig: Rig) -> None:
    fd = rig.create_vcpu()
    assert errno_of(rig.ioctl, fd, C.KVM_ENABLE_CAP, C.KvmEnableCap(cap=1)) == errno.EINVAL


# vcpu_ids.


def test_a_lower_limit_for_ids(rig: Rig) -> None:
    rig.enable(C.KVM_CAP_MAX_VCPU_ID, 8)
    rig.enable(C.KVM_CAP_MAX_VCPU_ID, 8)
    assert errno_of(rig.enable, C.KVM_CAP_MAX_VCPU_ID, 9) == errno.EINVAL
    rig.create_vcpu(7)
    assert errno_of(rig.create_vcpu, 8) == errno.EINVAL


def test_the_limit_is_fixed_by_the_first_vcpu(rig: Rig) -> None:
    rig.create_vcpu()
    assert errno_of(rig.enable, C.KVM_CAP_MAX_VCPU_ID, 8) == errno.EINVAL
    rig.create_vcpu(4095)
    assert errno_of(rig.create_vcpu, 4096) == errno.EINVAL


@pytest.mark.parametrize("value", [4097, 1 << 40])
def test_a_limit_beyond_the_limit(rig: Rig, value: int) -> None:
    assert errno_of(rig.enable, C.KVM_CAP_MAX_VCPU_ID, value) == errno.EINVAL


def test_the_boot_processor(rig: Rig) -> None:
    rig.ioctl(rig.fd, C.KVM_SET_BOOT_CPU_ID, 1)
    assert errno_of(rig.enable, C.KVM_CAP_MAX_VCPU_ID, 0) == errno.EINVAL
    rig.create_vcpu(0)
    rig.create_vcpu(1)
    assert [rig.get(X.KVM_GET_SREGS, X.KvmSregs, index).apic_base & X.MSR_IA32_APICBASE_BSP for index in (0, 1)] == [
        0,
        X.MSR_IA32_APICBASE_BSP,
    ]
    assert errno_of(rig.ioctl, rig.fd, C.KVM_SET_BOOT_CPU_ID, 0) == errno.EBUSY


def test_a_boot_processor_there_cannot_be(rig: Rig) -> None:
    assert errno_of(rig.ioctl, rig.fd, C.KVM_SET_BOOT_CPU_ID, 4097) == errno.EINVAL
    rig.enable(C.KVM_CAP_MAX_VCPU_ID, 4)
    assert errno_of(rig.ioctl, rig.fd, C.KVM_SET_BOOT_CPU_ID, 5) == errno.EINVAL


# Addresses.


@pytest.mark.parametrize(("address", "code"), [(0xFFFBD000, 0), (0xFFFFD000, 0), (0xFFFFE000, errno.EINVAL)])
def test_the_tss(rig: Rig, address: int, code: int) -> None:
    if code:
        assert errno_of(rig.ioctl, rig.fd, X.KVM_SET_TSS_ADDR, address) == code
    else:
        assert rig.ioctl(rig.fd, X.KVM_SET_TSS_ADDR, address) == 0
        assert rig.arch.tss_addr == address


def test_the_identity_map(rig: Rig) -> None:
    address = ctypes.c_uint64(0xFFFBC000)
    rig.ioctl(rig.fd, X.KVM_SET_IDENTITY_MAP_ADDR, address)
    assert rig.arch.identity_map_addr == 0xFFFBC000
    assert errno_of(rig.ioctl, rig.fd, X.KVM_SET_IDENTITY_MAP_ADDR, 0x10) == errno.EFAULT
    rig.create_vcpu()
    assert errno_of(rig.ioctl, rig.fd, X.KVM_SET_IDENTITY_MAP_ADDR, address) == errno.EINVAL


@pytest.mark.parametrize("vm_type", [1, 0xFF, 1 << 31])
def test_a_vm_type_there_is_not(rig: Rig, vm_type: int) -> None:
    assert errno_of(rig.ioctl, rig.system, C.KVM_CREATE_VM, vm_type) == errno.EINVAL


def test_requests_there_are_not(rig: Rig) -> None:
    fd = rig.create_vcpu()
    assert errno_of(rig.ioctl, rig.system, 0xAEFF) == errno.EINVAL
    assert errno_of(rig.ioctl, rig.fd, 0xAEFF) == errno.ENOTTY
    assert errno_of(rig.ioctl, fd, 0xAEFF) == errno.EINVAL


# Chips.


def test_a_chip_comes_before_the_vcpus(rig: Rig) -> None:
    rig.create_vcpu()
    assert errno_of(rig.ioctl, rig.fd, C.KVM_CREATE_IRQCHIP) == errno.EINVAL
    assert errno_of(rig.enable, C.KVM_CAP_SPLIT_IRQCHIP, 24) == errno.EEXIST
    assert errno_of(rig.enable, C.KVM_CAP_SPLIT_IRQCHIP, 5000) == errno.EINVAL


def test_there_is_one(chips: Rig) -> None:
    assert errno_of(chips.ioctl, chips.fd, C.KVM_CREATE_IRQCHIP) == errno.EEXIST
    assert errno_of(chips.enable, C.KVM_CAP_SPLIT_IRQCHIP, 24) == errno.EEXIST
    chip = C.KvmIrqchip(chip_id=X.KVM_IRQCHIP_IOAPIC)
    chips.ioctl(chips.fd, C.KVM_GET_IRQCHIP, chip)
    assert X.KvmIoapicState.from_buffer(chip.chip).base_address == 0xFEC00000
    chips.ioctl(chips.fd, C.KVM_SET_IRQCHIP, chip)
    assert errno_of(chips.ioctl, chips.fd, C.KVM_GET_IRQCHIP, C.KvmIrqchip(chip_id=3)) == errno.EINVAL


@pytest.mark.parametrize("request_number", [C.KVM_GET_IRQCHIP, C.KVM_SET_IRQCHIP])
def test_without_one(rig: Rig, request_number: int) -> None:
    assert errno_of(rig.ioctl, rig.fd, request_number, C.KvmIrqchip()) == errno.ENXIO
    assert errno_of(rig.ioctl, rig.fd, C.KVM_IRQ_LINE, C.KvmIrqLevel()) == errno.ENXIO
    assert errno_of(rig.ioctl, rig.fd, C.KVM_SIGNAL_MSI, C.KvmMsi()) == errno.EINVAL
    assert errno_of(rig.ioctl, rig.fd, C.KVM_SET_GSI_ROUTING, C.KvmIrqRouting()) == errno.EINVAL


def test_the_pit(chips: Rig) -> None:
    assert errno_of(chips.ioctl, chips.fd, X.KVM_GET_PIT2, X.KvmPitState2()) == errno.ENXIO
    chips.ioctl(chips.fd, X.KVM_CREATE_PIT2, X.KvmPitConfig(flags=X.KVM_PIT_SPEAKER_DUMMY))
    assert errno_of(chips.ioctl, chips.fd, X.KVM_CREATE_PIT2, X.KvmPitConfig()) == errno.EEXIST
    assert errno_of(chips.ioctl, chips.fd, X.KVM_CREATE_PIT) == errno.EEXIST
    state = X.KvmPitState2()
    chips.ioctl(chips.fd, X.KVM_GET_PIT2, state)
    state.flags = X.KVM_PIT_FLAGS_HPET_LEGACY
    chips.ioctl(chips.fd, X.KVM_SET_PIT2, state)
    old = X.KvmPitState()
    chips.ioctl(chips.fd, X.KVM_GET_PIT, old)
    chips.ioctl(chips.fd, X.KVM_SET_PIT, old)
    chips.ioctl(chips.fd, X.KVM_GET_PIT2, state)
    assert state.flags & X.KVM_PIT_FLAGS_HPET_LEGACY, "the older structure has no flags to change"
    chips.ioctl(chips.fd, X.KVM_REINJECT_CONTROL, X.KvmReinjectControl(pit_reinject=0))


def test_a_pit_needs_the_pics(rig: Rig) -> None:
    assert errno_of(rig.ioctl, rig.fd, X.KVM_CREATE_PIT2, X.KvmPitConfig()) == errno.ENOENT
    assert errno_of(rig.ioctl, rig.fd, X.KVM_REINJECT_CONTROL, X.KvmReinjectControl()) == errno.ENXIO
    rig.enable(C.KVM_CAP_SPLIT_IRQCHIP, 24)
    assert errno_of(rig.ioctl, rig.fd, X.KVM_CREATE_PIT2, X.KvmPitConfig()) == errno.ENOENT
    assert errno_of(rig.ioctl, rig.fd, C.KVM_GET_IRQCHIP, C.KvmIrqchip()) == errno.ENXIO


def test_default_routing(chips: Rig) -> None:
    assert len(chips.vm.irq.routes(5)) == 2
    assert len(chips.vm.irq.routes(20)) == 1


def test_quirks(chips: Rig) -> None:
    chips.create_vcpu()
    assert chips.vcpu().lapic.mmio_hole
    assert errno_of(chips.enable, C.KVM_CAP_DISABLE_QUIRKS2, 1 << 31) == errno.EINVAL
    chips.enable(C.KVM_CAP_DISABLE_QUIRKS2, X.KVM_X86_QUIRK_LAPIC_MMIO_HOLE)
    chips.create_vcpu()
    assert not any(vcpu.lapic.mmio_hole for vcpu in chips.arch.vcpus)


# Attributes.


def test_a_vm_has_no_attributes(rig: Rig) -> None:
    for request in (C.KVM_SET_DEVICE_ATTR, C.KVM_GET_DEVICE_ATTR, C.KVM_HAS_DEVICE_ATTR):
        assert errno_of(rig.ioctl, rig.fd, request, C.KvmDeviceAttr()) == errno.ENXIO


# Memory.


def test_memory_reaches_the_engine(rig: Rig) -> None:
    memory = rig.add_memory(0x10000, 0x3000)
    region = rig.arch.machine.regions[0x10000]
    assert (region["size"], region["readonly"], region["dirty"]) == (0x3000, False, 0)
    view = ctypes.c_char.from_buffer(memory)
    moved = C.KvmUserspaceMemoryRegion(0, 0, 0x20000, 0x3000, ctypes.addressof(view))
    rig.ioctl(rig.fd, C.KVM_SET_USER_MEMORY_REGION, moved)
    assert list(rig.arch.machine.regions) == [0x20000]
    assert rig.arch.machine.stops == 1
    rig.ioctl(rig.fd, C.KVM_SET_USER_MEMORY_REGION, C.KvmUserspaceMemoryRegion(0, 0, 0x20000, 0, 0))
    assert rig.arch.machine.regions == {}


def test_our_own_writes_are_dirty(rig: Rig) -> None:
    rig.add_memory(0x10000, 0x4000, flags=C.KVM_MEM_LOG_DIRTY_PAGES)
    assert rig.arch.write_guest(0x11FFC, bytes(8))
    bitmap = ctypes.c_uint64()
    rig.ioctl(rig.fd, C.KVM_GET_DIRTY_LOG, C.KvmDirtyLog(0, 0, C.KvmDirtyLog._Bitmap(ctypes.addressof(bitmap))))
    assert bitmap.value == 0b110


def test_memory_that_is_not_there(rig: Rig) -> None:
    rig.add_memory(0x10000, 0x1000)
    rig.add_memory(0x20000, 0x1000, slot=1, flags=C.KVM_MEM_READONLY)
    assert rig.arch.read_guest(0x10FFE, 4) is None
    assert rig.arch.read_guest(0x5000, 1) is None
    assert not rig.arch.write_guest(0x5000, b"x")
    assert rig.arch.read_guest(0x20000, 2) == bytes(2)
    assert not rig.arch.write_guest(0x20000, b"x")
