# SPDX-License-Identifier: GPL-2.0-only
"""Unmodified programs under ``anykvm exec``: what a C program pays for an ioctl and an exit, and QEMU's own boot.

The C program is ``tests/preload/programs/speed.c``: the same binary under exec and, where the machine has one, on its
own /dev/kvm. QEMU boots one machine twice: with ``-accel kvm`` under exec, and with its own TCG.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import quiet
from .context import Benchmark, Context
from .kvms import sides
from .measure import OURS, Row, Target, alternate, rows
from .vmms import MEMORY_MIB, BenchmarkError, Load, Qemu, anykvm_command, run

_SOURCE: Final = Path(__file__).parents[1] / "tests" / "preload" / "programs" / "speed.c"
_TIMEOUT: Final = 60.0
_EXEC: Final = ("exec", "--arch", "x86", "--")
_OPEN: Final = "first open"
_TARGETS: Final = {_OPEN: 60.0, "KVM_CHECK_EXTENSION": 1.5, "KVM_GET_REGS": 1.5, "port write": 3.0, "port read": 3.0}
"""In the unit of the line: milliseconds for the open, microseconds for the others."""
MACHINES: Final = {
    # With KVM, QEMU gives a microvm no clock chip if it is not told to, and Linux looks for one for a second.
    "microvm": "microvm,x-option-roms=off,rtc=on",
    "pc": "pc",
}


class Program:
    """The C program, compiled once; removed with :meth:`close`."""

    def __init__(self) -> None:
        compiler = shutil.which("gcc") or shutil.which("cc")
        if compiler is None:
            raise BenchmarkError("no C compiler: Debian's package is gcc")
        self._folder = tempfile.TemporaryDirectory(prefix="anykvm-benchmark-")
        self._program = Path(self._folder.name) / "speed"
        command = [compiler, "-O1", "-pthread", "-o", str(self._program), str(_SOURCE)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
        if done.returncode:
            raise BenchmarkError(f"speed.c does not compile: {done.stderr.strip().splitlines()[-1]}")

    def measure(self, *, under_exec: bool) -> dict[str, float]:
        """Run it once; the numbers it prints, by what they are of."""
        command = [*anykvm_command(), *_EXEC] if under_exec else []
        ran = run([*command, str(self._program)], timeout=_TIMEOUT)
        return numbers(ran.output)

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()


def numbers(output: str) -> dict[str, float]:
    """Out of lines like ``port write: 3.21 us``; BenchmarkError if one is missing."""
    found = {}
    for line in output.splitlines():
        name, colon, rest = line.partition(": ")
        if colon and name in _TARGETS:
            found[name] = float(rest.split()[0])
    missing = sorted(_TARGETS.keys() - found.keys())
    if missing:
        raise BenchmarkError(f"the C program measured no {missing[0]}")
    return found


def _programs(context: Context) -> list[Row]:
    own = [side.name for side in sides(context.say, "x86") if side.backend == "host" and side.arch == "x86"]
    names = [OURS, *own]
    program = Program()

    def measure(name: str) -> dict[str, float]:
        quiet.wait()
        measured = program.measure(under_exec=name == OURS)
        context.say(f"exec: {name}: " + ", ".join(f"{what} {number:.2f}" for what, number in measured.items()))
        return measured

    try:
        samples = alternate(names, context.repetitions, measure)
    finally:
        program.close()
    units = {name: "ms" if name == _OPEN else "us" for name in _TARGETS}
    targets = {name: Target("value", limit) for name, limit in _TARGETS.items()}
    made = rows(samples, names, unit=units, targets=targets)
    for row in made:
        row.name = f"C program: {row.name}"
    return made


@dataclass(frozen=True)
class Accelerated:
    """One of QEMU's machines, with one of its accelerators."""

    qemu: Qemu
    machine: str
    """A key of `MACHINES`."""
    kvm: bool
    """``-accel kvm`` under exec; else TCG."""

    @property
    def name(self) -> str:
        """Ours is QEMU as well, but on our KVM."""
        return OURS if self.kvm else "TCG"

    def command(self, load: Load) -> list[str]:
        """See :class:`vmms.Vmm`; both accelerators get the same words."""
        command = self.qemu.command(load)
        command[command.index("-M") + 1] = MACHINES[self.machine]
        if self.kvm:
            command[command.index("-accel") + 1] = "kvm"
        assert command[command.index("-m") + 1] == str(MEMORY_MIB)
        return [*anykvm_command(), *_EXEC, *command] if self.kvm else command


def _boots(context: Context) -> list[Row]:
    if context.qemu is None:
        return []
    load = context.load("poweroff")
    made = []
    for machine in MACHINES:
        vmms = [Accelerated(context.qemu, machine, kvm=True), Accelerated(context.qemu, machine, kvm=False)]
        wall, cpu = f"QEMU {machine}: boot to power-off", f"QEMU {machine}: boot to power-off, CPU time"

        def measure(vmm: Accelerated) -> dict[str, float]:
            ran = context.boot(vmm, load)
            measured = {wall: ran.seconds, cpu: ran.cpu_seconds}  # noqa: B023  (called in this round only)
            context.say(f"exec: QEMU {vmm.machine}: {vmm.name}: {ran.seconds:.3f} s, CPU {ran.cpu_seconds:.3f} s")
            return measured

        samples = alternate(vmms, context.repetitions, measure)
        made += rows(samples, [vmm.name for vmm in vmms], unit="s", targets={wall: Target("ratio", 1.3)})
    return made


def _run(context: Context) -> list[Row]:
    if context.arch != "x86" or platform.machine() != "x86_64":
        context.say(f"exec: its programs are x86's, on an x86 machine: nothing to measure for {context.arch} here")
        return []
    return _programs(context) + _boots(context)


BENCHMARK: Final = Benchmark("exec", "unmodified programs under exec: C's ioctls and exits, QEMU beside its TCG", _run)
