# SPDX-License-Identifier: GPL-2.0-only
"""Work on the cores of this machine, in processes of our own.

Plain processes and pipes instead of concurrent.futures: the work may be native code that takes its process down, and
then we know which item it was; nothing of the calling program is imported again in the child; and a child cannot
outlive its parent, since its standard input ends with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final

from .call import shortened
from .errors import LabError

_EAGER: Final = 4
"""With more items than this per worker left, a worker has its next item before it asks: no pause between two."""
_PATIENCE: Final = 5.0
"""Seconds that a worker with nothing to do has to end."""


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


class Worker:
    """One process and the items it has, oldest first."""

    def __init__(self, name: str) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        # Out of our process group: Ctrl-C is for us, and we end the workers.
        self.process = subprocess.Popen(
            [sys.executable, "-m", "anykvm.lab.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            process_group=0,
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin.fileno(), self.process.stdout.fileno()
        self.has: deque[tuple[int, str]] = deque()
        self._partial = b""
        self._write(name)

    def _write(self, line: str) -> None:
        data = line.encode() + b"\n"
        # A worker that has died is found where its output ends.
        with contextlib.suppress(BrokenPipeError):
            while data:
                data = data[os.write(self.stdin, data) :]

    def give(self, index: int, item: str) -> None:
        """Send an item."""
        self.has.append((index, item))
        self._write(item)

    def take(self) -> Iterator[tuple[int, str]]:
        """Read what has come; LabError if the work raised, or the worker died."""
        data = os.read(self.stdout, 1 << 16)
        if not data:
            raise LabError(self._obituary())
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            if "error" in answer:
                raise LabError(answer["error"], answer["detail"])
            index, _ = self.has.popleft()
            yield index, answer["result"]

    def do(self, index: int, item: str) -> str:
        """Have one item done, and wait for its result; LabError, after which the worker can only be ended."""
        self.give(index, item)
        while True:
            for _, result in self.take():
                return result

    def _obituary(self) -> str:
        status = self.process.wait()
        how = f"ended with status {status}"
        if status < 0:
            with contextlib.suppress(ValueError):
                how = f"was killed by {signal.Signals(-status).name}"
        what = f"on item {self.has[0][0]}, {shortened(self.has[0][1])}" if self.has else "before its first item"
        return f"a worker {how} {what}"

    def end(self, *, now: bool) -> None:
        """End the process; ``now`` even if it works."""
        if now:
            self.process.kill()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process.stdout.close()


def run(name: str, items: Sequence[tuple[int, str]], processes: int) -> Iterator[tuple[int, str]]:
    """Do the work on every item; yields (index, result) as they come."""
    waiting = deque(items)
    count = min(processes, len(items))
    workers: list[Worker] = []
    now = True
    try:
        with selectors.DefaultSelector() as selector:
            for _ in range(count):
                worker = Worker(name)
                workers.append(worker)
                selector.register(worker.stdout, selectors.EVENT_READ, worker)
                worker.give(*waiting.popleft())
            left = len(items)
            while left:
                for key, _ in selector.select():
                    worker = key.data
                    for found in worker.take():
                        left -= 1
                        yield found
                    depth = 2 if len(waiting) > _EAGER * count else 1
                    while waiting and len(worker.has) < depth:
                        worker.give(*waiting.popleft())
        now = False
    finally:
        for worker in workers:
            worker.end(now=now)
