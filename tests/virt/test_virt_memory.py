# SPDX-License-Identifier: GPL-2.0-only
"""KVM_SET_USER_MEMORY_REGION: every refusal, every change, and a model that agrees."""

from __future__ import annotations

import ctypes
import errno
import mmap
from typing import Any

import pytest
from fake_arch import Machine
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anykvm.uapi import constants as c
from anykvm.uapi import requests as rq
from anykvm.uapi.structs import KvmUserspaceMemoryRegion, KvmUserspaceMemoryRegion2

PAGE = 4096
SET = rq.KVM_SET_USER_MEMORY_REGION
RAM = mmap.mmap(-1, 64 * PAGE)
HVA = ctypes.addressof(ctypes.c_char.from_buffer(RAM))


def region(slot: int = 0, gpa: int = 0, size: int = PAGE, hva: int = HVA, flags: int = 0) -> KvmUserspaceMemoryRegion:
    return KvmUserspaceMemoryRegion(slot, flags, gpa, size, hva)


@pytest.fixture
def vm(machine: Machine) -> int:
    return machine.vm()


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (region(gpa=1), "gpa not page-aligned"),
        (region(size=4095), "size not page-aligned"),
        (region(hva=HVA + 8), "user address not page-aligned"),
        (region(flags=1 << 5), "unknown flag"),
        (region(flags=c.KVM_MEM_GUEST_MEMFD), "guest_memfd"),
        (region(slot=32767), "slot number too large"),
        (region(slot=0xFFFF), "slot number too large"),
        (region(slot=1 << 16), "address space 1"),
        (region(slot=0xFFFFFFFF), "everything"),
        (region(gpa=(1 << 64) - PAGE, size=2 * PAGE), "gpa overflow"),
        (region(size=1 << 63), "user range too large"),
        (region(hva=1 << 63), "not a user address"),
        (region(size=(1 << 31) * PAGE), "too many pages"),
        (region(size=0), "deleting what is not there"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) else "",
)
def test_einval(machine: Machine, vm: int, bad: KvmUserspaceMemoryRegion, why: str) -> None:
    assert machine.errno(vm, SET, bad) == "EINVAL", why
    assert machine.arch.slots == []
    assert len(machine.vm_of(vm).memory) == 0


def test_efault(machine: Machine, vm: int) -> None:
    assert machine.errno(vm, SET, 0) == "EFAULT"
    assert machine.errno(vm, SET, region(hva=0x10000)) == "EFAULT"
    assert machine.errno(vm, SET, region(hva=HVA, size=1 << 33)) == "EFAULT"
    assert machine.arch.slots == []


def test_readonly_memory_can_be_missing(machine: Machine, vm: int) -> None:
    machine.arch.readonly_memory = False
    assert machine.errno(vm, SET, region(flags=c.KVM_MEM_READONLY)) == "EINVAL"
    machine.arch.readonly_memory = True
    assert machine.errno(vm, SET, region(flags=c.KVM_MEM_READONLY)) == "0"
    assert machine.vm_of(vm).memory.find(0).readonly


def test_create_find_delete(machine: Machine, vm: int) -> None:
    memory = machine.vm_of(vm).memory
    machine.ioctl(vm, SET, region(1, 0x10000, 4 * PAGE))
    machine.ioctl(vm, SET, region(0, 0x80000, PAGE, HVA + 4 * PAGE))
    slot = memory.find(0x10000)
    assert (slot.id, slot.gpa, slot.size, slot.userspace_addr) == (1, 0x10000, 4 * PAGE, HVA)
    assert memory.find(0x13FFF) is slot
    assert memory.find(0x14000) is None
    assert memory.find(0xFFFF) is None
    assert memory.find(0x80FFF).id == 0
    assert memory.gpa_to_hva(0x11010, 16) == HVA + PAGE + 16
    assert memory.gpa_to_hva(0x13FF8, 16) is None
    assert memory.gpa_to_hva(0x20000, 1) is None
    assert [slot.id for slot in memory.slots] == [1, 0]
    machine.ioctl(vm, SET, region(1, 0, 0))
    assert memory.find(0x10000) is None
    assert [name for name, _, _ in machine.arch.slots] == ["CREATE", "CREATE", "DELETE"]
    assert machine.arch.slots[2][1] is slot


