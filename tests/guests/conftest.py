# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from pathlib import Path

import pytest
from guests_fakes import FakeDebian


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache"
    monkeypatch.setenv("ANYKVM_CACHE", str(path))
    return path


@pytest.fixture
def debian(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDebian:
    """A fake archive whose programs are the only ones on PATH."""
    fake = FakeDebian(tmp_path / "debian")
    monkeypatch.setenv("PATH", str(fake.bin))
    monkeypatch.setenv("FAKE_HOME", str(fake.home))
    return fake
