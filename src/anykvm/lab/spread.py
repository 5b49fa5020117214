# SPDX-License-Identifier: GPL-2.0-only
"""Spreads work over processes and machines: the same results wherever it runs, and an interrupted run goes on.

>>> [done.result for done in spread("math:factorial", [3, 5, 4], processes=0)]
[6, 120, 24]
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import call, remote, workers
from .errors import LabError
from .journal import Journal, keys


@dataclass(frozen=True, slots=True)
class Done:
    """A finished item: its place in the list, the item, what the work made of it. Both are as JSON has them."""

    index: int
    item: Any
    result: Any


def spread(
    work: Callable[..., Any] | str,
    items: Iterable[Any],
    *,
    processes: int | None = None,
    scheduler: str | None = None,
    resume: str | os.PathLike[str] | None = None,
    progress: str | None = None,
) -> Generator[Done, None, None]:
    """Call ``work`` on every item, and yield what came out in the order of the items.

    ``work`` is a function at the top level of a module, or its name, ``"module:function"``; it takes one item and
    returns a result, both JSON. It must not depend on what its process did before.

    ``processes`` is how many processes of this machine work (as many as there are cores; 0: this process itself).
    ``scheduler`` is the address of a Dask scheduler (``tcp://host:8786``) whose workers work instead; they need this
    version of anykvm. ``resume`` is a journal: what it has is not done again, what is finished is added to it.
    ``progress`` is the label of a progress bar on standard error, which is shown on a terminal only.

    LabError, one line, when the work raises, a worker dies, the journal is another run's or the disk is full. Workers
    end when the iterator is closed, by Ctrl-C, or with this process, whatever ends it.
    """
    name = call.name_of(work)
    texts = [call.to_json(item) for item in items]
    if processes is not None and processes < 0:
        raise LabError(f"{processes} processes cannot work: give 1 or more, or 0 for none but this one")
    if scheduler is None:
        call.find(name)
    return _spread(name, texts, processes=processes, scheduler=scheduler, resume=resume, progress=progress)


def _spread(
    name: str,
    texts: Sequence[str],
    *,
    processes: int | None,
    scheduler: str | None,
    resume: str | os.PathLike[str] | None,
    progress: str | None,
) -> Generator[Done, None, None]:
    with ExitStack() as stack:
        results: dict[int, str] = {}
        journal: Journal | None = None
        names: list[str] = []
        if resume is not None:
            journal = Journal(Path(resume), name, call.fingerprint(name))
            stack.callback(journal.close)
            names = keys(texts)
            results = {index: journal.results[key] for index, key in enumerate(names) if key in journal.results}
        left = [(index, text) for index, text in enumerate(texts) if index not in results]
        advance = stack.enter_context(_bar(progress, len(texts), len(results)))
        made = _made(name, left, processes, scheduler)
        stack.callback(made.close)
        for index, text in enumerate(texts):
            while index not in results:
                found, result = next(made)
                results[found] = result
                if journal is not None:
                    journal.add(names[found], result)
                advance()
            yield Done(index, json.loads(text), json.loads(results.pop(index)))


def _made(
    name: str, items: Sequence[tuple[int, str]], processes: int | None, scheduler: str | None
) -> Generator[tuple[int, str], None, None]:
    if scheduler is not None:
        yield from remote.run(name, items, scheduler)
    elif processes == 0:
        for index, item in items:
            yield index, call.call(name, item)
    else:
        yield from workers.run(name, items, processes or workers.cores())


@contextmanager
def _bar(label: str | None, total: int, done: int) -> Generator[Callable[[], object], None, None]:
    """A progress bar on a terminal; nothing elsewhere."""
    if label is None or sys.stderr is None or not sys.stderr.isatty():
        yield lambda: None
        return
    from rich import progress  # noqa: PLC0415  (slow to import, and seldom needed)
    from rich.console import Console  # noqa: PLC0415

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        bar = shown.add_task(label, total=total, completed=done)
        yield lambda: shown.advance(bar)
