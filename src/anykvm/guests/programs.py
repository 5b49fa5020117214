# SPDX-License-Identifier: GPL-2.0-only
"""Runs apt's programs: their lines as they come, an end when they hang, and none of them left behind."""

from __future__ import annotations

import os
import selectors
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from .errors import GuestError

_GRACE = 3.0
_SILENCE = 600.0
"""Seconds. apt gives up a dead connection long before."""


@dataclass(frozen=True)
class Done:
    """How a program ended and what it said."""

    status: int
    output: str
    errors: str


def run(
    command: list[str],
    *,
    cwd: Path | None = None,
    line: Callable[[str], bool] | None = None,
    full: Callable[[], bool] = lambda: False,
) -> Done:
    """Runs `command` to its end. `line` sees each line of output first and returns True to keep it out of the result.

    apt-get hangs for good when a file system is full at the wrong moment: a program that says nothing new for some
    seconds while `full` says so is ended. An exception in here, Ctrl-C above all, ends the program before it goes on.
    """
    program = command[0]
    where = shutil.which(program)
    if where is None:
        package = "dpkg" if program.startswith("dpkg") else "apt"
        raise GuestError(
            f"{program} is not on PATH: guests come through Debian's {package}; "
            "install it, or boot your own --kernel and --initrd"
        )
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    pipe = subprocess.PIPE
    try:
        process = subprocess.Popen(
            command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe
        )
    except OSError as error:
        raise GuestError(f"{program} cannot be started ({error.strerror}): check {where}") from error
    with process:
        try:
            return _follow(program, process, line or (lambda _: False), full)
        except BaseException:
            # apt removes its own locks and ends its helpers when it is asked to end.
            process.terminate()
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
            raise


def _follow(
    program: str, process: subprocess.Popen[bytes], line: Callable[[str], bool], full: Callable[[], bool]
) -> Done:
    assert process.stdout is not None and process.stderr is not None
    texts: dict[IO[bytes], list[str]] = {process.stdout: [], process.stderr: []}
    rests: dict[IO[bytes], bytes] = {process.stdout: b"", process.stderr: b""}
    heard, last = time.monotonic(), ""
    with selectors.DefaultSelector() as selector:
        for stream in texts:
            selector.register(stream, selectors.EVENT_READ, stream)
        while selector.get_map():
            ready = selector.select(1.0)
            now = time.monotonic()
            # apt repeats the line of its progress twice a second, whether there is any or not: only other lines count.
            if now - heard > _GRACE and full():
                process.terminate()
                process.wait()
                break
            elif now - heard > _SILENCE:
                raise GuestError(f"{program} hangs: look at the network, and run this again")
            for key, _ in ready:
                stream = key.data
                data = os.read(stream.fileno(), 1 << 16)
                if not data:
                    selector.unregister(stream)
                *lines, rests[stream] = (rests[stream] + data).split(b"\n")
                if not data and rests[stream]:
                    lines, rests[stream] = [rests[stream]], b""
                for raw in lines:
                    text = raw.decode(errors="replace")
                    if text != last:
                        last, heard = text, now
                    if not line(text):
                        texts[stream].append(text + "\n")
    return Done(process.wait(), "".join(texts[process.stdout]), "".join(texts[process.stderr]))
