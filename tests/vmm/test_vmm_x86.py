# SPDX-License-Identifier: GPL-2.0-only
"""The x86 machine on a KVM whose guests are Python."""

from __future__ import annotations

import ctypes
import errno
import gc
import os
import struct
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from vmm_fakes import Program
from vmm_fakes_x86 import LEAVES, FakePc, PcGuest, write_bzimage

from anykvm.api import Kvm
from anykvm.api.x86 import CpuidEntry
from anykvm.uapi import common, x86
from anykvm.vmm import x86_cpuid, x86_entry, x86_map
from anykvm.vmm.config import DiskConfig, MachineConfig
from anykvm.vmm.errors import VmmError
from anykvm.vmm.machine import Machine
from anykvm.vmm.memory import GIB, MIB, PAGE_SIZE
from anykvm.vmm.outcome import Kind, Outcome


def config(folder: Path, **changes: object) -> MachineConfig:
    values: dict[str, object] = {"kernel": write_bzimage(folder), "memory": 128 * MIB, "arch": "x86"}
    return MachineConfig(**(values | changes))  # type: ignore[arg-type]


def off(guest: PcGuest, vcpu_id: int) -> Program:
    yield from guest.power_off() if vcpu_id == 0 else guest.forever()


def run(backend: FakePc, wanted: MachineConfig, seconds: float = 10) -> Machine:
    woken = threading.Event()
    with Kvm(backend) as kvm, Machine(wanted, woken.set, kvm=kvm) as machine:
        machine.start()
        deadline = time.monotonic() + seconds
        while machine.outcome is None and time.monotonic() < deadline:
            woken.wait(0.05)
        machine.stop()
    return machine


def test_a_guest_that_powers_off(tmp_path: Path) -> None:
    machine = run(FakePc(off), config(tmp_path, vcpus=3))
    assert machine.outcome == Outcome(Kind.POWER_OFF)
    assert machine.reports[0].exits["pio-out"] == 1


def test_the_vm_is_built_as_the_kernel_wants_it(tmp_path: Path) -> None:
    backend = FakePc(off)
    run(backend, config(tmp_path, vcpus=2))
    wanted = [
        x86.KVM_GET_SUPPORTED_CPUID,
        common.KVM_SET_USER_MEMORY_REGION,
        x86.KVM_SET_IDENTITY_MAP_ADDR,
        x86.KVM_SET_TSS_ADDR,
        common.KVM_CREATE_IRQCHIP,
        x86.KVM_CREATE_PIT2,
        common.KVM_CREATE_VCPU,
        x86.KVM_SET_CPUID2,
        x86.KVM_SET_SREGS,
        x86.KVM_SET_REGS,
        common.KVM_RUN,
    ]
    first = [backend.requests.index(request) for request in wanted]
    assert first == sorted(first)
    assert backend.slots[0] == (0, 0, 128 * MIB)
    # The others wait for the guest to start them: nobody sets their registers.
    assert list(backend.regs) == [0]
    assert {(vcpu, index) for vcpu, index, _ in backend.msrs} == {(v, i) for v in (0, 1) for i in (0x1A0, 0x2FF)}


def test_a_vcpu_that_waited_for_its_start_runs_again(tmp_path: Path) -> None:
    def program(guest: PcGuest, vcpu_id: int) -> Program:
        if vcpu_id:
            yield from guest.power_off()
        yield from guest.forever()

    class Sleeper(FakePc):
        slept = False

        def _run(self, fd: int) -> int:
            if self.files[fd][1] and not self.slept:
                self.slept = True
                raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
            return super()._run(fd)

    machine = run(Sleeper(program), config(tmp_path, vcpus=2))
    assert machine.outcome == Outcome(Kind.POWER_OFF)
    assert machine.reports[1].exits["started"] == 1


def test_linux_is_entered_in_64_bit_mode(tmp_path: Path) -> None:
    backend = FakePc(off)
    run(backend, config(tmp_path))
    regs, sregs = backend.regs[0], backend.sregs[0]
    assert (regs.rip, regs.rsi, regs.rflags) == (16 * MIB + 0x200, x86_map.BOOT_PARAMS, 2)
    assert sregs.cr0 & (x86.X86_CR0_PE | x86.X86_CR0_PG) == x86.X86_CR0_PE | x86.X86_CR0_PG
    assert sregs.cr4 & x86.X86_CR4_PAE
    assert sregs.efer == 0x500
    assert sregs.cr3 == x86_map.PAGE_TABLES
    assert sregs.apic_base == 0xFEE00900
    cs = sregs.cs
    assert (cs.selector, cs.base, cs.limit, cs.type, cs.s, cs.l, cs.db, cs.g, cs.present) == (
        *(0x10, 0, 0xFFFFFFFF, 11, 1, 1, 0, 1, 1),
    )
    for name in ("ds", "es", "ss"):
        segment = getattr(sregs, name)
        assert (segment.selector, segment.limit, segment.type, segment.l, segment.db) == (0x18, 0xFFFFFFFF, 3, 0, 1)
    assert (sregs.tr.type, sregs.tr.s, sregs.tr.limit, sregs.tr.present) == (11, 0, 0x67, 1)
    assert (sregs.gdt.base, sregs.gdt.limit, sregs.idt.limit) == (x86_map.GDT, 47, 0)


