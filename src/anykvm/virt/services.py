# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel gives KVM: memory, locks, threads, timers, file descriptors, user memory, time.

The core takes all of these from here and from nowhere else. A subclass can therefore fail the Nth allocation, count
what is held, or choose what runs between two steps: every method that acquires or publishes something can be
overridden, and what is acquired is in the ledger, by kind and name, until it is given back. ``points.py`` lists them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import mmap
import os
import select
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from types import TracebackType
from typing import Any, Final, Protocol, TypeVar

from . import uaccess
from .ladder import Ladder
from .mapping import Mapping, map_shared
from .preempt import PhysicalCpus
from .timers import Timer, TimerQueue

PAGE_SIZE: Final = 4096
USER_ADDRESS_LIMIT: Final = (1 << 47) - PAGE_SIZE if os.uname().machine == "x86_64" else 1 << 63
"""No user address of the host is at or above this (TASK_SIZE_MAX); elsewhere than on x86 only the sign bit is sure."""


class Mutex(Protocol):
    """A lock that one thread takes and any may give back, as :class:`threading.Lock` is."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it, if ``blocking`` after waiting up to ``timeout`` seconds; -1 is for ever. Whether it was taken."""

    def release(self) -> None:
        """Give it back; RuntimeError if nobody has it."""

    def locked(self) -> bool:
        """Tell whether somebody has it."""

    def __enter__(self) -> bool: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None, /
    ) -> None: ...


class Closable(Protocol):
    """What :meth:`Services.obtain` makes."""

    def close(self) -> None:
        """Free what it holds."""


C = TypeVar("C", bound=Closable)


class Memory:
    """Zeroed memory: ``address`` for those who take addresses, ``view`` (bytes) for Python."""

    __slots__ = ("_owner", "name", "size", "view")

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size
        self._owner: Any = mmap.mmap(-1, size) if size >= PAGE_SIZE else bytearray(max(size, 1))
        self.view = memoryview(self._owner)[:size]

    @property
    def address(self) -> int:
        """Where it is; it does not move while there is the view."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self._owner))


class Charge:
    """Memory that Python itself holds for an object which is a structure in the kernel."""

    __slots__ = ("name", "size")

    def __init__(self, name: str, size: int) -> None:
        self.name = name
        self.size = size


class EventFd:
    """A reference to a userspace eventfd: our own descriptor, and the host's number of the eventfd behind it."""

    __slots__ = ("fd", "id")

    def __init__(self, fd: int, number: int) -> None:
        self.fd = fd
        self.id = number

    def signal(self) -> None:
        """Add 1 to the eventfd's counter; at its maximum nothing happens, as in the kernel."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_write(self.fd, 1)

    def drain(self) -> int:
        """Read the counter and reset it; 0 if it was 0. It never blocks, as userspace's own read may."""
        value = bytearray(8)
        try:
            os.preadv(self.fd, [value], -1, os.RWF_NOWAIT)
        except BlockingIOError:
            return 0
        return int.from_bytes(value, sys.byteorder)


_msync: Any = ctypes.CDLL(None, use_errno=True).msync
_msync.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_MS_ASYNC: Final = 1


