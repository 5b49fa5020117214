# SPDX-License-Identifier: GPL-2.0-only
"""Unmodified programs of different make, under ``anykvm exec``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from preload_run import EXEC, PROGRAMS, Build, Run


@pytest.mark.parametrize("name", ["signals", "files", "processes"])
def test_a_c_program(build: Build, run_exec: Run, name: str) -> None:
    done = run_exec(build(name))
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


@pytest.mark.parametrize(("how", "status"), [("exit", 7), ("_exit", 7), ("exec", 7), ("kill", -15), ("abort", -6)])
def test_the_process_ends_in_the_middle_of_a_run(build: Build, run_exec: Run, how: str, status: int) -> None:
    done = run_exec(build("processes"), how)
    assert (done.returncode, done.stderr) == (status, "")


def test_a_process_whose_main_thread_has_gone_is_killed_like_any_other(build: Build) -> None:
    command = [*EXEC, "--", str(build("processes")), "pthread_exit"]
    with subprocess.Popen(command) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=2)
        process.terminate()
        assert process.wait(timeout=10) == -15


def test_a_python_program(run_exec: Run) -> None:
    done = run_exec(sys.executable, str(PROGRAMS / "client.py"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_another_python_of_the_same_version(run_exec: Run) -> None:
    other = Path("/usr/bin/python3")
    if not other.exists() or other.resolve() == Path(sys.executable).resolve():
        pytest.skip("one Python here")
    version = [str(other), "-c", "import sysconfig; print(sysconfig.get_config_var('SOABI'))"]
    if subprocess.run(version, capture_output=True, text=True).stdout.strip() != sysconfig.get_config_var("SOABI"):
        pytest.skip("the other Python has another version")
    done = run_exec(other, str(PROGRAMS / "client.py"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_a_rust_program(run_exec: Run, tmp_path: Path) -> None:
    rustc = shutil.which("rustc")
    if rustc is None:
        pytest.skip("no rustc here")
    out = tmp_path / "client"
    made = subprocess.run([rustc, "-O", "-o", str(out), str(PROGRAMS / "client.rs")], capture_output=True, timeout=120)
    if made.returncode:
        pytest.skip("rustc does not link here")
    done = run_exec(out)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ok\n", "")


def test_ioctls_without_libc(build: Build, run_exec: Run) -> None:
    program = build("raw")
    assert run_exec(program, options=["--raw"]).stdout == "12\n"
    assert run_exec(program).stdout == "-25\n"


def test_closed_standard_streams(build: Build, run_exec: Run) -> None:
    """The first open of a program without standard input is 0."""
    done = run_exec("/bin/sh", "-c", f'"{build("lowest")}" <&- 2>&-')
    assert (done.returncode, done.stdout) == (0, "0\n")


def test_another_preloaded_library_stays(build: Build, run_exec: Run) -> None:
    libc = next(Path(p) for p in ("/lib/x86_64-linux-gnu/libm.so.6", "/lib64/libm.so.6") if os.path.exists(p))
    done = run_exec("/bin/sh", "-c", "echo $LD_PRELOAD", env={**os.environ, "LD_PRELOAD": str(libc)})
    first, second = done.stdout.split()
    assert Path(first).name.startswith("_preload") and second == str(libc)


def test_what_calls_cost_is_measured(build: Build, run_exec: Run) -> None:
    """The figures of docs/exec.md; here only that they are no slower than something gone wrong would make them."""
    done = run_exec(build("speed"))
    assert (done.returncode, done.stderr) == (0, "")
    measured = {line.partition(": ")[0]: float(line.split(": ")[1].split()[0]) for line in done.stdout.splitlines()}
    assert 0 < measured.pop("first open") < 5000
    assert measured.keys() == {"KVM_CHECK_EXTENSION", "KVM_GET_REGS", "port write", "port read"}
    assert all(0 < microseconds < 200 for microseconds in measured.values()), measured
