# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import x86_fake
from x86_guest_board import Board, host, software

from anykvm.api import Backend
from anykvm.guests.tools import Toolchain, assembler


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[x86_fake.Rig]:
    """A VM without an in-kernel irqchip."""
    yield from x86_fake.rigs(monkeypatch)


@pytest.fixture
def chips(monkeypatch: pytest.MonkeyPatch) -> Iterator[x86_fake.Rig]:
    """A VM with PICs, IOAPIC and local APICs in the kernel."""
    from anykvm.uapi import common

    for rig in x86_fake.rigs(monkeypatch):
        rig.ioctl(rig.fd, common.KVM_CREATE_IRQCHIP)
        yield rig


@pytest.fixture(scope="session")
def tools() -> Toolchain:
    return assembler("amd64")


@pytest.fixture(params=[pytest.param(software, id="software"), pytest.param(host, id="host", marks=pytest.mark.kvm)])
def board(request: pytest.FixtureRequest, tools: Toolchain) -> Iterator[Board]:
    make: Callable[[], Backend] = request.param
    one = Board(make(), tools)
    yield one
    one.close()
