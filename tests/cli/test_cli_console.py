# SPDX-License-Identifier: GPL-2.0-only
"""The console of `anykvm boot` on a real terminal (a pty), in a process of its own."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from vmm_fakes import write_image

RUNNER = Path(__file__).with_name("cli_fake_run.py")
LFLAG = 3


class Terminal:
    """A person at a terminal, and the command that runs there."""

    def __init__(self, kernel: Path, program: str, *options: str) -> None:
        self.master, slave = pty.openpty()
        self.slave = slave
        self.before = termios.tcgetattr(slave)
        self.seen = b""
        command = [sys.executable, str(RUNNER), program, "boot", "arm64", "--kernel", str(kernel), *options]
        # A session of its own with this terminal as controlling terminal, as a shell would have it.
        self.process = subprocess.Popen(
            command, stdin=slave, stdout=slave, stderr=slave, preexec_fn=_own_terminal, close_fds=True
        )

    def read_until(self, words: bytes, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while words not in self.seen:
            ready, _, _ = select.select([self.master], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"{words!r} did not come, only {self.seen[-500:]!r}"
            self.seen += os.read(self.master, 65536)

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def end(self, seconds: float = 20) -> int:
        """Wait for the command's end, reading along; its exit status."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it did not end: {self.seen[-500:]!r}"
            if select.select([self.master], [], [], 0.05)[0]:
                self.seen += os.read(self.master, 65536)
        while select.select([self.master], [], [], 0.1)[0]:
            self.seen += os.read(self.master, 65536)
        return self.process.returncode

    @property
    def raw(self) -> bool:
        return not termios.tcgetattr(self.slave)[LFLAG] & termios.ICANON

    @property
    def restored(self) -> bool:
        return termios.tcgetattr(self.slave) == self.before

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def _own_terminal() -> None:
    import fcntl

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator:
    opened: list[Terminal] = []
    kernel = write_image(tmp_path)

    def open_terminal(program: str, *options: str) -> Terminal:
        opened.append(Terminal(kernel, program, *options))
        return opened[-1]

    yield open_terminal
    for item in opened:
        item.close()


def test_keys_reach_the_guest_raw_and_the_terminal_is_restored(terminal) -> None:
    person = terminal("echo")
    person.read_until(b"listening")
    assert person.raw
    person.type(b"a\r\x03\x1a\x04\x13\x11\x1b[A")
    person.read_until(b"<61><0d><03><1a><04><13><11><1b><5b><41>")
    person.type(b"Q")
    assert person.end() == 0
    assert person.restored


def test_the_escape_key(terminal) -> None:
    person = terminal("echo")
    person.read_until(b"listening")
    person.type(b"\x01h")
    person.read_until(b"end the machine")
    person.type(b"\x01\x01\x01z")
    person.read_until(b"<01><01><7a>")
    person.type(b"\x01x")
    assert person.end() == 0
    assert person.restored


def test_three_times_ctrl_c(terminal) -> None:
    person = terminal("echo")
    person.read_until(b"listening")
    person.type(b"\x03")
    person.read_until(b"<03>")
    person.type(b"\x03\x03")
    assert person.end() == 130
    assert person.restored


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)])
def test_signals_restore_the_terminal(terminal, number: int, status: int) -> None:
    person = terminal("echo")
    person.read_until(b"listening")
    person.process.send_signal(number)
    assert person.end() == status
    assert person.restored


def test_a_terminal_that_hangs_up_ends_the_machine(terminal) -> None:
    person = terminal("echo")
    person.read_until(b"listening")
    os.close(person.slave)
    os.close(person.master)
    assert person.process.wait(20) in (129, 1)
    person.master, person.slave = pty.openpty()


@pytest.mark.parametrize(("program", "status"), [("bug", 4), ("crash_vmm", 4), ("panic", 3)])
def test_a_crash_restores_the_terminal_and_is_one_line(terminal, program: str, status: int) -> None:
    person = terminal(program)
    assert person.end() == status
    assert person.restored
    assert b"Traceback" not in person.seen
    assert person.seen.count(b"anykvm:") == 1


def test_a_flood_does_not_keep_the_keys_from_working(terminal) -> None:
    person = terminal("flood")
    person.read_until(b"all work and no play")
    time.sleep(0.3)  # nobody reads meanwhile
    person.type(b"\x01x")
    assert person.end() == 0
    assert person.restored


def test_a_reader_that_stopped_altogether(terminal) -> None:
    person = terminal("flood")
    person.read_until(b"all work and no play")
    person.type(b"\x01x")
    # The terminal's buffer is full and stays so.
    assert person.process.wait(20) == 0
    assert person.restored


def test_in_the_background_the_terminal_is_left_alone(terminal, tmp_path: Path) -> None:
    person = terminal("echo", "--timeout", "0.7")
    person.end()
    other = subprocess.Popen(
        [
            sys.executable,
            str(RUNNER),
            "echo",
            "boot",
            "arm64",
            "--kernel",
            str(write_image(tmp_path)),
            "--timeout",
            "0.5",
        ],
        stdin=person.slave,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    # Its controlling terminal is another (or none): it has no right to this one.
    _, errors = other.communicate(timeout=20)
    assert other.returncode == 124
    assert errors.count(b"anykvm:") == 1
    assert person.restored
