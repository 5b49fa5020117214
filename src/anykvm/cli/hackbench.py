# SPDX-License-Identifier: GPL-2.0-only
"""``anykvm hackbench``: the acceptance test."""

from __future__ import annotations

import json
import shlex
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import click

from anykvm.guests import Guest, Result, Transcript, arguments, read_transcript
from anykvm.vmm.config import MachineConfig, check_config
from anykvm.vmm.memory import parse_size
from anykvm.vmm.outcome import Kind, Outcome
from anykvm.vmm.session import Session
from anykvm.vmm.vcpus import VcpuReport

from . import debian, messages, options, timing

_NAMES = {"hackbench-process": "processes", "hackbench-thread": "threads"}
_STEPS = (
    (b"anykvm-ready", "user space is up"),
    (b"anykvm-begin hackbench-process", "hackbench with processes"),
    (b"anykvm-begin hackbench-thread", "hackbench with threads"),
)


@dataclass
class _Watch:
    """Reads along on the console: keeps it all, and notes when things happen."""

    started: float
    output: bytearray
    ready: float | None = None
    _told: int = 0

    def __call__(self, output: bytes) -> None:
        self.output += output
        while self._told < len(_STEPS) and _STEPS[self._told][0] in self.output:
            elapsed = time.monotonic() - self.started
            if self._told == 0:
                self.ready = elapsed
            messages.line(f"{elapsed:6.2f} s  {_STEPS[self._told][1]}")
            self._told += 1
        if messages.verbose:
            sys.stderr.buffer.write(output)
            sys.stderr.buffer.flush()


@click.command()
@options.architecture
@click.option("--args", "words", default="-g 2 -l 100", show_default=True, help="Options for hackbench in the guest.")
@options.machine(smp=2, memory="512M")
@options.backend
@options.common
def hackbench(
    *, arch: str, words: str, smp: int, memory: str, gic: str, timeout: float | None, backend: str, as_json: bool
) -> int:
    """Boot a Debian guest on ARCH, run hackbench in it, print its result.

    hackbench runs with processes and then with threads, unless --args says which (-P or -T). Also printed: how long the
    boot took, and what each vCPU did.
    """
    options.check_architecture(arch)
    options.check_backend(backend, arch, debian=True)
    started = timing.process_start()
    try:
        given = shlex.split(words)
    except ValueError as error:
        raise click.UsageError(f"--args {words!r} is not a list of words: {error}") from None
    guest = debian.guest(arch)
    config = MachineConfig(
        arch=arch,
        backend=backend,
        kernel=guest.kernel,
        initrd=debian.initramfs(guest),
        command_line=f"console={guest.console} panic=-1 quiet {arguments('hackbench', args=given)}",
        vcpus=smp,
        memory=parse_size(memory),
        gic=gic,
    )
    check_config(config)
    messages.line(f"booting Debian {guest.release} ({arch}) on {smp} vCPU{'s' if smp > 1 else ''}")
    watch = _Watch(started, bytearray())
    session = Session(config, tap=watch, reboot=False, timeout=timeout)
    outcome = session.run()
    transcript = read_transcript(watch.output.decode("utf-8", "replace"))
    report = _Report(guest, session, outcome, transcript, started, watch)
    if as_json:
        click.echo(json.dumps(report.as_json(), indent=1))
    else:
        click.echo(report.as_text())
    if session.error is not None:
        messages.trace(session.error)
    complaint = report.complaint()
    if complaint:
        messages.error(complaint)
        if not messages.verbose and not transcript.results:
            _show_tail(watch.output)
    return outcome.exit_status or int(bool(complaint))


def _show_tail(output: bytearray) -> None:
    for text in output.decode("utf-8", "replace").replace("\r", "").splitlines()[-5:]:
        messages.line(f"  guest: {text}")


@dataclass
class _Report:
    guest: Guest
    session: Session
    outcome: Outcome
    transcript: Transcript
    started: float
    watch: _Watch

    @property
    def first_instruction(self) -> float | None:
        """Seconds from the command's start."""
        entered = self.session.first_instruction
        return None if entered is None else entered - self.started

    def complaint(self) -> str:
        """What is not as it should be; empty if all is well."""
        if self.outcome.message:
            return self.outcome.message
        if self.outcome.kind is not Kind.POWER_OFF:
            return f"the guest did not power off: {self.outcome.kind.value}"
        if self.transcript.errors:
            return f"the guest complains: {self.transcript.errors[0]}"
        if not self.transcript.results:
            return "the guest powered off without running hackbench"
        failed = [result.name for result in self.transcript.results if result.status != 0]
        return f"{', '.join(failed)} failed in the guest" if failed else ""

    def as_text(self) -> str:
        """For people."""
        lines = []
        for result in self.transcript.results:
            lines.append(f"hackbench, {_NAMES.get(result.name, result.name)}: {_time(result)}")
            lines += [f"    {text}" for text in result.output.splitlines() if text.strip()]
        lines.append(
            f"boot: {_seconds(self.first_instruction)} to the guest's first instruction, "
            f"{_seconds(self.watch.ready)} to user space (guest's clock: {_seconds(self.transcript.ready)})"
        )
        lines += [_vcpu(report) for report in self.session.reports]
        lines.append(f"backend: {self.session.backend_name}; ended by {self.outcome.kind.value}")
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        config = self.session.config
        return {
            "arch": config.arch,
            "backend": self.session.backend_name,
            "kernel": self.guest.release,
            "smp": config.vcpus,
            "memory": config.memory,
            "boot": {
                "first_instruction_seconds": self.first_instruction,
                "user_space_seconds": self.watch.ready,
                "user_space_guest_seconds": self.transcript.ready,
            },
            "results": [asdict(result) | {"seconds": result.seconds} for result in self.transcript.results],
            "errors": list(self.transcript.errors),
            "vcpus": [asdict(report) | {"exits": dict(report.exits)} for report in self.session.reports],
            "outcome": self.outcome.kind.value,
            "message": self.complaint(),
            "status": self.outcome.exit_status or int(bool(self.complaint())),
        }


def _time(result: Result) -> str:
    if result.status is None:
        return "did not end"
    measured = f"{result.seconds:.3f} s" if result.seconds is not None else "no time printed"
    return measured if result.status == 0 else f"{measured}, exit status {result.status}"


def _seconds(value: float | None) -> str:
    return "never came" if value is None else f"{value:.2f} s"


def _vcpu(report: VcpuReport) -> str:
    """What one vCPU did: a line for people, and one each for what the VMM and KVM counted."""
    counted = {name: values[0] for name, values in report.stats.items() if len(values) == 1 and values[0]}
    asleep = counted.pop("halt_wait_ns", 0) / 1e9
    lines = [f"vCPU {report.vcpu_id}: {report.cpu_seconds:.2f} s of CPU time, {asleep:.2f} s asleep"]
    for title, numbers in (("exits to the VMM", dict(report.exits.most_common())), ("in KVM", counted)):
        if numbers:
            lines.append(f"    {title}: " + ", ".join(f"{name} {number}" for name, number in numbers.items()))
    return "\n".join(lines)
