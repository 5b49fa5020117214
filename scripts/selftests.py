# SPDX-License-Identifier: GPL-2.0-only
"""Builds the kernel's own KVM tests, unchanged, and runs them under ``anykvm exec``: ``make selftests``.

A test's exit status is its verdict: 0 passed, 4 skipped (it says why), all else failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from anykvm.guests.cache import cache_dir, staged
from anykvm.guests.errors import GuestError
from anykvm.guests.kernel_source import kernel_source

TIMEOUT = 120
SKIPPED = 4
TROUBLESOME = {
    # In this version of the source: a name that is not defined, and a header that is not included.
    "dirty_log_test": "-DTEST_ASSERT_EQ=ASSERT_EQ",
    "steal_time": "-include linux/stddef.h",
}


@dataclass(frozen=True)
class Result:
    """How one test ended."""

    name: str
    verdict: str
    reason: str
    seconds: float


def build(jobs: int) -> Path:
    """Build the tests into the cache, once; the folder they are in."""
    source = kernel_source()
    final = cache_dir() / "selftests" / source.name
    if final.is_dir():
        return final
    for program, package in (("gcc", "gcc"), ("make", "make"), ("rsync", "rsync")):
        if shutil.which(program) is None:
            raise GuestError(f"{program} is missing: apt install {package}")
    final.parent.mkdir(parents=True, exist_ok=True)
    tests = source / "tools/testing/selftests/kvm"
    with staged(final) as out:
        _make(["-s", "-C", str(source), "headers"], out)
        arguments = ["-k", f"-j{jobs}", "-C", str(tests), f"OUTPUT={out}"]
        arguments.append(f"KHDR_INCLUDES=-isystem {source}/usr/include")
        _make(arguments, out, complete=False)
        for name, flags in TROUBLESOME.items():
            _make([*arguments, str(out / name)], out, complete=False, CFLAGS=flags)
        missing = [name for name in names(tests) if not (out / name).exists()]
        if missing:
            errors = [line for line in (out / "make.log").read_text(errors="replace").splitlines() if "rror:" in line]
            raise GuestError(f"{len(missing)} tests did not build, {missing[0]} among them: {' / '.join(errors[:2])}")
    return final


def _make(arguments: list[str], out: Path, *, complete: bool = True, **variables: str) -> None:
    with (out / "make.log").open("a") as log:
        done = subprocess.run(
            ["make", *arguments], stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **variables}, check=False
        )
    if complete and done.returncode:
        lines = (out / "make.log").read_text(errors="replace").splitlines()
        raise GuestError(f"make failed: {' / '.join(lines[-3:])}")


def names(tests: Path) -> list[str]:
    """Name the tests of this machine's architecture, as the tests' Makefile lists them."""
    arch = {"x86_64": "x86_64", "aarch64": "aarch64"}[os.uname().machine]
    listed = re.findall(
        rf"^TEST_GEN_PROGS(?:_EXTENDED)?_{arch} \+?= (\S+)$", (tests / "Makefile").read_text(), re.MULTILINE
    )
    return sorted(listed)


def run(folder: Path, name: str, timeout: float, *, host: bool = False) -> Result:
    """Run one test, under exec or on the machine's own /dev/kvm."""
    command = [str(folder / name)]
    if not host:
        command = [sys.executable, "-c", "from anykvm.cli.start import main; main()", "exec", "--", *command]
    began = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=timeout)
        ended = ""
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        ended = f"still running after {timeout:.0f} s"
    seconds = time.monotonic() - began
    if ended:
        return Result(name, "failed", ended, seconds)
    return judge(name, process.returncode, output, seconds)


def judge(name: str, status: int, output: str, seconds: float = 0) -> Result:
    """What a test's exit status (minus a signal's number) and output mean."""
    if status == 0:
        return Result(name, "passed", "", seconds)
    if status == SKIPPED:
        return Result(name, "skipped", _skip_reason(output), seconds)
    why = f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    return Result(name, "failed", _complaint(output) or why, seconds)


