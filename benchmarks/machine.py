# SPDX-License-Identifier: GPL-2.0-only
"""What it was measured on, and with what: without that, numbers say nothing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .context import Context


def describe(context: Context) -> dict[str, Any]:
    """The machine and the versions, for the result file and the table's foot."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "host": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load_average": list(os.getloadavg()),
        "python": platform.python_version(),
        "anykvm": _version("anykvm"),
        "unicorn": _version("unicorn"),
        "qemu": None if context.qemu is None else context.qemu.version(),
        "guest": context.guest.release,
        "guest_words": context.words,
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "CPU part"):
                return value.strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed as a package"
