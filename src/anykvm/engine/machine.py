# SPDX-License-Identifier: GPL-2.0-only
"""Machines, and cpus of the machine's target."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from anykvm.engine import _engine
from anykvm.engine.arm64 import Arm64Cpu
from anykvm.engine.x86 import X86Cpu

__all__ = ["Cpu", "Machine"]


class Machine(_engine.Machine):
    """Guest-physical memory and the cpus that share it."""

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """No cpu is in the guest inside the ``with``; several changes of the map in it are one to the guest."""
        self.stop()
        try:
            yield
        finally:
            self.go()


def Cpu(machine: Machine) -> Any:
    """Make a cpu of ``machine``; cheap until its registers are touched or it runs (then about 2 ms and 3 MB).

    It is an :class:`~anykvm.engine.arm64.Arm64Cpu` or an :class:`~anykvm.engine.x86.X86Cpu`, by the machine's target.
    """
    return _CPUS[machine.target](machine)


_CPUS = {"arm64": Arm64Cpu, "x86": X86Cpu}
