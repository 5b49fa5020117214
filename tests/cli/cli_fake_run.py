# SPDX-License-Identifier: GPL-2.0-only
"""The anykvm command over a KVM whose guests are Python generators: cli_fake_run.py PROGRAM ARGUMENTS..."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "vmm"))

from vmm_fakes import FakeBackend, Guest, Program

from anykvm.api import Kvm
from anykvm.cli.main import run
from anykvm.vmm.machine import Machine
from anykvm.vmm.session import Session


def echo(guest: Guest, vcpu_id: int) -> Program:
    yield from guest.listen()
    yield from guest.print(b"listening\r\n")
    while (key := (yield from guest.key())) != ord("Q"):
        yield from guest.print(b"<%02x>" % key)
    yield from guest.power_off()


def flood(guest: Guest, vcpu_id: int) -> Program:
    while True:
        yield from guest.print(b"all work and no play\r\n")


def panic(guest: Guest, vcpu_id: int) -> Program:
    yield from guest.print(b"[    1.0] Kernel panic - not syncing: no init found\r\n")
    yield from guest.reset()


def reset(guest: Guest, vcpu_id: int) -> Program:
    yield from guest.reset()


def bug(guest: Guest, vcpu_id: int) -> Program:
    yield from guest.print(b"going\r\n")
    yield ("raise", RuntimeError("a bug"))


def crash_vmm(guest: Guest, vcpu_id: int) -> Program:
    """Listens; the VMM itself fails, on its main thread."""

    def fail(*_: object) -> None:
        raise RuntimeError("the VMM has a bug")

    Session._pump = fail  # type: ignore[method-assign, assignment]
    yield from guest.forever()


PROGRAMS = {function.__name__: function for function in (echo, flood, panic, reset, bug, crash_vmm)}

if __name__ == "__main__":
    program = PROGRAMS[sys.argv[1]]
    if program is crash_vmm:
        next(crash_vmm(Guest(), 0))
    Machine._kvm = lambda self: Kvm(FakeBackend(program))  # type: ignore[method-assign]
    status = run(sys.argv[2:])
    # A thread that was joined is gone to Python, and a moment later to the kernel.
    deadline = time.monotonic() + 5
    while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < deadline:
        time.sleep(0.001)
    if len(os.listdir("/proc/self/task")) > 1:
        status = 99
    sys.exit(status)
