# SPDX-License-Identifier: GPL-2.0-only
"""Services that tell what is done with them, in which hook and under which lock, and fail at one point if asked to."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from anykvm.virt.hooks import ArchHooks
from anykvm.virt.ladder import Ladder
from anykvm.virt.points import ACQUIRES, PUBLISHES, Acquire
from anykvm.virt.services import Services
from anykvm.virt.vcpu import Vcpu
from anykvm.virt.vm import Vm

T = TypeVar("T")

STEP: Final = "step"
UNDO: Final = "undo"
HOOK: Final = "hook"
CHECK: Final = "check"
ACQUIRE: Final = "acquire"
PUBLISH: Final = "publish"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened while a vCPU was made.

    ``what`` is one of the constants above; ``hook`` are the architecture's hooks it happened in, outermost first, as
    ``"create/init"``; ``locked``: whether somebody held the VM's lock; ``ns`` when, from the start.
    """

    what: str
    name: str
    hook: str
    locked: bool
    ns: int


@dataclass(frozen=True, slots=True)
class Point:
    """An event that can fail, and with which errnos."""

    number: int
    kind: str
    name: str
    hook: str
    errnos: tuple[int, ...]


class Injected(OSError):
    """A failure that was asked for."""


class TracedLadder(Ladder):
    """A ladder whose steps are events, on the way up and on the way down."""

    __slots__ = ("_services",)

    def __init__(self, services: TracedServices) -> None:
        super().__init__()
        self._services = services

    def step(self, name: str, do: Callable[..., T], undo: Callable[..., object] | None, *args: Any) -> T:
        """As :meth:`.Ladder.step`."""
        self._services.event(STEP, name)
        return super().step(name, do, undo, *args)

    def acquire(self, name: str, do: Callable[..., T], undo: Callable[[T], object], *args: Any) -> T:
        """As :meth:`.Ladder.acquire`."""
        self._services.event(STEP, name)
        return super().acquire(name, do, undo, *args)

    def push(self, name: str, undo: Callable[..., object] | None, *args: Any, shows: Ladder | None = None) -> None:
        """As :meth:`.Ladder.push`; a step that shows another ladder has told its steps already."""
        if shows is None:
            self._services.event(STEP, name)
        super().push(name, undo, *args, shows=shows)

    def unwind(self, depth: int = 0) -> None:
        """As :meth:`.Ladder.unwind`."""
        first: BaseException | None = None
        while len(self) > depth:
            step = self._steps[-1]
            try:
                super().unwind(len(self) - 1)
            except BaseException as failure:
                first = first or failure
            # Afterwards: what a step has inside is taken back before it, as it was built after it.
            if step.shows is None:
                self._services.event(UNDO, step.name)
        if first is not None:
            raise first


class TracedServices(Services):
    """The services, watched. Nothing is told, and nothing fails, until :meth:`watch`."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []
        self.points: list[Point] = []
        self._vm: Vm | None = None
        self._hooks: list[str] = []
        self._fail: tuple[int, int] | None = None
        self._start = 0

    def watch(self, vm: Vm, fail: tuple[int, int] | None = None) -> None:
        """Tell from now on what happens to this VM; let point number ``fail[0]`` fail with errno ``fail[1]``."""
        self.events.clear()
        self.points.clear()
        self._fail = fail
        self._vm = vm
        self._start = time.perf_counter_ns()

    def stop(self) -> None:
        """Tell nothing more."""
        self._vm = None

    @property
    def hook(self) -> str:
        """The hooks that are being called."""
        return "/".join(self._hooks)

    def event(self, what: str, name: str) -> None:
        """Something happens."""
        vm = self._vm
        if vm is not None:
            now = time.perf_counter_ns() - self._start
            self.events.append(Event(what, name, self.hook, vm.lock.locked(), now))

    def point(self, what: str, kind: str, name: str, errnos: tuple[int, ...]) -> None:
        """Something happens that can fail."""
        self.event(what, name)
        if self._vm is None or not errnos:
            return
        self.points.append(Point(len(self.points), kind, name, self.hook, errnos))
        if self._fail is not None and len(self.points) - 1 == self._fail[0]:
            code = self._fail[1]
            raise Injected(code, f"the lab gives {errno.errorcode[code]} for {kind} {name}")

    @contextmanager
    def inside(self, hook: str) -> Iterator[None]:
        """Say that an architecture's hook is being called."""
        self.event(HOOK, hook)
        self._hooks.append(hook)
        try:
            yield
        finally:
            self._hooks.pop()

    def ladder(self, owner: str) -> Ladder:
        """Make a ladder whose steps are told."""
        return TracedLadder(self)

    def publish(self, what: str) -> None:
        """Pass a point of publication."""
        self.point(PUBLISH, "publish", what, PUBLISHES.get(what, ()))


def _traced(method: str, spec: Acquire) -> Callable[..., Any]:
    below: Callable[..., Any] = getattr(Services, method)

    def acquire(self: TracedServices, *args: Any) -> Any:
        self.point(ACQUIRE, spec.kind or args[0], args[spec.name], spec.errnos)
        return below(self, *args)

    acquire.__name__ = method
    acquire.__doc__ = below.__doc__
    return acquire


for _method, _spec in ACQUIRES.items():
    setattr(TracedServices, _method, _traced(_method, _spec))


def untraced(hooks: ArchHooks) -> Any:
    """The architecture's own class of hooks, which :func:`traced_hooks` has made one of that says more."""
    return type(hooks).__bases__[0]


def traced_hooks(hooks: ArchHooks, services: TracedServices) -> ArchHooks:
    """Make hooks of an architecture that say when they make and unmake a vCPU."""
    kind: Any = type(hooks)

    def vcpu_precreate(self: Any, vm: Vm, vcpu_id: int) -> None:
        with services.inside("precreate"):
            kind.vcpu_precreate(self, vm, vcpu_id)

    def on_vcpu(name: str) -> Callable[[Any, Vcpu], None]:
        def hook(self: Any, vcpu: Vcpu) -> None:
            if name == "create" and vcpu.notifier is not None:
                # It is there when create begins: common code's structure has it.
                services.event(STEP, "preempt notifier")
            with services.inside(name):
                getattr(kind, f"vcpu_{name}")(self, vcpu)

        return hook

    body: dict[str, Any] = {f"vcpu_{name}": on_vcpu(name) for name in ("create", "postcreate", "destroy")}
    made: ArchHooks = type(f"Traced{kind.__name__}", (kind,), body | {"vcpu_precreate": vcpu_precreate})()
    return made
