# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_arch import Machine


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A backend; whatever the test left open is closed, and then nothing may be held."""
    machine = Machine()
    yield machine
    machine.arch.refuse.clear()
    machine.services.disarm()
    machine.backend.close_all()
    assert machine.ledger() == {}
    machine.services.close()
