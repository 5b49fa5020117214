# SPDX-License-Identifier: GPL-2.0-only
"""What an architecture's package looks like: the same file names in each, and one entry, ``hooks()``.

Who knows one architecture finds the same thing in the same place in the next. What an architecture has beyond this
(PSCI, a second interrupt controller) is in files of its own, named after the thing. The functions behind ``hooks()``
are declared in ``anykvm.virt.hooks``; ``contract.py`` compares.

Every start of a VMM waits for this module: it imports nothing slow.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from typing import Final

from anykvm.virt.hooks import ArchHooks

_FOLDER: Final = os.path.dirname(__file__)

FILES: Final[dict[str, str]] = {
    "vm.py": "what a VM has: vm.arch, its ioctls, its memory in the engine",
    "vcpu.py": "what a vCPU has: vcpu.arch, the create ladder and its mirror, reset, the lines into the CPU",
    "run.py": "KVM_RUN: the loop over the engine's events",
    "regs.py": "KVM_GET_ONE_REG, KVM_SET_ONE_REG, KVM_GET_REG_LIST: the registers userspace names",
    "sysregs.py": "system registers (MSRs, CSRs, control registers): reset values, traps, what the guest sees",
    "inject.py": "delivering an exception to the guest",
    "irqchip.py": "the in-kernel interrupt controller: device, lines, routing",
    "timer.py": "the guest's timer",
}
"""The files every architecture has, and what is in each."""


def packages() -> list[str]:
    """Name the architectures in the tree, in alphabetical order."""
    return sorted(name for name in os.listdir(_FOLDER) if os.path.isfile(f"{_FOLDER}/{name}/__init__.py"))


def hooks(name: str) -> ArchHooks:
    """Import an architecture and give its hooks; ImportError if a library of the host is missing."""
    make: Callable[[], ArchHooks] = import_module(f"anykvm.arch.{name}").hooks
    return make()


def missing_files(name: str) -> list[str]:
    """Name the files of :data:`FILES` that an architecture's package does not have."""
    return [file for file in FILES if not os.path.isfile(f"{_FOLDER}/{name}/{file}")]