def test_a_delete_ignores_where(machine: Machine, vm: int) -> None:
    machine.ioctl(vm, SET, region(1, 0x10000, PAGE))
    assert machine.errno(vm, SET, region(1, 0x99000, 0, 0)) == "0"


@pytest.mark.parametrize(
    "other",
    [region(1, 0x10000), region(1, 0xF000, 2 * PAGE), region(1, 0x11000), region(1, 0, 0x40000), region(1, 0x13000)],
)
def test_overlap_is_eexist(machine: Machine, vm: int, other: KvmUserspaceMemoryRegion) -> None:
    machine.ioctl(vm, SET, region(0, 0x10000, 4 * PAGE))
    assert machine.errno(vm, SET, other) == "EEXIST"
    assert len(machine.vm_of(vm).memory) == 1


def test_neighbours_do_not_overlap(machine: Machine, vm: int) -> None:
    machine.ioctl(vm, SET, region(0, 0x10000, 4 * PAGE))
    machine.ioctl(vm, SET, region(1, 0xF000))
    machine.ioctl(vm, SET, region(2, 0x14000))
    assert [slot.id for slot in machine.vm_of(vm).memory.slots] == [1, 0, 2]


def test_move(machine: Machine, vm: int) -> None:
    machine.ioctl(vm, SET, region(0, 0x10000, 4 * PAGE))
    machine.ioctl(vm, SET, region(1, 0x20000, PAGE))
    machine.ioctl(vm, SET, region(0, 0x11000, 4 * PAGE))
    assert machine.arch.slots[-1][0] == "MOVE"
    memory = machine.vm_of(vm).memory
    assert memory.find(0x10000) is None
    assert memory.find(0x14000).id == 0
    assert machine.errno(vm, SET, region(0, 0x1D000, 4 * PAGE)) == "EEXIST"
    assert memory.find(0x14000).id == 0


@pytest.mark.parametrize(
    "changed",
    [
        region(0, 0x10000, 2 * PAGE),
        region(0, 0x10000, 4 * PAGE, HVA + PAGE),
        region(0, 0x10000, 4 * PAGE, flags=c.KVM_MEM_READONLY),
        region(0, 0x20000, 2 * PAGE),
    ],
)
def test_a_slot_keeps_its_size_backing_and_writability(
    machine: Machine, vm: int, changed: KvmUserspaceMemoryRegion
) -> None:
    machine.ioctl(vm, SET, region(0, 0x10000, 4 * PAGE))
    assert machine.errno(vm, SET, changed) == "EINVAL"


def test_nothing_to_change(machine: Machine, vm: int) -> None:
    machine.ioctl(vm, SET, region(0, 0x10000, 4 * PAGE))
    machine.ioctl(vm, SET, region(0, 0x10000, 4 * PAGE))
    assert len(machine.arch.slots) == 1


def test_flags_only(machine: Machine, vm: int) -> None:
    memory = machine.vm_of(vm).memory
    machine.ioctl(vm, SET, region())
    before = machine.ledger()
    machine.ioctl(vm, SET, region(flags=c.KVM_MEM_LOG_DIRTY_PAGES))
    assert machine.arch.slots[-1][0] == "FLAGS_ONLY"
    bitmap = memory.find(0).dirty
    assert bitmap.size == 8
    machine.ioctl(vm, SET, region(gpa=0x5000, flags=c.KVM_MEM_LOG_DIRTY_PAGES))
    assert machine.arch.slots[-1][0] == "MOVE"
    assert memory.find(0x5000).dirty is bitmap
    machine.ioctl(vm, SET, region(gpa=0x5000))
    assert memory.find(0x5000).dirty is None
    assert machine.ledger() == before


