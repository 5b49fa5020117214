# SPDX-License-Identifier: GPL-2.0-only
"""What the tests of the preload library share."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

PROGRAMS = Path(__file__).parent / "programs"

Build = Callable[..., Path]
Run = Callable[..., "subprocess.CompletedProcess[str]"]

EXEC = [sys.executable, "-c", "from anykvm.cli.start import main; main()", "exec", "--arch", "x86"]
