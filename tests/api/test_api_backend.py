# SPDX-License-Identifier: GPL-2.0-only
"""How a backend is chosen, and what the package gives away."""

from __future__ import annotations

import subprocess
import sys
import types

import pytest
from fake_backend import FakeBackend

import anykvm
import anykvm.api
import anykvm.host
from anykvm.api import BackendUnavailable, Kvm, UnsupportedArchitecture, architectures, resolve


@pytest.fixture
def software(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    """A software backend for arm64 that is not the real one."""
    backend = FakeBackend()
    module = types.ModuleType("anykvm.arch.software")
    module.backend = lambda arch: backend  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "anykvm.arch.software", module)
    monkeypatch.setattr("anykvm.api.backend.architectures", lambda: ("arm64", "x86"))
    return backend


def host_is(monkeypatch: pytest.MonkeyPatch, arch: str, reason: str | None) -> None:
    monkeypatch.setattr(anykvm.host, "host_arch", lambda: arch)
    monkeypatch.setattr(anykvm.host, "probe", lambda: reason)
    monkeypatch.setattr(anykvm.host, "virtualises", lambda: True)


def test_software(software: FakeBackend) -> None:
    assert resolve("software", "arm64") is software
    with Kvm("software") as kvm:
        assert kvm.backend is software


def test_unknown_architecture(software: FakeBackend) -> None:
    with pytest.raises(UnsupportedArchitecture) as caught:
        resolve("software", "vax")
    assert str(caught.value) == "no architecture 'vax': there is arm64, x86"
    assert isinstance(caught.value, ValueError)


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="no backend 'xen': there are auto, software, host"):
        Kvm("xen")


def test_auto_takes_the_host_when_it_fits(software: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    host_is(monkeypatch, "arm64", None)
    assert resolve("auto", "arm64").name == "host"
    assert resolve("host", "arm64").name == "host"


def test_auto_takes_software_otherwise(software: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    host_is(monkeypatch, "x86_64", None)
    assert resolve("auto", "arm64") is software
    host_is(monkeypatch, "arm64", "/dev/kvm is not there")
    assert resolve("auto", "arm64") is software
    host_is(monkeypatch, "arm64", None)
    monkeypatch.setattr(anykvm.host, "virtualises", lambda: False)
    assert resolve("auto", "arm64") is software
    assert resolve("host", "arm64").name == "host"


def test_host_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    host_is(monkeypatch, "arm64", "/dev/kvm is not there: really")
    with pytest.raises(BackendUnavailable, match=r"^/dev/kvm is not there: really$"):
        resolve("host", "arm64")
    host_is(monkeypatch, "x86_64", None)
    with pytest.raises(UnsupportedArchitecture, match="runs x86_64 guests, not arm64"):
        resolve("host", "arm64")


def test_software_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anykvm.arch.software", None)
    monkeypatch.setattr("anykvm.api.backend.architectures", lambda: ("arm64",))
    with pytest.raises(BackendUnavailable, match="the software backend is not built"):
        resolve("software", "arm64")


def test_architectures_are_names() -> None:
    assert list(architectures()) == sorted(architectures())


def test_the_package_gives_the_apis_names() -> None:
    assert all(getattr(anykvm, name) is getattr(anykvm.api, name) for name in anykvm.api.__all__)
    assert set(anykvm.api.__all__) <= set(dir(anykvm))
    names: dict[str, object] = {}
    exec("from anykvm import *", names)
    assert names["Kvm"] is anykvm.api.Kvm
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        anykvm.nothing  # noqa: B018


def test_the_layers_below_do_not_load_the_api() -> None:
    script = "import sys, anykvm.uapi.common, anykvm.host; print(any('anykvm.api' in name for name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, timeout=30, capture_output=True, text=True)
    assert done.stdout == "False\n"
