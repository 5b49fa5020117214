# SPDX-License-Identifier: GPL-2.0-only
"""Random ioctls under exec, from several threads while vCPUs run: no crash, no hang, nothing left.

A long run by hand: ``ANYKVM_FUZZ_ROUNDS=100 pytest tests/preload/test_preload_fuzz.py`` makes a million calls.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from preload_run import Build, Run

from anykvm.preload.trace import request_names

ROUNDS = int(os.environ.get("ANYKVM_FUZZ_ROUNDS", "4"))
LONG = ROUNDS > 10


@pytest.mark.timeout(3600 if LONG else 120)
@pytest.mark.parametrize("seed", [1, 2])
def test_random_ioctls_from_several_threads(build: Build, run_exec: Run, tmp_path: Path, seed: int) -> None:
    requests = tmp_path / "requests"
    requests.write_text("".join(f"{number}\n" for number in sorted(request_names("x86"))))
    calls = "1700" if LONG else "700"
    done = run_exec(build("fuzz"), str(seed), str(ROUNDS), calls, "3", str(requests), timeout=3000 if LONG else 100)
    assert (done.returncode, done.stderr) == (0, "")
    answered, refused, more = map(int, re.findall(r"-?\d+", done.stdout))
    assert answered > 500 and refused > 500
    assert more < 32 << 10, "KiB of memory left from round to round"
