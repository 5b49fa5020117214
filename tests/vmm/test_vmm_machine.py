# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import errno
import gc
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from vmm_fakes import FakeBackend, Guest, Program, write_image

from anykvm.api import Kvm
from anykvm.uapi import arm64, common
from anykvm.vmm import memory
from anykvm.vmm.config import DiskConfig, MachineConfig
from anykvm.vmm.errors import VmmError
from anykvm.vmm.machine import Machine
from anykvm.vmm.memory import MIB
from anykvm.vmm.outcome import Kind, Outcome
from anykvm.vmm.session import Session


@pytest.fixture(autouse=True)
def nothing_leaks():
    """No thread, no file descriptor and no mapping is left by any test of this file."""
    gc.collect()
    threads, files = set(threading.enumerate()), sorted(os.listdir("/proc/self/fd"))
    yield
    gc.collect()
    assert set(threading.enumerate()) == threads
    assert sorted(os.listdir("/proc/self/fd")) == files


def config(folder: Path, **changes: object) -> MachineConfig:
    values: dict[str, object] = {"kernel": write_image(folder), "memory": 128 * MIB}
    return MachineConfig(**(values | changes))  # type: ignore[arg-type]


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


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backends: list[FakeBackend] = []

    def make(program: Callable[[Guest, int], Program], **options: object) -> Session:
        def kvm(_: Machine) -> Kvm:
            backends.append(FakeBackend(program))
            return Kvm(backends[-1])

        monkeypatch.setattr(Machine, "_kvm", kvm)
        made = Session(config(tmp_path), **options)  # type: ignore[arg-type]
        made.output = bytearray()  # type: ignore[attr-defined]
        if made.tap is None:
            made.tap = made.output.extend  # type: ignore[attr-defined]
        return made

    make.backends = backends  # type: ignore[attr-defined]
    return make


def test_a_session_hears_all_of_the_console(session) -> None:
    text = b"line of text\r\n" * 200

    def program(guest: Guest, _: int) -> Program:
        yield from guest.print(text)
        yield from guest.power_off()

    made = session(program)
    assert made.run() == Outcome(Kind.POWER_OFF)
    assert made.output == text
    assert made.first_instruction is not None
    assert made.reports[0].exits["mmio-write"] == len(text)


def test_a_reset_builds_the_machine_again(session) -> None:
    def program(guest: Guest, _: int) -> Program:
        yield from guest.print(b"boot\n")
        if len(session.backends) < 3:
            yield from guest.reset()
        yield from guest.power_off()

    said: list[str] = []
    made = session(program, say=said.append)
    assert made.run().kind is Kind.POWER_OFF
    assert made.output == b"boot\n" * 3
    assert len(said) == 2


def test_without_reboots_a_reset_is_the_end(session) -> None:
    outcome = session(lambda guest, _: guest.reset(), reboot=False).run()
    assert (outcome.kind, outcome.exit_status) == (Kind.RESET, 0)
    assert len(session.backends) == 1


def test_a_guest_that_only_resets_is_given_up(session) -> None:
    outcome = session(lambda guest, _: guest.reset()).run()
    assert (outcome.kind, outcome.exit_status) == (Kind.CRASH, 3)
    assert "giving up" in outcome.message


PANIC = b"[ 1.0] Kernel panic - not syncing: Attempted to kill init!\r\n"


def test_a_panic_that_resets_is_a_panic_and_not_a_reboot(session) -> None:
    def program(guest: Guest, _: int) -> Program:
        yield from guest.print(PANIC)
        yield from guest.reset()

    outcome = session(program).run()
    assert (outcome.kind, outcome.exit_status) == (Kind.PANIC, 3)
    assert outcome.message == "the guest's kernel panicked: Attempted to kill init!"
    assert len(session.backends) == 1


def test_a_panic_that_hangs_is_a_panic(session) -> None:
    def program(guest: Guest, _: int) -> Program:
        yield from guest.print(PANIC + b"[ 1.1] ---[ end Kernel panic - not syncing: Attempted ]---\r\n")
        yield from guest.forever()

    began = time.monotonic()
    outcome = session(program, timeout=20).run()
    assert outcome.kind is Kind.PANIC
    assert time.monotonic() - began < 10


