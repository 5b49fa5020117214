# SPDX-License-Identifier: GPL-2.0-only
"""The programs that boot the same guest: anykvm and QEMU; and running one as a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from anykvm.guests import Guest, Transcript, read_transcript

from . import quiet
from .measure import OURS

MEMORY_MIB = 512
TIMEOUT = 300.0  # seconds; a guest that takes longer hangs
_CLOCK_SLACK = (
    0.15  # seconds: the guest's clock has steps of 10 ms, and the console's lines come late on a busy machine
)
_CLOCK_ERROR = 0.02
_MARK = re.compile(rb"anykvm-(begin|end) (\S+) [\d. ]+\r?$")
_COMMON_WORDS = "panic=-1"  # with console=, those that anykvm boot puts before --append
ARCHITECTURES = {"arm64": "arm64", "x86": "amd64"}
"""anykvm's names of those that are measured, and Debian's."""
_OURS = {debian: ours for ours, debian in ARCHITECTURES.items()}
QEMU_PROGRAMS = {"arm64": ("qemu-system-aarch64", "qemu-system-arm"), "x86": ("qemu-system-x86_64", "qemu-system-x86")}
"""By architecture: QEMU's program, and Debian's package of it."""
_QEMU_MACHINES = {
    "arm64": ("-M", "virt", "-cpu", "cortex-a57"),
    # Haswell is what anykvm's engine is; TCG leaves out what it has not, and says so.
    "x86": ("-M", "microvm,x-option-roms=off", "-cpu", "Haswell"),
}
_HANG = 30.0  # seconds, for a guest of microvm: see Qemu.hangs


class BenchmarkError(RuntimeError):
    """Something could not be measured; one line that says why."""


class Hung(BenchmarkError):
    """A process that did not end in time."""


@dataclass(frozen=True)
class Load:
    """What a guest is to do: both programs get the same."""

    guest: Guest
    initrd: Path
    words: str
    """Of the kernel command line, after console= and panic=."""
    vcpus: int = 1


class Vmm(Protocol):
    """A program that boots guests."""

    name: str

    def command(self, load: Load) -> list[str]:
        """The command line that boots `load` with its console on standard output."""


class Anykvm:
    """``anykvm boot`` of the Python this runs in, on the software backend."""

    name = OURS

    def command(self, load: Load) -> list[str]:
        """See :class:`Vmm`."""
        return [
            *anykvm_command(),
            "boot",
            _OURS[load.guest.arch],
            *("--backend", "software"),
            *("--kernel", str(load.guest.kernel)),
            *("--initrd", str(load.initrd)),
            *("--smp", str(load.vcpus)),
            *("--memory", f"{MEMORY_MIB}M"),
            "--no-reboot",
            *("--append", load.words),
        ]


class Qemu:
    """QEMU's TCG with one thread per vCPU if there are several.

    Without its default devices (network, VGA...), which anykvm's machine has none of: that is to QEMU's advantage.
    """

    name = "QEMU"

    def __init__(self, program: str, arch: str = "arm64") -> None:
        self.program = program
        self.arch = arch

    @property
    def hangs(self) -> bool:
        """Whether its guests may hang through no fault of theirs.

        On microvm Linux measures the TSC against the PIT and has nothing else: if another process takes the core
        meanwhile it gives up, and then waits forever for a timer. Its rate on the command line avoids most of that.
        """
        return self.arch == "x86"

    def _words(self) -> str:
        """More for the command line: TCG's TSC is the machine's; a wrong rate here is seen as a guest's wrong clock."""
        found = re.search(r"^cpu MHz\s*: ([\d.]+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        return f" tsc_early_khz={float(found[1]) * 1000:.0f}" if found and self.arch == "x86" else ""

    @classmethod
    def found(cls, arch: str = "arm64") -> Qemu | None:
        """The machine's own QEMU for an architecture, if it has one."""
        program = shutil.which(QEMU_PROGRAMS[arch][0])
        return None if program is None else cls(program, arch)

    def version(self) -> str:
        """The first line of ``--version``."""
        done = subprocess.run([self.program, "--version"], capture_output=True, text=True, timeout=30, check=False)
        return done.stdout.partition("\n")[0]

    def command(self, load: Load) -> list[str]:
        """See :class:`Vmm`."""
        return [
            self.program,
            *_QEMU_MACHINES[self.arch],
            *("-accel", "tcg,thread=multi" if load.vcpus > 1 else "tcg"),
            *("-smp", str(load.vcpus)),
            *("-m", str(MEMORY_MIB)),
            *("-nodefaults", "-no-reboot", "-display", "none", "-serial", "stdio"),
            *("-kernel", str(load.guest.kernel)),
            *("-initrd", str(load.initrd)),
            *("-append", f"console={load.guest.console} {_COMMON_WORDS}{self._words()} {load.words}"),
        ]


def anykvm_command() -> list[str]:
    """The ``anykvm`` script beside this Python; BenchmarkError if it is not installed there."""
    script = Path(sys.executable).parent / "anykvm"
    if not script.is_file():
        raise BenchmarkError(f"no anykvm beside {sys.executable}: run make install and use .venv/bin/python")
    return [str(script)]


@dataclass(frozen=True)
class Ran:
    """A process that has ended well."""

    seconds: float
    """From before it was started until it was gone, by the clock on the wall."""
    cpu_seconds: float
    """User and system time of all its threads."""
    output: str
    marks: dict[str, float]
    """Lines of the guest's init, as ``begin exec``: when they came, in seconds from the start."""

    others: float = 0.0
    """Cores other processes used meanwhile: the noise."""

    def host_seconds(self, name: str) -> float | None:
        """How long a program of the guest took by this machine's clock; ``None`` if it did not begin or end."""
        begin, end = self.marks.get(f"begin {name}"), self.marks.get(f"end {name}")
        return None if begin is None or end is None else end - begin

    @property
    def transcript(self) -> Transcript:
        """What the guest's init said on the console."""
        return read_transcript(self.output)


def run(command: list[str], *, timeout: float = TIMEOUT) -> Ran:
    """Run a command to its end and measure it.

    BenchmarkError if it fails or takes longer than `timeout` seconds.
    """
    others, before = quiet.Others(), time.monotonic()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    assert process.stdout is not None
    guard = threading.Timer(timeout, process.kill)
    guard.start()
    try:
        output, marks = bytearray(), {}
        for line in process.stdout:
            output += line
            if found := _MARK.search(line):
                marks[f"{found[1].decode()} {found[2].decode()}"] = time.monotonic() - before
        # Not Popen.wait: that forgets what the process used.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - before
        process.returncode = os.waitstatus_to_exitcode(status)
    finally:
        guard.cancel()
        if process.returncode is None:
            process.kill()
            process.wait()
        process.stdout.close()
    cpu = usage.ru_utime + usage.ru_stime
    noise = others.cores(cpu)
    text = output.decode("utf-8", "replace")
    if process.returncode:
        if seconds >= timeout:
            raise Hung(f"{Path(command[0]).name}: did not end in {timeout:g} s: {_last_line(text)}")
        raise BenchmarkError(f"{Path(command[0]).name}: exit status {process.returncode}: {_last_line(text)}")
    return Ran(seconds, cpu, text, marks, noise)


def run_guest(vmm: Vmm, load: Load) -> Ran:
    """Boot `load` until it powers off; BenchmarkError unless all it was to run ended with status 0."""
    ran = _run_vmm(vmm, load)
    transcript = ran.transcript
    failed = [result.name for result in transcript.results if result.status != 0]
    if transcript.poweroff is None or transcript.errors or failed:
        what = ", ".join([*transcript.errors, *failed]) or "no power-off"
        raise BenchmarkError(f"{vmm.name}: the guest failed ({what}): {_last_line(ran.output)}")
    _check_clock(vmm, ran)
    return ran


def _run_vmm(vmm: Vmm, load: Load) -> Ran:
    """Run it; where a hang is nobody's fault, up to three times."""
    tries = 3 if isinstance(vmm, Qemu) and vmm.hangs else 1
    while True:
        tries -= 1
        try:
            return run(vmm.command(load), timeout=_HANG if tries else TIMEOUT)
        except Hung:
            if not tries:
                raise


def _check_clock(vmm: Vmm, ran: Ran) -> None:
    """Times a guest measures count only if its clock goes as fast as this machine's."""
    for result in ran.transcript.results:
        host = ran.host_seconds(result.name)
        if result.ended is None or host is None:
            raise BenchmarkError(f"{vmm.name}: {result.name}: cannot compare the guest's clock with this machine's")
        guest = result.ended - result.began
        if abs(guest - host) > _CLOCK_SLACK + _CLOCK_ERROR * host:
            raise BenchmarkError(f"{vmm.name}: {result.name}: {guest:.2f} s by the guest's clock, {host:.2f} s by ours")


@contextmanager
def running(command: list[str], until: bytes, *, timeout: float = TIMEOUT) -> Iterator[int]:
    """Start a command, wait until it prints a line with `until` in it, give its pid; ended when the block is left."""
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    assert process.stdout is not None
    guard = threading.Timer(timeout, process.kill)
    guard.start()
    try:
        last = b""
        for line in process.stdout:
            last = line
            if until in line:
                break
        else:
            raise BenchmarkError(
                f"{Path(command[0]).name}: ended before {until.decode()!r}: {last.decode('utf-8', 'replace')}"
            )
        yield process.pid
    finally:
        guard.cancel()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()


def cpu_seconds(pid: int) -> float:
    """CPU time of all threads of another process, to the nanosecond: its clock of clock_getcpuclockid(3)."""
    # include/linux/posix-timers_types.h: the inverted pid above three bits of kind; CPUCLOCK_SCHED is 2.
    return time.clock_gettime((~pid << 3) | 2)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
