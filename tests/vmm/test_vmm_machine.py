# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import errno
import gc
import os
import threading
import time
from pathlib import Path

import pytest
from vmm_fakes import FakeBackend, Guest, Program, config

from anykvm.api import Kvm
from anykvm.uapi import arm64, common
from anykvm.vmm import memory
from anykvm.vmm.config import DiskConfig, MachineConfig
from anykvm.vmm.errors import VmmError
from anykvm.vmm.machine import Machine
from anykvm.vmm.memory import MIB
from anykvm.vmm.outcome import Kind, Outcome

pytestmark = pytest.mark.usefixtures("nothing_leaks")


def off(guest: Guest, vcpu_id: int) -> Program:
    if vcpu_id == 0:
        yield from guest.power_off()


def run(backend: FakeBackend, wanted: MachineConfig, seconds: float = 10) -> Machine:
    woken = threading.Event()
    with Kvm(backend) as kvm, Machine(wanted, woken.set, kvm=kvm) as machine:
        machine.start()
        deadline = time.monotonic() + seconds
        while machine.outcome is None and time.monotonic() < deadline:
            woken.wait(0.05)
        machine.stop()
    return machine


def test_a_guest_that_powers_off(tmp_path: Path) -> None:
    machine = run(FakeBackend(off), config(tmp_path, vcpus=3))
    assert machine.outcome == Outcome(Kind.POWER_OFF)
    assert [report.vcpu_id for report in machine.reports] == [0, 1, 2]
    assert machine.reports[0].exits["system-event"] == 1


def test_the_vm_is_built_as_the_kernel_wants_it(tmp_path: Path) -> None:
    backend = FakeBackend(off)
    run(backend, config(tmp_path, vcpus=2, command_line="hello"))
    assert backend.slots[0] == (0, memory.RAM_BASE, 128 * MIB)
    off_bit = 1 << arm64.KVM_ARM_VCPU_POWER_OFF
    psci_bit = 1 << arm64.KVM_ARM_VCPU_PSCI_0_2
    assert backend.vcpu_features == [psci_bit, psci_bit | off_bit]
    assert backend.attributes[-1][:2] == (arm64.KVM_DEV_ARM_VGIC_GRP_CTRL, arm64.KVM_DEV_ARM_VGIC_CTRL_INIT)
    addresses = [(attr, value) for group, attr, value in backend.attributes if group == arm64.KVM_DEV_ARM_VGIC_GRP_ADDR]
    assert addresses == [
        (arm64.KVM_VGIC_V3_ADDR_TYPE_DIST, memory.GIC_DISTRIBUTOR.base),
        (arm64.KVM_VGIC_V3_ADDR_TYPE_REDIST, memory.GIC_V3_REDISTRIBUTORS.base),
    ]
    registers = {reg: value for (_, reg), value in backend.registers.items()}
    assert registers[arm64.REG_PC] == memory.RAM_BASE
    assert registers[arm64.x_reg(0)] % 8 == 0
    assert registers[arm64.REG_PSTATE] == 0x3C5


def test_what_is_loaded_is_in_memory(tmp_path: Path) -> None:
    (tmp_path / "initrd").write_bytes(b"the initrd" * 1000)
    backend = FakeBackend(off)
    with Kvm(backend) as kvm:
        machine = Machine(config(tmp_path, initrd=tmp_path / "initrd", command_line="w1 w2"), lambda: None, kvm=kvm)
        ram = next(obj for obj in gc.get_objects() if type(obj).__name__ == "GuestMemory" and not obj.closed)
        assert ram.read(56, 4) == b"ARM\x64"
        registers = {reg: value for (_, reg), value in backend.registers.items()}
        tree = ram.read(registers[arm64.x_reg(0)] - memory.RAM_BASE, 8192)
        assert tree[:4] == b"\xd0\x0d\xfe\xed"
        assert b"w1 w2\0" in tree
        assert ram.read(registers[arm64.x_reg(0)] - memory.RAM_BASE + 2 * MIB, 10) == b"the initrd"
        del ram
        machine.close()
        machine.close()


def test_gic_v2(tmp_path: Path) -> None:
    backend = FakeBackend(off)
    run(backend, config(tmp_path, gic="v2", vcpus=8))
    addresses = [attr for group, attr, _ in backend.attributes if group == arm64.KVM_DEV_ARM_VGIC_GRP_ADDR]
    assert addresses == [arm64.KVM_VGIC_V2_ADDR_TYPE_DIST, arm64.KVM_VGIC_V2_ADDR_TYPE_CPU]


def test_console_and_interrupts(tmp_path: Path) -> None:
    def program(guest: Guest, vcpu_id: int) -> Program:
        yield from guest.print(b"hello")
        yield from guest.write(memory.UART.base + 0x38, 1 << 5)  # the transmit interrupt is pending
        yield from guest.write(memory.UART.base + 0x44, 1 << 5)
        yield from guest.power_off()

    backend = FakeBackend(program)
    machine = run(backend, config(tmp_path))
    assert machine.uart.take() == b"hello"
    uart = 1 << 24 | 33
    assert backend.lines == [(uart, 1), (uart, 0)]
    assert machine.reports[0].exits == {"mmio-read": 5, "mmio-write": 7, "system-event": 1}