def test_a_time_limit_of_years(session) -> None:
    def program(guest: Guest, vcpu_id: int) -> Program:
        yield from guest.power_off()

    assert session(program, timeout=1e9).run().kind is Kind.POWER_OFF


def test_a_time_limit(session) -> None:
    outcome = session(lambda guest, _: guest.forever(), timeout=0.2).run()
    assert (outcome.kind, outcome.exit_status) == (Kind.TIMEOUT, 124)


def test_an_internal_error_keeps_its_traceback(session) -> None:
    def program(guest: Guest, _: int) -> Program:
        yield ("raise", RuntimeError("a bug"))

    made = session(program)
    assert made.run().exit_status == 4
    assert isinstance(made.error, RuntimeError)


def pipe_session(session, program, **options: object):
    source, typed = os.pipe()
    shown, sink = os.pipe()
    return session(program, source=source, sink=sink, **options), (source, typed, shown, sink)


def close_all(*fds: int) -> None:
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


def echo(guest: Guest, _: int) -> Program:
    yield from guest.listen()
    while (key := (yield from guest.key())) != 0x04:
        yield from guest.print(bytes((key,)))
    yield from guest.print(b"eof\n")
    yield from guest.power_off()


def test_pipes_and_the_end_of_input(session) -> None:
    made, fds = pipe_session(session, echo)
    os.write(fds[1], b"from a pipe\n")
    os.close(fds[1])
    assert made.run().kind is Kind.POWER_OFF
    assert os.read(fds[2], 1000) == b"from a pipe\neof\n"
    close_all(*fds)


def test_a_closed_input_is_no_input(session) -> None:
    made, fds = pipe_session(session, lambda guest, _: guest.power_off())
    os.close(fds[0])
    assert made.run().kind is Kind.POWER_OFF
    close_all(*fds)


def test_nobody_reads_the_output(session) -> None:
    def program(guest: Guest, _: int) -> Program:
        while True:
            yield from guest.print(b"flood\n")

    made, fds = pipe_session(session, program)
    os.close(fds[2])
    outcome = made.run()
    assert (outcome.kind, outcome.exit_status) == (Kind.HANGUP, 1)
    close_all(*fds)


def test_a_reader_that_goes_away_is_noticed_in_silence(session) -> None:
    made, fds = pipe_session(session, lambda guest, _: guest.forever(), timeout=10)
    threading.Timer(0.2, os.close, (fds[2],)).start()
    assert made.run().kind is Kind.HANGUP
    close_all(*fds)


def test_a_slow_reader_gets_all_of_a_flood_and_holds_the_guest(session) -> None:
    text = b"0123456789abcde\n" * 20_000

    def program(guest: Guest, _: int) -> Program:
        yield from guest.print(text)
        yield from guest.power_off()

    made, fds = pipe_session(session, program)
    got = bytearray()

    def reader() -> None:
        time.sleep(0.3)  # the pipe and the UART are full by then
        while data := os.read(fds[2], 50_000):
            got.extend(data)

    thread = threading.Thread(target=reader)
    thread.start()
    assert made.run().kind is Kind.POWER_OFF
    os.close(fds[3])
    thread.join()
    assert got == text
    close_all(*fds)


def test_a_time_limit_holds_though_nobody_reads(session) -> None:
    def program(guest: Guest, _: int) -> Program:
        while True:
            yield from guest.print(b"flood\n")

    made, fds = pipe_session(session, program, timeout=0.5)
    began = time.monotonic()
    assert made.run().kind is Kind.TIMEOUT
    assert time.monotonic() - began < 5
    close_all(*fds)


def test_output_to_a_full_device_is_one_line(session) -> None:
    def program(guest: Guest, _: int) -> Program:
        yield from guest.print(b"x")
        yield from guest.forever()

    full = os.open("/dev/full", os.O_WRONLY)
    outcome = session(program, sink=full, timeout=10).run()
    os.close(full)
    assert (outcome.kind, outcome.exit_status) == (Kind.HANGUP, 1)
    assert "No space left" in outcome.message
