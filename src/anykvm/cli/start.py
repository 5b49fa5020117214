# SPDX-License-Identifier: GPL-2.0-only
"""The ``anykvm`` script: Ctrl-C ends it without a traceback, also while the command's modules are being imported."""

from __future__ import annotations

import signal
import sys


def main() -> None:
    """Run the command and exit with its status."""
    # Ignored by the parent, as for a job in the background, it stays ignored.
    wanted = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if wanted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from .main import run  # noqa: PLC0415  (what the lines above are for)

    if wanted:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.exit(run())
