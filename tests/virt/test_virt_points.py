# SPDX-License-Identifier: GPL-2.0-only
"""The list of what can be acquired and what can fail is whole."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest
from fake_arch import Machine

import anykvm
from anykvm.virt.points import ACQUIRES, PUBLISHES
from anykvm.virt.services import Services

SOURCE = Path(anykvm.__file__).parent


def _holds(function: object) -> bool:
    """Whether a method puts something into the ledger."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))  # type: ignore[arg-type]
    return any(isinstance(node, ast.Attribute) and node.attr == "_hold" for node in ast.walk(tree))


def test_every_method_that_acquires_is_listed() -> None:
    holding = {name for name, function in vars(Services).items() if inspect.isfunction(function) and _holds(function)}
    assert holding == set(ACQUIRES)


@pytest.mark.parametrize("name", ACQUIRES)
def test_the_name_is_where_the_list_says(name: str) -> None:
    parameters = list(inspect.signature(getattr(Services, name)).parameters)[1:]
    assert parameters[ACQUIRES[name].name] == "name"
    if not ACQUIRES[name].kind:
        assert parameters[0] == "kind"


def test_everything_published_is_listed() -> None:
    said = {
        what
        for path in SOURCE.rglob("*.py")
        for what in re.findall(r"services\.publish\(\s*\"([^\"]+)\"", path.read_text())
    }
    assert said == set(PUBLISHES)


def test_locks_and_threads_come_from_the_services() -> None:
    """What bypasses the services cannot be failed, counted or ordered."""
    # Of a whole process, made once: a cache of what the engine's CPU has, and the timer thread's own.
    processwide = {"arch/x86/cpuid.py", "virt/timers.py", "virt/services.py"}
    makers = re.compile(r"threading\.(R?Lock|Condition|Semaphore|Event|Barrier|Thread)\(")
    found = {
        path.relative_to(SOURCE).as_posix()
        for package in ("virt", "arch")
        for path in (SOURCE / package).rglob("*.py")
        if makers.search(path.read_text())
    }
    assert found == processwide


def test_the_ledger_counts_mappings_and_locks(machine: Machine) -> None:
    vm = machine.vm()
    before = machine.ledger()
    machine.vcpu(vm, 0)
    held = {key: count - before.get(key, 0) for key, count in machine.ledger().items()}
    assert held["map", "run page"] == held["lock", "vcpu mutex"] == 1
