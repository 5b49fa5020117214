# SPDX-License-Identifier: GPL-2.0-only
"""The core's services, each of them a point where another task may go on."""

from __future__ import annotations

import errno
import select
from collections.abc import Callable
from functools import wraps
from itertools import count
from typing import TYPE_CHECKING, Any, Final

from anykvm.virt.handles import FileTable, KvmFile
from anykvm.virt.points import ACQUIRES, Acquire
from anykvm.virt.services import Charge, Closable, Memory, Services

if TYPE_CHECKING:
    from .scheduler import Mutex, Scheduler


FDS: Final = "fds"
"""To a recorder: which numbers of fds are free. Making one is a read, since no answer shows a number."""
FILES: Final = "files"
"""To a recorder: what KVM knows by an fd."""
NEWEST_FD: Final = "newest fd"
"""To a recorder: what a program would guess."""


class StoppedTimer:
    """A timer whose deadline never comes: time does not pass in a run. It tells if it is used when it is freed."""

    __slots__ = ("_scheduler", "deadline", "freed", "name")

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self._scheduler = scheduler
        self.name = name
        self.deadline: int | None = None
        self.freed = False

    def _use(self) -> None:
        if self.freed:
            self._scheduler.fail(f"the timer {self.name!r} is used after it was freed")
        recorder = self._scheduler.recorder
        if recorder is not None:
            recorder.read(recorder.name(self))

    def arm(self, deadline_ns: int) -> None:
        """Note the deadline."""
        self._use()
        self.deadline = deadline_ns

    def cancel(self) -> None:
        """Forget it."""
        self._use()
        self.deadline = None


class ScheduledServices(Services):
    """Services under a scheduler. ``refuse`` says which requests fail, by kind and name, and with what errno.

    Every method of :data:`anykvm.virt.points.ACQUIRES` is a point before it acquires, those to come too.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler
        self.refuse: Callable[[str, str], int] | None = None
        self.newest_vcpu_fd = -1
        """The number a program would guess for the vCPU that is being made: the newest memfd of a vCPU."""
        clock = count(1_000_000_000, 1000)
        self.now: Callable[[], int] = lambda: next(clock)

    def ask(self, kind: str, name: str) -> None:
        """Stand at the point before something is acquired, and refuse it if that is the plan."""
        self._scheduler.point((kind, name))
        if self.refuse is not None:
            code = self.refuse(kind, name)
            if code:
                raise OSError(code, f"the plan refuses {name}")

    # What is not the host's here.

    def mutex(self, name: str) -> Any:
        """A mutex of the scheduler's."""
        mutex = self._scheduler.mutex(name)
        self._hold(("lock", id(mutex)), "lock", name)
        return mutex

    def free_mutex(self, mutex: Any) -> None:
        """Give it back; it must not be held."""
        made: Mutex = mutex
        if made.held and not made.queue:
            self._scheduler.fail(f"{made.name} is freed while it is held")
        made.freed = True
        self._changed(made)
        super().free_mutex(mutex)

    def timer(self, name: str, callback: Callable[[], None]) -> Any:
        """A timer that never fires."""
        timer: Any = StoppedTimer(self._scheduler, name)
        if self._scheduler.recorder is not None:
            self._scheduler.recorder.name(timer)
        self._hold(timer, "timer", name)
        return timer

    def epoll(self, name: str) -> select.epoll:
        """Nothing that needs a thread of its own runs here."""
        raise OSError(errno.ENOMEM, "there are no irqfds under a scheduler")

    def memfd(self, name: str, size: int) -> int:
        """As the services do; a vCPU's is noted."""
        fd = super().memfd(name, size)
        recorder = self._scheduler.recorder
        if recorder is not None:
            recorder.read(FDS)
        if name.startswith("kvm-vcpu:"):
            self.newest_vcpu_fd = fd
            if recorder is not None:
                recorder.write(NEWEST_FD)
        return fd

    # Points before something is given back, or shown.

    def free(self, held: Memory | Charge) -> None:
        """As the services do."""
        self._scheduler.point(("free", held.name))
        super().free(held)

    def free_timer(self, timer: Any) -> None:
        """As the services do."""
        self._scheduler.point(("free", timer.name))
        super().free_timer(timer)
        timer.freed = True
        self._changed(timer)

    def give_back(self, kind: str, thing: Closable) -> None:
        """As the services do."""
        self._scheduler.point(("free", kind))
        super().give_back(kind, thing)

    def close_fd(self, fd: int) -> None:
        """As the services do."""
        self._scheduler.point(("close", "fd"))
        recorder = self._scheduler.recorder
        if recorder is not None:
            recorder.write(FDS)
        super().close_fd(fd)

    def _changed(self, thing: object) -> None:
        recorder = self._scheduler.recorder
        if recorder is not None:
            recorder.write(recorder.name(thing))

    def publish(self, what: str) -> None:
        """The next statement makes something visible."""
        self._scheduler.point(("publish", what))

    def abandon(self) -> None:
        """Close what a broken run still holds of the host."""
        for key in list(self._held):
            if isinstance(key, tuple) and key[0] == "fd":
                super().close_fd(key[1])
        self._held.clear()


def _before(method: Callable[..., Any], acquire: Acquire) -> Callable[..., Any]:
    @wraps(method)
    def acquiring(self: ScheduledServices, *arguments: Any) -> Any:
        self.ask(acquire.kind or arguments[0], arguments[acquire.name])
        return method(self, *arguments)

    return acquiring


for _name, _acquire in ACQUIRES.items():
    setattr(ScheduledServices, _name, _before(getattr(ScheduledServices, _name), _acquire))


class ScheduledFiles(FileTable):
    """The fds of a backend under a scheduler: others see a new one before its maker goes on."""

    __slots__ = ("_scheduler",)

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__()
        self._scheduler = scheduler

    def install(self, fd: int, file: KvmFile) -> None:
        """As the table does."""
        super().install(fd, file)
        if self._scheduler.recorder is not None:
            self._scheduler.recorder.write(FILES)
        self._scheduler.point(("installed", f"{file.kind} fd"))

    def find(self, fd: int) -> KvmFile:
        """As the table does: for an fd that was not there a moment ago."""
        self._scheduler.point(("find", "fd"))
        if self._scheduler.recorder is not None:
            self._scheduler.recorder.read(FILES)
            self._scheduler.recorder.read(FDS)
        return super().find(fd)

    def take(self, fd: int) -> KvmFile | None:
        """As the table does."""
        self._scheduler.point(("take", "fd"))
        if self._scheduler.recorder is not None:
            self._scheduler.recorder.write(FILES)
        return super().take(fd)
