# SPDX-License-Identifier: GPL-2.0-only
"""Runs a few tasks one at a time, by a schedule: the same schedule gives the same run.

A task is a greenlet. Wherever the core asks its services for something, the task stands at a point; there the
scheduler looks whether the invariants hold and decides who makes the next step. A task that wants a mutex which another
holds cannot be chosen; when nobody can be, that is a deadlock. Nothing here depends on time or on the host's threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from greenlet import GreenletExit, getcurrent, greenlet

from .schedule import TASKS
from .track import Recorder

Label = tuple[str, str]
"""What a point is about: its kind and the name of the thing."""

MAX_STEPS: Final = 5000
"""A run this long has a task that waits in a loop."""


class Stuck(Exception):
    """Outside of any task someone waits for a mutex that is held: nobody would release it."""


class Task:
    """One task: what it does, what it waits for, what came of it."""

    __slots__ = ("body", "done", "error", "greenlet", "held", "label", "number", "result", "wants")

    def __init__(self, number: int, body: Callable[[], Any]) -> None:
        self.number = number
        self.body = body
        self.label: Label = ("begin", "")
        self.wants: Mutex | None = None
        self.held: list[Mutex] = []
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.greenlet: Any = None

    @property
    def name(self) -> str:
        """Its letter."""
        return TASKS[self.number]


class Mutex:
    """A mutex of the scheduler's; it stands in for :class:`threading.Lock`."""

    __slots__ = ("_scheduler", "freed", "held", "holder", "name", "queue")

    def __init__(self, scheduler: Scheduler, name: str) -> None:
        self._scheduler = scheduler
        self.name = name
        self.held = False
        self.holder: Task | None = None
        self.freed = False
        self.queue = name.endswith("wait queue")
        """It is held while nobody has a reason to wake up, and by nobody: that holds nobody up."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take it. A task is not chosen for this step before it is free; outside of tasks that is :class:`Stuck`."""
        scheduler = self._scheduler
        if self.freed:
            scheduler.fail(f"{self.name} is taken after it was freed")
        task = scheduler.current
        if task is None:
            if self.held:
                if not blocking or scheduler.aborting:
                    return scheduler.aborting
                raise Stuck(f"{self.name} is held, and nobody will release it")
        elif blocking:
            task.wants = self
            scheduler.point(("lock", self.name))
            task.wants = None
            if not self.queue:
                scheduler.locked(task, self)
        else:
            scheduler.point(("try lock", self.name))
            if self.held:
                self._tell(missed=True)
                return False
            task.held.append(self)
        self.held = True
        if not self.queue:
            self.holder = task
        self._tell(taken=blocking)
        return True

    def _tell(self, *, taken: bool = False, given: bool = False, missed: bool = False) -> None:
        """Tell the recorder: whoever only tries finds the mutex held or not, whichever task had it."""
        recorder = self._scheduler.recorder
        if recorder is None or recorder.step is None:
            return
        name = recorder.name(self)
        if self.queue:
            recorder.write(name)
        elif taken:
            recorder.step.acquired = name
            recorder.read(name)
        elif given:
            recorder.step.released.append(name)
            recorder.read(name)
        else:
            recorder.write(name)
            if not missed:
                recorder.step.tried = name

    def release(self) -> None:
        """Give it back; the point is after it."""
        if not self.held:
            if self._scheduler.aborting:
                return
            raise RuntimeError("release unlocked lock")
        holder = self.holder
        if holder is not None and self in holder.held:
            holder.held.remove(self)
        self.held = False
        self.holder = None
        self._tell(given=True)
        self._scheduler.point(("unlock", self.name))

    def locked(self) -> bool:
        """Tell whether it is held."""
        return self.held

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


