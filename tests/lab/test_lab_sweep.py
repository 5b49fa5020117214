# SPDX-License-Identifier: GPL-2.0-only
"""The sweep: every point of every history fails and nothing is left; and a sweep over broken code says so."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from anykvm.api import architectures
from anykvm.arch.arm64.irqchip import InKernelVgic
from anykvm.arch.arm64.vcpu import Arm64Vcpu
from anykvm.arch.x86.vcpu import _STEPS, X86Vcpu
from anykvm.cli.main import run
from anykvm.lab import errnos, refusals, trial
from anykvm.lab.errors import LabError
from anykvm.lab.guest import GUESTS
from anykvm.lab.history import SUBJECTS
from anykvm.lab.sweep import pairs, replay, singles, subjects_of, sweep
from anykvm.testing import Plan
from anykvm.virt import create_vcpu
from anykvm.virt.ladder import BuildStep, Ladder
from anykvm.virt.vcpu import Vcpu


def test_every_point_alone() -> None:
    swept = sweep(processes=2)
    assert swept.findings == []
    assert swept.trials == swept.faults > 1000
    for name, counts in swept.by_subject.items():
        assert counts["vCPU points"] >= 23, name


@pytest.mark.parametrize("subject", ["x86/split", "arm64/gicv3"])
def test_some_pairs(subject: str) -> None:
    """Every 40th; ``anykvm lab sweep --pairs`` does them all."""
    points, _ = trial.learn(subject)
    found = pairs(singles(points))
    assert len(found) > 2000
    fired = 0
    for plan in found[::40]:
        verdict = trial.judge([subject, str(plan)])
        assert verdict["findings"] == [], str(plan)
        fired += len(verdict["fired"]) == 2
    assert fired > len(found) // 50


def test_every_architecture_is_swept() -> None:
    assert {subject.arch for subject in SUBJECTS.values()} == set(architectures()) == set(GUESTS) == set(refusals.CASES)


@pytest.mark.parametrize(("arch", "name"), [(arch, name) for arch, cases in refusals.CASES.items() for name in cases])
def test_refusals(arch: str, name: str) -> None:
    assert refusals.judge(arch, name) == []


def test_the_table_knows_every_refusal() -> None:
    assert {name for cases in refusals.CASES.values() for name in cases} == set(errnos.REFUSALS)


def test_a_missing_fd_is_told_late_and_memory_can_be_missing_first() -> None:
    """Two faults in one call: the memfd cannot be had, which waits for the fd's turn, and then a mapping cannot."""
    plan = "KVM_CREATE_VCPU#1/fd:kvm-vcpu:0=EMFILE"
    alone = trial.judge(["x86/none", plan])
    assert (alone["findings"], alone["failed"]) == ([], ["vCPU 0"])
    assert "KVM_CREATE_VCPU#1/memory:mce banks=ENOMEM" in alone["later"]
    both = trial.judge(["x86/none", f"{plan}, KVM_CREATE_VCPU#1/memory:mce banks=ENOMEM"])
    assert (both["findings"], len(both["fired"])) == ([], 2)


# Seeded bugs: each is found.


def _found(subject: str, plan: str) -> str:
    return "; ".join(what for _, _, what in replay(subject, plan).findings)


def test_a_redistributor_left_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """arm64 until 2024: a failed creation left the redistributor on the bus."""
    monkeypatch.setattr(InKernelVgic, "_unregister_redist", lambda self, cpu: None)
    found = _found("arm64/gicv3", "KVM_CREATE_VCPU#2/publish:vcpu array=ENOMEM")
    assert "changed mmio bus" in found


def test_a_leak_of_the_arch_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(self: X86Vcpu) -> tuple[BuildStep, ...]:
        return (BuildStep("mask", lambda arch, ladder: arch.vcpu.services.charge("wbinvd mask", 64)), *original(self))

    original = X86Vcpu.build_steps
    monkeypatch.setattr(X86Vcpu, "build_steps", steps)
    found = _found("x86/irqchip", "KVM_CREATE_VCPU#3/memory:pio page=ENOMEM")
    assert "failed and leaked: +1 memory wbinvd mask" in found


def test_a_new_step_is_swept_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(self: Arm64Vcpu) -> tuple[BuildStep, ...]:
        # Nothing takes this back.
        return (*original(self), BuildStep("sve", lambda arch, ladder: arch.vcpu.services.alloc("sve state", 8192)))

    original = Arm64Vcpu.build_steps
    monkeypatch.setattr(Arm64Vcpu, "build_steps", steps)
    swept = sweep(["arm64/none"])
    plans = {plan for _, plan, _ in swept.findings}
    assert "KVM_CREATE_VCPU#1/memory:sve state=ENOMEM" in swept.fired["arm64/none"]
    assert "KVM_CREATE_VCPU#1/publish:vcpu fd=EMFILE" in plans


def test_a_counter_that_is_not_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create_vcpu, "uncount", lambda vm: None)
    assert "changed created_vcpus from 0 to 1" in _found("x86/none", "KVM_CREATE_VCPU#1/memory:vcpu=ENOMEM")


