# SPDX-License-Identifier: GPL-2.0-only
"""Every architecture's package has the same files and keeps the contract."""

from __future__ import annotations

import sys

import pytest
from fake_arch import FakeArch

from anykvm.arch import contract, interface, software
from anykvm.virt.hooks import ArchHooks


def test_the_four_are_in_the_contract() -> None:
    names = set(contract.contract())
    assert {name for name in names if (name.startswith("vcpu_") and "create" in name) or name == "vcpu_destroy"} == {
        "vcpu_precreate",
        "vcpu_create",
        "vcpu_postcreate",
        "vcpu_destroy",
    }


def test_the_fake_keeps_the_contract() -> None:
    assert contract.breaches(FakeArch()) == []


def test_a_breach_is_found() -> None:
    class Wrong(FakeArch):
        def vcpu_create(self, vcpu: object, extra: int) -> None:  # type: ignore[override]
            raise NotImplementedError

        vcpu_destroy = None  # type: ignore[assignment]

    assert [line.split("(")[0] for line in contract.breaches(Wrong())] == [
        "fake: vcpu_create takes ",
        "fake: vcpu_destroy is missing",
    ]


def test_an_unknown_architecture() -> None:
    with pytest.raises(ValueError, match="there is no architecture 'vax': anykvm has "):
        software.backend("vax")


def test_nothing_is_imported_to_list_them() -> None:
    before = set(sys.modules)
    names = software.architectures()
    assert names == sorted(names)
    assert not {module for module in set(sys.modules) - before if module.startswith("anykvm.arch.")}


@pytest.mark.parametrize("name", software.architectures())
def test_an_architecture_in_the_tree(name: str) -> None:
    assert interface.missing_files(name) == []
    pytest.importorskip("anykvm.engine", reason="the engine is not built")
    hooks = interface.hooks(name)
    assert hooks.name == name
    assert contract.breaches(hooks) == []
    assert 0 < hooks.max_vcpus <= hooks.max_vcpu_ids
    assert hooks.vcpu_mmap_size % 4096 == 0
    with software.backend(name) as backend:
        assert (backend.name, backend.arch) == ("software", name)


def test_the_contract_names_are_documented() -> None:
    for name in contract.contract():
        assert getattr(ArchHooks, name).__doc__, name
