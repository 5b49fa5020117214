# SPDX-License-Identifier: GPL-2.0-only
"""Registers in bulk: general, control and segment, x87 and SSE, debug; what is on its way to the guest."""

from __future__ import annotations

import errno

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from x86_fake import Rig, errno_of

from anykvm.arch.x86 import inject, sregs
from anykvm.engine import Event
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

SHARED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)


@pytest.fixture
def one(rig: Rig) -> Rig:
    rig.create_vcpu()
    return rig


# General registers.


def test_after_reset(one: Rig) -> None:
    regs = one.get(X.KVM_GET_REGS, X.KvmRegs)
    assert (regs.rip, regs.rflags, regs.rdx, regs.rax) == (0xFFF0, 2, 0x600, 0)


def test_rdx_after_init_is_the_signature_cpuid_gives(one: Rig) -> None:
    """A vCPU is reset when it is made, and has no CPUID then."""
    one.vcpu().set_cpuid(((1, 0, 0, 0x306C4, 0, 0, 0),))
    assert one.get(X.KVM_GET_REGS, X.KvmRegs).rdx == 0x600
    inject.init(one.vcpu())
    assert one.get(X.KVM_GET_REGS, X.KvmRegs).rdx == 0x306C4


@SHARED
@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=18, max_size=18))
def test_general_registers_there_and_back(one: Rig, values: list[int]) -> None:
    names = [name for name, _ in X.KvmRegs._fields_]
    one.set(X.KVM_SET_REGS, X.KvmRegs(*values))
    regs = one.get(X.KVM_GET_REGS, X.KvmRegs)
    values[17] |= 2
    assert [getattr(regs, name) for name in names] == values


def test_the_order_of_the_abi_is_not_the_cpus(one: Rig) -> None:
    one.set(X.KVM_SET_REGS, X.KvmRegs(rbx=1, rcx=2, rsi=3, rsp=4, r8=5, r15=6))
    gpr = one.cpu().gpr
    assert (gpr[3], gpr[1], gpr[6], gpr[4], gpr[8], gpr[15]) == (1, 2, 3, 4, 5, 6)


def test_setting_registers_forgets_an_exception(one: Rig) -> None:
    one.vcpu().exception = (13, 0)
    one.set(X.KVM_SET_REGS, X.KvmRegs())
    assert one.vcpu().exception is None


@pytest.mark.parametrize("request_number", [X.KVM_GET_REGS, X.KVM_SET_REGS, X.KVM_GET_SREGS, X.KVM_SET_FPU])
def test_a_bad_address(one: Rig, request_number: int) -> None:
    assert errno_of(one.ioctl, one.vcpus[0], request_number, 0x10) == errno.EFAULT


# Segments.


@given(
    st.builds(
        X.KvmSegment,
        base=st.integers(0, (1 << 64) - 1),
        limit=st.integers(0, 0xFFFFFFFF),
        selector=st.integers(0, 0xFFFF),
        type=st.integers(0, 15),
        present=st.just(1),
        dpl=st.integers(0, 3),
        db=st.integers(0, 1),
        s=st.integers(0, 1),
        l=st.integers(0, 1),
        g=st.integers(0, 1),
        avl=st.integers(0, 1),
    )
)
def test_a_segment_there_and_back(segment: X.KvmSegment) -> None:
    back = X.KvmSegment()
    sregs.pack_segment(back, sregs.unpack_segment(segment))
    assert bytes(back) == bytes(segment)


def test_an_unusable_segment_is_not_present() -> None:
    back = X.KvmSegment()
    sregs.pack_segment(back, sregs.unpack_segment(X.KvmSegment(present=1, unusable=1, type=3)))
    assert (back.present, back.unusable, back.type) == (0, 1, 3)


