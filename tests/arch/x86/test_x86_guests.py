# SPDX-License-Identifier: GPL-2.0-only
"""Small assembled guests through the typed API, on the software backend and on the machine's own /dev/kvm."""

from __future__ import annotations

import struct
import threading

import pytest
from x86_guest_board import CODE, DEVICE, PORT, STACK, Board

from anykvm.api import (
    ArchExit,
    GuestMemory,
    Halt,
    InternalError,
    Interrupted,
    IrqWindowOpen,
    MmioRead,
    MmioWrite,
    PioIn,
    PioOut,
    Shutdown,
)
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

# Real mode.


def test_arithmetic_and_a_port(board: Board) -> None:
    vcpu = board.real("mov $2, %al; add $3, %al; out %al, $0xe9; mov $0x1234, %ax; out %ax, $0xe9; hlt")
    board.until(vcpu, Halt)
    assert board.seen == [5, 0x1234]
    assert vcpu.get_regs().rax & 0xFFFF == 0x1234


def test_input_from_a_port(board: Board) -> None:
    vcpu = board.real("in $0x60, %al; out %al, $0xe9; mov $0x3f8, %dx; in %dx, %ax; out %ax, $0xe9; hlt")
    first = vcpu.run()
    assert isinstance(first, PioIn) and (first.port, first.size) == (0x60, 1)
    first.reply(0x5A)
    second = board.until(vcpu, PioIn)
    assert isinstance(second, PioIn) and (second.port, second.size) == (0x3F8, 2)
    second.reply(0xBEEF)
    board.until(vcpu, Halt)
    assert board.seen == [0x5A, 0xBEEF]


def test_device_memory_exactly_once(board: Board) -> None:
    vcpu = board.long(
        f"mov ${DEVICE:#x}, %rbx; movl $0x11223344, (%rbx); mov 8(%rbx), %eax; out %eax, $0xe9;"
        "movb $7, 1(%rbx); movzwl 2(%rbx), %eax; out %eax, $0xe9; hlt"
    )
    assert vcpu.run() == MmioWrite(DEVICE, bytes.fromhex("44332211"))
    read = vcpu.run()
    assert isinstance(read, MmioRead) and (read.address, read.size) == (DEVICE + 8, 4)
    read.reply(0xCAFE)
    write = board.until(vcpu, MmioWrite)
    assert write == MmioWrite(DEVICE + 1, b"\7")
    read = vcpu.run()
    assert isinstance(read, MmioRead) and read.size == 2
    read.reply(0x77)
    board.until(vcpu, Halt)
    assert board.seen == [0xCAFE, 0x77]


def test_a_string_to_a_port(board: Board) -> None:
    board.memory.write(0x3000, b"anykvm")
    vcpu = board.real("cld; mov $0x3000, %si; mov $6, %cx; mov $0xe9, %dx; rep outsb; hlt")
    text = b""
    while not isinstance(exit := vcpu.run(), Halt):
        assert isinstance(exit, PioOut), exit
        text += exit.data
    assert text == b"anykvm"


def test_a_real_mode_interrupt(board: Board) -> None:
    board.load(".code16\nmov $0x77, %al; out %al, $0xe9; iret", 0x2000)
    board.memory.write(4 * 0x21, struct.pack("<HH", 0x2000, 0))
    vcpu = board.real("xor %ax, %ax; mov %ax, %ds; mov %ax, %ss; int $0x21; mov $1, %al; out %al, $0xe9; hlt")
    board.until(vcpu, Halt)
    assert board.seen == [0x77, 1]


def test_hlt_goes_on(board: Board) -> None:
    vcpu = board.real("mov $1, %al; hlt; out %al, $0xe9; hlt")
    assert isinstance(vcpu.run(), Halt)
    board.until(vcpu, Halt)
    assert board.seen == [1]


def test_the_reset_vector(board: Board) -> None:
    """The hidden base of CS counts: the first instruction is 16 bytes below 4 GiB."""
    with GuestMemory(4096) as rom:
        rom.write(0xFF0, board.tools.assemble(".code16\nmov $9, %al; out %al, $0xe9; hlt", base=0xFFF0))
        board.vm.set_user_memory_region(1, 0xFFFFF000, rom)
        vcpu = board.vcpu()
        board.until(vcpu, Halt)
        board.vm.set_user_memory_region(1, 0xFFFFF000, None)
    assert board.seen == [9]