class Services:
    """The services of one process. Acquiring raises OSError: ENOMEM, EMFILE, ENFILE."""

    def __init__(self) -> None:
        self._held: dict[Hashable, tuple[str, str]] = {}
        self._uaccess = uaccess.shared()
        self._timers = TimerQueue(self._start_timers)
        self.copy_from_user = self._uaccess.copy_from_user
        self.copy_to_user = self._uaccess.copy_to_user
        self.read_struct = self._uaccess.read_struct
        self.write_struct = self._uaccess.write_struct
        self.now: Callable[[], int] = time.monotonic_ns
        self.cpus = PhysicalCpus()

    # The ledger.

    def ledger(self) -> dict[tuple[str, str], int]:
        """Tell what is held now: (kind, name) to how many. Kinds are those of ``points.py``."""
        return dict(Counter(list(self._held.values())))

    def _hold(self, key: Hashable, kind: str, name: str) -> None:
        self._held[key] = (kind, name)

    def _release(self, key: Hashable) -> None:
        del self._held[key]

    # Memory.

    def charge(self, name: str, size: int = 0) -> Charge:
        """Account for a structure of ``size`` bytes that is a Python object here; ENOMEM."""
        charge = Charge(name, size)
        self._hold(charge, "memory", name)
        return charge

    def alloc(self, name: str, size: int) -> Memory:
        """Allocate ``size`` zeroed bytes with an address; ENOMEM."""
        try:
            memory = Memory(name, size)
        except (MemoryError, OverflowError, OSError):
            raise OSError(errno.ENOMEM, f"no memory for {name} ({size} bytes)") from None
        self._hold(memory, "memory", name)
        return memory

    def free(self, held: Memory | Charge) -> None:
        """Give memory back. A :class:`Memory` is unmapped when its last view goes."""
        self._release(held)

    def user_range_mapped(self, address: int, size: int) -> bool:
        """Tell whether every page of a user range is mapped; the host walks its mappings, not its pages."""
        return bool(_msync(address, size, _MS_ASYNC) == 0)

    def obtain(self, kind: str, name: str, make: Callable[..., C], *args: Any) -> C:
        """Have another layer make an object that holds memory of the host's: the engine's "machine", "cpu"; ENOMEM."""
        try:
            thing = make(*args)
        except MemoryError:
            raise OSError(errno.ENOMEM, f"no memory for {name}") from None
        self._hold((kind, id(thing)), kind, name)
        return thing

    def give_back(self, kind: str, thing: Closable) -> None:
        """Close what :meth:`obtain` made."""
        self._release((kind, id(thing)))
        thing.close()

    # Ladders.

    def ladder(self, owner: str) -> Ladder:
        """Make the ladder on which ``owner`` ("vcpu", "vm", "device ...") is built; it holds nothing itself."""
        return Ladder()

    # Locks.

    def mutex(self, name: str) -> Mutex:
        """Make a mutex; ENOMEM."""
        mutex = threading.Lock()
        self._hold(("lock", id(mutex)), "lock", name)
        return mutex

    def free_mutex(self, mutex: Mutex) -> None:
        """Give a mutex back."""
        self._release(("lock", id(mutex)))

    # Threads and timers.

    def thread(self, name: str, target: Callable[[], None]) -> threading.Thread:
        """Start a thread; EAGAIN. It leaves the ledger when ``target`` returns."""

        def run() -> None:
            try:
                target()
            finally:
                self._held.pop(thread, None)

        thread = threading.Thread(target=run, name=f"anykvm-{name}", daemon=True)
        self._hold(thread, "thread", name)
        try:
            thread.start()
        except RuntimeError:
            self._release(thread)
            raise OSError(errno.EAGAIN, f"the host has no thread left for {name}") from None
        return thread

    def _start_timers(self, name: str, target: Callable[[], None]) -> None:
        # The timer thread is the services' own, not held by anyone: it is not in the ledger.
        threading.Thread(target=target, name=f"anykvm-{name}", daemon=True).start()

    def timer(self, name: str, callback: Callable[[], None]) -> Timer:
        """Make a timer, disarmed; ENOMEM. ``callback`` runs on the timer thread and must be short."""
        timer = Timer(self._timers, name, callback)
        self._hold(timer, "timer", name)
        return timer

    def free_timer(self, timer: Timer) -> None:
        """Cancel a timer and give it back."""
        timer.cancel()
        self._release(timer)

    def run_delay(self) -> int:
        """How long this thread has waited for a CPU, in ns; 0 where the host does not say.

        Source: the second number of ``/proc/thread-self/schedstat`` (Documentation/scheduler/sched-stats.rst).
        """
        try:
            with open("/proc/thread-self/schedstat") as schedstat:
                return int(schedstat.read().split()[1])
        except (OSError, IndexError, ValueError):
            return 0

    # File descriptors.

    def memfd(self, name: str, size: int) -> int:
        """Make a close-on-exec memfd of ``size`` bytes, named as the kernel names its fd; EMFILE, ENFILE, ENOMEM."""
        fd = os.memfd_create(name, os.MFD_CLOEXEC)
        try:
            if size:
                os.ftruncate(fd, size)
        except OSError:
            os.close(fd)
            raise
        self._hold(("fd", fd), "fd", name)
        return fd

    def map(self, fd: int, size: int, name: str, offset: int = 0) -> Mapping:
        """Map a part of a memfd, or anonymous memory for -1, shared and writable; ENOMEM."""
        mapping = map_shared(fd, size, offset)
        self._hold(("map", id(mapping)), "map", name)
        return mapping

    def unmap(self, mapping: Mapping) -> None:
        """Give a mapping back: it goes when the last view of it does, which may be userspace's."""
        self._release(("map", id(mapping)))

    def reopen(self, fd: int, name: str) -> int:
        """Open a memfd again, read-only and with a position of its own; EMFILE, ENFILE."""
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
        self._hold(("fd", again), "fd", name)
        return again

    def forget_fd(self, fd: int) -> None:
        """Leave an fd to userspace, which closes it when it likes."""
        self._release(("fd", fd))

    def close_fd(self, fd: int) -> None:
        """Close an fd made here; one that userspace has closed behind our back is fine."""
        self._held.pop(("fd", fd), None)
        with contextlib.suppress(OSError):
            os.close(fd)

    def epoll(self, name: str) -> select.epoll:
        """Make an epoll; EMFILE, ENFILE, ENOMEM."""
        epoll = select.epoll()
        self._hold(epoll, "fd", name)
        return epoll

    def close_epoll(self, epoll: select.epoll) -> None:
        """Close an epoll."""
        self._release(epoll)
        epoll.close()

    def eventfd(self, name: str) -> EventFd:
        """Make an eventfd of our own, non-blocking; EMFILE, ENFILE, ENOMEM."""
        fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._hold(("fd", fd), "fd", name)
        return EventFd(fd, 0)

    def eventfd_id(self, fd: int) -> int:
        """Give the host's number of the eventfd behind an fd; EBADF if it is closed, EINVAL if it is no eventfd.

        Source: the ``eventfd-id`` line of ``/proc/self/fdinfo`` (Documentation/filesystems/proc.rst, 3.8).
        """
        if fd < 0 or fd > 0x7FFFFFFF:
            raise OSError(errno.EBADF, f"{fd} is not an open file descriptor")
        try:
            with open(f"/proc/self/fdinfo/{fd}") as info:
                for line in info:
                    if line.startswith("eventfd-id:"):
                        return int(line.split(":")[1])
        except FileNotFoundError:
            raise OSError(errno.EBADF, f"{fd} is not an open file descriptor") from None
        raise OSError(errno.EINVAL, f"file descriptor {fd} is not an eventfd")

    def eventfd_get(self, fd: int, name: str) -> EventFd:
        """Take a reference to userspace's eventfd; EBADF, EINVAL, EMFILE."""
        number = self.eventfd_id(fd)
        own = os.dup(fd)
        self._hold(("fd", own), "fd", name)
        return EventFd(own, number)

    def eventfd_put(self, event: EventFd) -> None:
        """Drop a reference to an eventfd."""
        self.close_fd(event.fd)

    # Points that matter to interleavings.

    def publish(self, what: str) -> None:
        """Mark that the next statement makes something visible to other threads: "vcpu fd", "vcpu online", "vm fd"."""

    def after_fork(self) -> None:
        """Start afresh in a forked child: the parent's threads are not there."""
        self._held.clear()
        self._timers = TimerQueue(self._start_timers)

    def close(self) -> None:
        """End the timer thread; nothing may be used after."""
        self._timers.close()
