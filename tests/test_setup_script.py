# SPDX-License-Identifier: GPL-2.0-only
"""scripts/setup-venv.sh where something is in its way: the last line says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A Python that makes a venv of nothing but itself, and fails at what $FAIL names.
_PYTHON = f"""#!/bin/sh
case "$*" in
*"$FAIL"*) echo "details of it" >&2; exit 1 ;;
"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;;
"-m pip"*) exit 0 ;;
*) exec '{sys.executable}' "$@" ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "a clone"
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    for name in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    (folder / "src").mkdir()
    # The machine's own compiler and headers are not what is tested here.
    (folder / "scripts/check-host.sh").write_text("exit 0\n")
    python = tmp_path / "python"
    python.write_text(_PYTHON)
    python.chmod(0o755)
    return folder


def setup(folder: Path, fail: str = "nothing at all", extra: str = "test") -> tuple[int, list[str]]:
    done = subprocess.run(
        ["sh", str(folder / "scripts/setup-venv.sh"), extra],
        env={**os.environ, "PYTHON": str(folder.parent / "python"), "FAIL": fail},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr.splitlines()


def test_it_does_again_only_what_has_changed(folder: Path) -> None:
    status, lines = setup(folder)
    assert (status, len(lines)) == (0, 2)
    assert setup(folder) == (0, [])
    (folder / "src/new.py").touch()
    assert setup(folder)[1] == ["anykvm: building and installing (the first time takes a minute)"]


@pytest.mark.parametrize(
    ("fail", "what"),
    [
        ("-m venv", "making .venv"),
        ("pip install --disable-pip-version-check .", "installing anykvm"),
        ("-r .venv/requirements.txt", "installing what the tests need"),
    ],
)
def test_what_fails_is_named_with_what_to_look_at_and_done_again(folder: Path, fail: str, what: str) -> None:
    status, lines = setup(folder, fail)
    assert status == 1
    assert lines[-2] == "details of it"
    assert lines[-1].startswith(f"anykvm: {what} failed, as said above: is there space here ({folder})")
    assert setup(folder)[0] == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
@pytest.mark.parametrize("closed", [".", ".venv"])
def test_someone_elses_folder_is_one_line(folder: Path, closed: str) -> None:
    (folder / ".venv").mkdir()
    (folder / closed).chmod(0o555)
    try:
        status, lines = setup(folder)
    finally:
        (folder / closed).chmod(0o755)
    assert status == 1
    (line,) = lines
    assert line.endswith("make a clone of your own")
