# SPDX-License-Identifier: GPL-2.0-only
"""A worker process: the name of the work on its first line of standard input, then an item a line; a result a line.

Run as ``python -m anykvm.lab.worker`` by :mod:`anykvm.lab.workers`. It ends when its standard input ends, which is what
happens when the process that started it has gone, however it went.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from typing import Any, Final, TextIO

from .call import call, find
from .errors import LabError

_GRACE: Final = 1.0
"""Seconds that an item in progress has to finish when nobody waits for it any more."""


def _read(lines: TextIO, inbox: queue.SimpleQueue[str | None]) -> None:
    for line in lines:
        inbox.put(line)
    inbox.put(None)
    time.sleep(_GRACE)
    os._exit(1)


def _reply(out: int, answer: dict[str, Any]) -> None:
    data = json.dumps(answer).encode() + b"\n"
    while data:
        data = data[os.write(out, data) :]


def main() -> None:
    """Work until there is no more."""
    # What the work prints must not be taken for a result.
    out = os.dup(1)
    os.dup2(2, 1)
    inbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin, inbox), daemon=True).start()
    name = (inbox.get() or "").strip()
    try:
        find(name)
        while (item := inbox.get()) is not None:
            _reply(out, {"result": call(name, item.rstrip("\n"))})
    except LabError as error:
        _reply(out, {"error": str(error), "detail": error.detail})
    except BrokenPipeError:
        pass


if __name__ == "__main__":
    main()
