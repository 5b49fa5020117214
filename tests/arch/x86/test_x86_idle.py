# SPDX-License-Identifier: GPL-2.0-only
"""KVM_CAP_X86_DISABLE_EXITS: a HLT that stays within KVM_RUN, with and without an in-kernel local APIC."""

from __future__ import annotations

import errno
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from x86_guest_board import Board, software

from anykvm.api import Halt, Interrupted, IrqWindowOpen, PioOut, Vcpu
from anykvm.api.x86 import CpuidEntry
from anykvm.guests.tools import Toolchain
from anykvm.uapi import caps
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

HLT = X.KVM_X86_DISABLE_EXITS_HLT
ALL = 0xF
HANDLER = 0x2000
WAIT = "sti; hlt; mov $1, %al; out %al, $0xe9; hlt"


@pytest.fixture
def board(tools: Toolchain) -> Iterator[Board]:
    one = Board(software(), tools)
    one.load(".code16\npush %ax; mov $0x49, %al; out %al, $0xe9; pop %ax; iret", HANDLER)
    for vector in (X.NMI_VECTOR, 0x21):
        one.memory.write(4 * vector, struct.pack("<HH", HANDLER, 0))
    yield one
    one.close()


def disable(board: Board, exits: int) -> None:
    board.vm.enable_cap(caps.KVM_CAP_X86_DISABLE_EXITS, exits)


def later(what: Callable[[], object]) -> threading.Timer:
    timer = threading.Timer(0.05, what)
    timer.start()
    return timer


def test_what_can_be_disabled(board: Board) -> None:
    offered = board.vm.check_extension(caps.KVM_CAP_X86_DISABLE_EXITS)
    assert offered == ALL & ~X.KVM_X86_DISABLE_EXITS_MWAIT
    for exits in (0, X.KVM_X86_DISABLE_EXITS_PAUSE, ALL):
        disable(board, exits)
    with pytest.raises(OSError, match="0x10") as refused:
        disable(board, 0x10)
    assert refused.value.errno == errno.EINVAL
    board.vcpu()
    with pytest.raises(OSError, match="first vCPU"):
        disable(board, 0)


def test_hlt_sleeps_until_somebody_asks_for_the_vcpu(board: Board) -> None:
    """Without it the host's core is not used, and the halt goes on when KVM_RUN is called again."""
    disable(board, HLT)
    vcpu = board.real(WAIT)
    for _ in range(2):
        kick = later(vcpu.kick)
        used, began = time.thread_time(), time.monotonic()
        assert isinstance(vcpu.run(), Interrupted)
        assert time.monotonic() - began > 0.03
        assert time.thread_time() - used < 0.03
        assert vcpu.mp_state == C.KVM_MP_STATE_RUNNABLE
        kick.join()
    vcpu.interrupt(0x21)
    exits = [vcpu.run(), vcpu.run()]
    assert [exit.data[0] for exit in exits if isinstance(exit, PioOut)] == [0x49, 1]


def test_an_nmi_ends_it(board: Board) -> None:
    disable(board, HLT)
    vcpu = board.real("cli; hlt; mov $1, %al; out %al, $0xe9; hlt")
    kick = later(vcpu.kick)
    assert isinstance(vcpu.run(), Interrupted)
    kick.join()
    vcpu.nmi()
    exits = [vcpu.run(), vcpu.run()]
    assert [exit.data[0] for exit in exits if isinstance(exit, PioOut)] == [0x49, 1]


def test_a_halted_vcpu_is_open_to_interrupts(board: Board) -> None:
    """Who has asked for the window is told, and the guest halts on if nothing is injected."""
    disable(board, HLT)
    vcpu = board.real(WAIT)
    vcpu.run_page.request_interrupt_window = 1
    for _ in range(2):
        assert isinstance(vcpu.run(), IrqWindowOpen)
        assert vcpu.run_page.ready_for_interrupt_injection
        assert board.memory.read(vcpu.get_regs().rip - 1, 1) == b"\xf4"
    vcpu.run_page.request_interrupt_window = 0
    vcpu.interrupt(0x21)
    exits = [vcpu.run(), vcpu.run()]
    assert [exit.data[0] for exit in exits if isinstance(exit, PioOut)] == [0x49, 1]


def test_with_a_local_apic(board: Board) -> None:
    """It sleeps in KVM in any case; what differs is what KVM_GET_MP_STATE says."""
    disable(board, HLT)
    board.vm.create_irqchip()
    vcpu = board.real("cli; hlt; mov $1, %al; out %al, $0xe9; hlt")
    kick = later(vcpu.kick)
    assert isinstance(vcpu.run(), Interrupted)
    kick.join()
    assert vcpu.mp_state == C.KVM_MP_STATE_RUNNABLE
    vcpu.mp_state = C.KVM_MP_STATE_HALTED
    assert vcpu.mp_state == C.KVM_MP_STATE_HALTED


def test_without_it_hlt_exits(board: Board) -> None:
    disable(board, ALL & ~HLT)
    assert isinstance(board.real(WAIT).run(), Halt)


def features(vcpu: Vcpu) -> int:
    (entry,) = (entry for entry in vcpu.get_cpuid2() if entry.function == X.KVM_CPUID_FEATURES)
    return entry.eax


@pytest.mark.parametrize("exits", [HLT, X.KVM_X86_DISABLE_EXITS_PAUSE])
def test_cpuid_has_no_kick_for_one_that_does_not_exit(board: Board, exits: int) -> None:
    disable(board, exits)
    vcpu = board.vcpu()
    has = features(vcpu) >> X.KVM_FEATURE_PV_UNHALT & 1
    assert has == (exits != HLT)
    assert features(vcpu) >> X.KVM_FEATURE_CLOCKSOURCE & 1
    supported: list[CpuidEntry] = board.kvm.get_supported_cpuid()
    board.load(".code16\nhlt")
    vcpu.immediate_exit = True
    vcpu.run()
    vcpu.set_cpuid2(supported)


@pytest.mark.parametrize("exits", [0, X.KVM_X86_DISABLE_EXITS_CSTATE])
@pytest.mark.parametrize("msr", [0x660, 0x3FC, 0x3FD, 0x3FE])
def test_how_long_it_was_in_deep_idle_states(board: Board, exits: int, msr: int) -> None:
    disable(board, exits)
    board.load(".code16\nmov $0x6b, %al; out %al, $0xe9; hlt", HANDLER)
    board.memory.write(4 * X.GP_VECTOR, struct.pack("<HH", HANDLER, 0))
    vcpu = board.real(f"mov $7, %eax; mov ${msr:#x}, %ecx; rdmsr; out %al, $0xe9; hlt")
    board.until(vcpu, Halt)
    assert board.seen == [0 if exits else 0x6B]
