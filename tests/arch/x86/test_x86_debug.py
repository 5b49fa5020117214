# SPDX-License-Identifier: GPL-2.0-only
"""A debugger through the typed API: what gdb's stub in a VMM does with KVM_SET_GUEST_DEBUG."""

from __future__ import annotations

import ctypes

import pytest
from x86_guest_board import CODE, Board

from anykvm.api import Debug, Halt, PioOut, Vcpu
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

DATA = 0x20000
ON = C.KVM_GUESTDBG_ENABLE


@pytest.fixture(autouse=True)
def _software(board: Board) -> None:
    if not board.software:
        pytest.skip("this machine's KVM may emulate these guests, and a debugger sees it")


def stop(vcpu: Vcpu) -> X.KvmDebugExitArch:
    exit = vcpu.run()
    assert isinstance(exit, Debug), exit
    return X.KvmDebugExitArch.from_buffer_copy(exit.arch[: ctypes.sizeof(X.KvmDebugExitArch)])


def test_what_a_debugger_can_ask_for(board: Board) -> None:
    assert board.vm.check_extension(C.KVM_CAP_SET_GUEST_DEBUG) == 1
    known = board.vm.check_extension(C.KVM_CAP_SET_GUEST_DEBUG2)
    assert known & X.KVM_GUESTDBG_BLOCKIRQ and known & X.KVM_GUESTDBG_USE_HW_BP


def test_single_steps(board: Board) -> None:
    vcpu = board.long("mov $1, %eax; cpuid; out %al, $0xe9; nop; hlt")
    vcpu.set_guest_debug(ON | C.KVM_GUESTDBG_SINGLESTEP)
    seen = []
    while not isinstance(exit := vcpu.run(), Halt):
        if isinstance(exit, Debug):
            arch = X.KvmDebugExitArch.from_buffer_copy(exit.arch[: ctypes.sizeof(X.KvmDebugExitArch)])
            assert (arch.exception, arch.dr6 & 0xF00F) == (X.DB_VECTOR, 0x4000)
            seen.append(arch.pc - CODE)
        else:
            assert isinstance(exit, PioOut)
            seen.append(-1)
    assert seen == [5, 7, -1, 9, 10]
    assert not vcpu.get_regs().rflags & 0x100


def test_int3(board: Board) -> None:
    vcpu = board.long("nop; int3; hlt")
    vcpu.set_guest_debug(ON | X.KVM_GUESTDBG_USE_SW_BP)
    arch = stop(vcpu)
    assert (arch.exception, arch.pc) == (X.BP_VECTOR, CODE + 1)
    assert vcpu.get_regs().rip == CODE + 1
    # As gdb does: the instruction is put back, and the guest runs on.
    board.memory.write(CODE + 1, b"\x90")
    board.until(vcpu, Halt)


def test_int3_is_given_to_the_guest(board: Board) -> None:
    board.load(".code64\nmov $0x33, %al; out %al, $0xe9; hlt", 0x2000)
    board.gate(X.BP_VECTOR, 0x2000)
    vcpu = board.long("int3; hlt")
    vcpu.set_guest_debug(ON | X.KVM_GUESTDBG_USE_SW_BP)
    stop(vcpu)
    regs = vcpu.get_regs()
    regs.rip += 1
    vcpu.set_regs(regs)
    vcpu.set_guest_debug(ON | X.KVM_GUESTDBG_USE_SW_BP | X.KVM_GUESTDBG_INJECT_BP)
    board.until(vcpu, Halt)
    assert board.seen == [0x33]


def test_hardware_breakpoints_on_code_and_data(board: Board) -> None:
    vcpu = board.long(f"nop; mov $7, %eax; mov %eax, {DATA}; nop; mov {DATA}, %ecx; hlt")
    vcpu.set_guest_debug(ON | X.KVM_GUESTDBG_USE_HW_BP, debugreg=[CODE + 1, 0, 0, 0, 0, 0, 0, 0x402])
    arch = stop(vcpu)
    assert (arch.exception, arch.pc, arch.dr6 & 0xF, arch.dr7) == (X.DB_VECTOR, CODE + 1, 1, 0x402)
    assert vcpu.get_regs().rax != 7
    dr7 = 0x400 | 0x8 | 0xD << 20
    vcpu.set_guest_debug(ON | X.KVM_GUESTDBG_USE_HW_BP, debugreg=[0, DATA, 0, 0, 0, 0, 0, dr7])
    arch = stop(vcpu)
    assert (arch.exception, arch.pc, arch.dr6 & 0xF, arch.dr7) == (X.DB_VECTOR, CODE + 13, 2, dr7)
    assert board.memory.read(DATA, 1) == b"\7"
    vcpu.set_guest_debug(0)
    board.until(vcpu, Halt)


def test_rf_is_the_way_past_a_breakpoint(board: Board) -> None:
    """It holds the debugger's breakpoint off for one instruction; without it the same one stops again."""
    vcpu = board.long("nop; nop; nop; hlt")
    vcpu.set_guest_debug(ON | X.KVM_GUESTDBG_USE_HW_BP, debugreg=[CODE, CODE + 1, 0, 0, 0, 0, 0, 0x40A])
    for place, past in ((0, False), (0, True), (1, True)):
        arch = stop(vcpu)
        assert (arch.exception, arch.pc, arch.dr6 & 0xF) == (X.DB_VECTOR, CODE + place, 1 << place)
        if past:
            regs = vcpu.get_regs()
            regs.rflags |= 1 << 16
            vcpu.set_regs(regs)
    board.until(vcpu, Halt)
    assert not vcpu.get_regs().rflags & 1 << 16


def test_general_detect_is_the_debuggers(board: Board) -> None:
    """The access to a debug register stops before it is done, each time, and is done once the debugger has gone."""
    vcpu = board.long("mov $0x1234, %eax; mov %rax, %dr0; mov %dr0, %rbx; hlt")
    vcpu.set_guest_debug(ON | X.KVM_GUESTDBG_USE_HW_BP, debugreg=[0, 0, 0, 0, 0, 0, 0, 0x2400])
    for _ in range(2):
        arch = stop(vcpu)
        assert (arch.exception, arch.pc, arch.dr6) == (X.DB_VECTOR, CODE + 5, 0xFFFF2FF0)
        assert arch.dr7 == 0x2400
    vcpu.set_guest_debug(0)
    board.until(vcpu, Halt)
    assert vcpu.get_regs().rbx == 0x1234


def test_the_guests_own_registers_from_outside(board: Board) -> None:
    board.load(".code64\nmov %dr6, %rax; out %eax, $0xe9; hlt", 0x2000)
    board.gate(X.DB_VECTOR, 0x2000)
    vcpu = board.long(f"mov %eax, {DATA}; hlt")
    regs = vcpu.get_debugregs()
    regs.db[2] = DATA
    regs.dr7 = 0x400 | 0x20 | 0xD << 24
    vcpu.set_debugregs(regs)
    board.until(vcpu, Halt)
    assert [value & 0xF for value in board.seen] == [4]
