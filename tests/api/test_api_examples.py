# SPDX-License-Identifier: GPL-2.0-only
"""The examples in the API's docstrings, run as written on the software backend for arm64."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections.abc import Iterator

import pytest

import anykvm.api
from anykvm.api import BackendUnavailable, GuestMemory, Kvm, UnsupportedArchitecture
from anykvm.uapi.arm64 import KVM_ARM_VCPU_PSCI_0_2

HANDLES = {"handle", "kvm", "vm", "vm_memory", "vm_interrupts", "vcpu", "dirty_ring", "device", "stats"}
MODULES = sorted(module.name for module in pkgutil.iter_modules(anykvm.api.__path__))


def examples() -> Iterator[doctest.DocTest]:
    finder = doctest.DocTestFinder(exclude_empty=True)
    for name in MODULES:
        module = importlib.import_module(f"anykvm.api.{name}")
        yield from (test for test in finder.find(module) if test.examples)


EXAMPLES = {test.name: test for test in examples()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name: str) -> None:
    test = EXAMPLES[name]
    names = {name: getattr(anykvm.api, name) for name in anykvm.api.__all__}
    if name.split(".")[2] not in HANDLES | {"memory"}:
        run(test, test.globs | names)
        return
    memory = GuestMemory(1 << 20)
    if name.split(".")[2] == "memory":
        run(test, test.globs | names | {"memory": memory})
        return
    try:
        kvm = Kvm("software", arch="arm64")
    except (BackendUnavailable, UnsupportedArchitecture) as error:
        pytest.skip(str(error))
    with kvm, kvm.create_vm() as vm:
        context = {"kvm": kvm, "vm": vm, "memory": memory}
        if needs_vcpu(test):
            vcpu = context["vcpu"] = vm.create_vcpu(0)
            vcpu.init(vm.preferred_target(), [KVM_ARM_VCPU_PSCI_0_2])
        run(test, test.globs | names | context)


def needs_vcpu(test: doctest.DocTest) -> bool:
    """A vCPU that nobody uses would be in the way: some things must be made before the first."""
    return any("vcpu." in example.source or "vcpu_index" in example.source for example in test.examples)


def run(test: doctest.DocTest, context: dict[str, object]) -> None:
    output: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    test.globs = context
    result = runner.run(test, out=output.append, clear_globs=False)
    assert result.failed == 0, "".join(output)


def test_every_public_method_has_a_docstring_and_an_example() -> None:
    for name in HANDLES | {"memory"}:
        module = importlib.import_module(f"anykvm.api.{name}")
        for kind in vars(module).values():
            if isinstance(kind, type) and kind.__module__ == module.__name__ and kind.__name__ in anykvm.api.__all__:
                for member, value in vars(kind).items():
                    if member.startswith("_") or not (callable(value) or isinstance(value, property)):
                        continue
                    docstring = value.__doc__ or ""
                    assert ">>>" in docstring, f"{kind.__name__}.{member} has no example"