def test_attributes_are_a_descriptors_bits() -> None:
    # A flat 64-bit code segment: type 11, S, DPL 3, P, L, G.
    segment = X.KvmSegment(limit=0xFFFFFFFF, selector=0x33, type=11, s=1, dpl=3, present=1, l=1, g=1)
    assert sregs.unpack_segment(segment) == (0x33, 0, 0xFFFFFFFF, 0xA0FB)


# Control registers.


def long_mode() -> X.KvmSregs:
    value = X.KvmSregs(cr0=0x80010011, cr3=0x1000, cr4=X.X86_CR4_PAE, efer=0xD01, apic_base=0xFEE00900)
    value.cs = X.KvmSegment(0, 0xFFFFFFFF, 8, 11, 1, 0, 0, 1, 1, 1)
    value.ss = X.KvmSegment(0, 0xFFFFFFFF, 16, 3, 1, 0, 1, 1, 0, 1)
    value.gdt.base, value.gdt.limit = 0x2000, 0x1F
    value.idt.base, value.idt.limit = 0x3000, 0xFFF
    value.cr2 = 0xFFFF800000001234
    return value


def test_long_mode_there_and_back(one: Rig) -> None:
    value = long_mode()
    one.set(X.KVM_SET_SREGS, value)
    back = one.get(X.KVM_GET_SREGS, X.KvmSregs)
    assert (back.cr0, back.cr2, back.cr3, back.cr4, back.efer) == (0x80010011, value.cr2, 0x1000, 0x20, 0xD01)
    assert bytes(back.cs) == bytes(value.cs)
    assert bytes(back.ss) == bytes(value.ss)
    assert (back.gdt.base, back.gdt.limit, back.idt.base, back.idt.limit) == (0x2000, 0x1F, 0x3000, 0xFFF)


def test_reset_values(one: Rig) -> None:
    value = one.get(X.KVM_GET_SREGS, X.KvmSregs)
    assert (value.cs.selector, value.cs.base, value.cr0, value.apic_base) == (
        0xF000,
        0xFFFF0000,
        0x60000010,
        0xFEE00900,
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"cr0": 0x80000000},
        {"cr0": X.X86_CR0_NW},
        {"cr0": 1 << 33},
        {"cr4": 1 << 31},
        {"cr4": X.X86_CR4_PCIDE},
        {"cr4": X.X86_CR4_LA57},
        {"efer": X.EFER_LMA},
        {"cr0": 0x80000011, "efer": X.EFER_LME, "cr4": X.X86_CR4_PAE},
        {"cr0": 0x80000011, "efer": X.EFER_LME | X.EFER_LMA},
        {"cr0": 0x80000011, "efer": 0x500, "cr4": X.X86_CR4_PAE, "cr3": 1 << 60},
        {"apic_base": 0xFEE00901},
        {"apic_base": 0xFEE00D00},
        {"apic_base": 1 << 52},
    ],
    ids=str,
)
def test_what_a_cpu_cannot_be(one: Rig, wrong: dict[str, int]) -> None:
    value = one.get(X.KVM_GET_SREGS, X.KvmSregs)
    for name, number in wrong.items():
        setattr(value, name, number)
    before = one.cpu().segments[:]
    assert errno_of(one.set, X.KVM_SET_SREGS, value) == errno.EINVAL
    assert one.cpu().segments == before
    assert one.cpu().cr0 == 0x60000010


def test_a_long_code_segment_needs_long_mode(one: Rig) -> None:
    value = one.get(X.KVM_GET_SREGS, X.KvmSregs)
    value.cs.l = 1
    assert errno_of(one.set, X.KVM_SET_SREGS, value) == errno.EINVAL


def test_a_cr8_that_does_not_fit_is_ignored(one: Rig) -> None:
    value = one.get(X.KVM_GET_SREGS, X.KvmSregs)
    value.cr8 = 0x1F
    one.set(X.KVM_SET_SREGS, value)
    assert one.get(X.KVM_GET_SREGS, X.KvmSregs).cr8 == 0
    value.cr8 = 9
    one.set(X.KVM_SET_SREGS, value)
    assert one.get(X.KVM_GET_SREGS, X.KvmSregs).cr8 == 9


