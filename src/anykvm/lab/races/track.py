# SPDX-License-Identifier: GPL-2.0-only
"""What each step of a run reads and writes of what tasks share: two steps that share nothing can be swapped.

While :func:`tracking` is in force, the classes of ``virt/`` and ``arch/`` tell a :class:`Recorder` of each attribute
that is read or set, and lists, dicts and sets that are attributes tell of their changes. Objects are named by who made
them and in what order, so that a step means the same in every run. What is not seen that way (numbers of fds, the table
of fds, timers) is told by the services of this package.

What does not count: statistics; the clock, whose values no answer shows; the engine's machine, whose users either hold
``slots_lock`` or only make CPUs, which can be done in any order; a GIC's single interrupts, which are reached through
lists that count.
"""

from __future__ import annotations

import ctypes
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import cache
from types import FunctionType, MemberDescriptorType, ModuleType
from typing import Any, Final

import anykvm.arch
import anykvm.virt
from anykvm.arch import interface

Var = Hashable

_UNSEEN: Final = frozenset(
    {
        *("Stats", "VgicIrq", "Services", "FileTable", "SoftwareBackend", "TimerQueue", "Timer"),
        *("EngineMemory", "UserAccess", "_Supported"),
    }
)
"""Classes that are not watched: see above, and what the services tell themselves."""
_SHOWN: Final = {
    "Vm": frozenset({"online_vcpus", "created_vcpus", "max_vcpus", "vcpu_array"}),
    "Vcpu": frozenset({"vcpu_idx", "vcpu_id", "destroyed"}),
}
"""What the invariants look at: writes to these are never swapped, since the state between them is looked at."""
INVARIANTS: Final = "invariants"


class Footprint:
    """What a step reads and writes, the mutex it waited for and took, the one it took by trying, those it gave back."""

    __slots__ = ("acquired", "reads", "released", "tried", "writes")

    def __init__(self) -> None:
        self.reads: set[Var] = set()
        self.writes: set[Var] = set()
        self.acquired: Var | None = None
        self.tried: Var | None = None
        self.released: list[Var] = []

    def conflicts(self, other: Footprint) -> bool:
        """Whether the order of two steps can matter."""
        if self.acquired is not None and (self.acquired == other.acquired or self.acquired in other.released):
            return True
        if other.acquired is not None and other.acquired in self.released:
            return True
        return not (
            self.writes.isdisjoint(other.writes)
            and self.writes.isdisjoint(other.reads)
            and self.reads.isdisjoint(other.writes)
        )


class Recorder:
    """The footprints of a run's steps. ``step`` is the one in progress; None: nobody's, or not to be counted."""

    def __init__(self) -> None:
        self.steps: list[Footprint] = []
        self.step: Footprint | None = None
        self._owner = -1
        self._names: dict[int, tuple[int, int]] = {}
        self._alive: list[object] = []
        self._made: dict[int, int] = {}

    def begin(self, task: int) -> None:
        """A task makes the next step."""
        self._owner = task
        self.step = Footprint()
        self.steps.append(self.step)

    def end(self) -> None:
        """No task is running."""
        self.step = None
        self._owner = -1

    def name(self, thing: object) -> tuple[int, int]:
        """An object's name: who made it, and the how-manieth that was; so it is asked for first when it is made."""
        name = self._names.get(id(thing))
        if name is None:
            number = self._made.get(self._owner, 0)
            self._made[self._owner] = number + 1
            name = self._names[id(thing)] = (self._owner, number)
            # While it is in the table its address is not another's.
            self._alive.append(thing)
        return name

    def read(self, var: Var) -> None:
        """The step reads something."""
        if self.step is not None:
            self.step.reads.add(var)

    def write(self, var: Var) -> None:
        """The step writes something."""
        if self.step is not None:
            self.step.writes.add(var)

    def got(self, thing: object, attribute: str) -> None:
        """An attribute was read."""
        if self.step is not None:
            self.step.reads.add((self.name(thing), attribute))

    def set(self, thing: object, attribute: str) -> None:
        """An attribute was set, or what it is was changed."""
        name = self.name(thing)
        if self.step is not None:
            self.step.writes.add((name, attribute))
            if attribute in _SHOWN.get(type(thing).__name__, ()):
                self.step.writes.add(INVARIANTS)


_recorder: Recorder | None = None


