# SPDX-License-Identifier: GPL-2.0-only
"""The recorded answers of real kernels, and the software backend's: the same, on machines without a /dev/kvm too.

`python tests/differential/record.py` records again (docs/differences.md).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from differential_compare import difference
from differential_player import Player, playing

FILES = sorted((Path(__file__).parent / "recorded").glob("x86*.json"))
RECORDED = {path.stem: json.loads(path.read_text()) for path in FILES}
CASES = [
    pytest.param(case, id=f"{name}: {case['name']}") for name, found in RECORDED.items() for case in found["cases"]
]


@pytest.fixture(scope="module")
def player() -> Iterator[Player]:
    pytest.importorskip("anykvm.engine", reason="the engine is not built")
    from anykvm.arch.software import backend

    with playing(backend("x86")) as player:
        yield player


def test_a_record_says_where_it_is_from() -> None:
    assert RECORDED
    for found in RECORDED.values():
        assert found["kernel"][0].isdigit()
        assert found["vendor"] and found["machine"] == "x86_64"
        assert found["virtualises"] or "pvm" in found["note"]


def test_enough_is_recorded() -> None:
    outcomes = {str(one) for found in RECORDED.values() for case in found["cases"] for one in case["outcomes"]}
    assert len(CASES) >= 150
    assert {"EINVAL", "EEXIST", "EFAULT", "ENXIO", "ENOTTY", "EBUSY", "EMFILE", "E2BIG", "EBADF"} <= outcomes


@pytest.mark.parametrize("case", CASES)
def test_as_the_kernel_answered(player: Player, case: dict[str, Any]) -> None:
    found = difference(case["sequence"], case["outcomes"], player.play(case["sequence"]))
    assert found is None, found
