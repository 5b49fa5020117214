# SPDX-License-Identifier: GPL-2.0-only
"""What ``anykvm exec --trace`` says, and what ``--faults`` makes happen."""

from __future__ import annotations

import json
import re
from pathlib import Path

from preload_run import Build, Run

from anykvm.preload.trace import plain, request_names, text
from anykvm.uapi import ioctl, requests
from anykvm.uapi.structs import KvmUserspaceMemoryRegion


def test_requests_have_names_and_arguments() -> None:
    names = request_names("x86")
    assert names[requests.KVM_RUN] == "KVM_RUN"
    assert names[0x8138AE83] == "KVM_GET_SREGS"
    assert ioctl.ARGUMENTS[requests.KVM_SET_USER_MEMORY_REGION] is KvmUserspaceMemoryRegion
    assert all(name.startswith("KVM_") for name in names.values())


def test_structures_are_written_as_strace_does() -> None:
    region = KvmUserspaceMemoryRegion(slot=1, guest_phys_addr=0x1000, memory_size=4096, userspace_addr=0x7F0000000000)
    wanted = "{slot=1, flags=0, guest_phys_addr=0x1000, memory_size=0x1000, userspace_addr=0x7f0000000000}"
    assert text(plain(region)) == wanted


def test_a_trace_of_a_program(build: Build, run_exec: Run, tmp_path: Path) -> None:
    done = run_exec(build("exits"), options=["--trace", "--trace-json", str(tmp_path / "trace")])
    assert (done.returncode, done.stdout) == (0, "ok\n")
    lines = done.stderr.splitlines()
    form = r"\[\d+:\d+\] ioctl\(\d+<(system|vm|vcpu)>, (KVM_\w+|_IOC\(0xae3f\)), .*\) = .* <\d+\.\d{6}>"
    assert [line for line in lines if not re.fullmatch(form, line)] == []
    assert any("KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) = 1 " in line for line in lines)
    assert any("KVM_GET_REGS, {rax=0x41, rbx=0" in line for line in lines)
    assert any(
        "KVM_RUN, 0) = 0 {exit_reason=KVM_EXIT_IO, io={direction=1, size=1, port=0x3f8" in line for line in lines
    )
    assert any("= -1 EINVAL (Invalid argument)" in line for line in lines)
    records = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    assert len(records) == len(lines)
    run = next(one for one in records if one["request"] == "KVM_RUN")
    assert run["exit"]["exit_reason"] == "KVM_EXIT_IO" and run["result"] == 0 and run["file"] == "vcpu"
    assert any(one.get("errno") == "EINVAL" for one in records)


def test_a_trace_to_a_file(build: Build, run_exec: Run, tmp_path: Path) -> None:
    done = run_exec(build("exits"), options=["--trace-file", str(tmp_path / "trace")])
    assert (done.returncode, done.stderr) == (0, "")
    assert "KVM_CREATE_VM" in (tmp_path / "trace").read_text()
    done = run_exec(build("exits"), options=["--trace-file", str(tmp_path / "nothing" / "trace")])
    assert done.returncode == 1 and "nothing/trace" in done.stderr and done.stderr.count("\n") == 1


def test_faults_from_outside(build: Build, run_exec: Run) -> None:
    done = run_exec(build("exits"), options=["--faults", "KVM_CREATE_VCPU#1=ENOMEM"])
    assert done.returncode == 1 and "(Cannot allocate memory)" in done.stderr
    done = run_exec(build("exits"), options=["--faults", "open#1=EMFILE"])
    assert done.returncode == 1 and "(Too many open files)" in done.stderr
    done = run_exec(build("exits"), options=["--faults", "KVM_CREATE_VM/memory#1=ENOMEM"])
    assert done.returncode == 1 and "(Cannot allocate memory)" in done.stderr
    assert run_exec(build("exits"), options=["--faults", "KVM_CREATE_VCPU#99=ENOMEM"]).returncode == 0
    done = run_exec(build("exits"), options=["--faults", "nonsense="])
    assert done.returncode == 2 and done.stderr.count("\n") == 1
