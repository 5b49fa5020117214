# SPDX-License-Identifier: GPL-2.0-only
"""Generated sequences of requests on the machine's own /dev/kvm and here: the same outcomes.

A failure is shrunk by Hypothesis and printed as data; `Player(backend).play(sequence)` plays it again.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from differential_compare import difference
from differential_generate import sequences
from differential_player import Player, playing
from hypothesis import HealthCheck, given, settings

from anykvm.host import HostBackend, host_arch, probe

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(3600)]

EXAMPLES = 60


@pytest.fixture(scope="module")
def players() -> Iterator[tuple[Player, Player]]:
    reason = probe()
    if reason is not None:
        pytest.skip(reason)
    if host_arch() != "x86":
        pytest.skip("the sequences are x86's")
    pytest.importorskip("anykvm.engine", reason="the engine is not built")
    from anykvm.arch.software import backend

    with playing(HostBackend()) as host, playing(backend("x86")) as software:
        yield host, software


def test_both_backends_answer_alike(players: tuple[Player, Player], pytestconfig: pytest.Config) -> None:
    host, software = players
    asked = pytestconfig.getoption("--differential", None)

    @settings(
        max_examples=asked or EXAMPLES,
        # Without the option the same ones each time; with it others.
        derandomize=not asked,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @given(sequences())
    def alike(sequence: list[list[object]]) -> None:
        found = difference(sequence, host.play(sequence), software.play(sequence))
        assert found is None, found

    alike()
