# SPDX-License-Identifier: GPL-2.0-only
"""How many examples: `pytest --differential N`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--differential", type=int, metavar="N", help="generate so many sequences for the two backends")