class Scheduler:
    """One run of some tasks. ``check`` is called before every step and says what is wrong, or nothing.

    After :meth:`run`: ``schedule`` is who made each step, ``enabled`` who could have (a mask), ``labels`` at which
    point, ``failure`` what went wrong (None: nothing).
    """

    def __init__(self, check: Callable[[], str | None], edges: set[tuple[str, str]] | None = None) -> None:
        self.current: Task | None = None
        self.aborting = False
        self.failure: str | None = None
        self.tasks: list[Task] = []
        self.schedule = bytearray()
        self.enabled: list[int] = []
        self.labels: list[Label] = []
        self.edges: set[tuple[str, str]] = edges if edges is not None else set()
        """Which mutex was taken with which held, by name."""
        self.recorder: Recorder | None = None
        """Told what each step reads and writes, if there is one."""
        self.pick: Callable[[int, int], int] | None = None
        """Says who makes the next step, from the mask of those who can and the last step's task; negative: nobody."""
        self.given_up = False
        """Whether ``pick`` said nobody: the rest of this run is the same as another's."""
        self._check = check
        self._prefix = b""
        self._hub: Any = None

    def mutex(self, name: str) -> Mutex:
        """Make a mutex."""
        made = Mutex(self, name)
        if self.recorder is not None:
            # Its name must not depend on who takes it first.
            self.recorder.name(made)
        return made

    def locked(self, task: Task, mutex: Mutex) -> None:
        """A task has waited for a mutex and has it."""
        for other in task.held:
            self.edges.add((other.name, mutex.name))
        task.held.append(mutex)

    def point(self, label: Label) -> None:
        """Stand at a point until chosen again; outside of tasks there is nothing to choose."""
        task = self.current
        if task is None:
            return
        task.label = label
        chosen = self._choose()
        if chosen is not task:
            self.current = chosen
            (self._hub if chosen is None else chosen.greenlet).switch()

    def fail(self, why: str) -> None:
        """Note what is wrong; the first counts."""
        if self.failure is None:
            self.failure = why

    def _choose(self) -> Task | None:
        """Say who makes the next step; None when all is done, or nothing can go on."""
        recorder = self.recorder
        if recorder is not None:
            recorder.end()
        complaint = self.failure or self._check()
        if complaint is not None:
            self.fail(complaint)
            return None
        mask = 0
        bit = 1
        for task in self.tasks:
            if not task.done and (task.wants is None or not task.wants.held):
                mask |= bit
            bit <<= 1
        if not mask:
            self._nobody()
            return None
        number = self._number(mask)
        if number < 0:
            return None
        chosen = self.tasks[number]
        self.schedule.append(number)
        self.enabled.append(mask)
        self.labels.append(chosen.label)
        if recorder is not None:
            recorder.begin(number)
        return chosen

    def _number(self, mask: int) -> int:
        """The number of the task that makes the next step; negative if the run ends here."""
        step = len(self.schedule)
        last = self.schedule[-1] if step else -1
        if step < len(self._prefix):
            number = self._prefix[step]
            if not mask >> number & 1:
                self.fail(f"the schedule does not fit: task {TASKS[number]} cannot make step {step + 1}")
                return -1
        elif self.pick is not None:
            number = self.pick(mask, last)
            self.given_up = number < 0
        else:
            number = last if last >= 0 and mask >> last & 1 else (mask & -mask).bit_length() - 1
        if step >= MAX_STEPS:
            self.fail(f"no end after {MAX_STEPS} steps")
            return -1
        return number

    def _nobody(self) -> None:
        told = []
        for task in self.tasks:
            if not task.done and task.wants is not None:
                holder = task.wants.holder
                told.append(f"{task.name} waits for {task.wants.name}, held by {holder.name if holder else 'nobody'}")
        if told:
            self.fail(f"deadlock: {'; '.join(told)}")

    def _begin(self, task: Task) -> Callable[..., None]:
        def body(*_: object) -> None:
            try:
                task.result = task.body()
            except GreenletExit:
                return
            except Exception as error:
                task.error = error
            if self.aborting:
                return
            task.done = True
            if task.held:
                self.fail(f"{task.name} ends with {', '.join(mutex.name for mutex in task.held)} held")
            chosen = self._choose()
            self.current = chosen
            # A greenlet that ends goes on in its parent.
            getcurrent().parent = self._hub if chosen is None else chosen.greenlet

        return body

    def run(self, bodies: Sequence[Callable[[], Any]], prefix: bytes = b"") -> None:
        """Run tasks: the first steps as ``prefix`` says, then each for as long as it can."""
        self._prefix = prefix
        self._hub = getcurrent()
        self.tasks = [Task(number, body) for number, body in enumerate(bodies)]
        for task in self.tasks:
            task.greenlet = greenlet(self._begin(task))
        chosen = self._choose()
        if chosen is not None:
            self.current = chosen
            chosen.greenlet.switch()
        self.current = None
        if self.failure is not None or self.given_up:
            self._abort()

    def _abort(self) -> None:
        """Unwind the tasks of a run that failed: mutexes hold nobody up, and what the unwinding says is not told."""
        self.aborting = True
        for task in self.tasks:
            if task.greenlet and not task.done:
                task.greenlet.parent = getcurrent()
                task.greenlet.throw(GreenletExit)
