# SPDX-License-Identifier: GPL-2.0-only
"""A device's interrupt line."""

from __future__ import annotations

from anykvm.api import Vm


class IrqLine:
    """One input of the in-kernel interrupt controller, level-triggered; `irq` is encoded as KVM_IRQ_LINE wants it.

    A device sets it under its own lock; what does not change anything costs nothing.
    """

    def __init__(self, vm: Vm, irq: int) -> None:
        self._vm = vm
        self._irq = irq
        self._level = False

    def __call__(self, level: bool) -> None:
        """Drive the line high or low."""
        if level != self._level:
            self._level = level
            self._vm.irq_line(self._irq, int(level))
