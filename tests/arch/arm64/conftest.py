# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from collections.abc import Iterator

import arm64_fake
import pytest


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[arm64_fake.Rig]:
    yield from arm64_fake.rigs(monkeypatch)
