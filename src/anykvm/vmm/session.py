# SPDX-License-Identifier: GPL-2.0-only
"""From a machine's start to its end: console, signals, panics, resets, time limit."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Final

from .config import MachineConfig
from .console import Console, OutputGone
from .escape import Command
from .machine import Machine
from .outcome import Kind, Outcome
from .panic import PanicWatch
from .terminal import raw_mode
from .vcpus import VcpuReport

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_QUICK_SECONDS: Final = 3.0
_QUICK_RESETS: Final = 10
_DRAIN_SECONDS: Final = 1.0  # for what is left to write when the machine was ended by hand


@dataclass
class Session:
    """What is to be done with a machine, and what became of it."""

    config: MachineConfig
    source: int | None = None
    """File descriptor of the console's input."""
    sink: int | None = None
    """File descriptor of the console's output."""
    tap: Callable[[bytes], None] | None = None
    """Sees all console output."""
    reboot: bool = True
    """A reset starts the machine again."""
    timeout: float | None = None
    """Seconds the whole of it may take."""
    say: Callable[[str], None] | None = None
    """Told, in one line, what a person wants to know while it runs."""

    first_instruction: float | None = None
    """When the first machine entered its guest (``time.monotonic``)."""
    reports: list[VcpuReport] = field(default_factory=list)
    """Of the last machine's vCPUs."""
    error: BaseException | None = None
    backend_name: str = ""
    _signal: int = 0

    def run(self) -> Outcome:
        """Run the machine until it ends. ``VmmError``: it cannot be built. Only on the main thread."""
        deadline = None if self.timeout is None else time.monotonic() + self.timeout
        wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            with self._signals(wake):
                return self._machines(wake, deadline)
        finally:
            os.close(wake)

    def _machines(self, wake: int, deadline: float | None) -> Outcome:
        quick = 0
        machine = self._machine(wake)
        try:
            with self._terminal() as raw:
                while True:
                    began = time.monotonic()
                    outcome = self._one(machine, wake, raw, deadline)
                    if outcome.kind is not Kind.RESET or not self.reboot:
                        return outcome
                    quick = quick + 1 if time.monotonic() - began < _QUICK_SECONDS else 0
                    if quick >= _QUICK_RESETS:
                        return Outcome(
                            Kind.CRASH, f"the guest reset {quick} times within seconds of its start: giving up"
                        )
                    if self.say is not None:
                        self.say("the guest reset: starting it again")
                    machine.close()
                    machine = self._machine(wake)
        finally:
            machine.close()

    def _machine(self, wake: int) -> Machine:
        def ring() -> None:
            os.eventfd_write(wake, 1)

        machine = Machine(self.config, ring)
        self.backend_name = machine.backend_name
        return machine

    @contextmanager
    def _terminal(self) -> Iterator[bool]:
        if self.source is None:
            yield False
            return
        with raw_mode(self.source) as raw:
            yield raw

    def _one(self, machine: Machine, wake: int, raw: bool, deadline: float | None) -> Outcome:
        panic = PanicWatch()

        def tap(output: bytes) -> None:
            panic.feed(output)
            if self.tap is not None:
                self.tap(output)

        source = self.source
        if source is not None and not raw and _is_terminal(source):
            source = None  # in the background: reading would stop the process
        console = Console(machine.uart, wake, source=source, sink=self.sink, raw=raw, tap=tap)
        try:
            machine.start()
            outcome = self._pump(machine, console, panic, deadline)
            machine.stop()
            outcome = self._drain(console, outcome)
        except OutputGone as gone:
            outcome = Outcome(Kind.HANGUP, str(gone))
        finally:
            machine.stop()
            console.close()
        if self.first_instruction is None:
            self.first_instruction = machine.first_instruction
        self.reports = machine.reports
        self.error = machine.error
        if panic.reason is not None and outcome.kind in (Kind.RESET, Kind.POWER_OFF, Kind.CRASH):
            outcome = _panicked(panic)
        return outcome

    def _pump(self, machine: Machine, console: Console, panic: PanicWatch, deadline: float | None) -> Outcome:
        while machine.outcome is None:
            stuck = panic.wait()
            if stuck == 0:
                return _panicked(panic)
            limits = [stuck] if stuck is not None else []
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    return Outcome(Kind.TIMEOUT, f"the guest had not ended after {self.timeout:g} s (--timeout)")
                limits.append(left)
            commands = console.step(min(limits, default=None))
            if self._signal:
                return self._signalled()
            if Command.QUIT in commands:
                return Outcome(Kind.ESCAPE)
            if Command.INTERRUPT in commands:
                return Outcome(Kind.INTERRUPT, "three times Ctrl-C: ended")
        return machine.outcome

    def _drain(self, console: Console, outcome: Outcome) -> Outcome:
        """Write what the guest left, however slow the reader; if the machine was ended by hand, not for long."""
        by_guest = outcome.kind in (Kind.POWER_OFF, Kind.RESET, Kind.PANIC, Kind.CRASH, Kind.INTERNAL_ERROR)
        until = None if by_guest else time.monotonic() + _DRAIN_SECONDS
        while not console.idle:
            if until is not None and time.monotonic() > until:
                break
            commands = console.step(_DRAIN_SECONDS)
            if self._signal and by_guest:
                return self._signalled()
            if Command.QUIT in commands or Command.INTERRUPT in commands:
                break
        return outcome

    def _signalled(self) -> Outcome:
        number = self._signal
        if number == signal.SIGINT:
            return Outcome(Kind.INTERRUPT, "interrupted")
        return Outcome(Kind.SIGNAL, f"ended by {signal.Signals(number).name}", number)

    @contextmanager
    def _signals(self, wake: int) -> Iterator[None]:
        """A signal ends the machine in order, with the terminal restored, instead of ending the process where it is."""

        def handler(number: int, frame: FrameType | None) -> None:
            self._signal = number
            os.eventfd_write(wake, 1)

        before = {}
        for number in _SIGNALS:
            # What the parent ignores (nohup) stays ignored.
            if signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
        try:
            yield
        finally:
            for number, old in before.items():
                signal.signal(number, old if old is not None else signal.SIG_DFL)


def _panicked(panic: PanicWatch) -> Outcome:
    return Outcome(Kind.PANIC, f"the guest's kernel panicked: {panic.reason or 'it does not say why'}")


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def standard(name: str) -> int | None:
    """The file descriptor of ``stdin`` or ``stdout``, if it is open."""
    stream = getattr(sys, name)
    try:
        return None if stream is None else int(stream.fileno())
    except (OSError, ValueError):
        return None
