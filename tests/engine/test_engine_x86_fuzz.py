# SPDX-License-Identifier: GPL-2.0-only
"""Guests that make no sense do not harm the host process; ``python x86_fuzz.py FIRST COUNT`` is the long version."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize("first", [0, 1000, 2000])
def test_any_guest_ends_in_an_event_or_a_kick(first):
    program = Path(__file__).with_name("x86_fuzz.py")
    command = [sys.executable, "-X", "faulthandler", str(program), str(first), "40"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, (done.stdout[-200:], done.stderr[-2000:])
    lines = done.stdout.splitlines()
    assert lines[-2] == str(first + 39)
    for kind in ("WFI", "SHUTDOWN", "FETCH", "MMIO_READ", "PIO_WRITE"):
        assert f"'{kind}'" in lines[-1]