def test_userspace_writes_code_at_an_exit(board: Board) -> None:
    """Nothing tells of the write, and the code that is overwritten has run: also the instruction after the OUT."""
    vcpu = board.real("1: out %al, $0x80; mov $0x11, %al; out %al, $0xe9; cmp $0x15, %al; jne 1b; hlt")
    for value in range(0x12, 0x16):
        while not (isinstance(exit := vcpu.run(), PioOut) and exit.port == 0x80):
            assert isinstance(exit, PioOut), exit
            board.seen.append(exit.data[0])
        board.memory.write(CODE + 3, bytes([value]))
    board.until(vcpu, Halt)
    assert board.seen == [0x12, 0x13, 0x14, 0x15]


def test_userspace_writes_code_at_a_device_access(board: Board) -> None:
    """The instruction after the access, in one block with it, is what userspace wrote; the access is done once."""
    vcpu = board.long(
        f"mov ${DEVICE:#x}, %rbx; 1: mov (%rbx), %ecx; mov $0x11, %al; out %al, $0xe9;"
        "mov %ecx, %eax; out %al, $0xe9; jmp 1b"
    )
    place = bytes(board.memory.read(CODE, 64)).find(b"\xb0\x11") + 1
    for value in range(0x12, 0x15):
        read = board.until(vcpu, MmioRead)
        read.reply(value + 0x40)
        board.memory.write(CODE + place, bytes([value]))
    board.until(vcpu, MmioRead)
    assert board.seen == [0x12, 0x52, 0x13, 0x53, 0x14, 0x54]


# Interrupts from userspace.


def test_an_interrupt_through_the_window(board: Board) -> None:
    board.load(".code16\nmov $0x55, %al; out %al, $0xe9; iret", 0x2000)
    board.memory.write(4 * 0x30, struct.pack("<HH", 0x2000, 0))
    vcpu = board.real(
        "xor %ax, %ax; mov %ax, %ds; mov %ax, %ss; mov $1, %al; out %al, $0xe9; sti; nop; 1: hlt; mov $2, %al;"
        "out %al, $0xe9; jmp 1b"
    )
    page = vcpu.run_page
    page.request_interrupt_window = 1
    while isinstance(board.until(vcpu, IrqWindowOpen, Halt), Halt):
        pass  # a KVM that emulates may be past it already
    assert (page.ready_for_interrupt_injection, page.if_flag) == (1, 1)
    page.request_interrupt_window = 0
    vcpu.interrupt(0x30)
    board.until(vcpu, Halt)
    assert board.seen[0] == 1
    assert 0x55 in board.seen


def test_the_flags_of_the_run_page(board: Board) -> None:
    vcpu = board.real("out %al, $0x80; sti; nop; out %al, $0x80; cli; out %al, $0x80; hlt")
    seen = []
    while not isinstance(vcpu.run(), Halt):
        seen.append((vcpu.run_page.if_flag, vcpu.run_page.ready_for_interrupt_injection))
    assert seen == [(0, 0), (1, 1), (0, 0)]


def test_an_nmi(board: Board) -> None:
    board.load(".code16\nmov $0x22, %al; out %al, $0xe9; iret", 0x2000)
    board.memory.write(4 * 2, struct.pack("<HH", 0x2000, 0))
    vcpu = board.real("xor %ax, %ax; mov %ax, %ds; mov %ax, %ss; out %al, $0x80; nop; nop; hlt")
    assert isinstance(vcpu.run(), PioOut)
    vcpu.nmi()
    board.until(vcpu, Halt)
    assert board.seen == [0x22]


# 64-bit mode.


def test_long_mode(board: Board) -> None:
    vcpu = board.long("mov $0x123456789abcdef0, %rax; shr $32, %rax; out %eax, $0xe9; hlt")
    board.until(vcpu, Halt)
    assert board.seen == [0x12345678]
    sregs = vcpu.get_sregs()
    assert sregs.efer & X.EFER_LMA
    assert (sregs.cs.l, sregs.cs.selector) == (1, 8)


@pytest.mark.parametrize(
    ("code", "vector", "error_code"),
    [
        ("ud2", X.UD_VECTOR, None),
        ("xor %ecx, %ecx; div %ecx", X.DE_VECTOR, None),
        ("mov $0x7000, %ecx; rdmsr", X.GP_VECTOR, 0),
        ("mov $0x2000000000, %rax; mov (%rax), %rax", X.PF_VECTOR, 0),
        ("mov $0x2000000000, %rax; mov %rax, (%rax)", X.PF_VECTOR, 2),
        ("mov $0x8000000000000000, %rax; mov (%rax), %rax", X.GP_VECTOR, 0),
    ],
    ids=["ud", "de", "gp-msr", "pf-read", "pf-write", "gp-canonical"],
)
def test_exceptions(board: Board, code: str, vector: int, error_code: int | None) -> None:
    pop = "pop %rax; out %eax, $0xe9;" if error_code is not None else ""
    board.load(f".code64\nmov ${vector}, %al; out %al, $0xe9; {pop} hlt", 0x2000)
    board.gate(vector, 0x2000)
    vcpu = board.long(f"{code}; hlt")
    board.until(vcpu, Halt)
    assert board.seen == [vector, *([error_code] if error_code is not None else [])]