def test_bits_of_efer_the_cpu_does_not_have_are_dropped(one: Rig) -> None:
    value = one.get(X.KVM_GET_SREGS, X.KvmSregs)
    value.efer = 1 << 20 | X.EFER_SVME | X.EFER_SCE
    one.set(X.KVM_SET_SREGS, value)
    assert one.cpu().efer == X.EFER_SCE


@pytest.mark.parametrize("vector", [0, 63, 64, 0x30, 255])
def test_an_interrupt_in_the_registers(one: Rig, vector: int) -> None:
    value = one.get(X.KVM_GET_SREGS, X.KvmSregs)
    value.interrupt_bitmap[vector // 64] = 1 << vector % 64
    one.set(X.KVM_SET_SREGS, value)
    assert one.vcpu().injected_irq == vector
    assert one.cpu().line


def test_the_apic_base_with_a_local_apic(chips: Rig) -> None:
    chips.create_vcpu()
    value = chips.get(X.KVM_GET_SREGS, X.KvmSregs)
    value.apic_base = 0xFEC10000 | X.MSR_IA32_APICBASE_ENABLE
    chips.set(X.KVM_SET_SREGS, value)
    assert chips.vcpu().lapic.base == 0xFEC10000
    assert chips.get_msr(X.MSR_IA32_APICBASE) == value.apic_base


def test_the_second_version_has_the_pdptrs(one: Rig) -> None:
    memory = one.add_memory(0, 0x4000)
    memory[0x1020:0x1040] = b"".join((index << 12 | 1).to_bytes(8, "little") for index in range(4))
    value = one.get(X.KVM_GET_SREGS2, X.KvmSregs2)
    assert value.flags == 0
    value.cr0, value.cr3, value.cr4 = 0x80000011, 0x1020, X.X86_CR4_PAE
    value.flags = X.KVM_SREGS2_FLAGS_PDPTRS_VALID
    one.set(X.KVM_SET_SREGS2, value)
    back = one.get(X.KVM_GET_SREGS2, X.KvmSregs2)
    assert back.flags == X.KVM_SREGS2_FLAGS_PDPTRS_VALID
    assert list(back.pdptrs) == [1, 0x1001, 0x2001, 0x3001]


@pytest.mark.parametrize("flags", [1, 2, 3])
def test_flags_of_the_second_version(one: Rig, flags: int) -> None:
    value = one.get(X.KVM_GET_SREGS2, X.KvmSregs2)
    value.flags = flags
    assert errno_of(one.set, X.KVM_SET_SREGS2, value) == errno.EINVAL


def test_registers_are_written_when_no_instruction_is_half_done(one: Rig) -> None:
    one.run((Event.MMIO_READ, 0xFEB00000, 4))
    one.set(X.KVM_SET_REGS, X.KvmRegs(rip=0x1000, rbx=5))
    assert one.cpu().answers == [0]
    assert one.get(X.KVM_GET_REGS, X.KvmRegs).rip == 0x1000
    one.bytes()[40] = 0x12
    sregs = one.get(X.KVM_GET_SREGS, X.KvmSregs)
    sregs.cr2 = 5
    one.set(X.KVM_SET_SREGS, sregs)
    assert one.cpu().answers[-1] == 0x12
    assert (one.cpu().rip, one.cpu().gpr[3]) == (0x1000, 5)


def test_what_userspace_leaves_takes_the_instructions_result(one: Rig) -> None:
    """As after a port's exit that is answered with registers: RIP goes on behind the instruction."""
    one.run((Event.PIO_READ, 0x60, 1))
    regs = one.get(X.KVM_GET_REGS, X.KvmRegs)
    regs.rcx = 7
    one.set(X.KVM_SET_REGS, regs)
    regs.rdx = 8
    one.set(X.KVM_SET_REGS, regs)
    one.bytes()[4096] = 0x99
    cpu = one.cpu()

    def finish(_: object) -> tuple[int, ...]:
        cpu.gpr[0], cpu.rip, cpu.rflags = cpu.answers[-1], cpu.rip + 2, 0x46
        return (Event.KICK,)

    cpu.script.extend([finish, (Event.HLT,)])
    cpu.kick = lambda: None  # type: ignore[method-assign]
    one.run()
    back = one.get(X.KVM_GET_REGS, X.KvmRegs)
    assert (back.rax, back.rcx, back.rdx, back.rip, back.rflags) == (0x99, 7, 8, regs.rip + 2, 0x46)


# x87, SSE, XCR0.


def test_fpu_there_and_back(one: Rig) -> None:
    fpu = X.KvmFpu(fcw=0x27F, fsw=0x3800, ftwx=0x81, last_opcode=0x123, last_ip=0x1111, last_dp=0x2222)
    for number in range(8):
        fpu.fpr[number][:10] = list(range(number, number + 10))
    for number in range(16):
        fpu.xmm[number][:] = [number * 16 + byte & 0xFF for byte in range(16)]
    one.set(X.KVM_SET_FPU, fpu)
    assert bytes(one.get(X.KVM_GET_FPU, X.KvmFpu)) == bytes(fpu)
    area = bytes(one.get(X.KVM_GET_XSAVE, X.KvmXsave))
    assert area[:2] == b"\x7f\x02"
    assert area[160:176] == bytes(range(16))
    assert area[512] == 3


def test_mxcsr_is_xsaves_alone(one: Rig) -> None:
    """The kernel neither fills it in nor takes it in its FPU requests."""
    one.set(X.KVM_SET_FPU, X.KvmFpu(fcw=0x37F, mxcsr=0x1FA0))
    assert one.get(X.KVM_GET_FPU, X.KvmFpu).mxcsr == 0
    area = one.get(X.KVM_GET_XSAVE, X.KvmXsave)
    assert area.region[6] == 0x1F80
    assert area.region[128] == 0  # nothing is there but initial states
    area.region[6], area.region[128] = 0x1FA0, 2
    one.set(X.KVM_SET_XSAVE, area)
    found = one.get(X.KVM_GET_XSAVE, X.KvmXsave)
    assert (found.region[6], found.region[128]) == (0x1FA0, 2)
    area.region[6] = 0x11F80
    assert errno_of(one.set, X.KVM_SET_XSAVE, area) == errno.EINVAL


def test_xsave_components_that_are_not_present_are_initialised(one: Rig) -> None:
    one.set(X.KVM_SET_FPU, X.KvmFpu(fcw=0x40))
    area = one.get(X.KVM_GET_XSAVE, X.KvmXsave)
    area.region[6] = 0x1000
    area.region[128] = 1
    one.set(X.KVM_SET_XSAVE, area)
    found = one.get(X.KVM_GET_XSAVE, X.KvmXsave)
    assert (found.region[0], found.region[6]) == (0x40, 0x1F80)
    area.region[128] = 2
    one.set(X.KVM_SET_XSAVE, area)
    found = one.get(X.KVM_GET_XSAVE, X.KvmXsave)
    assert (found.region[0], found.region[6]) == (0x37F, 0x1000)


@pytest.mark.parametrize(("word", "value"), [(128, 4), (129, 1), (130, 1), (140, 1)])
def test_xsave_areas_that_are_refused(one: Rig, word: int, value: int) -> None:
    area = one.get(X.KVM_GET_XSAVE, X.KvmXsave)
    area.region[word] = value
    assert errno_of(one.set, X.KVM_SET_XSAVE, area) == errno.EINVAL


def test_xcr0(one: Rig) -> None:
    xcrs = one.get(X.KVM_GET_XCRS, X.KvmXcrs)
    assert (xcrs.nr_xcrs, xcrs.xcrs[0].xcr, xcrs.xcrs[0].value) == (1, 0, 1)
    xcrs.xcrs[0].value = 3
    # CPUID has not been set: nothing says that the guest has SSE.
    assert errno_of(one.set, X.KVM_SET_XCRS, xcrs) == errno.EINVAL
    one.vcpu().set_cpuid(((0xD, 0, 0, 3, 0, 0, 0),))
    one.set(X.KVM_SET_XCRS, xcrs)
    assert one.cpu().xcr0 == 3


@pytest.mark.parametrize(("field", "value"), [("nr_xcrs", 17), ("flags", 1)])
def test_bad_heads_of_xcrs(one: Rig, field: str, value: int) -> None:
    xcrs = one.get(X.KVM_GET_XCRS, X.KvmXcrs)
    setattr(xcrs, field, value)
    assert errno_of(one.set, X.KVM_SET_XCRS, xcrs) == errno.EINVAL


@pytest.mark.parametrize("value", [0, 2, 4, 7])
def test_an_xcr0_the_cpu_cannot_have(one: Rig, value: int) -> None:
    xcrs = one.get(X.KVM_GET_XCRS, X.KvmXcrs)
    xcrs.xcrs[0].value = value
    assert errno_of(one.set, X.KVM_SET_XCRS, xcrs) == errno.EINVAL


# Debugging.


def test_debug_registers(one: Rig) -> None:
    regs = one.get(X.KVM_GET_DEBUGREGS, X.KvmDebugregs)
    assert (regs.dr6, regs.dr7) == (0xFFFF0FF0, 0x400)
    regs.db[:] = [1, 2, 3, 4]
    regs.dr7 = 0x402
    one.set(X.KVM_SET_DEBUGREGS, regs)
    back = one.get(X.KVM_GET_DEBUGREGS, X.KvmDebugregs)
    assert (list(back.db), back.dr7) == ([1, 2, 3, 4], 0x402)


@pytest.mark.parametrize(("field", "value"), [("flags", 1), ("dr6", 1 << 32), ("dr7", 1 << 40)])
def test_bad_debug_registers(one: Rig, field: str, value: int) -> None:
    regs = one.get(X.KVM_GET_DEBUGREGS, X.KvmDebugregs)
    setattr(regs, field, value)
    assert errno_of(one.set, X.KVM_SET_DEBUGREGS, regs) == errno.EINVAL


def test_single_step_and_breakpoints(one: Rig) -> None:
    assert one.ioctl(one.fd, C.KVM_CHECK_EXTENSION, C.KVM_CAP_SET_GUEST_DEBUG) == 1
    request = X.KvmGuestDebug(
        control=C.KVM_GUESTDBG_ENABLE | C.KVM_GUESTDBG_SINGLESTEP | X.KVM_GUESTDBG_USE_HW_BP | X.KVM_GUESTDBG_USE_SW_BP
    )
    request.arch.debugreg[0] = 0x1234
    request.arch.debugreg[7] = 0x402
    one.set(X.KVM_SET_GUEST_DEBUG, request)
    assert one.cpu().log[-1] == ("debug", True, True, (0x1234, 0, 0, 0, 0, 0, 0, 0x402), False)
    page = one.run((Event.BREAK, 0x4001))
    assert page.exit_reason == C.KVM_EXIT_DEBUG
    seen = X.KvmDebugExitArch.from_buffer_copy(one.bytes(), 32)
    assert (seen.exception, seen.dr6, seen.dr7) == (X.DB_VECTOR, 0xFFFF4FF1, 0x402)
    assert seen.pc == 0xFFFFFFF0
    page = one.run((Event.BREAK, 0))
    assert X.KvmDebugExitArch.from_buffer_copy(one.bytes(), 32).exception == X.BP_VECTOR
    one.set(X.KVM_SET_GUEST_DEBUG, X.KvmGuestDebug(control=0))
    assert one.cpu().log[-1] == ("debug", False, False, None, False)


@pytest.mark.parametrize(
    ("control", "vector"), [(X.KVM_GUESTDBG_INJECT_DB, X.DB_VECTOR), (X.KVM_GUESTDBG_INJECT_BP, X.BP_VECTOR)]
)
def test_injecting_for_a_debugger(one: Rig, control: int, vector: int) -> None:
    request = X.KvmGuestDebug(control=C.KVM_GUESTDBG_ENABLE | control)
    one.set(X.KVM_SET_GUEST_DEBUG, request)
    assert errno_of(one.set, X.KVM_SET_GUEST_DEBUG, request) == errno.EBUSY
    one.run((Event.HLT,))
    assert one.cpu().log[-1] == ("raise", vector, -1, False)


# Events.


def test_events_there_and_back(one: Rig) -> None:
    events = one.get(X.KVM_GET_VCPU_EVENTS, X.KvmVcpuEvents)
    assert events.flags == 0xD
    events.exception.injected, events.exception.nr = 1, X.GP_VECTOR
    events.exception.has_error_code, events.exception.error_code = 1, 0x50
    events.interrupt.injected, events.interrupt.nr = 1, 0x31
    events.interrupt.shadow = X.KVM_X86_SHADOW_INT_STI
    events.nmi.pending, events.nmi.masked = 1, 1
    one.set(X.KVM_SET_VCPU_EVENTS, events)
    back = one.get(X.KVM_GET_VCPU_EVENTS, X.KvmVcpuEvents)
    assert (back.exception.injected, back.exception.nr, back.exception.error_code) == (1, X.GP_VECTOR, 0x50)
    assert (back.interrupt.injected, back.interrupt.nr, back.interrupt.shadow) == (1, 0x31, X.KVM_X86_SHADOW_INT_STI)
    assert (back.nmi.pending, back.nmi.masked) == (1, 1)


def test_events_that_are_not_there_are_taken_back(one: Rig) -> None:
    one.set(C.KVM_INTERRUPT, C.KvmInterrupt(irq=0x20))
    one.ioctl(one.vcpus[0], C.KVM_NMI)
    one.set(X.KVM_SET_VCPU_EVENTS, X.KvmVcpuEvents(flags=X.KVM_VCPUEVENT_VALID_NMI_PENDING))
    assert not one.cpu().line
    assert not one.vcpu().nmi_pending


def test_what_no_flag_names_stays(one: Rig) -> None:
    one.ioctl(one.vcpus[0], C.KVM_NMI)
    one.cpu().shadow = True
    one.set(X.KVM_SET_VCPU_EVENTS, X.KvmVcpuEvents())
    assert one.vcpu().nmi_pending
    one.set(X.KVM_SET_VCPU_EVENTS, X.KvmVcpuEvents(flags=X.KVM_VCPUEVENT_VALID_SHADOW))
    assert not one.cpu().shadow


@pytest.mark.parametrize("flags", [0x10, 0x20, 0x40, 1 << 31])
def test_flags_of_events_there_are_not(one: Rig, flags: int) -> None:
    assert errno_of(one.set, X.KVM_SET_VCPU_EVENTS, X.KvmVcpuEvents(flags=flags)) == errno.EINVAL


@pytest.mark.parametrize("vector", [X.NMI_VECTOR, 32, 255])
@pytest.mark.parametrize("how", ["injected", "pending"])
def test_exceptions_there_are_not(one: Rig, vector: int, how: str) -> None:
    one.enable(C.KVM_CAP_EXCEPTION_PAYLOAD, 1)
    events = X.KvmVcpuEvents(flags=X.KVM_VCPUEVENT_VALID_PAYLOAD)
    events.exception.nr = vector
    setattr(events.exception, how, 1)
    assert errno_of(one.set, X.KVM_SET_VCPU_EVENTS, events) == errno.EINVAL
