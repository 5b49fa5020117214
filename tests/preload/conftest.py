# SPDX-License-Identifier: GPL-2.0-only
"""Programs in C, built once, and run under ``anykvm exec``."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from preload_run import EXEC, PROGRAMS, Run


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Compile a program of ``programs/``; each once."""
    if shutil.which("gcc") is None:
        pytest.skip("no gcc here")
    folder = tmp_path_factory.mktemp("programs")

    def make(name: str, *flags: str) -> Path:
        out = folder / "-".join([name, *flags]).replace("/", "_")
        if not out.exists():
            source = PROGRAMS / f"{name}.c"
            command = ["gcc", "-O1", "-Wall", "-Werror", "-o", str(out), str(source), "-pthread", *flags]
            subprocess.run(command, check=True, timeout=60)
        return out

    return make


@pytest.fixture
def run_exec() -> Run:
    """Run a program under exec: ``run_exec(program, *arguments, options=[...])``."""

    def run(program: Path | str, *arguments: str, options: list[str] | None = None, **more: object) -> object:
        command = [*EXEC, *(options or []), "--", str(program), *arguments]
        more.setdefault("timeout", 60)
        return subprocess.run(command, capture_output=True, text=True, **more)  # type: ignore[call-overload]

    if os.uname().machine != "x86_64":
        pytest.skip("the programs make x86 guests")
    return run  # type: ignore[return-value]
