# SPDX-License-Identifier: GPL-2.0-only
"""The journal of a long run: what is finished, so that an interrupted run goes on where it stopped.

A file of JSON lines. The first says which work by which code it is for; each other one is an item's hash and its
result. Lines are only ever added. A last line that was cut short (the machine stopped, the disk was full) is dropped.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

from .errors import LabError

_KIND: Final = "anykvm lab journal 1"


class Journal:
    """An open journal; LabError if it is another run's, is in use, or cannot be written."""

    def __init__(self, path: Path, work: str, code: str) -> None:
        self.path = path
        self.results: dict[str, str] = {}
        header = {"kind": _KIND, "work": work, "code": code}
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise LabError(f"journal {path}: {error.strerror}") from None
        try:
            self._lock()
            self._read(header)
        except BaseException:
            os.close(self._fd)
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LabError(f"journal {self.path} is in use by another run: wait for it, or name another") from None

    def _read(self, header: dict[str, str]) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        lines = [self._parse(line) for line in data[:whole].split(b"\n")[:-1]]
        if not lines:
            if data and not json.dumps(header).encode().startswith(data[:20]):
                raise LabError(f"{self.path} is not a journal of the lab: name another file")
            os.ftruncate(self._fd, 0)
            self._append(header)
            return
        first = lines[0]
        if first.get("kind") != _KIND:
            raise LabError(f"{self.path} is not a journal of the lab: name another file")
        if first != header:
            what = "another kind of run" if first.get("work") != header["work"] else "another version of the code"
            raise LabError(f"journal {self.path} is of {what}: remove it to start afresh")
        os.ftruncate(self._fd, whole)
        self.results = {line["item"]: line["result"] for line in lines[1:]}

    def _parse(self, line: bytes) -> dict[str, Any]:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise LabError(f"{self.path} is not a journal of the lab: name another file")
        return found

    def add(self, key: str, result: str) -> None:
        """Add a finished item; LabError if the disk is full."""
        self.results[key] = result
        self._append({"item": key, "result": result})

    def _append(self, line: dict[str, Any]) -> None:
        data = json.dumps(line).encode() + b"\n"
        end = os.fstat(self._fd).st_size
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            os.ftruncate(self._fd, end)
            hint = "; make room and run it again, it goes on from here" if error.errno == errno.ENOSPC else ""
            raise LabError(f"journal {self.path}: {error.strerror}{hint}") from None

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)


def keys(items: Iterable[str]) -> list[str]:
    """Give each item its key in a journal: its hash, and which of several equal ones it is."""
    seen: Counter[str] = Counter()
    found = []
    for item in items:
        digest = hashlib.sha256(item.encode()).hexdigest()[:20]
        seen[digest] += 1
        found.append(digest if seen[digest] == 1 else f"{digest}.{seen[digest]}")
    return found
