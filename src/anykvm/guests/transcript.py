# SPDX-License-Identifier: GPL-2.0-only
"""Reads what the init script prints (``init`` has the protocol) out of all that is on a guest's console."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NUMBER = r"(\d+\.\d+)"
# Kernel messages may precede a marker on its line when both were written at once.
_READY = re.compile(rf"anykvm-ready (\S+) {_NUMBER}\s*$")
_BEGIN = re.compile(rf"anykvm-begin (\S+) {_NUMBER}\s*$")
_END = re.compile(rf"anykvm-end (\S+) (\d+) {_NUMBER}\s*$")
_ERROR = re.compile(r"anykvm-error (.*?)\s*$")
_OFF = re.compile(rf"anykvm-poweroff {_NUMBER}\s*$")
_TIME = re.compile(r"^Time: (\d+(?:\.\d+)?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Result:
    """One program that ran in a guest."""

    name: str
    status: int | None
    """Its exit status; ``None`` if the guest ended before the program did."""
    output: str
    """What it printed, with LF as line end."""
    began: float
    """Guest uptime in seconds."""
    ended: float | None
    """Guest uptime in seconds; ``None`` like the status."""

    @property
    def seconds(self) -> float | None:
        """The time hackbench measured ("Time: 0.123"), in seconds; ``None`` if the output has none."""
        found = _TIME.search(self.output)
        return float(found[1]) if found else None


@dataclass(frozen=True)
class Transcript:
    """What a guest's console says of its life."""

    mode: str | None
    """What init was asked to do; ``None`` if user space was not reached."""
    ready: float | None
    """Guest uptime in seconds when init was ready."""
    results: tuple[Result, ...]
    errors: tuple[str, ...]
    """Complaints of init."""
    poweroff: float | None
    """Guest uptime in seconds when it powered off; ``None`` if it did not come to that."""


def read_transcript(text: str) -> Transcript:
    """Everything init said in `text`, which may have CR LF, kernel messages and an unfinished end."""
    mode: str | None = None
    ready = poweroff = None
    results: list[Result] = []
    errors: list[str] = []
    running: tuple[str, float] | None = None
    output: list[str] = []

    def close(status: int | None, ended: float | None) -> None:
        nonlocal running
        if running is not None:
            body = "".join(f"{line}\n" for line in output)
            results.append(Result(running[0], status, body, running[1], ended))
        running = None
        output.clear()

    for raw in text.replace("\r", "").split("\n"):
        if found := _BEGIN.search(raw):
            close(None, None)
            running = (found[1], float(found[2]))
        elif (found := _END.search(raw)) and running is not None and found[1] == running[0]:
            # A program whose output does not end in a line end has its last words before the marker.
            if found.start():
                output.append(raw[: found.start()])
            close(int(found[2]), float(found[3]))
        elif running is not None:
            output.append(raw)
        elif found := _READY.search(raw):
            mode, ready = found[1], float(found[2])
        elif found := _ERROR.search(raw):
            errors.append(found[1])
        elif found := _OFF.search(raw):
            poweroff = float(found[1])
    if running is not None and output and not output[-1]:
        output.pop()
    close(None, None)
    return Transcript(mode, ready, tuple(results), tuple(errors), poweroff)


def parse_transcript(text: str) -> list[Result]:
    """The programs that ran in the guest whose console printed `text`, in order."""
    return list(read_transcript(text).results)
