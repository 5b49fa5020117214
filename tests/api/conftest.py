# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake_backend import FakeBackend

from anykvm.api import GuestMemory, Kvm, Vcpu, Vm


@pytest.fixture
def fake() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def kvm(fake: FakeBackend) -> Iterator[Kvm]:
    with Kvm(fake) as kvm:
        yield kvm


@pytest.fixture
def vm(kvm: Kvm) -> Iterator[Vm]:
    with kvm.create_vm() as vm:
        yield vm


@pytest.fixture
def vcpu(vm: Vm) -> Iterator[Vcpu]:
    with vm.create_vcpu(0) as vcpu:
        yield vcpu


@pytest.fixture
def memory() -> GuestMemory:
    return GuestMemory(1 << 20)
