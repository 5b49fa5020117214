# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from collections.abc import Iterator

import pytest
import x86_fake


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
