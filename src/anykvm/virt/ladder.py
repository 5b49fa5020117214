# SPDX-License-Identifier: GPL-2.0-only
"""The ladder: how something is built, unwound when building fails, and destroyed.

A ladder is a list of named steps, each with its undo. A failure takes the steps back in reverse; destroying is the
same list run backwards. There is no second list to keep in step with the first, so teardown mirrors creation by
construction.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


class _Step:
    __slots__ = ("args", "name", "shows", "undo")

    def __init__(
        self, name: str, undo: Callable[..., object] | None, args: tuple[Any, ...], shows: Ladder | None = None
    ) -> None:
        self.name = name
        self.undo = undo
        self.args = args
        self.shows = shows


class Ladder:
    """Named steps with their undo.

    As a context manager it takes every step back if its body raises; otherwise it leaves them, for :meth:`unwind` to
    take back when the thing built is destroyed. An undo cannot fail: one that raises is a bug, the others still run,
    and the first exception comes out at the end.
    """

    __slots__ = ("_steps",)

    def __init__(self) -> None:
        self._steps: list[_Step] = []

    @property
    def steps(self) -> list[str]:
        """The names of what is built now, oldest first; those of a ladder that a step shows too: ``arch: vgic``."""
        names: list[str] = []
        for step in self._steps:
            if step.shows is None or not step.shows:
                names.append(step.name)
            else:
                names.extend(f"{step.name}: {name}" for name in step.shows.steps)
        return names

    def __len__(self) -> int:
        return len(self._steps)

    def step(self, name: str, do: Callable[..., T], undo: Callable[..., object] | None, *args: Any) -> T:
        """Call ``do(*args)``; if it returns, remember that ``undo(*args)`` takes it back."""
        result = do(*args)
        self._steps.append(_Step(name, undo, args))
        return result

    def acquire(self, name: str, do: Callable[..., T], undo: Callable[[T], object], *args: Any) -> T:
        """Call ``do(*args)``; if it returns, remember that ``undo`` of what it returned takes it back."""
        result = do(*args)
        self._steps.append(_Step(name, undo, (result,)))
        return result

    def push(self, name: str, undo: Callable[..., object] | None, *args: Any, shows: Ladder | None = None) -> None:
        """Add a step that is done already. ``shows`` is the ladder of whoever did it, which its undo unwinds."""
        self._steps.append(_Step(name, undo, args, shows))

    def drop(self, name: str) -> None:
        """Forget a step that something else took back (closing an fd); ValueError if it is not there."""
        for index in range(len(self._steps) - 1, -1, -1):
            if self._steps[index].name == name:
                del self._steps[index]
                return
        raise ValueError(f"no step {name!r} on this ladder: {', '.join(self.steps)}")

    def unwind(self, depth: int = 0) -> None:
        """Take steps back, newest first, until ``depth`` of them are left."""
        first: BaseException | None = None
        while len(self._steps) > depth:
            step = self._steps.pop()
            if step.undo is not None:
                try:
                    step.undo(*step.args)
                except BaseException as failure:
                    first = first or failure
        if first is not None:
            raise first

    def guard(self) -> Guard:
        """Take the steps of the body back if it raises: for steps whose undo needs a lock that the body holds."""
        return Guard(self)

    def __enter__(self) -> Ladder:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            self.unwind()


class Guard:
    """What :meth:`Ladder.guard` gives."""

    __slots__ = ("_depth", "_ladder")

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        self._depth = len(ladder)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if kind is not None:
            self._ladder.unwind(self._depth)


class BuildStep(NamedTuple):
    """One of the steps that an architecture's ladder is built by, each of them for itself."""

    name: str
    build: Callable[[Any, Ladder], None]
    """Builds it for ``vcpu.arch`` and leaves what takes it back on the ladder, as one rung or a few."""
