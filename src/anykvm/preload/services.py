# SPDX-License-Identifier: GPL-2.0-only
"""Services in somebody else's process: our own descriptors out of the way, our own threads without signals."""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

from anykvm.engine import Sleeper
from anykvm.virt.services import EventFd, Mutex, Services

T = TypeVar("T")

_HIGHEST: Final = 1 << 16
"""Descriptors of our own are not above this, wherever RLIMIT_NOFILE is: the host's table grows with the number."""


class WaitQueue:
    """The lock that a vCPU's thread sleeps on, where the client's signals end the sleep: then it is not taken."""

    def __init__(self) -> None:
        self._sleeper = Sleeper()
        self._sleeper.wake()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Sleep until it is released; False for a signal."""
        return not self._sleeper.sleep()

    def release(self) -> None:
        """Wake who sleeps, or who sleeps next."""
        self._sleeper.wake()

    def locked(self) -> bool:
        """Tell whether it is taken; nobody asks."""
        raise NotImplementedError

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class ClientServices(Services):
    """The services of a client's process.

    The client may count on getting the lowest free descriptor, and may close all it did not open: what is ours goes to
    high numbers, and ``protect`` keeps the client from closing it. ``internal`` is called by each thread of ours.
    """

    def __init__(self, protect: Callable[[int, bool], None], internal: Callable[[], None]) -> None:
        super().__init__()
        self._protect = protect
        self._internal = internal
        self._uaccess.relocate(self.hide, self._show)

    def mutex(self, name: str) -> Mutex:
        """Make a mutex; a vCPU's wait queue is one that signals end; ENOMEM."""
        if name != "vcpu wait queue":
            return super().mutex(name)
        queue = WaitQueue()
        self._hold(("lock", id(queue)), "lock", name)
        return queue

    def hide(self, fd: int) -> int:
        """Move a descriptor of our own; without room above, it stays where it is."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        floor = min(soft, _HIGHEST) * 3 // 4
        high = fd
        with suppress(OSError):
            high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, floor)
            os.close(fd)
        self._protect(high, True)
        return high

    def _show(self, fd: int) -> None:
        self._protect(fd, False)

    def epoll(self, name: str) -> select.epoll:
        """Make an epoll, out of the way; EMFILE, ENFILE, ENOMEM."""
        first = select.epoll()
        high = self.hide(os.dup(first.fileno()))
        first.close()
        epoll = select.epoll.fromfd(high)
        self._hold(epoll, "fd", name)
        return epoll

    def close_epoll(self, epoll: select.epoll) -> None:
        """Close an epoll."""
        self._protect(epoll.fileno(), False)
        super().close_epoll(epoll)

    def eventfd(self, name: str) -> EventFd:
        """Make an eventfd of our own, out of the way; EMFILE, ENFILE, ENOMEM."""
        return self._hidden(super().eventfd(name), name)

    def eventfd_get(self, fd: int, name: str) -> EventFd:
        """Take a reference to the client's eventfd; EBADF, EINVAL, EMFILE."""
        return self._hidden(super().eventfd_get(fd, name), name)

    def eventfd_put(self, event: EventFd) -> None:
        """Drop a reference to an eventfd."""
        self._protect(event.fd, False)
        super().eventfd_put(event)

    def _hidden(self, event: EventFd, name: str) -> EventFd:
        self._held.pop(("fd", event.fd))
        event.fd = self.hide(event.fd)
        self._hold(("fd", event.fd), "fd", name)
        return event

    def closed_fd(self, fd: int) -> None:
        """See that the client has closed a descriptor that was made here for it."""
        self._held.pop(("fd", fd), None)

    def thread(self, name: str, target: Callable[[], None]) -> threading.Thread:
        """Start a thread that no signal of the client's is delivered to; EAGAIN."""
        return self._unsignalled(lambda: super(ClientServices, self).thread(name, self._own(target)))

    def _start_timers(self, name: str, target: Callable[[], None]) -> None:
        self._unsignalled(lambda: super(ClientServices, self)._start_timers(name, self._own(target)))

    def _own(self, target: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            self._internal()
            target()

        return run

    def _unsignalled(self, start: Callable[[], T]) -> T:
        old = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            return start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old)


def append_to(path: str, services: ClientServices) -> Callable[[str], None]:
    """Give what appends lines to a file, or to standard error for ""; OSError if it cannot be opened."""
    fd = 2
    if path:
        opened = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fd = services.hide(opened)

    def write(line: str) -> None:
        # A closed standard error, or a full disk, is no reason to disturb the program.
        with suppress(OSError):
            os.write(fd, line.encode(errors="replace"))

    return write