def test_the_address_of_a_page_fault(board: Board) -> None:
    board.load(".code64\nmov %cr2, %rax; shr $8, %rax; out %eax, $0xe9; hlt", 0x2000)
    board.gate(X.PF_VECTOR, 0x2000)
    vcpu = board.long("mov $0x4012345600, %rax; movb $1, (%rax); hlt")
    board.until(vcpu, Halt)
    assert board.seen == [0x40123456]


def test_a_triple_fault(board: Board) -> None:
    vcpu = board.long("lidt empty(%rip); ud2; empty: .word 0; .quad 0")
    exit = vcpu.run()
    assert isinstance(exit, Shutdown | InternalError), exit
    if board.software:
        assert isinstance(exit, Shutdown)


def test_syscall_and_sysret(board: Board) -> None:
    if not board.software:
        pytest.skip("this machine's KVM emulates these guests, and not SYSCALL in all of its versions")
    board.load(".code64\nmov %ecx, %eax; out %eax, $0xe9; hlt", 0x2000)
    vcpu = board.long("syscall; after: hlt")
    assert vcpu.set_msrs({X.MSR_STAR: 8 << 32, X.MSR_LSTAR: 0x2000, X.MSR_SYSCALL_MASK: 0x200}) == 3
    board.until(vcpu, Halt)
    assert board.seen == [CODE + 2]


def test_cpuid_is_what_userspace_says(board: Board) -> None:
    vcpu = board.long("mov $0x40000000, %eax; cpuid; mov %ebx, %eax; out %eax, $0xe9; hlt")
    board.until(vcpu, Halt)
    assert board.seen == [int.from_bytes(b"KVMK", "little")]


# MSRs.


def test_an_msr_of_userspace(board: Board) -> None:
    if not board.vm.check_extension(C.KVM_CAP_X86_USER_SPACE_MSR):
        pytest.skip("this KVM does not let userspace serve MSRs")
    board.vm.enable_cap(C.KVM_CAP_X86_USER_SPACE_MSR, X.KVM_MSR_EXIT_REASON_UNKNOWN)
    vcpu = board.long("mov $0xdead, %ecx; rdmsr; out %eax, $0xe9; mov $5, %eax; wrmsr; hlt")
    exit = vcpu.run()
    assert isinstance(exit, ArchExit) and exit.name == "KVM_EXIT_X86_RDMSR"
    msr = X.RunMsr.from_buffer(vcpu.run_page, C.KvmRun.hw.offset)
    assert (msr.index, msr.reason) == (0xDEAD, X.KVM_MSR_EXIT_REASON_UNKNOWN)
    msr.data = 0x99
    exit = board.until(vcpu, ArchExit)
    assert isinstance(exit, ArchExit) and exit.name == "KVM_EXIT_X86_WRMSR"
    assert X.RunMsr.from_buffer(vcpu.run_page, C.KvmRun.hw.offset).data & 0xFFFFFFFF == 5
    board.until(vcpu, Halt)
    assert board.seen == [0x99]
    del msr


def test_time_goes_on(board: Board) -> None:
    vcpu = board.long("rdtsc; mov %eax, %ebx; rdtsc; sub %ebx, %eax; setnz %al; out %al, $0xe9; hlt")
    board.until(vcpu, Halt)
    assert board.seen == [1]


# Registers in the run page.


def test_registers_in_the_run_page(board: Board) -> None:
    vcpu = board.real("out %al, $0x80; out %al, $0xe9; hlt")
    page = vcpu.run_page
    page.kvm_valid_regs = X.KVM_SYNC_X86_REGS
    assert isinstance(vcpu.run(), PioOut)
    sync = X.KvmSyncRegs.from_buffer(page.s)
    assert sync.regs.rsp == STACK
    sync.regs.rax = 0x42
    page.kvm_dirty_regs = X.KVM_SYNC_X86_REGS
    board.until(vcpu, Halt)
    assert board.seen == [0x42]
    del sync


# Being interrupted.


