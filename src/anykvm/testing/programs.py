# SPDX-License-Identifier: GPL-2.0-only
"""A test runs a program that knows nothing of anykvm under ``anykvm exec``, and asks what it did with KVM.

Behind the fixture ``anykvm_exec``; ``docs/testing.md`` has examples.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

_COMMAND: Final = (sys.executable, "-P", "-c", "from anykvm.cli.start import main; main()", "exec")
_MARK: Final = "ANYKVM_EXEC_TEST"
"""The variable by which the program's processes are known, wherever they went."""
_OWN_STATUSES: Final = frozenset({1, 2, 126, 127})
_TAIL: Final = 2000


class CannotRun(Exception):
    """exec could not start the program, or was asked for what it has not; one line that says why."""


class TookTooLong(Exception):
    """The program did not end in time and was killed; ``ran`` is what it had done until then."""

    def __init__(self, message: str, ran: Ran) -> None:
        super().__init__(message)
        self.ran = ran


@dataclass(frozen=True)
class Traced:
    """One request of the program to KVM."""

    name: str
    """As ``KVM_RUN``."""
    file: str
    """What kind of file descriptor it was made on: system, vm, vcpu, device."""
    fd: int
    pid: int
    tid: int
    argument: Any
    """The structure that was given, by the names of its fields, or a number."""
    returned: Any
    """The structure that was written back, or ``None``."""
    result: int
    """-1 if it failed."""
    errno: str | None
    """The error's name, as ``"ENOMEM"``."""
    exit: Mapping[str, Any] | None
    """Of a KVM_RUN: ``exit_reason`` by its name, and its data."""
    seconds: float

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Traced:
        """Make one of a line of ``--trace-json``."""
        return cls(
            name=record["request"],
            file=record["file"],
            fd=record["fd"],
            pid=record["pid"],
            tid=record["tid"],
            argument=record["argument"],
            returned=record.get("returned"),
            result=record["result"],
            errno=record.get("errno"),
            exit=record.get("exit"),
            seconds=record["seconds"],
        )


@dataclass(frozen=True)
class Ran:
    """What a program did."""

    status: int
    """Its exit status; of one that a signal ended, the signal's number, negative."""
    stdout: str
    stderr: str
    seconds: float = 0.0
    traced: tuple[Traced, ...] | None = field(default=None, repr=False)
    """Its requests in the order in which they ended; ``None`` without ``trace=True``."""

    @property
    def trace(self) -> tuple[Traced, ...]:
        """Its requests; ValueError if it ran without ``trace=True``."""
        if self.traced is None:
            raise ValueError("the program ran without a trace: give trace=True")
        return self.traced

    def requests(self, name: str) -> list[Traced]:
        """Those of one name, as ``KVM_RUN``."""
        return [one for one in self.trace if one.name == name]


@dataclass
class Programs:
    """Runs programs under exec. Call it; the fields are what holds where a call says nothing."""

    folder: Path
    """For the files of the runs."""
    arch: str | None = None
    """The architecture of the guests; ``None``: this machine's own."""
    faults: str = ""
    timeout: float = 60.0
    """Seconds."""

    def __call__(
        self,
        program: str | os.PathLike[str],
        *arguments: str | os.PathLike[str],
        arch: str | None = None,
        faults: str | None = None,
        trace: bool = False,
        raw: bool = False,
        timeout: float | None = None,
        input: str = "",
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
    ) -> Ran:
        """Run a program to its end; none of its processes is left then.

        CannotRun if it cannot be started under exec; TookTooLong after `timeout` seconds.
        """
        limit = self.timeout if timeout is None else timeout
        plan = self.faults if faults is None else faults
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="exec-") as made:
            folder = Path(made)
            options = _options(folder, arch or self.arch, plan, trace=trace, raw=raw)
            command = [*_COMMAND, *options, "--", *(os.fspath(word) for word in (program, *arguments))]
            return _run(command, folder, limit, input, env=env, cwd=cwd)


def _options(folder: Path, arch: str | None, plan: str, *, trace: bool, raw: bool) -> list[str]:
    options = ["--arch", arch] if arch else []
    if plan:
        options += ["--faults", plan]
    if trace:
        options += ["--trace-json", str(folder / "trace")]
    return [*options, "--raw"] if raw else options


def _run(
    command: list[str],
    folder: Path,
    timeout: float,
    input: str,
    *,
    env: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
) -> Ran:
    token = uuid.uuid4().hex
    environment = dict(os.environ if env is None else env) | {_MARK: token}
    (folder / "in").write_text(input)
    begin, late = os.times().elapsed, False
    # Files, not pipes: a process that the program leaves behind would keep a pipe open.
    with (folder / "in").open() as given, (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        process = subprocess.Popen(
            command, stdin=given, stdout=out, stderr=err, env=environment, cwd=cwd, start_new_session=True
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            late = True
        finally:
            process.kill()
            process.wait()
            _kill_all(token)
    ran = Ran(
        process.returncode,
        (folder / "out").read_text(errors="replace"),
        (folder / "err").read_text(errors="replace"),
        os.times().elapsed - begin,
        _read(folder / "trace"),
    )
    if late:
        last = "" if not ran.traced else f"; the last request that ended: {ran.traced[-1].name}"
        said = (ran.stdout + ran.stderr)[-_TAIL:]
        program = command[command.index("--") + 1]
        raise TookTooLong(f"{program}: did not end in {timeout:g} s{last}\n{said}".rstrip(), ran)
    if ran.status in _OWN_STATUSES and not ran.stdout and ran.stderr.startswith("anykvm: "):
        raise CannotRun(ran.stderr.removeprefix("anykvm: ").rstrip())
    return ran


def _read(path: Path) -> tuple[Traced, ...] | None:
    if not path.exists():
        return None
    # Without its end, a line is one that was being written when the program was killed.
    lines = path.read_text(errors="replace").rpartition("\n")[0].splitlines()
    return tuple(Traced.of(json.loads(line)) for line in lines)


def _kill_all(token: str) -> None:
    """Kill what has the mark in its environment, until nothing is left; also what made a session of its own."""
    wanted = f"{_MARK}={token}".encode()
    while True:
        found = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _kill(pid, wanted)]
        if not found:
            return


def _kill(pid: int, wanted: bytes) -> bool:
    """Kill a process if the mark is in its environment; a number that another has by now is left alone."""
    with suppress(OSError):
        handle = os.pidfd_open(pid)
        try:
            # One that is dead and waits for its parent has no environment any more.
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
                return True
        finally:
            os.close(handle)
    return False
