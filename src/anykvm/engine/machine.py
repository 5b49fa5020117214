# SPDX-License-Identifier: GPL-2.0-only
"""Machines, and cpus of the machine's target."""

from anykvm.engine._engine import Machine
from anykvm.engine.arm64 import Arm64Cpu

__all__ = ["Cpu", "Machine"]


def Cpu(machine: Machine) -> Arm64Cpu:  # noqa: N802 - reads as the type it makes
    """Make a cpu of ``machine``; cheap until its registers are touched or it runs (then about 2 ms and 3 MB)."""
    return Arm64Cpu(machine)