def test_what_is_loaded_is_in_memory(tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(b"the initrd" * 1000)
    with Kvm(FakePc(off)) as kvm:
        wanted = config(tmp_path, initrd=tmp_path / "initrd", command_line="w1 w2")
        machine = Machine(wanted, lambda: None, kvm=kvm)
        ram = next(obj for obj in gc.get_objects() if type(obj).__name__ == "GuestMemory" and not obj.closed)
        params = ram.read(x86_map.BOOT_PARAMS, 4096)
        initrd, size = struct.unpack_from("<II", params, 0x218)
        assert ram.read(initrd, size) == b"the initrd" * 1000
        assert ram.read(struct.unpack_from("<I", params, 0x228)[0], 6) == b"w1 w2\0"
        assert ram.read(struct.unpack_from("<Q", params, 0x70)[0], 8) == b"RSD PTR "
        link, kind, length = struct.unpack("<QII", ram.read(struct.unpack_from("<Q", params, 0x250)[0], 16))
        assert (link, kind, length) == (0, 9, 32)
        assert ram.read(x86_map.GDT, 48) == x86_entry.descriptors()
        del ram
        machine.close()


def test_the_page_tables_map_four_gigabytes_to_themselves() -> None:
    tables, base = x86_entry.page_tables(), x86_map.PAGE_TABLES
    assert base + len(tables) <= 0x10000

    def entry(table: int, index: int) -> int:
        return int(struct.unpack_from("<Q", tables, table - base + 8 * index)[0])

    def translate(address: int) -> int:
        table = base
        for shift in (39, 30):
            found = entry(table, address >> shift & 511)
            assert found & 3 == 3
            table = found & ~0xFFF
        page = entry(table, address >> 21 & 511)
        assert page & 0x83 == 0x83
        return page & ~0x1FFFFF | address & 0x1FFFFF

    for address in (0, 0x7000, 16 * MIB + 0x200, GIB - 1, GIB, 0xFEE00000, 4 * GIB - 1):
        assert translate(address) == address
    assert entry(base, 1) == 0
    assert entry(base + PAGE_SIZE, 4) == 0


def test_low_memory_does_not_overlap() -> None:
    used = [
        (x86_map.GDT, len(x86_entry.descriptors())),
        (x86_map.BOOT_PARAMS, 4096),
        (x86_map.PAGE_TABLES, len(x86_entry.page_tables())),
        (x86_map.COMMAND_LINE, 4096),
        (x86_map.SETUP_DATA, 4096),
        (x86_map.LOW_RAM_END, 0),
    ]
    assert all(start + size <= following for (start, size), (following, _) in pairwise(used))
    assert x86_map.BOOT_PARAMS + 4096 < x86_map.BOOT_STACK < x86_map.PAGE_TABLES


def test_memory_above_the_hole_is_a_second_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anykvm.vmm.memory.host_memory", lambda: None)
    backend = FakePc(off)
    with Kvm(backend) as kvm:
        Machine(config(tmp_path, memory=5 * GIB), lambda: None, kvm=kvm).close()
    assert backend.slots == [(0, 0, 3 * GIB), (1, 4 * GIB, 2 * GIB)]


def test_console_and_interrupt(tmp_path: Path) -> None:
    def program(guest: PcGuest, vcpu_id: int) -> Program:
        yield from guest.print(b"hello")
        yield from guest.out(0x3F8, b", PC")  # as REP OUTSB does
        yield from guest.out(0x3F9, b"\x02")
        yield from guest.in_(0x3FA)
        yield from guest.power_off()

    backend = FakePc(program)
    machine = run(backend, config(tmp_path))
    assert machine.uart.take() == b"hello, PC"
    assert backend.lines == [(4, 1), (4, 0)]


def test_ports_of_nobody_and_strings(tmp_path: Path) -> None:
    seen: list[bytes] = []

    def program(guest: PcGuest, vcpu_id: int) -> Program:
        seen.append((yield from guest.in_(0xCFC, 4)))
        seen.append((yield from guest.in_(0x3FD, 1, 3)))
        seen.append((yield from guest.in_(0x604, 2)))
        yield from guest.power_off()

    machine = run(FakePc(program), config(tmp_path))
    assert seen == [b"\xff" * 4, b"\x60" * 3, b"\x01\0"]
    assert machine.ports.unclaimed == 4


def test_a_virtio_device_is_where_acpi_says(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    seen: list[int] = []

    def program(guest: PcGuest, vcpu_id: int) -> Program:
        for index in range(3):
            base = x86_map.virtio_slot(index).base
            seen.append((yield from guest.read(base)))
            seen.append((yield from guest.read(base + 8)))
        yield from guest.power_off()

    run(FakePc(program), config(tmp_path, disks=[DiskConfig(tmp_path / "disk")]))
    assert seen == [0x74726976, 4, 0x74726976, 2, 0, 0]


@pytest.mark.parametrize(
    ("step", "kind", "words"),
    [
        (("reason", common.KVM_EXIT_SHUTDOWN), Kind.RESET, ""),
        (("out", 0xCF9, 1, b"\x06"), Kind.RESET, ""),
        (("out", 0x64, 1, b"\xfe"), Kind.RESET, ""),
        (("reason", common.KVM_EXIT_INTERNAL_ERROR), Kind.INTERNAL_ERROR, "KVM cannot run vCPU 0 at pc 0x1234"),
        (("reason", common.KVM_EXIT_HLT), Kind.INTERNAL_ERROR, "Halt"),
    ],
)
def test_every_other_end(tmp_path: Path, step: tuple[object, ...], kind: Kind, words: str) -> None:
    def program(guest: PcGuest, vcpu_id: int) -> Program:
        if vcpu_id == 0:
            yield step
        yield from guest.forever()

    machine = run(FakePc(program), config(tmp_path, vcpus=2))
    assert machine.outcome is not None
    assert machine.outcome.kind is kind
    assert words in machine.outcome.message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vcpus": 256}, "255 vCPUs at most, not 256: use --smp 255"),
        ({"vcpus": 3, "max": 2}, "give at most --smp 2"),
        ({"disks": [DiskConfig(Path("/none"))] * 8}, "an x86 machine has 7 at most"),
        ({"memory": 8 * MIB}, r"give at least --memory \d+M"),
        ({"memory": 1 << 45}, "do not fit 40-bit addresses: give at most --memory 1023G"),
        ({"kernel": Path("/none")}, "kernel /none is not there"),
        ({"initrd": Path("/none")}, "initrd /none is not there"),
    ],
)
def test_impossible_machines_are_refused_in_one_line(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    most = changes.pop("max", 512)
    with Kvm(FakePc(off, max_vcpus=most)) as kvm, pytest.raises(VmmError, match=words) as refused:
        Machine(config(tmp_path, **changes), lambda: None, kvm=kvm)
    assert "\n" not in str(refused.value)


# CPUID.


def leaves() -> list[CpuidEntry]:
    return [CpuidEntry(*leaf) for leaf in LEAVES]


def by_number(found: list[CpuidEntry]) -> dict[tuple[int, int], CpuidEntry]:
    assert len({(leaf.function, leaf.index) for leaf in found}) == len(found)
    return {(leaf.function, leaf.index): leaf for leaf in found}


def test_supported_cpuid_asks_until_there_is_room() -> None:
    backend = FakePc(off)
    with Kvm(backend) as kvm:
        assert kvm.get_supported_cpuid() == leaves()
    assert backend.requests.count(x86.KVM_GET_SUPPORTED_CPUID) > 1


@pytest.mark.parametrize(("vcpus", "bits"), [(1, 0), (2, 1), (3, 2), (4, 2), (64, 6), (255, 8)])
def test_each_vcpu_knows_its_place(vcpus: int, bits: int) -> None:
    for apic_id in {0, 1, vcpus - 1}:
        found = by_number(x86_cpuid.for_vcpu(leaves(), apic_id, vcpus))
        one = found[1, 0]
        assert one.ebx >> 24 == apic_id
        assert one.ebx & 0xFFFF == 0x0800
        assert one.ebx >> 16 & 0xFF == min(1 << bits, 255)
        assert bool(one.edx & 1 << 28) == (vcpus > 1)
        assert one.edx & x86.CPUID_1_EDX_APIC
        assert (found[0xB, 0].eax, found[0xB, 0].ebx, found[0xB, 0].ecx) == (0, 1, 0x100)
        assert (found[0xB, 1].eax, found[0xB, 1].ebx, found[0xB, 1].ecx) == (bits, vcpus, 0x201)
        assert (found[0xB, 2].ebx, found[0xB, 2].ecx) == (0, 2)
        assert all(found[0xB, index].edx == apic_id for index in range(3))
        assert found[4, 0].eax >> 26 == min((1 << bits) - 1, 63)
        assert found[0x8000_0008, 0].ecx == bits << 12 | vcpus - 1
        assert found[0x8000_0008, 0].eax == 0x3028
        assert found[0x4000_0000, 0] == leaves()[5]


def test_the_tsc_deadline_timer_is_told_where_there_is_one(tmp_path: Path) -> None:
    backend = FakePc(off)
    backend.tsc_deadline = 1
    run(backend, config(tmp_path, vcpus=2))
    for vcpu_id in (0, 1):
        (one,) = [leaf for leaf in backend.cpuid[vcpu_id] if leaf[0] == 1]
        assert one[5] & x86.CPUID_1_ECX_TSC_DEADLINE
        assert one[4] >> 24 == vcpu_id
    plain = by_number(x86_cpuid.for_vcpu(leaves(), 0, 1))
    assert not plain[1, 0].ecx & x86.CPUID_1_ECX_TSC_DEADLINE


def test_structures_have_the_size_the_requests_say() -> None:
    for request, structure in ((x86.KVM_SET_SREGS, x86.KvmSregs), (x86.KVM_SET_REGS, x86.KvmRegs)):
        assert request >> 16 & 0x3FFF == ctypes.sizeof(structure)
