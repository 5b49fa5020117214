# SPDX-License-Identifier: GPL-2.0-only
"""scripts/selftests.py: what it reads out of the Makefile and out of a test's output, and the table it writes."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from anykvm.guests.errors import GuestError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("selftests_script", ROOT / "scripts" / "selftests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


ASSERTION = """random seed: 7
==== Test Assertion Failure ====
  x86_64/some_test.c:186: !ret
  pid=12 tid=13 errno=22 - Invalid argument
     1\t0x0000000000401234: main at some_test.c:186
     2\t(stack trace empty)
  KVM_CREATE_VM failed, rc: -1 | errno: 22
"""


@pytest.mark.parametrize(
    ("status", "output", "verdict", "reason"),
    [
        (0, "anything", "passed", ""),
        (
            4,
            "1..0 # SKIP - Requirement not met: kvm_cpu_has(X86_FEATURE_VMX)\n",
            "skipped",
            "needs kvm_cpu_has(X86_FEATURE_VMX)",
        ),
        (4, "Skipping: no  idle\tpages\n", "skipped", "no idle pages"),
        (4, "", "skipped", "no reason given"),
        (254, ASSERTION, "failed", "some_test.c:186 !ret - KVM_CREATE_VM failed, rc: -1 - errno: 22"),
        (1, "first\nlast but one\nlast\n", "failed", "last but one / last"),
        (1, "", "failed", "exit status 1"),
        (-11, "", "failed", "ended by SIGSEGV"),
    ],
)
def test_what_an_end_means(script: ModuleType, status: int, output: str, verdict: str, reason: str) -> None:
    result = script.judge("some_test", status, output, 1.5)
    assert (result.name, result.verdict, result.reason, result.seconds) == ("some_test", verdict, reason, 1.5)


def test_the_tests_of_this_machine_are_read_from_the_makefile(script: ModuleType, tmp_path: Path) -> None:
    machine = os.uname().machine
    other = "aarch64" if machine == "x86_64" else "x86_64"
    (tmp_path / "Makefile").write_text(
        f"TEST_GEN_PROGS_{machine} = {machine}/first_test\n"
        f"TEST_GEN_PROGS_{machine} += common_test\n"
        f"TEST_GEN_PROGS_EXTENDED_{machine} += extended\n"
        f"TEST_GEN_PROGS_{other} += {other}/not_ours\n"
        f"# TEST_GEN_PROGS_{machine} += commented_out\n"
        "LIBKVM += lib/elf.c\n"
    )
    assert script.names(tmp_path) == sorted([f"{machine}/first_test", "common_test", "extended"])


def test_the_table_replaces_what_is_below_the_last_heading(script: ModuleType, tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    document.write_text("# Title\n\nProse.\n\n## Results\n\n9 tests: old.\n\n| old |\n")
    results = [script.Result("a", "passed", "", 1.0), script.Result("b", "skipped", "needs x | y", 1.0)]
    for _ in range(2):
        script.write(document, results, None)
        assert document.read_text() == (
            "# Title\n\nProse.\n\n## Results\n\n2 tests: 1 passed, 1 skipped, 0 failed.\n\n"
            "| test | verdict | why |\n|---|---|---|\n| a | passed |  |\n| b | skipped | needs x / y |\n"
        )
    script.write(document, results, {"b": "skipped"})
    assert document.read_text().endswith(
        "| test | verdict | a real KVM | why |\n|---|---|---|---|\n"
        "| a | passed |  |  |\n| b | skipped | skipped | needs x / y |\n"
    )


@pytest.fixture
def programs(script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Programs of ours in the place of the kernel's tests, built already."""
    built = tmp_path / "built"
    built.mkdir()
    tests = tmp_path / "source/tools/testing/selftests/kvm"
    tests.mkdir(parents=True)
    lines = []
    for name, text in (("good", "exit 0"), ("skips", "echo Skipping: so; exit 4"), ("hangs", "sleep 60")):
        (built / name).write_text(f"#!/bin/sh\n{text}\n")
        (built / name).chmod(0o755)
        lines.append(f"TEST_GEN_PROGS_{os.uname().machine} += {name}")
    (tests / "Makefile").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(script, "build", lambda jobs: built)
    monkeypatch.setattr(script, "kernel_source", lambda: tmp_path / "source")
    return tmp_path


def test_verdicts_are_kept_and_a_test_that_hangs_is_ended(
    script: ModuleType, programs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = programs / "host.json"
    monkeypatch.setattr(sys, "argv", ["selftests", "--host", str(kept), "good", "skips"])
    assert script.main() == 0
    monkeypatch.setattr(sys, "argv", ["selftests", "--host", str(kept), "--timeout", "0.3", "hangs"])
    assert script.main() == 1
    assert json.loads(kept.read_text()) == {"good": "passed", "skips": "skipped", "hangs": "failed"}
    out = capsys.readouterr().out
    assert "1 passed, 1 skipped, 0 failed" in out
    assert "still running after 0 s" in out


def test_no_source_is_one_line(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(jobs: int) -> Path:
        raise GuestError("rsync is missing: apt install rsync")

    monkeypatch.setattr(script, "build", missing)
    monkeypatch.setattr(sys, "argv", ["selftests"])
    assert script.main() == 2
    assert capsys.readouterr().err == "selftests: rsync is missing: apt install rsync\n"
