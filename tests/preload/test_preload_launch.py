# SPDX-License-Identifier: GPL-2.0-only
"""What ``anykvm exec`` refuses, in one line, and with which exit status."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from preload_run import Build, Run

from anykvm.preload.program import Unsuitable, examine


def executable(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    path.chmod(0o755)
    return path


def refusal(run_exec: Run, program: Path | str, status: int) -> str:
    done = run_exec(program)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith("anykvm: ") and done.stderr.count("\n") == 1
    return done.stderr


def test_a_missing_program(run_exec: Run, tmp_path: Path) -> None:
    assert "not found" in refusal(run_exec, "no-such-program-anywhere", 127)
    assert "not found" in refusal(run_exec, tmp_path / "nothing", 127)


def test_not_executable(run_exec: Run, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("text")
    assert "chmod" in refusal(run_exec, plain, 126)
    assert "directory" in refusal(run_exec, tmp_path, 126)
    assert "not a program" in refusal(run_exec, executable(tmp_path / "text", b"text"), 126)


def test_a_static_program(build: Build, run_exec: Run, tmp_path: Path) -> None:
    program = build("lowest", "-static")
    assert "statically linked" in refusal(run_exec, program, 126)
    script = executable(tmp_path / "script", f"#!{program}\n".encode())
    assert "statically linked" in refusal(run_exec, script, 126)


def test_a_script_without_its_interpreter(run_exec: Run, tmp_path: Path) -> None:
    assert "interpreter" in refusal(run_exec, executable(tmp_path / "script", b"#!/no/such/thing\n"), 126)
    assert "interpreter" in refusal(run_exec, executable(tmp_path / "env", b"#!/usr/bin/env no-such-thing\n"), 126)


def test_another_machines_program(build: Build, run_exec: Run, tmp_path: Path) -> None:
    image = bytearray(build("lowest").read_bytes())
    struct.pack_into("<H", image, 18, 183)
    assert "aarch64" in refusal(run_exec, executable(tmp_path / "arm", bytes(image)), 126)
    assert "damaged" in refusal(run_exec, executable(tmp_path / "short", bytes(image[:30])), 126)


def test_a_go_program(build: Build, run_exec: Run, tmp_path: Path) -> None:
    """Known by its build information, which the linker of Go always writes."""
    if shutil.which("objcopy") is None:
        pytest.skip("no objcopy here")
    program = tmp_path / "go"
    note = tmp_path / "note"
    note.write_text("x")
    command = ["objcopy", "--add-section", f".go.buildinfo={note}", str(build("lowest")), str(program)]
    subprocess.run(command, check=True)
    assert "Go program" in refusal(run_exec, program, 126)


def test_a_set_user_id_program(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "setuid"
    shutil.copy(build("lowest"), program)
    program.chmod(0o4755)
    monkeypatch.setattr("os.geteuid", lambda: program.stat().st_uid + 1)
    with pytest.raises(Unsuitable, match="set-user-ID"):
        examine(program)


def test_an_unknown_architecture(run_exec: Run) -> None:
    done = run_exec("/bin/true", options=["--arch", "vax"])
    assert done.returncode == 2 and "anykvm has arm64, x86" in done.stderr


def test_a_program_without_kvm_is_itself(run_exec: Run) -> None:
    done = run_exec("/bin/sh", "-c", "echo out; echo err >&2; exit 5")
    assert (done.returncode, done.stdout, done.stderr) == (5, "out\n", "err\n")
    assert run_exec("/bin/sh", "-c", "test -c /dev/kvm && test -r /dev/kvm && test -w /dev/kvm").returncode == 0
    assert run_exec("/bin/sh", "-c", "kill -TERM $$").returncode == -15
