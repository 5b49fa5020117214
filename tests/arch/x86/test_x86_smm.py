# SPDX-License-Identifier: GPL-2.0-only
"""System management mode: assembled guests whose handlers are in memory that only the handler sees."""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator

import pytest
from x86_guest_board import PORT
from x86_smm_board import APM, CALL, MARK, RSM, SMBASE, SmmBoard

from anykvm.api import Halt, InternalError, Interrupted, PioOut, Shutdown
from anykvm.guests.tools import Toolchain
from anykvm.uapi import caps
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X


@pytest.fixture
def board(tools: Toolchain) -> Iterator[SmmBoard]:
    one = SmmBoard(tools)
    yield one
    one.close()


@pytest.fixture
def chipped(tools: Toolchain) -> Iterator[SmmBoard]:
    one = SmmBoard(tools, chip=True)
    yield one
    one.close()


def test_it_is_offered(board: SmmBoard) -> None:
    assert board.kvm.check_extension(caps.KVM_CAP_X86_SMM) == 1
    assert board.kvm.check_extension(caps.KVM_CAP_MULTI_ADDRESS_SPACE) == 2


def test_in_and_out_again_from_long_mode(board: SmmBoard) -> None:
    """The handler sees its own memory; every register is afterwards what it was."""
    board.memory.write(0x30010, b"\x11")
    board.smram.write(0x10010, b"\x22")
    board.handler(f"mov %cs:0x10, %al; {MARK} mov $0x55, %bl; mov $0x1234, %sp; add $1, %al; {RSM}")
    vcpu = board.long(
        "mov $0x1122334455667788, %rbx; mov $0x8877665544332211, %r15; mov $3, %al; stc;"
        f"{CALL} setc %al; {MARK} mov 0x30010, %al; {MARK} hlt"
    )
    before = vcpu.get_sregs()
    dr = vcpu.get_debugregs()
    dr.db[0], dr.dr7 = 0x7777, 0x401
    vcpu.set_debugregs(dr)
    board.until_end(vcpu, Halt)
    assert board.seen == [3, 0x22, 1, 0x11]
    assert board.inside == [False, True, False, False]
    regs = vcpu.get_regs()
    assert (regs.rbx, regs.r15, regs.rsp) == (0x1122334455667788, 0x8877665544332211, 0x8000)
    assert bytes(vcpu.get_sregs()) == bytes(before)
    assert vcpu.get_debugregs().dr7 == 0x401
    assert vcpu.get_msrs([X.MSR_IA32_SMBASE, X.MSR_SMI_COUNT]) == {X.MSR_IA32_SMBASE: SMBASE, X.MSR_SMI_COUNT: 1}


def test_the_state_it_begins_with(board: SmmBoard) -> None:
    board.handler(f"{MARK} hlt")
    vcpu = board.long(f"{CALL} nop; hlt")
    board.until_end(vcpu, Halt)
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    assert (regs.rip, regs.rflags) == (0x8003, 2)
    assert (sregs.cs.selector, sregs.cs.base, sregs.cs.limit) == (SMBASE >> 4, SMBASE, 0xFFFFFFFF)
    assert (sregs.ss.selector, sregs.ss.base, sregs.ss.limit, sregs.ss.type) == (0, 0, 0xFFFFFFFF, 3)
    assert (sregs.cr0 & 0x8000000F, sregs.cr4, sregs.efer) == (X.X86_CR0_ET & 0xF, 0, 0)
    assert (sregs.idt.base, sregs.idt.limit) == (0, 0)
    assert vcpu.get_debugregs().dr7 == 0x400
    assert vcpu.get_vcpu_events().nmi.masked


def test_rsm_moves_smbase(board: SmmBoard) -> None:
    """As firmware gives each processor an SMBASE of its own: it writes the area, and the next SMI is elsewhere."""
    board.handler(f"movl $0x28000, %cs:0xff00; mov $1, %al; {MARK} {RSM}")
    board.handler(f"mov $2, %al; {MARK} {RSM}", 0x28000)
    vcpu = board.real(f"mov $0x20, %al; {CALL} {CALL} {MARK} hlt")
    board.until_end(vcpu, Halt)
    assert board.seen == [0x20, 1, 0x20, 2, 0x20]
    assert vcpu.get_msrs([X.MSR_IA32_SMBASE]) == {X.MSR_IA32_SMBASE: 0x28000}
    assert int.from_bytes(board.area(0x28000)[0x100:0x104], "little") == 0x28000