def _skip_reason(output: str) -> str:
    found = re.findall(r"SKIP:? ?-? ?(.*)|[Ss]kipping:? ?(.*)", output)
    words = next((first or second for first, second in found if first or second), "")
    return " ".join(words.replace("Requirement not met:", "needs").split()) or "no reason given"


def _complaint(output: str) -> str:
    lines = output.splitlines()
    for number, line in enumerate(lines):
        if "Test Assertion Failure" in line:
            place = lines[number + 1].strip().split(": ", 1)
            end = [text.strip() for text in lines[number + 2 :] if not re.match(r"\s+\d+\t|\s+pid=|\s*\(stack", text)]
            return " ".join([Path(place[0]).name, *place[1:], "|", *end][:12])[:200].replace("|", "-")
    return " / ".join(line.strip() for line in lines[-2:])[:200]


def table(results: list[Result], beside: Mapping[str, str] | None = None) -> str:
    """Make a Markdown table; ``beside`` has the verdicts of a real KVM, by test."""
    if beside is None:
        rows = [f"| {one.name} | {one.verdict} | {one.reason.replace('|', '/')} |" for one in results]
        return "\n".join(["| test | verdict | why |", "|---|---|---|", *rows])
    rows = [
        f"| {one.name} | {one.verdict} | {beside.get(one.name, '')} | {one.reason.replace('|', '/')} |"
        for one in results
    ]
    return "\n".join(["| test | verdict | a real KVM | why |", "|---|---|---|---|", *rows])


def write(document: Path, results: list[Result], beside: Mapping[str, str] | None) -> None:
    """Put the counts and the table below the last heading of a document, in place of what is there."""
    text = document.read_text()
    last = text.rindex("\n## ")
    head = text[:last] + text[last:].split("\n\n")[0]
    document.write_text(f"{head}\n\n{len(results)} tests: {counts(results)}.\n\n{table(results, beside)}\n")


def counts(results: list[Result]) -> str:
    """Say how many passed, were skipped and failed."""
    verdicts = [one.verdict for one in results]
    return ", ".join(f"{verdicts.count(verdict)} {verdict}" for verdict in ("passed", "skipped", "failed"))


def main() -> int:
    """Build, run, print the table; 1 if a test failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tests", nargs="*", help="only those whose name has one of these in it")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="tests at a time")
    parser.add_argument("--timeout", type=float, default=TIMEOUT, help="seconds for each")
    parser.add_argument(
        "--host", type=Path, help="run on the machine's own /dev/kvm, and keep the verdicts in this file"
    )
    parser.add_argument("--beside", type=Path, help="verdicts that --host kept: a column of the table")
    parser.add_argument("--write", type=Path, help="put the table into this document, below its last heading")
    options = parser.parse_args()
    try:
        folder = build(len(os.sched_getaffinity(0)))
        source = kernel_source()
    except GuestError as error:
        print(f"selftests: {error}", file=sys.stderr)
        return 2
    chosen = [
        name
        for name in names(source / "tools/testing/selftests/kvm")
        if not options.tests or any(part in name for part in options.tests)
    ]
    results = []
    with ThreadPoolExecutor(options.jobs) as pool:
        for one in pool.map(lambda name: run(folder, name, options.timeout, host=bool(options.host)), chosen):
            results.append(one)
            print(f"{one.verdict:8} {one.name:44} {one.seconds:6.1f} s  {one.reason}", flush=True)
    print(counts(results))
    if options.host:
        kept = json.loads(options.host.read_text()) if options.host.exists() else {}
        options.host.write_text(json.dumps({**kept, **{one.name: one.verdict for one in results}}, indent=1) + "\n")
    if options.write:
        write(options.write, results, json.loads(options.beside.read_text()) if options.beside else None)
    return 1 if any(one.verdict == "failed" for one in results) else 0


if __name__ == "__main__":
    sys.exit(main())
