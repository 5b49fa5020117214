# SPDX-License-Identifier: GPL-2.0-only
"""The pytest plugin: fixtures whose names begin with ``anykvm_``; it is there as soon as anykvm is installed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .backend import FaultyBackend
    from .ledger import Ledger
    from .programs import Programs


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--anykvm-arch``: the architecture of the fixtures' guests."""
    group = parser.getgroup("anykvm")
    group.addoption("--anykvm-arch", default="arm64", help="architecture of the anykvm_ fixtures' guests [arm64]")


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known."""
    config.addinivalue_line("markers", "anykvm_arch(name): the architecture of the anykvm_ fixtures' guests")
    config.addinivalue_line("markers", "anykvm_faults(plan): what fails, as KVM_CREATE_VCPU#3=ENOMEM")


@pytest.fixture
def anykvm_arch(request: pytest.FixtureRequest) -> str:
    """The architecture of the guests: marker ``anykvm_arch``, or option ``--anykvm-arch``."""
    marker = request.node.get_closest_marker("anykvm_arch")
    return str(marker.args[0] if marker is not None else request.config.getoption("--anykvm-arch"))


@pytest.fixture
def anykvm_backend(request: pytest.FixtureRequest, anykvm_arch: str) -> Iterator[FaultyBackend]:
    """A software backend for ``Kvm(backend)``, with the plan of the marker ``anykvm_faults``.

    At the end of the test whatever is still open is closed without faults, and then KVM may hold nothing.
    """
    from .backend import software  # noqa: PLC0415  (this plugin is loaded in every run of pytest)
    from .ledger import Ledger  # noqa: PLC0415

    marker = request.node.get_closest_marker("anykvm_faults")
    backend = software(anykvm_arch, marker.args[0] if marker is not None else "")
    yield backend
    backend.plan("")
    backend.close_all()
    Ledger(backend.services).assert_empty()
    backend.services.close()


@pytest.fixture
def anykvm_ledger(anykvm_backend: FaultyBackend) -> Ledger:
    """What the backend's KVM holds."""
    from .ledger import Ledger  # noqa: PLC0415  (this plugin is loaded in every run of pytest)

    return Ledger(anykvm_backend.services)


@pytest.fixture
def anykvm_exec(request: pytest.FixtureRequest, tmp_path: Path) -> Programs:
    """Runs programs that know nothing of anykvm under ``anykvm exec``: ``anykvm_exec("./my-vmm", "--an-argument")``.

    The marker ``anykvm_arch`` says of which architecture their guests are (without it, of this machine's), and
    ``anykvm_faults`` what fails in each run.
    """
    from .programs import Programs  # noqa: PLC0415  (this plugin is loaded in every run of pytest)

    arch = request.node.get_closest_marker("anykvm_arch")
    plan = request.node.get_closest_marker("anykvm_faults")
    return Programs(tmp_path, arch.args[0] if arch is not None else None, plan.args[0] if plan is not None else "")