def test_userspace_moves_smbase(board: SmmBoard) -> None:
    board.handler(f"mov $9, %al; {MARK} {RSM}", 0x21000)
    vcpu = board.real(f"mov $0x20, %al; {CALL} hlt")
    assert vcpu.set_msrs({X.MSR_IA32_SMBASE: 0x21000, X.MSR_SMI_COUNT: 7}) == 2
    board.until_end(vcpu, Halt)
    assert board.seen == [0x20, 9]
    assert vcpu.get_msrs([X.MSR_SMI_COUNT]) == {X.MSR_SMI_COUNT: 8}


@pytest.mark.parametrize("access", ["mov $0x9e, %ecx; rdmsr", "mov $0x9e, %ecx; wrmsr", "mov $0x34, %ecx; wrmsr"])
def test_the_guest_has_no_such_msr(board: SmmBoard, access: str) -> None:
    board.gate(X.GP_VECTOR, 0x2000)
    board.load(f".code64\nmov $0x6b, %al; {MARK} hlt", 0x2000)
    board.until_end(board.long(f"xor %eax, %eax; xor %edx, %edx; {access}; hlt"), Halt)
    assert board.seen == [0x6B]


def test_rsm_elsewhere_is_undefined(board: SmmBoard) -> None:
    board.gate(X.UD_VECTOR, 0x2000)
    board.load(f".code64\nmov $0x6a, %al; {MARK} hlt", 0x2000)
    board.handler(RSM)
    board.until_end(board.long(f"{CALL} rsm; hlt"), Halt)
    assert board.seen[1:] == [0x6A]


def test_an_smi_within_waits_for_rsm(board: SmmBoard) -> None:
    board.handler(f"incb %cs:0x100; mov %cs:0x100, %al; {CALL} mov $0x80, %al; {MARK} {RSM}")
    board.smram.write(0x10100, b"\0")
    vcpu = board.real(f"mov $0x20, %al; {CALL} {MARK} hlt")
    exits = []
    for _ in range(6):
        exit = vcpu.run()
        assert isinstance(exit, PioOut)
        exits.append(exit.data[0])
        # Two SMIs while the first is handled are one more.
        if exit.port == APM and exit.data[0] in (0x20, 1):
            vcpu.smi()
            vcpu.smi()
            events = vcpu.get_vcpu_events()
            assert (events.smi.smm, events.smi.pending) == (exit.data[0] == 1, 1)
    assert exits == [0x20, 1, 0x80, 2, 0x80, 0x20]
    assert isinstance(vcpu.run(), Halt)


def test_an_nmi_waits_for_rsm(board: SmmBoard) -> None:
    board.load(f".code16\npush %ax; mov $0x4e, %al; {MARK} pop %ax; iret", 0x2000)
    board.memory.write(4 * X.NMI_VECTOR, struct.pack("<HH", 0x2000, 0))
    board.handler(f"mov $1, %al; {MARK} mov $2, %al; {MARK} {RSM}")
    vcpu = board.real(f"mov $0x20, %al; {CALL} {MARK} hlt")
    vcpu.run()
    vcpu.smi()
    assert isinstance(exit := vcpu.run(), PioOut) and exit.data == b"\1"
    vcpu.nmi()
    assert isinstance(exit := vcpu.run(), PioOut) and exit.data == b"\2"
    assert vcpu.get_vcpu_events().nmi.pending
    board.until_end(vcpu, Halt)
    assert board.seen == [0x4E, 0x20]


def test_within_an_nmi_rsm_leaves_nmis_masked(board: SmmBoard) -> None:
    board.load(f".code16\n{CALL} {MARK} hlt", 0x2000)
    board.memory.write(4 * X.NMI_VECTOR, struct.pack("<HH", 0x2000, 0))
    board.handler(f"mov $1, %al; {MARK} {RSM}")
    vcpu = board.real(f"mov $0x20, %al; {MARK} hlt")
    vcpu.nmi()
    vcpu.run()
    vcpu.smi()
    vcpu.run()
    assert vcpu.get_vcpu_events().smi.smm_inside_nmi
    board.until_end(vcpu, Halt)
    events = vcpu.get_vcpu_events()
    assert (events.smi.smm, events.smi.smm_inside_nmi, events.nmi.masked) == (0, 0, 1)


def test_interrupts_stay_outside(board: SmmBoard) -> None:
    board.load(f".code16\npush %ax; mov $0x49, %al; {MARK} pop %ax; iret", 0x2000)
    board.memory.write(4 * 0x21, struct.pack("<HH", 0x2000, 0))
    board.handler(f"mov $1, %al; {MARK} {RSM}")
    vcpu = board.real(f"mov $0x20, %al; sti; {CALL} {MARK} hlt")
    vcpu.run()
    vcpu.smi()
    assert isinstance(exit := vcpu.run(), PioOut) and exit.data == b"\1"
    vcpu.interrupt(0x21)
    board.until_end(vcpu, Halt)
    assert board.seen[:2] == [0x49, 0x20]