@pytest.mark.parametrize("hook", ["prepare_memory_region", "commit_memory_region"])
def test_an_architecture_that_refuses(machine: Machine, vm: int, hook: str) -> None:
    machine.ioctl(vm, SET, region(1, 0x100000))
    before, slots = machine.ledger(), machine.vm_of(vm).memory.slots
    machine.arch.refuse[hook] = errno.EFAULT
    for change in (
        region(flags=c.KVM_MEM_LOG_DIRTY_PAGES),
        region(1, 0x200000),
        region(1, 0x100000, flags=c.KVM_MEM_LOG_DIRTY_PAGES),
        region(1, 0, 0),
    ):
        assert machine.errno(vm, SET, change) == "EFAULT"
    assert machine.ledger() == before
    assert machine.vm_of(vm).memory.slots == slots


def test_no_memory_for_the_bitmap(machine: Machine, vm: int) -> None:
    before = machine.ledger()
    machine.services.arm(0)
    assert machine.errno(vm, SET, region(flags=c.KVM_MEM_LOG_DIRTY_PAGES)) == "ENOMEM"
    assert machine.ledger() == before


def test_region2(machine: Machine, vm: int) -> None:
    region2 = KvmUserspaceMemoryRegion2(slot=3, guest_phys_addr=0x1000, memory_size=PAGE, userspace_addr=HVA)
    assert machine.errno(vm, rq.KVM_SET_USER_MEMORY_REGION2, region2) == "0"
    assert machine.vm_of(vm).memory.find(0x1000).id == 3
    region2.flags = c.KVM_MEM_GUEST_MEMFD
    assert machine.errno(vm, rq.KVM_SET_USER_MEMORY_REGION2, region2) == "EINVAL"


def test_the_vms_end_frees_bitmaps(machine: Machine) -> None:
    base = machine.ledger()
    vm = machine.vm()
    machine.ioctl(vm, SET, region(flags=c.KVM_MEM_LOG_DIRTY_PAGES))
    machine.backend.close(vm)
    assert machine.ledger() == base


# A model: slots as a dictionary, the rules in the order of api.rst 4.35.

Slot = tuple[int, int, int, int]


def model(slots: dict[int, Slot], slot: int, gpa: int, pages: int, hva: int, flags: int) -> str:
    """What the kernel answers, changing ``slots``; addresses in pages."""
    if flags & ~3 or slot >= 32767:
        return "EINVAL"
    old = slots.get(slot)
    if pages == 0:
        return "0" if slots.pop(slot, None) else "EINVAL"
    if old and (old[1] != pages or old[2] != hva or (old[3] ^ flags) & 2):
        return "EINVAL"
    if not old or old[0] != gpa:
        for other, (start, count, _, _) in slots.items():
            if other != slot and start < gpa + pages and gpa < start + count:
                return "EEXIST"
    slots[slot] = (gpa, pages, hva, flags)
    return "0"


steps = st.lists(
    st.tuples(
        st.sampled_from([0, 1, 2, 3, 32766, 32767]),
        st.integers(0, 12),
        st.integers(0, 4),
        st.integers(0, 2),
        st.sampled_from([0, 0, 0, 1, 2, 3, 8]),
    ),
    max_size=25,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(steps)
def test_slots_agree_with_the_model(changes: list[tuple[int, int, int, int, int]]) -> None:
    machine = Machine()
    fd = machine.vm()
    memory: Any = machine.vm_of(fd).memory
    expected: dict[int, Slot] = {}
    for slot, gpa, pages, hva, flags in changes:
        wanted = model(expected, slot, gpa, pages, hva, flags)
        change = region(slot, gpa * PAGE, pages * PAGE, HVA + hva * PAGE, flags)
        assert machine.errno(fd, SET, change) == wanted
        found = {s.id: (s.base_gfn, s.npages, (s.userspace_addr - HVA) // PAGE, s.flags & 3) for s in memory.slots}
        assert found == expected
        assert [s.base_gfn for s in memory.slots] == sorted(s.base_gfn for s in memory.slots)
        for page in range(18):
            owner = [n for n, (start, count, _, _) in expected.items() if start <= page < start + count]
            hit = memory.find(page * PAGE)
            assert [hit.id] == owner if hit else owner == []
        assert all((s.dirty is not None) == bool(s.flags & 1) for s in memory.slots)
    machine.backend.close_all()
    assert machine.ledger() == {}
    machine.services.close()
