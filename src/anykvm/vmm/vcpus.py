# SPDX-License-Identifier: GPL-2.0-only
"""The threads that run a machine's vCPUs."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from anykvm.api import (
    Exit,
    FailEntry,
    InternalError,
    Interrupted,
    MmioRead,
    MmioWrite,
    PioIn,
    PioOut,
    Shutdown,
    SystemEvent,
    SystemEventType,
    Vcpu,
)

from .bus import Bus
from .outcome import Kind, Outcome
from .pio import PortBus

Finish = Callable[[Outcome, BaseException | None], None]
_JOIN_SECONDS = 0.1  # between two kicks of a vCPU that is to stop


@dataclass
class VcpuReport:
    """What one vCPU did."""

    vcpu_id: int
    exits: Counter[str] = field(default_factory=Counter)
    """Exits to userspace, by kind."""
    run_seconds: float = 0.0
    """Wall-clock time within KVM_RUN, asleep in it or not."""
    cpu_seconds: float = 0.0
    """CPU time of the vCPU's thread: the guest's, KVM's and ours."""
    stats: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """KVM's own binary statistics."""


class VcpuThread:
    """One vCPU and its thread. `finish` is told how the machine ended, if this vCPU is the one to know."""

    def __init__(
        self, vcpu: Vcpu, bus: Bus, ports: PortBus, finish: Finish, program_counter: Callable[[Vcpu], int]
    ) -> None:
        self.vcpu = vcpu
        self.report = VcpuReport(vcpu.vcpu_id)
        self.started: float | None = None
        """When it first entered the guest (``time.monotonic``)."""
        self._bus = bus
        self._ports = ports
        self._finish = finish
        self._program_counter = program_counter
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name=f"vcpu-{vcpu.vcpu_id}", daemon=True)

    def start(self) -> None:
        """Let it run."""
        self._thread.start()

    def _run(self) -> None:
        try:
            self._loop()
        except BaseException as error:
            what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            self._finish(Outcome(Kind.INTERNAL_ERROR, f"vCPU {self.vcpu.vcpu_id} stopped: {what}"), error)
        finally:
            self.report.cpu_seconds = time.thread_time()

    def _loop(self) -> None:
        run, read, write, ports = self.vcpu.run, self._bus.read, self._bus.write, self._ports
        report, clock = self.report, time.perf_counter_ns
        exits = report.exits
        self.started = time.monotonic()
        while not self._stopping:
            before = clock()
            try:
                exit = run()
            except BlockingIOError:  # x86: it waited for its start, and INIT and SIPI have come (EAGAIN)
                exits["started"] += 1
                continue
            report.run_seconds += (clock() - before) / 1e9
            match exit:
                case MmioWrite(address, data):
                    exits["mmio-write"] += 1
                    write(address, len(data), int.from_bytes(data, "little"))
                case MmioRead(address, size):
                    exits["mmio-read"] += 1
                    exit.reply(read(address, size))
                case PioOut(port, size, data):
                    exits["pio-out"] += 1
                    ports.write_items(port, size, data)
                case PioIn(port, size, count):
                    exits["pio-in"] += 1
                    exit.reply(ports.read_items(port, size, count))
                case Interrupted():
                    exits["interrupted"] += 1
                case _:
                    exits[_name(exit)] += 1
                    outcome = self._outcome(exit)
                    if outcome is not None:
                        self._finish(outcome, None)
                        return

    def _outcome(self, exit: Exit) -> Outcome | None:
        match exit:
            case SystemEvent(SystemEventType.SHUTDOWN):
                return Outcome(Kind.POWER_OFF)
            case SystemEvent(SystemEventType.RESET):
                return Outcome(Kind.RESET)
            case SystemEvent(SystemEventType.CRASH):
                return Outcome(Kind.CRASH, "the guest says that it has crashed")
            case SystemEvent(SystemEventType.WAKEUP):
                return None
            case Shutdown():
                return Outcome(Kind.RESET, triple_fault=True)
            case InternalError(suberror, data):
                numbers = "".join(f" {number:#x}" for number in data)
                return Outcome(
                    Kind.INTERNAL_ERROR,
                    f"KVM cannot run vCPU {self.vcpu.vcpu_id}{self._where()} (internal error {suberror}{numbers}): "
                    "the guest went astray; check that --kernel is made for this machine, and whole",
                )
            case FailEntry():
                return Outcome(Kind.INTERNAL_ERROR, f"KVM cannot run vCPU {self.vcpu.vcpu_id}: {exit}{self._where()}")
            case _:
                return Outcome(
                    Kind.INTERNAL_ERROR, f"vCPU {self.vcpu.vcpu_id} asked for what is not there: {exit}{self._where()}"
                )

    def _where(self) -> str:
        try:
            return f" at pc {self._program_counter(self.vcpu):#x}"
        except OSError:
            return ""

    def ask_to_stop(self) -> None:
        """Make it leave the guest, and the thread end; from any thread."""
        self._stopping = True
        self.vcpu.kick()

    def join(self) -> None:
        """Wait for the thread's end, after :meth:`ask_to_stop`."""
        while self._thread.is_alive():
            self._thread.join(_JOIN_SECONDS)
            if self._thread.is_alive():
                self.vcpu.kick()

    def read_stats(self) -> None:
        """Take KVM's statistics into the report; none where the backend has none."""
        try:
            with self.vcpu.stats_fd() as stats:
                self.report.stats = stats.read()
        except OSError:
            pass


def _name(exit: Exit) -> str:
    kind = type(exit).__name__
    return "".join(f"-{c.lower()}" if c.isupper() else c for c in kind).lstrip("-")
