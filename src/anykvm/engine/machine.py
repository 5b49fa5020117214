# SPDX-License-Identifier: GPL-2.0-only
"""Machines, and cpus of the machine's target."""

from collections.abc import Iterator
from contextlib import contextmanager

from anykvm.engine import _engine
from anykvm.engine.arm64 import Arm64Cpu

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


def Cpu(machine: Machine) -> Arm64Cpu:  # noqa: N802 - reads as the type it makes
    """Make a cpu of ``machine``; cheap until its registers are touched or it runs (then about 2 ms and 3 MB)."""
    return Arm64Cpu(machine)