@pytest.mark.parametrize(
    ("step", "kind", "words"),
    [
        (("event", common.KVM_SYSTEM_EVENT_RESET), Kind.RESET, ""),
        (("event", common.KVM_SYSTEM_EVENT_CRASH), Kind.CRASH, "crashed"),
        (("event", 77), Kind.INTERNAL_ERROR, "asked for what is not there"),
        (("reason", common.KVM_EXIT_INTERNAL_ERROR), Kind.INTERNAL_ERROR, "went astray; check that --kernel"),
        (("reason", common.KVM_EXIT_FAIL_ENTRY), Kind.INTERNAL_ERROR, "KVM cannot run vCPU 0"),
        (("reason", common.KVM_EXIT_HYPERCALL), Kind.INTERNAL_ERROR, "Hypercall"),
        (("reason", 4711), Kind.INTERNAL_ERROR, "Unknown"),
        (("raise", OSError(errno.ENOSYS, "Function not implemented")), Kind.INTERNAL_ERROR, "Function not implemented"),
        (("raise", RuntimeError("a bug")), Kind.INTERNAL_ERROR, "RuntimeError: a bug"),
    ],
)
def test_every_other_end(tmp_path: Path, step: tuple[object, ...], kind: Kind, words: str) -> None:
    def program(guest: Guest, vcpu_id: int) -> Program:
        if vcpu_id == 0:
            yield step

    machine = run(FakeBackend(program), config(tmp_path, vcpus=2))
    assert machine.outcome is not None
    assert machine.outcome.kind is kind
    assert words in machine.outcome.message
    assert "\n" not in machine.outcome.message


def test_the_first_end_counts(tmp_path: Path) -> None:
    def program(guest: Guest, vcpu_id: int) -> Program:
        yield from guest.event(common.KVM_SYSTEM_EVENT_SHUTDOWN if vcpu_id else common.KVM_SYSTEM_EVENT_RESET)

    machine = run(FakeBackend(program), config(tmp_path, vcpus=4))
    assert machine.outcome is not None
    assert machine.outcome.kind in (Kind.POWER_OFF, Kind.RESET)


def test_a_running_machine_can_be_closed(tmp_path: Path) -> None:
    with Kvm(FakeBackend(lambda guest, _: guest.forever())) as kvm:
        machine = Machine(config(tmp_path, vcpus=4), lambda: None, kvm=kvm)
        machine.start()
        assert {thread.name for thread in threading.enumerate()} >= {f"vcpu-{n}" for n in range(4)}
        began = time.monotonic()
        machine.close()
        assert time.monotonic() - began < 2
        assert machine.outcome is None


def test_a_machine_that_never_ran_can_be_closed(tmp_path: Path) -> None:
    with Kvm(FakeBackend(off)) as kvm:
        Machine(config(tmp_path, vcpus=2), lambda: None, kvm=kvm).close()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vcpus": 0}, "give at least --smp 1"),
        ({"vcpus": 513}, "give at most --smp 512"),
        ({"vcpus": 9, "gic": "v2"}, "use --gic v3"),
        ({"gic": "v4"}, "choose --gic"),
        ({"memory": 0}, "give at least --memory"),
        ({"memory": 8 * MIB}, r"give at least --memory \d+M"),
        ({"memory": 1 << 45}, "40-bit addresses"),
        ({"memory": 1 << 39}, "more than this host has"),
        ({"kernel": Path("/none")}, "kernel /none is not there"),
        ({"initrd": Path("/none")}, "initrd /none is not there"),
        ({"disks": [DiskConfig(Path("/none"))]}, "disk /none is not there"),
        ({"command_line": "x" * 2048}, "shorten --append"),
        ({"command_line": "a\0b"}, "zero byte"),
        ({"command_line": "\ud800"}, "characters that are none"),
    ],
)
def test_impossible_machines_are_refused_in_one_line(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    with Kvm(FakeBackend(off)) as kvm, pytest.raises(VmmError, match=words) as refused:
        Machine(config(tmp_path, **changes), lambda: None, kvm=kvm)
    assert "\n" not in str(refused.value)


def test_a_second_disk_that_is_missing_closes_the_first(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    disks = [DiskConfig(tmp_path / "disk"), DiskConfig(tmp_path / "none")]
    with Kvm(FakeBackend(off)) as kvm, pytest.raises(VmmError, match="none is not there"):
        Machine(config(tmp_path, disks=disks), lambda: None, kvm=kvm)


def test_no_file_descriptors_for_vcpus_is_one_line(tmp_path: Path) -> None:
    backend = FakeBackend(off)
    backend.fail_create = errno.EMFILE
    with Kvm(backend) as kvm, pytest.raises(VmmError, match="ulimit -n"):
        Machine(config(tmp_path), lambda: None, kvm=kvm)


def test_a_kvm_without_that_gic_is_one_line(tmp_path: Path) -> None:
    backend = FakeBackend(off, no_gic=common.KVM_DEV_TYPE_ARM_VGIC_V3)
    with Kvm(backend) as kvm, pytest.raises(VmmError, match="use --gic v2"):
        Machine(config(tmp_path), lambda: None, kvm=kvm)


def test_no_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(size: int) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    monkeypatch.setattr("anykvm.vmm.machine.GuestMemory", no_memory)
    with Kvm(FakeBackend(off)) as kvm, pytest.raises(VmmError, match="give less with --memory"):
        Machine(config(tmp_path), lambda: None, kvm=kvm)


def test_a_disk_is_served_from_the_vcpu_where_there_are_no_ioeventfds(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(4096))
    seen: list[int] = []

    def program(guest: Guest, vcpu_id: int) -> Program:
        base = memory.virtio_slot(1).base
        seen.append((yield from guest.read(base)))
        seen.append((yield from guest.read(base + 8)))
        yield from guest.write(base + 0x50, 0)
        yield from guest.power_off()

    run(FakeBackend(program), config(tmp_path, disks=[DiskConfig(tmp_path / "disk")]))
    assert seen == [0x74726976, 2]


# Sessions: console, resets, panics, time limits.
