# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest

from anykvm.guests import Guest
from benchmarks import exec as under_exec
from benchmarks.context import Context
from benchmarks.vmms import BenchmarkError, Load, Qemu

LINES = (
    "first open: 41.2 ms\nKVM_CHECK_EXTENSION: 0.71 us\nKVM_GET_REGS: 3.00 us\nport write: 3.10 us\nport read: 3.2 us\n"
)


def test_numbers_are_those_the_program_prints() -> None:
    found = under_exec.numbers(f"something else\n{LINES}")
    assert found["first open"] == 41.2
    assert found["port read"] == 3.2
    with pytest.raises(BenchmarkError, match="measured no port write"):
        under_exec.numbers(LINES.replace("port write", "port"))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="its guests are this machine's")
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc here")
def test_the_program_is_measured_under_exec() -> None:
    program = under_exec.Program()
    try:
        measured = program.measure(under_exec=True)
    finally:
        program.close()
    assert all(number > 0 for number in measured.values())


@pytest.mark.parametrize("machine", list(under_exec.MACHINES))
def test_both_accelerators_boot_the_same_machine(machine: str, tmp_path: Path) -> None:
    guest = Guest("amd64", "6.1.0-0", tmp_path / "vmlinuz", tmp_path / "config", tmp_path, "ttyS0", {}, {}, {})
    load = Load(guest, tmp_path / "image.cpio", "anykvm.run=poweroff")
    qemu = Qemu("/usr/bin/qemu-system-x86_64", "x86")
    ours, peer = (under_exec.Accelerated(qemu, machine, kvm=kvm).command(load) for kvm in (True, False))
    begin = ours.index("--") + 1
    assert ours[begin - 4 : begin] == ["exec", "--arch", "x86", "--"]
    changed = [pair for pair in zip(ours[begin:], peer, strict=True) if pair[0] != pair[1]]
    assert changed == [("kvm", "tcg")]
    assert peer[peer.index("-M") + 1].startswith(machine)


def test_other_guests_have_nothing_to_measure() -> None:
    said: list[str] = []
    assert under_exec.BENCHMARK.run(Context(arch="arm64", say=said.append)) == []
    assert "nothing to measure for arm64" in said[0]
