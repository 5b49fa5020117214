# SPDX-License-Identifier: GPL-2.0-only
"""Work on other machines, through Dask's distributed scheduler (the extra ``distributed``)."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any, Final

from .call import fingerprint
from .errors import LabError
from .workers import Worker

_CONNECT: Final = 10
"""Seconds in which a scheduler answers."""
_WORKERS: Final = 30
"""Seconds without any worker after which the run is given up."""
_AHEAD: Final = 4
"""Items on their way per thread of the cluster: enough to hide the network, not so many that the scheduler fills."""

_GONE: Final = "the scheduler at {} has gone: start it again, and this run with the same --resume"

_own = threading.local()
"""What a thread of a cluster's worker has: ``worker``, its process, and ``name``, what that works at."""


def task(name: str, index: int, item: str, code: str) -> str:
    """What a worker of the cluster does; LabError if its anykvm is another.

    Each thread has the work done in a process of its own: the lab counts the descriptors of its process, which has to
    be its alone, and Dask's has threads that open some. An item that takes its process down does not take Dask's.
    """
    if fingerprint(name) != code:
        raise LabError(f"a worker has another version of anykvm, or of {name}: install this one on every worker")
    worker: Worker | None = getattr(_own, "worker", None)
    if worker is None or _own.name != name:
        if worker is not None:
            worker.end(now=True)
        _own.worker = worker = Worker(name)
        _own.name = name
    try:
        return worker.do(index, item)
    except BaseException:
        _own.worker = None
        worker.end(now=True)
        raise


def run(name: str, items: Sequence[tuple[int, str]], scheduler: str) -> Iterator[tuple[int, str]]:
    """Do the work on every item; yields (index, result) as they come."""
    try:
        import distributed  # noqa: PLC0415  (an extra, and slow to import)
    except ImportError:
        raise LabError("--scheduler needs Dask: pip install 'anykvm[distributed]'") from None
    with _quiet():
        make_client: Any = distributed.Client
        try:
            client = make_client(scheduler, timeout=_CONNECT, set_as_default=False)
        except (OSError, ValueError) as error:
            raise LabError(f"no scheduler answers at {scheduler}: start dask scheduler there ({error})") from None
        try:
            yield from _submit(client, name, items, scheduler)
        finally:
            with contextlib.suppress(OSError, TimeoutError):
                client.close(timeout=5)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What goes wrong is told in one line, by us. Dask sets a level for several of its loggers each."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == "distributed"]
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _submit(client: Any, name: str, items: Sequence[tuple[int, str]], scheduler: str) -> Iterator[tuple[int, str]]:
    code = fingerprint(name)
    _await_workers(client, scheduler)
    waiting = deque(items)
    # Threads may join and leave; how far to run ahead need not be exact.
    ahead = _AHEAD * max(1, sum(client.ncores().values()))
    done: queue.SimpleQueue[Any] = queue.SimpleQueue()
    running: dict[Any, int] = {}
    while waiting or running:
        while waiting and len(running) < ahead:
            index, item = waiting.popleft()
            future = client.submit(task, name, index, item, code, pure=False)
            running[future] = index
            future.add_done_callback(done.put)
        try:
            future = done.get(timeout=5)
        except queue.Empty:
            _await_workers(client, scheduler)
            continue
        index = running.pop(future)
        yield index, _result(future, index, scheduler)


def _await_workers(client: Any, scheduler: str) -> None:
    if client.status != "running":
        raise LabError(_GONE.format(scheduler))
    try:
        client.wait_for_workers(1, timeout=_WORKERS)
    except (OSError, TimeoutError):
        raise LabError(f"the scheduler at {scheduler} has no workers: start dask worker {scheduler}") from None


def _result(future: Any, index: int, scheduler: str) -> str:
    error = None
    # OSError: the connection broke while the result was fetched.
    with contextlib.suppress(OSError, TimeoutError, CancelledError):
        if future.status == "finished":
            return str(future.result())
        error = future.exception() if future.status == "error" else None
    if isinstance(error, LabError):
        raise error
    if error is not None:
        raise LabError(f"item {index} failed on the cluster: {type(error).__name__}: {' '.join(str(error).split())}")
    raise LabError(_GONE.format(scheduler))
