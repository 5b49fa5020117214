# SPDX-License-Identifier: GPL-2.0-only
"""The first open of /dev/kvm waits for what the software backend imports: slow modules stay out of that."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from anykvm.preload import launch

SLOW = {
    "argparse",
    "asyncio",
    "click",
    "concurrent.futures",
    "dataclasses",
    "email",
    "importlib.metadata",
    "inspect",
    "json",
    "logging",
    "multiprocessing",
    "pathlib",
    "random",
    "rich",
    "shutil",
    "socket",
    "subprocess",
    "tempfile",
    "tokenize",
    "traceback",
    "unittest",
    "urllib.parse",
}
PROGRAM = """
import sys
sys.path[:] = {path}
from anykvm.arch import software
from anykvm.preload import client
from anykvm.preload.services import ClientServices
services = ClientServices(lambda fd, on: None, lambda: None)
fd = software.backend({arch!r}, services).open()
loaded = sorted(sys.modules)
import json
print(json.dumps(loaded))
"""


@pytest.mark.parametrize("arch", ["x86", "arm64"])
def test_the_first_open_imports_nothing_slow(arch: str) -> None:
    """As the preload library starts Python: without site, with the paths that exec hands over."""
    path = launch.environment({}, os.environ)["ANYKVM_EXEC_PATH"].split(":")
    command = [sys.executable, "-I", "-S", "-c", PROGRAM.format(path=path, arch=arch)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "anykvm.virt.system" in loaded
    assert loaded & SLOW == set()
    assert not any(name.startswith(("anykvm.api", "anykvm.cli", "anykvm.lab", "anykvm.testing")) for name in loaded)
