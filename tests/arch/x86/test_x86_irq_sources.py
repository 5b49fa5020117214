# SPDX-License-Identifier: GPL-2.0-only
"""Who drives a line, and where it may go, on both backends."""

from __future__ import annotations

import os
import select
import time

import pytest
from x86_guest_board import Board

from anykvm.api import IrqchipRoute, MsiRoute
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X


def pic(board: Board) -> X.KvmPicState:
    return X.KvmPicState.from_buffer_copy(board.vm.get_irqchip(X.KVM_IRQCHIP_PIC_MASTER))


def test_a_line_is_high_while_anybody_drives_it(board: Board) -> None:
    """A level-triggered line that a resampling irqfd and KVM_IRQ_LINE share."""
    board.vm.create_irqchip()
    state = pic(board)
    state.elcr = 1 << 5
    board.vm.set_irqchip(X.KVM_IRQCHIP_PIC_MASTER, bytes(state))
    event, resample = os.eventfd(0), os.eventfd(0)
    board.vm.irqfd(event, 5, resamplefd=resample)
    board.vm.irq_line(5, 1)
    os.eventfd_write(event, 1)
    while select.select([event], [], [], 0)[0]:
        time.sleep(0.001)
    board.vm.irqfd(event, 5, deassign=True)
    assert pic(board).irr & 1 << 5, "userspace drives it still"
    board.vm.irq_line(5, 0)
    assert not pic(board).irr & 1 << 5
    os.close(event)
    os.close(resample)


def test_a_split_irqchip_has_no_pins_to_go_to(board: Board) -> None:
    board.vm.enable_cap(C.KVM_CAP_SPLIT_IRQCHIP, 24)
    board.vm.set_gsi_routing([MsiRoute(3, 0xFEE00000, 0x41)])
    with pytest.raises(OSError, match="Errno 22"):
        board.vm.set_gsi_routing([IrqchipRoute(3, X.KVM_IRQCHIP_IOAPIC, 3)])