def _telling(kind: type, changes: tuple[str, ...]) -> type:
    """Make a subclass of a container that tells when it is changed."""

    def telling(name: str) -> Callable[..., Any]:
        real = getattr(kind, name)

        def change(self: Any, *arguments: Any, **named: Any) -> Any:
            if _recorder is not None:
                _recorder.set(*self.place)
            return real(self, *arguments, **named)

        return change

    return type(f"Told{kind.__name__}", (kind,), {name: telling(name) for name in changes})


_TOLD: Final[dict[type, type]] = {
    list: _telling(
        list, ("append", "extend", "insert", "pop", "remove", "clear", "sort", "reverse", "__setitem__", "__delitem__")
    ),
    dict: _telling(dict, ("pop", "popitem", "clear", "update", "setdefault", "__setitem__", "__delitem__", "__ior__")),
    set: _telling(set, ("add", "remove", "discard", "pop", "clear", "update", "__ior__", "__iand__")),
}


def _plain(kind: type) -> frozenset[str]:
    """The names that are no state: functions, properties, constants of the class."""
    names: set[str] = {"__class__", "__dict__"}
    for base in kind.__mro__:
        for name, value in list(vars(base).items()):
            if not isinstance(value, MemberDescriptorType) and not (
                name in getattr(base, "__annotations__", {}) and not isinstance(value, FunctionType | property)
            ):
                names.add(name)
    return frozenset(names)


def _watch(kind: Any) -> tuple[Any, dict[str, Any]]:
    """Make a class tell; returns it and what it had before."""
    before = {name: vars(kind)[name] for name in ("__getattribute__", "__setattr__") if name in vars(kind)}
    plain = _plain(kind)
    get, put = kind.__getattribute__, kind.__setattr__

    def __getattribute__(self: Any, name: str) -> Any:
        value = get(self, name)
        if name not in plain:
            recorder = _recorder
            if recorder is not None and recorder.step is not None:
                recorder.got(self, name)
                if getattr(type(value), "__module__", "").startswith("anykvm.engine") and name != "machine":
                    recorder.set(self, name)
        return value

    def __setattr__(self: Any, name: str, value: Any) -> None:
        recorder = _recorder
        if recorder is not None:
            told = _TOLD.get(type(value))
            if told is not None:
                value = told(value)
                value.place = (self, name)
            recorder.set(self, name)
        put(self, name, value)

    kind.__getattribute__ = __getattribute__
    kind.__setattr__ = __setattr__
    return kind, before


@cache
def _classes() -> tuple[type, ...]:
    """Every class of ``virt/`` and ``arch/`` whose objects have state that tasks may share."""
    for package in (anykvm.virt, anykvm.arch, *(_import(f"anykvm.arch.{name}") for name in interface.packages())):
        for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
            _import(module.name)
    found: set[type] = set()
    for name, loaded in list(sys.modules.items()):
        if name.startswith(("anykvm.virt.", "anykvm.arch.")):
            found.update(kind for kind in vars(loaded).values() if inspect.isclass(kind) and _has_state(kind))
    # A class is patched for its subclasses too: only the topmost ones need it.
    return tuple(
        sorted(
            (kind for kind in found if not any(base in found for base in kind.__mro__[1:])),
            key=lambda kind: (kind.__module__, kind.__qualname__),
        )
    )


def _import(name: str) -> ModuleType:
    return importlib.import_module(name)


def _has_state(kind: type) -> bool:
    if not kind.__module__.startswith(("anykvm.virt.", "anykvm.arch.")) or kind.__name__ in _UNSEEN:
        return False
    if issubclass(kind, Enum | BaseException | tuple | ctypes.Array) or kind.__name__.endswith("Hooks"):
        return False
    frozen = getattr(getattr(kind, "__dataclass_params__", None), "frozen", False)
    return not frozen and not getattr(kind, "_is_protocol", False)


@contextmanager
def tracking() -> Iterator[Callable[[], Recorder]]:
    """Watch the core; gives a function that makes a recorder for the next run. For one thread of one process."""
    global _recorder  # noqa: PLW0603  (the patched classes know one place to ask)

    def fresh() -> Recorder:
        global _recorder  # noqa: PLW0603
        _recorder = Recorder()
        return _recorder

    watched = [_watch(kind) for kind in _classes()]
    try:
        yield fresh
    finally:
        _recorder = None
        for kind, before in reversed(watched):
            for name in ("__getattribute__", "__setattr__"):
                if name in before:
                    setattr(kind, name, before[name])
                else:
                    delattr(kind, name)
