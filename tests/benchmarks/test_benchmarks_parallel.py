# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from pathlib import Path

import pytest

from anykvm.guests import Guest
from benchmarks import parallel
from benchmarks.context import Context
from benchmarks.vmms import BenchmarkError, Load, Qemu, Ran, Vmm

TIMES = {("anykvm", 1): (4.0, 8.0), ("anykvm", 2): (2.0, 5.0), ("QEMU", 1): (6.0, 6.0), ("QEMU", 2): (4.0, 3.0)}


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Context:
    def load(self: Context, mode: str, *, script: str) -> Load:
        assert mode == "exec"
        guest = Guest("arm64", "6.1.0-0", tmp_path / "Image", tmp_path / "config", tmp_path, "ttyAMA0", {}, {}, {})
        return Load(guest, tmp_path / "image.cpio", "quiet")

    def boot(self: Context, vmm: Vmm, load: Load) -> Ran:
        first, second = TIMES[vmm.name, load.vcpus]
        body = f"hash 1.00 {1 + first:.2f}\r\nshell 9.00 {9 + second:.2f}\r\n"
        return Ran(1.0, 1.0, f"anykvm-begin exec 1.00\r\n{body}anykvm-end exec 0 20.00\r\n", {})

    monkeypatch.setattr(Context, "load", load)
    monkeypatch.setattr(Context, "boot", boot)
    return Context(2, Qemu("/usr/bin/qemu-system-aarch64"))


def test_throughput_is_of_the_least_times_of_each_side(context: Context) -> None:
    rows = {row.name: row for row in parallel.BENCHMARK.run(context)}
    assert rows["2 x sha256sum, 1 vCPU"].ours == [4.0, 4.0]
    scale = rows["2 x sha256sum: throughput of 2 vCPUs over that of 1"]
    assert (scale.ours, scale.peer, scale.peer_name, scale.met) == ([2.0], [1.5], "QEMU", True)
    scale = rows["2 x shell loop: throughput of 2 vCPUs over that of 1"]
    assert (scale.ours, scale.peer, scale.met) == ([1.6], [2.0], True)


def test_anykvm_alone_scales_without_a_peer(context: Context) -> None:
    context.qemu = None
    rows = parallel.BENCHMARK.run(context)
    assert len(rows) == 6
    assert all(not row.peer for row in rows)


def test_a_guest_that_prints_no_times_is_refused(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    output = "anykvm-begin exec 1.00\r\nsha256sum: not found\r\nanykvm-end exec 0 2.00\r\n"
    monkeypatch.setattr(Context, "boot", lambda self, vmm, load: Ran(1.0, 1.0, output, {}))
    with pytest.raises(BenchmarkError, match="anykvm: the guest did not print its times"):
        parallel.BENCHMARK.run(context)
