# SPDX-License-Identifier: GPL-2.0-only
"""Between the guest's serial port and the files this process has for it: terminal, pipe or file.

Runs on the main thread. Nothing here waits for a slow reader: output stays in the UART, whose FIFO is then full to the
guest, while keys and signals are still served.
"""

from __future__ import annotations

import os
import select
import stat
import time
from collections.abc import Callable
from typing import Final, Protocol

from .escape import HELP, Command, EscapeFilter

_CHUNK: Final = 4096  # PIPE_BUF: a pipe that is ready takes this much at once
_COALESCE: Final = 0.002  # seconds between two writes while the guest floods the console
_LONGEST_WAIT: Final = 3600.0  # seconds; poll(2) takes 24 days at most
_END_OF_FILE: Final = b"\x04"
_END_SILENCE: Final = 0.5  # seconds without output before the guest is told of the end of input; doubles each time
_END_SILENCE_MOST: Final = 64.0


class Port(Protocol):
    """The far side of a serial port."""

    def take(self) -> bytes:
        """All output there is."""

    def room(self) -> int:
        """How many characters of input are wanted."""

    def waiting(self) -> int:
        """How many characters of input the guest has not read yet."""

    def receive(self, data: bytes) -> None:
        """Input for the guest."""

    def deliver(self) -> float | None:
        """Hand over input that had to wait; returns the seconds after which to call again."""


class OutputGone(Exception):
    """Nobody reads the console any more; the message says why."""


class Console:
    """Copies until told to stop. `wake` is an eventfd that ends the waiting: there is output, or something happened.

    `source` and `sink` are file descriptors or ``None``; `raw` tells that `source` is a terminal in raw mode, where
    keys have a meaning; `tap` sees all output.
    """

    def __init__(
        self,
        port: Port,
        wake: int,
        *,
        source: int | None = None,
        sink: int | None = None,
        raw: bool = False,
        tap: Callable[[bytes], None] | None = None,
    ) -> None:
        self.port = port
        self._wake = wake
        self._source = source if source is not None and _is_open(source) else None
        self._sink = sink
        self._opened: int | None = None
        self._tap = tap
        self._keys = EscapeFilter() if raw else None
        self._pending = memoryview(b"")
        self._last_write = 0.0
        self._ended: float | None = None
        self._silence = _END_SILENCE
        if sink is not None:
            self._opened = _without_blocking(sink)
            self._sink = sink if self._opened is None else self._opened

    def close(self) -> None:
        """Close what was opened here; a second time does nothing."""
        opened, self._opened = self._opened, None
        if opened is not None:
            os.close(opened)

    def step(self, timeout: float | None) -> list[Command]:
        """Wait for something to happen, `timeout` seconds at most, and do it.

        Returns what was asked for behind the escape key. ``OutputGone`` if output cannot be written.
        """
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        if self._source is not None and self.port.room() > 0:
            poll.register(self._source, select.POLLIN)
        if self._sink is not None:
            # Registered for errors in any case: a reader that goes away is noticed even in silence.
            poll.register(self._sink, select.POLLOUT if len(self._pending) else 0)
        limits = [timeout, self._silence if self._ended is not None else None, self.port.deliver()]
        timeout = min((limit for limit in limits if limit is not None), default=None)
        ready = dict(poll.poll(None if timeout is None else max(0, int(min(timeout, _LONGEST_WAIT) * 1000) + 1)))
        if self._wake in ready:
            os.eventfd_read(self._wake)
        commands: list[Command] = []
        if self._source is not None and self._source in ready:
            commands = self._read()
        if self._sink is not None and ready.get(self._sink, 0) & (select.POLLERR | select.POLLHUP):
            raise OutputGone("the reader of the console went away")
        self._copy(self._sink is not None and bool(ready.get(self._sink, 0) & select.POLLOUT))
        self._end_input()
        return commands

    def _end_input(self) -> None:
        """Once there is no more input: type the end-of-file character, as a person would.

        That only has a meaning while a program waits for input: so it is typed when the guest has been silent for a
        while, and again after longer and longer silences.
        """
        now = time.monotonic()
        if self._ended is None or self.port.waiting() or len(self._pending):
            return
        if now - self._ended >= self._silence:
            self._ended = now
            self._silence = min(2 * self._silence, _END_SILENCE_MOST)
            self.port.receive(_END_OF_FILE)

    @property
    def idle(self) -> bool:
        """Tell whether all output has been written."""
        self._fetch()
        return not self._pending

    def say(self, text: str) -> None:
        """Show a line of our own between the guest's."""
        self._pending = memoryview(bytes(self._pending) + text.encode())

    def _fetch(self) -> None:
        if len(self._pending):
            return
        output = self.port.take()
        if output:
            if self._ended is not None:
                self._ended = time.monotonic()
            if self._tap is not None:
                self._tap(output)
            if self._sink is not None:
                self._pending = memoryview(output)

    def _copy(self, ready: bool) -> None:
        if not len(self._pending):
            # An echo goes out at once; a flood in chunks.
            early = _COALESCE - (time.monotonic() - self._last_write)
            if early > 0:
                time.sleep(early)
            self._fetch()
            if len(self._pending) and self._sink is not None:
                ready = _writable(self._sink)
        if ready and len(self._pending):
            self._last_write = time.monotonic()
            self._write()

    def _write(self) -> None:
        assert self._sink is not None
        try:
            while len(self._pending):
                count = os.write(self._sink, self._pending[:_CHUNK])
                self._pending = self._pending[count:]
                if self._opened is None and not _writable(self._sink):
                    return
        except BlockingIOError:
            return
        except OSError as error:
            raise OutputGone(f"the console's output cannot be written ({error.strerror})") from None

    def _read(self) -> list[Command]:
        assert self._source is not None
        try:
            data = os.read(self._source, self.port.room())
        except BlockingIOError:
            return []
        except OSError:
            data = b""
        if not data:
            # A terminal that was hung up comes with a signal; all else is the end of a file.
            self._source = None
            self._ended = time.monotonic()
            return []
        if self._keys is None:
            self.port.receive(data)
            return []
        typed, commands = self._keys.feed(data)
        if typed:
            self.port.receive(typed)
        if Command.HELP in commands:
            self.say(HELP)
        return [command for command in commands if command is not Command.HELP]


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _writable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    return any(events & select.POLLOUT for _, events in poll.poll(0))


def _without_blocking(fd: int) -> int | None:
    """The terminal at `fd`, opened once more: O_NONBLOCK there is ours alone, and not the shell's too."""
    try:
        if stat.S_ISCHR(os.fstat(fd).st_mode) and os.isatty(fd):
            return os.open(os.ttyname(fd), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        pass  # as with a terminal of another mount namespace: the one there is has to do
    return None
