# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import dataclasses
import os
import sys
import time
from pathlib import Path

import pytest

from anykvm.guests import Guest
from benchmarks import vmms
from benchmarks.quiet import Others, busy_seconds
from benchmarks.vmms import Anykvm, BenchmarkError, Hung, Load, Qemu, Ran, cpu_seconds, run, run_guest, running

CONSOLE = r"""
import sys, time
print("anykvm-ready exec 0.50\r")
print("anykvm-begin exec 0.60\r", flush=True)
time.sleep(SLEEP)
print("hello\r")
print("anykvm-end exec STATUS ENDED\r", flush=True)
print("anykvm-poweroff 9.00\r")
"""


class FakeVmm:
    name = "fake"

    def __init__(self, *, sleep: float = 0.0, status: int = 0, ended: float = 0.6, end: str = "") -> None:
        program = CONSOLE.replace("SLEEP", str(sleep)).replace("STATUS", str(status)).replace("ENDED", f"{ended:.2f}")
        self.program = program + end

    def command(self, load: Load) -> list[str]:
        return [sys.executable, "-c", self.program]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    guest = Guest("arm64", "6.1.0-0", tmp_path / "Image", tmp_path / "config", tmp_path, "ttyAMA0", {}, {}, {})
    return Load(guest, tmp_path / "image.cpio", "quiet anykvm.run=poweroff", vcpus=2)


def test_run_measures_wall_and_cpu_time() -> None:
    ran = run([sys.executable, "-c", "import time; time.sleep(0.2); print('done')"])
    assert ran.output == "done\n"
    assert ran.seconds >= 0.2
    assert 0 < ran.cpu_seconds < ran.seconds
    assert ran.others >= 0


def test_run_says_what_a_failing_command_said_last() -> None:
    with pytest.raises(BenchmarkError, match="exit status 3: no such guest"):
        run([sys.executable, "-c", "print('first'); print('no such guest'); raise SystemExit(3)"])


def test_run_ends_what_hangs() -> None:
    with pytest.raises(BenchmarkError, match=r"did not end in 0.5 s"):
        run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.5)


def test_a_guest_is_read_and_timed(load: Load) -> None:
    ran = run_guest(FakeVmm(sleep=0.3, ended=0.9), load)
    [result] = ran.transcript.results
    assert result.output == "hello\n"
    host = ran.host_seconds("exec")
    assert host is not None
    assert host >= 0.3
    assert ran.host_seconds("hackbench-thread") is None


def test_a_guest_whose_clock_is_wrong_is_refused(load: Load) -> None:
    with pytest.raises(BenchmarkError, match=r"exec: 5.00 s by the guest's clock, 0.\d\d s by ours"):
        run_guest(FakeVmm(sleep=0.1, ended=5.6), load)


def test_a_program_that_failed_in_the_guest_is_refused(load: Load) -> None:
    with pytest.raises(BenchmarkError, match=r"fake: the guest failed \(exec\)"):
        run_guest(FakeVmm(status=1), load)


def test_a_guest_that_complains_or_does_not_power_off_is_refused(load: Load) -> None:
    with pytest.raises(BenchmarkError, match="no such mode"):
        run_guest(FakeVmm(end="print('anykvm-error no such mode')"), load)
    silent = FakeVmm()
    silent.program = "print('Kernel panic')"
    with pytest.raises(BenchmarkError, match=r"no power-off\): Kernel panic"):
        run_guest(silent, load)


def test_running_waits_for_a_line_and_ends_the_process() -> None:
    program = "import time; print('booting'); print('anykvm-begin exec 1.0', flush=True); time.sleep(60)"
    with running([sys.executable, "-c", program], b"anykvm-begin") as pid:
        assert cpu_seconds(pid) > 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with (
        pytest.raises(BenchmarkError, match=r"ended before 'anykvm-begin': oops"),
        running([sys.executable, "-c", "print('oops')"], b"anykvm-begin"),
    ):
        pass


def test_cpu_time_of_a_process_is_its_own_clock() -> None:
    before = time.process_time()
    seen = cpu_seconds(os.getpid())
    assert before <= seen <= time.process_time()


def test_both_vmms_get_the_same_guest(load: Load) -> None:
    qemu = Qemu("/usr/bin/qemu-system-aarch64").command(load)
    ours = Anykvm().command(load)
    for command in (ours, qemu):
        assert str(load.guest.kernel) in command
        assert str(load.initrd) in command
        assert command[command.index("--smp" if command is ours else "-smp") + 1] == "2"
    assert qemu[-1] == f"console=ttyAMA0 panic=-1 {ours[-1]}"
    assert "tcg,thread=multi" in qemu


def test_x86_guests_are_beside_qemus_microvm(load: Load) -> None:
    guest = dataclasses.replace(load.guest, arch="amd64", console="ttyS0")
    load = dataclasses.replace(load, guest=guest)
    qemu = Qemu("/usr/bin/qemu-system-x86_64", "x86").command(load)
    ours = Anykvm().command(load)
    assert ours[1:3] == ["boot", "x86"]
    assert qemu[qemu.index("-M") + 1].startswith("microvm")
    assert qemu[-1].startswith("console=ttyS0 panic=-1 ")
    assert qemu[-1].endswith(f" {ours[-1]}")


def test_a_guest_of_microvm_that_hangs_gets_another_try(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    console = FakeVmm().program
    tries: list[float] = []

    def hang(command: list[str], *, timeout: float) -> Ran:
        tries.append(timeout)
        if len(tries) < 3:
            raise Hung("did not end")
        return run([sys.executable, "-c", console])

    monkeypatch.setattr(vmms, "run", hang)
    assert run_guest(Qemu("/usr/bin/qemu-system-x86_64", "x86"), load).transcript.results
    assert tries == [30.0, 30.0, 300.0]
    tries[:] = []
    with pytest.raises(Hung):
        run_guest(Qemu("/usr/bin/qemu-system-aarch64"), load)
    assert tries == [300.0]


def test_others_do_not_count_ourselves() -> None:
    assert busy_seconds() > 0
    others = Others()
    time.sleep(0.05)
    assert others.cores(own_cpu_seconds=1000.0) == 0.0


def test_ran_without_marks_has_no_host_time() -> None:
    assert Ran(1.0, 1.0, "", {}).host_seconds("exec") is None
