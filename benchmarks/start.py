# SPDX-License-Identifier: GPL-2.0-only
"""From the start of the command to the guest's first instruction, everything fetched and built before.

anykvm says it itself (``anykvm hackbench --json``), from the start of the process as the kernel noted it, to 10 ms.
QEMU does not say it, so there is no peer.
"""

from __future__ import annotations

import json
from typing import Final

from . import quiet
from .context import Benchmark, Context
from .measure import OURS, Row, Target
from .vmms import BenchmarkError, anykvm_command, run

_NAME: Final = "command to the guest's first instruction"


def _run(context: Context) -> list[Row]:
    context.load("hackbench")  # makes the guest's files, outside the measured time
    command = [
        *anykvm_command(),
        "hackbench",
        context.arch,
        "--backend",
        "software",
        "--smp",
        "1",
        "--args=-g1 -l1 -P",
        "--json",
    ]
    samples = []
    for _ in range(context.repetitions):
        quiet.wait()
        samples.append(_first_instruction(run(command).output))
        context.say(f"start: {OURS}: {samples[-1]:.3f}")
    return [Row(_NAME, "s", samples, target=Target("value", 0.3))]


def _first_instruction(output: str) -> float:
    """Out of the report, before which there are lines of news."""
    begin = output.find("\n{")
    try:
        seconds = json.loads(output[begin + 1 :])["boot"]["first_instruction_seconds"]
    except (ValueError, KeyError) as error:
        raise BenchmarkError(f"anykvm hackbench --json printed no report: {error}") from None
    if not isinstance(seconds, float):
        raise BenchmarkError("the guest never ran an instruction")
    return seconds


BENCHMARK: Final = Benchmark("start", "from command to the guest's first instruction, warm cache", _run)