def test_a_guest_that_loops_can_be_kicked(board: Board) -> None:
    vcpu = board.real("1: jmp 1b")
    timer = threading.Timer(0.1, vcpu.kick)
    timer.start()
    assert isinstance(vcpu.run(), Interrupted)
    timer.join()
    assert vcpu.get_regs().rip == CODE


def test_immediate_exit_completes_the_access(board: Board) -> None:
    vcpu = board.real("in $0x60, %al; out %al, $0xe9; hlt")
    read = vcpu.run()
    assert isinstance(read, PioIn)
    read.reply(0x31)
    vcpu.immediate_exit = True
    assert isinstance(vcpu.run(), Interrupted)
    vcpu.immediate_exit = False
    assert vcpu.get_regs().rax & 0xFF == 0x31
    board.until(vcpu, Halt)
    assert board.seen == [0x31]


def test_registers_mean_what_they_say_after_immediate_exit(board: Board) -> None:
    """The access is over: a register that userspace writes as it was before the access is that, not the answer."""
    vcpu = board.real("mov $0x1234, %bx; in $0x60, %al; out %al, $0xe9; hlt")
    read = vcpu.run()
    assert isinstance(read, PioIn)
    before = vcpu.get_regs()
    read.reply(0x31)
    vcpu.immediate_exit = True
    assert isinstance(vcpu.run(), Interrupted)
    vcpu.immediate_exit = False
    vcpu.set_regs(before)
    assert bytes(vcpu.get_regs()) == bytes(before)


@pytest.mark.parametrize("immediate", [True, False])
def test_a_reset_and_then_the_registers_as_they_were(board: Board, immediate: bool) -> None:
    """As VMMs restore a snapshot: the registers of a reset first, and nothing of those in the registers after it."""
    vcpu = board.real("mov $0x1234, %bx; in $0x60, %al; out %al, $0xe9; hlt")
    read = vcpu.run()
    assert isinstance(read, PioIn)
    wanted = vcpu.get_regs()
    read.reply(0x31)
    if immediate:
        vcpu.immediate_exit = True
        assert isinstance(vcpu.run(), Interrupted)
        vcpu.immediate_exit = False
    vcpu.set_sregs(vcpu.get_sregs())
    vcpu.set_regs(X.KvmRegs(rip=0xFFF0, rflags=2))
    wanted.rip, wanted.rax = CODE + 5, 0x77  # behind the IN
    vcpu.set_regs(wanted)
    assert bytes(vcpu.get_regs()) == bytes(wanted)
    board.until(vcpu, Halt)
    assert board.seen == [0x77]


# With interrupt controllers in the kernel.


def test_the_pics(board: Board) -> None:
    board.vm.create_irqchip()
    board.load(".code16\nmov $0x24, %al; out %al, $0xe9; iret", 0x2000)
    board.memory.write(4 * 0x24, struct.pack("<HH", 0x2000, 0))
    vcpu = board.real(
        "xor %ax, %ax; mov %ax, %ds; mov %ax, %ss;"
        "mov $0x11, %al; out %al, $0x20; mov $0x20, %al; out %al, $0x21; mov $4, %al; out %al, $0x21;"
        "mov $1, %al; out %al, $0x21; mov $0, %al; out %al, $0x21; mov $1, %al; out %al, $0xe9;"
        "sti; hlt; mov $2, %al; out %al, $0xe9; out %al, $0x99; 1: jmp 1b"
    )
    first = vcpu.run()
    assert isinstance(first, PioOut) and first.data == b"\1", first
    # An edge before the PICs were initialised would have been forgotten.
    board.vm.irq_line(4, 1)
    while not isinstance(exit := vcpu.run(), PioOut) or exit.port != 0x99:
        assert isinstance(exit, PioOut) and exit.port == PORT, exit
        board.seen.append(exit.data[0])
    assert board.seen == [0x24, 2]


def test_a_message_wakes_a_halted_guest(board: Board) -> None:
    board.vm.create_irqchip()
    board.load(".code64\nmov $0x41, %al; out %al, $0xe9; hlt; 1: jmp 1b", 0x2000)
    board.gate(0x41, 0x2000)
    vcpu = board.long("mov $0xfee00000, %eax; movl $0x1ff, 0xf0(%rax); out %al, $0xe9; sti; hlt; 1: jmp 1b")
    first = vcpu.run()
    assert isinstance(first, PioOut), first
    timer = threading.Timer(0.1, lambda: board.vm.signal_msi(0xFEE00000, 0x41))
    timer.start()
    second = vcpu.run()
    timer.join()
    assert isinstance(second, PioOut) and second.data == b"\x41", second