def test_an_exception_from_userspace_comes_first(board: SmmBoard) -> None:
    board.load(f".code16\nmov $0x47, %al; {MARK} iret", 0x2000)
    board.memory.write(4 * X.UD_VECTOR, struct.pack("<HH", 0x2000, 0))
    board.handler(f"mov %cs:0xff78, %ax; out %ax, $0xe9; {RSM}")
    vcpu = board.real(f"mov $0x20, %al; {MARK} hlt")
    events = vcpu.get_vcpu_events()
    events.exception.injected, events.exception.nr = 1, X.UD_VECTOR
    events.smi.pending = 1
    vcpu.set_vcpu_events(events)
    board.until_end(vcpu, Halt)
    assert board.seen[0] == 0x2000, "the SMI is taken where the exception's handler begins"
    assert board.seen[1] == 0x47


def test_a_halted_vcpu_wakes(chipped: SmmBoard) -> None:
    chipped.handler(f"mov $1, %al; {MARK} {RSM}")
    vcpu = chipped.real(f"cli; hlt; mov $2, %al; {MARK} hlt")
    smi = threading.Timer(0.05, chipped.vm.signal_msi, (0xFEE00000, 0x200))
    smi.start()
    for expected in (1, 2):
        assert isinstance(exit := vcpu.run(), PioOut) and exit.data[0] == expected
    smi.join()


@pytest.mark.parametrize("mode", ["x2apic", "xapic"])
def test_an_ipi_that_is_an_smi(chipped: SmmBoard, mode: str) -> None:
    chipped.handler(f"mov $1, %al; {MARK} {RSM}")
    send = {
        "x2apic": "mov $0x1b, %ecx; rdmsr; or $0x400, %eax; wrmsr;"
        "mov $0x830, %ecx; mov $0x44200, %eax; xor %edx, %edx; wrmsr;",
        "xapic": "mov $0xfee00300, %ebx; movl $0x44200, (%rbx); nop; jmp 1f; 1:",
    }[mode]
    vcpu = chipped.long(f"{send} mov $2, %al; {MARK} hlt")
    for expected in (1, 2):
        assert isinstance(exit := vcpu.run(), PioOut) and exit.data[0] == expected


def test_init_is_latched(chipped: SmmBoard) -> None:
    chipped.handler(f"mov $1, %al; {MARK} mov $2, %al; {MARK} {RSM}")
    vcpu = chipped.real(f"{CALL} mov $3, %al; {MARK} hlt")
    vcpu.run()
    vcpu.smi()
    vcpu.run()
    events = vcpu.get_vcpu_events()
    assert (events.smi.smm, events.smi.latched_init) == (1, 0)
    events.smi.latched_init = 1
    vcpu.set_vcpu_events(events)
    assert isinstance(exit := vcpu.run(), PioOut) and exit.data[0] == 2
    assert vcpu.get_vcpu_events().smi.latched_init == 1
    for state in (C.KVM_MP_STATE_INIT_RECEIVED, C.KVM_MP_STATE_SIPI_RECEIVED):
        with pytest.raises(OSError, match="holds INIT off"):
            vcpu.mp_state = state
    # After RSM the processor is reset: the boot processor begins at the reset vector, where nothing is.
    assert isinstance(vcpu.run(), InternalError | Shutdown)
    assert vcpu.get_sregs().cs.base == 0xFFFF0000
    assert not vcpu.get_vcpu_events().smi.latched_init


def test_one_that_waits_for_its_start_is_not_in_it(chipped: SmmBoard) -> None:
    chipped.vcpu()
    vcpu = chipped.vcpu()
    vcpu.mp_state = C.KVM_MP_STATE_INIT_RECEIVED
    events = vcpu.get_vcpu_events()
    events.smi.pending = 1
    with pytest.raises(OSError, match="received INIT"):
        vcpu.set_vcpu_events(events)


def test_immediate_exit_does_not_take_it(board: SmmBoard) -> None:
    board.handler(RSM)
    vcpu = board.real(f"{CALL} hlt")
    vcpu.run()
    vcpu.smi()
    vcpu.immediate_exit = True
    assert isinstance(vcpu.run(), Interrupted)
    assert vcpu.get_vcpu_events().smi.pending
    vcpu.immediate_exit = False
    board.until_end(vcpu, Halt)
    assert PORT not in board.seen