def replace_cpu_step(monkeypatch: pytest.MonkeyPatch, build: Callable[[X86Vcpu, Ladder], None]) -> None:
    steps = tuple(BuildStep("cpu", build) if step.name == "cpu" else step for step in _STEPS)
    monkeypatch.setattr(X86Vcpu, "build_steps", lambda self: steps)


def test_a_wrong_errno(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(self: X86Vcpu, ladder: Ladder) -> None:
        try:
            original(self, ladder)
        except OSError:
            raise OSError(errno.EINVAL, "translated") from None

    original = X86Vcpu._build_cpu
    replace_cpu_step(monkeypatch, build)
    found = _found("x86/none", "KVM_CREATE_VCPU#1/cpu:cpu=ENOMEM")
    assert "vCPU 0 gave EINVAL: EINVAL, and the kernel gives ENOMEM" in found


def test_a_lock_left_held(monkeypatch: pytest.MonkeyPatch) -> None:
    def count(vm: Any) -> None:
        vm.slots_lock.acquire()
        original(vm)

    original: Callable[[Any], None] = create_vcpu.count
    monkeypatch.setattr(create_vcpu, "count", count)
    monkeypatch.setattr(trial.Trial, "_guests", lambda self, when: None)
    monkeypatch.setattr(trial.Trial, "_end", lambda self, fds, maps: self._backend.services.close())
    monkeypatch.setattr(trial, "TRIES", 1)
    assert "left slots_lock locked" in _found("x86/none", "KVM_CREATE_VCPU#1/memory:vcpu=ENOMEM")


def test_a_mapping_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def free(self: Vcpu) -> None:
        kept.append(self.page)
        original(self)

    kept: list[memoryview] = []
    original = Vcpu.free_run_page
    monkeypatch.setattr(Vcpu, "free_run_page", free)
    assert "mappings of KVM's files are still there" in _found("x86/none", "KVM_CREATE_VCPU#1/memory:vcpu=ENOMEM")


def test_a_swallowed_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(self: X86Vcpu, ladder: Ladder) -> None:
        try:
            original(self, ladder)
        except OSError:
            original(self, ladder)

    original = X86Vcpu._build_cpu
    replace_cpu_step(monkeypatch, build)
    assert "vCPU 0 succeeded, though" in _found("x86/none", "KVM_CREATE_VCPU#1/cpu:cpu=ENOMEM")


# The command.


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lab", "sweep", "x86/none", "--processes", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["findings"] == [] and found["faults"] == found["trials"] > 100
    assert found["subjects"]["x86/none"]["faults"] == found["faults"]


def test_the_command_replays_a_finding(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(create_vcpu, "uncount", lambda vm: None)
    assert run(["lab", "sweep", "x86/none", "--plan", "KVM_CREATE_VCPU#1/memory:vcpu"]) == 1
    first = capsys.readouterr().out.splitlines()[0]
    assert first.endswith("(anykvm lab sweep x86/none --plan 'KVM_CREATE_VCPU#1/memory:vcpu=ENOMEM')")


@pytest.mark.parametrize("words", [["sparc"], ["--plan", "KVM_CREATE_VCPU#0"], ["--plan", ","], ["--plan", "fd=EWHAT"]])
def test_bad_input_is_one_line(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["lab", "sweep", *words]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_file_descriptor_left_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(arch: Any, ladder: Ladder) -> None:
        kept.append(os.open("/dev/null", os.O_RDONLY))

    kept: list[int] = []
    original = X86Vcpu.build_steps
    monkeypatch.setattr(X86Vcpu, "build_steps", lambda self: (*original(self), BuildStep("file", build)))
    try:
        found = _found("x86/none", "KVM_CREATE_VCPU#1/publish:vcpu fd=EMFILE")
        assert f"{len(kept)} file descriptors are still open: /dev/null" in found
    finally:
        for fd in kept:
            os.close(fd)


def test_what_another_thread_opens_and_closes_is_no_leak() -> None:
    def open_and_close() -> None:
        while not done.is_set():
            fd = os.open("/dev/null", os.O_RDONLY)
            time.sleep(0.002)
            os.close(fd)
            time.sleep(0.001)

    done = threading.Event()
    other = threading.Thread(target=open_and_close)
    other.start()
    try:
        assert [replay("x86/none", "KVM_CREATE_VCPU#1/publish:vcpu fd=EMFILE").findings for _ in range(5)] == [[]] * 5
    finally:
        done.set()
        other.join()


def test_names() -> None:
    assert subjects_of(["x86"]) == ["x86/ring", "x86/none", "x86/irqchip", "x86/split"]
    assert subjects_of([]) == list(SUBJECTS)
    with pytest.raises(LabError):
        subjects_of(["x86/nothing"])
    with pytest.raises(LabError):
        trial.subject_of("x86/nothing")
    assert Plan.parse("fd#2").faults[0].errno == "EMFILE"
