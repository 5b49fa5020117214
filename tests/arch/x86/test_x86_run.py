# SPDX-License-Identifier: GPL-2.0-only
"""KVM_RUN: what each of the engine's events becomes."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator

import pytest
from x86_fake import IF, Rig, errno_of, install, rigs

from anykvm.engine import Event
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X

GP = ("raise", X.GP_VECTOR, 0, True)


@pytest.fixture
def one(rig: Rig) -> Rig:
    rig.create_vcpu()
    return rig


# Ports.


@pytest.mark.parametrize(("size", "value"), [(1, 0x41), (2, 0x1234), (4, 0xDEADBEEF)])
def test_out_is_an_exit_with_the_data_in_the_next_page(one: Rig, size: int, value: int) -> None:
    page = one.run((Event.PIO_WRITE, 0x3F8, size, value))
    assert page.exit_reason == C.KVM_EXIT_IO
    assert (page.io.direction, page.io.size, page.io.port, page.io.count) == (C.KVM_EXIT_IO_OUT, size, 0x3F8, 1)
    assert page.io.data_offset == 4096
    assert bytes(one.bytes()[4096 : 4096 + size]) == value.to_bytes(size, "little")


@pytest.mark.parametrize("size", [1, 2, 4])
def test_in_takes_its_answer_from_there(one: Rig, size: int) -> None:
    page = one.run((Event.PIO_READ, 0x60, size))
    assert (page.io.direction, page.io.size, page.io.port) == (C.KVM_EXIT_IO_IN, size, 0x60)
    one.bytes()[4096:4104] = b"\x11\x22\x33\x44\x55\x66\x77\x88"
    one.run((Event.HLT,))
    assert one.cpu().answers[-1] == int.from_bytes(b"\x11\x22\x33\x44"[:size], "little")


def test_each_item_of_string_output_is_an_exit(one: Rig) -> None:
    cpu = one.cpu()
    cpu.script.extend((Event.PIO_WRITE, 0x3F8, 1, byte) for byte in b"abc")
    assert [one.run() and one.bytes()[4096] for _ in range(3)] == list(b"abc")


def test_out_owes_the_guest_nothing(one: Rig) -> None:
    one.run((Event.PIO_WRITE, 0x3F8, 1, 0x41))
    one.bytes()[4096] = 0x99
    one.run((Event.HLT,))
    assert one.cpu().answers[-1] == 0


def test_whoever_moves_rip_does_without_the_ports_answer(one: Rig) -> None:
    one.run((Event.PIO_READ, 0x60, 1))
    one.set(X.KVM_SET_REGS, X.KvmRegs(rip=0x1000, rbx=5))
    assert one.cpu().log == ["abandon"]
    assert (one.cpu().rip, one.cpu().gpr[3]) == (0x1000, 5)


def test_an_ioeventfd_takes_a_port(one: Rig) -> None:
    event = os.eventfd(0, os.EFD_NONBLOCK)
    request = C.KvmIoeventfd(addr=0x510, len=2, fd=event, flags=C.KVM_IOEVENTFD_FLAG_PIO)
    one.ioctl(one.fd, C.KVM_IOEVENTFD, request)
    page = one.run((Event.PIO_WRITE, 0x510, 2, 7), (Event.HLT,))
    assert page.exit_reason == C.KVM_EXIT_HLT
    assert os.eventfd_read(event) == 1
    os.close(event)


def test_ports_of_the_pics_do_not_exit(chips: Rig) -> None:
    chips.create_vcpu()
    page = chips.run((Event.PIO_WRITE, 0x21, 1, 0xA5), (Event.PIO_READ, 0x21, 1), (Event.SHUTDOWN,))
    assert page.exit_reason == C.KVM_EXIT_SHUTDOWN
    assert chips.cpu().answers[-1] == 0xA5


# Device memory.


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_mmio_write(one: Rig, size: int) -> None:
    value = 0x8877665544332211 & (1 << 8 * size) - 1
    page = one.run((Event.MMIO_WRITE, 0xD000_0000, size, value))
    assert page.exit_reason == C.KVM_EXIT_MMIO
    assert (page.mmio.phys_addr, page.mmio.len, page.mmio.is_write) == (0xD000_0000, size, 1)
    assert bytes(page.mmio.data) == value.to_bytes(8, "little")


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_mmio_read(one: Rig, size: int) -> None:
    page = one.run((Event.MMIO_READ, 0xD000_0000, size))
    assert (page.mmio.len, page.mmio.is_write) == (size, 0)
    page.mmio.data[:] = bytes(range(1, 9))
    one.run((Event.HLT,))
    assert one.cpu().answers[-1] == int.from_bytes(bytes(range(1, size + 1)), "little")


def test_the_local_apic_is_asked_first(chips: Rig) -> None:
    chips.create_vcpu()
    chips.run((Event.MMIO_READ, 0xFEE0_0030, 4), (Event.SHUTDOWN,))
    assert chips.cpu().answers[-1] & 0xFF == 0x14
    assert chips.vm.vcpu_array[0].stats.as_dict()["mmio_exit_kernel"] == 1


def test_without_one_its_page_is_userspaces(one: Rig) -> None:
    assert one.run((Event.MMIO_READ, 0xFEE0_0030, 4)).exit_reason == C.KVM_EXIT_MMIO


def test_the_task_priority_in_the_apic_page_is_cr8(chips: Rig) -> None:
    chips.create_vcpu()
    page = chips.run((Event.MMIO_WRITE, 0xFEE0_0080, 4, 0x50), (Event.SHUTDOWN,))
    assert page.cr8 == 5
    assert chips.cpu().cr8 == 5


# Halting, shutting down, failing.


def test_hlt_is_an_exit_without_a_local_apic(one: Rig) -> None:
    assert one.run((Event.HLT,)).exit_reason == C.KVM_EXIT_HLT
    assert one.run((Event.HLT,)).exit_reason == C.KVM_EXIT_HLT


def test_a_triple_fault(one: Rig) -> None:
    assert one.run((Event.SHUTDOWN,)).exit_reason == C.KVM_EXIT_SHUTDOWN


def test_running_where_no_memory_is(one: Rig) -> None:
    page = one.run((Event.FETCH, 0xABCD_0000))
    assert page.exit_reason == C.KVM_EXIT_INTERNAL_ERROR
    assert page.internal.suberror == C.KVM_INTERNAL_ERROR_EMULATION
    assert (page.internal.ndata, list(page.internal.data[:6])) == (6, [0, 0, 0, 0xABCD_0000, 0, 0])


def test_an_error_of_the_engine(one: Rig) -> None:
    page = one.run((Event.ERROR, 5, 6))
    assert page.exit_reason == C.KVM_EXIT_INTERNAL_ERROR
    assert page.internal.suberror == C.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON
    assert page.internal.ndata == 4
    assert list(page.internal.data[:4]) == [Event.ERROR, 5, 6, 0xFFF0]


# Being interrupted.


def test_immediate_exit(one: Rig) -> None:
    one.page().immediate_exit = 1
    assert errno_of(one.run) == errno.EINTR
    assert one.cpu().answers == []


def test_a_signal_while_the_guest_computes(one: Rig) -> None:
    thread = one.in_thread()
    while not one.cpu().answers:
        pass
    one.backend.interrupt(one.vcpus[0])
    assert errno_of(thread.join) == errno.EINTR
    assert one.page().exit_reason == C.KVM_EXIT_INTR


def test_a_device_access_across_eintr_keeps_its_answer(chips: Rig) -> None:
    """The APIC answered, then the thread is interrupted: the guest still gets that answer."""
    chips.create_vcpu()

    def read(cpu: object) -> tuple[int, ...]:
        chips.vm.vcpu_array[0].interrupt()
        return (Event.MMIO_READ, 0xFEE0_0030, 4)

    chips.cpu().script.append(read)
    assert errno_of(chips.run) == errno.EINTR
    chips.cpu().kicked.clear()
    chips.run((Event.SHUTDOWN,))
    assert chips.cpu().answers[-1] & 0xFF == 0x14


def test_immediate_exit_finishes_the_instruction(one: Rig) -> None:
    one.run((Event.PIO_READ, 0x60, 1))
    one.bytes()[4096] = 0x77
    one.page().immediate_exit = 1
    assert errno_of(one.run) == errno.EINTR
    assert one.cpu().answers[-1] == 0x77
    assert one.vcpu().reply is None
    one.page().immediate_exit = 0
    assert one.run((Event.HLT,)).exit_reason == C.KVM_EXIT_HLT
    assert one.cpu().answers[-1] == 0


@pytest.mark.parametrize(
    ("event", "undone"),
    [((Event.HLT,), 1), ((Event.HYPERCALL,), 3), ((Event.PIO_WRITE, 0x80, 1, 1), 0), ((Event.KICK,), 0)],
)
def test_what_comes_right_after_is_met_again(one: Rig, event: tuple[int, ...], undone: int) -> None:
    one.enable(C.KVM_CAP_X86_USER_SPACE_MSR, X.KVM_MSR_EXIT_REASON_UNKNOWN)
    one.run((Event.MSR_READ, 0xDEAD))
    cpu = one.cpu()

    def first(_: object) -> tuple[int, ...]:
        return event

    cpu.kick = lambda: None  # type: ignore[method-assign]
    cpu.script.append(first)
    cpu.rip = 0x1000
    regs = one.get(X.KVM_GET_REGS, X.KvmRegs)
    sregs = one.get(X.KVM_GET_SREGS, X.KvmSregs)
    sregs.cr2 = 5
    one.set(X.KVM_SET_SREGS, sregs)
    assert cpu.rip == 0x1000 - undone
    assert ("abandon" in cpu.log) == (event[0] == Event.PIO_WRITE)
    assert regs.rip == 0x1000


# Interrupts from userspace.


def test_an_injected_interrupt_is_delivered_when_the_guest_can_take_it(one: Rig) -> None:
    one.set(C.KVM_INTERRUPT, C.KvmInterrupt(irq=0x21))
    cpu = one.cpu()
    assert cpu.line
    assert one.run((Event.HLT,)).ready_for_interrupt_injection == 0
    cpu.rflags |= IF
    page = one.run((Event.HLT,))
    assert cpu.answers[-1] == 0x21
    assert not cpu.line
    assert (page.ready_for_interrupt_injection, page.if_flag) == (1, 1)


def test_it_shows_in_the_registers_until_then(one: Rig) -> None:
    one.set(C.KVM_INTERRUPT, C.KvmInterrupt(irq=0x85))
    sregs = one.get(X.KVM_GET_SREGS, X.KvmSregs)
    assert list(sregs.interrupt_bitmap) == [0, 0, 1 << 5, 0]
    events = one.get(X.KVM_GET_VCPU_EVENTS, X.KvmVcpuEvents)
    assert (events.interrupt.injected, events.interrupt.nr) == (1, 0x85)


@pytest.mark.parametrize("vector", [256, 0xFFFFFFFF])
def test_a_vector_there_is_not(one: Rig, vector: int) -> None:
    assert errno_of(one.set, C.KVM_INTERRUPT, C.KvmInterrupt(irq=vector)) == errno.EINVAL


def test_the_pics_raise_the_interrupts_themselves(chips: Rig) -> None:
    chips.create_vcpu()
    assert errno_of(chips.set, C.KVM_INTERRUPT, C.KvmInterrupt(irq=0x20)) == errno.ENXIO


def test_the_window_is_asked_for_and_reported(one: Rig) -> None:
    one.page().request_interrupt_window = 1
    cpu = one.cpu()
    page = one.run((Event.IRQ_WINDOW,))
    assert cpu.want_window
    assert page.exit_reason == C.KVM_EXIT_IRQ_WINDOW_OPEN
    one.page().request_interrupt_window = 0
    one.run((Event.HLT,))
    assert not cpu.want_window
    assert one.vm.vcpu_array[0].stats.as_dict()["request_irq_exits"] == 1


def test_with_the_pics_in_the_kernel_there_is_no_window(chips: Rig) -> None:
    chips.create_vcpu()
    chips.page().request_interrupt_window = 1
    page = chips.run((Event.SHUTDOWN,))
    assert not chips.cpu().want_window
    assert page.ready_for_interrupt_injection == 1


@pytest.mark.parametrize(("shadow", "ready"), [(False, 1), (True, 0)])
def test_the_shadow_of_sti_counts(one: Rig, shadow: bool, ready: int) -> None:
    def halt(cpu: object) -> tuple[int, ...]:
        one.cpu().rflags |= IF
        one.cpu().shadow = shadow
        return (Event.HLT,)

    page = one.run(halt)
    assert (page.ready_for_interrupt_injection, page.if_flag) == (ready, 1)


def test_cr8_goes_both_ways_in_the_run_page(one: Rig) -> None:
    one.page().cr8 = 7
    page = one.run((Event.HLT,))
    assert one.cpu().cr8 == 7
    assert page.cr8 == 7
    one.page().cr8 = 16
    assert errno_of(one.run) == errno.EINVAL
    one.page().cr8 = 0x107
    assert errno_of(one.run) == errno.EINVAL


def test_only_a_lowered_task_priority_is_an_exit(one: Rig) -> None:
    page = one.run((Event.CR8_WRITE, 9), (Event.CR8_WRITE, 9), (Event.CR8_WRITE, 3))
    assert page.exit_reason == C.KVM_EXIT_SET_TPR
    assert page.cr8 == 3
    assert not one.cpu().script
    assert one.run((Event.HLT,)).cr8 == 3


def test_cr8_is_the_local_apics_task_priority(chips: Rig) -> None:
    chips.create_vcpu()
    chips.run((Event.CR8_WRITE, 9), (Event.CR8_WRITE, 3), (Event.SHUTDOWN,))
    assert chips.vcpu().lapic.tpr == 0x30


# NMIs and exceptions.


def test_an_nmi_reaches_the_cpu_once(one: Rig) -> None:
    one.ioctl(one.vcpus[0], C.KVM_NMI)
    assert one.get(X.KVM_GET_VCPU_EVENTS, X.KvmVcpuEvents).nmi.pending == 1
    one.cpu().kicked.clear()
    one.run((Event.HLT,))
    one.run((Event.HLT,))
    assert one.cpu().log == ["nmi"]
    assert one.vm.vcpu_array[0].stats.as_dict()["nmi_injections"] == 1


@pytest.mark.parametrize(("code", "given"), [(None, -1), (0x15, 0x15)])
def test_an_exception_from_userspace(one: Rig, code: int | None, given: int) -> None:
    events = one.get(X.KVM_GET_VCPU_EVENTS, X.KvmVcpuEvents)
    events.exception.injected = 1
    events.exception.nr = X.PF_VECTOR
    events.exception.has_error_code = code is not None
    events.exception.error_code = code or 0
    one.set(X.KVM_SET_VCPU_EVENTS, events)
    one.run((Event.HLT,))
    assert one.cpu().log == [("raise", X.PF_VECTOR, given, False)]


# Model-specific registers.


def test_an_unknown_msr_is_a_general_protection_fault(one: Rig) -> None:
    one.run((Event.MSR_READ, 0xDEAD), (Event.MSR_WRITE, 0xDEAD, 0, 1), (Event.HLT,))
    assert one.cpu().log == [GP, GP]


def test_a_known_one_is_answered(one: Rig) -> None:
    one.run((Event.MSR_WRITE, X.MSR_IA32_MISC_ENABLE, 0, 9), (Event.MSR_READ, X.MSR_IA32_MISC_ENABLE), (Event.HLT,))
    assert one.cpu().answers[-1] == 9
    assert one.cpu().log == []


def test_userspace_serves_unknown_msrs_if_it_wants(one: Rig) -> None:
    one.enable(C.KVM_CAP_X86_USER_SPACE_MSR, X.KVM_MSR_EXIT_REASON_UNKNOWN)
    page = one.run((Event.MSR_READ, 0xDEAD))
    assert page.exit_reason == C.KVM_EXIT_X86_RDMSR
    error, reason, index, _ = struct.unpack_from("<B7xIIQ", one.bytes(), 32)
    assert (error, reason, index) == (0, X.KVM_MSR_EXIT_REASON_UNKNOWN, 0xDEAD)
    struct.pack_into("<Q", one.bytes(), 48, 0x1122334455667788)
    page = one.run((Event.MSR_WRITE, 0xDEAD, 0, 0xFF00FF00FF))
    assert one.cpu().answers[-1] == 0x1122334455667788
    assert page.exit_reason == C.KVM_EXIT_X86_WRMSR
    assert struct.unpack_from("<Q", one.bytes(), 48)[0] == 0xFF00FF00FF
    one.run((Event.HLT,))
    assert one.cpu().log == []


@pytest.mark.parametrize("event", [(Event.MSR_READ, 0xDEAD), (Event.MSR_WRITE, 0xDEAD, 0, 1)])
def test_userspace_may_refuse_one(one: Rig, event: tuple[int, ...]) -> None:
    one.enable(C.KVM_CAP_X86_USER_SPACE_MSR, X.KVM_MSR_EXIT_REASON_UNKNOWN)
    one.run(event)
    one.bytes()[32] = 1
    one.run((Event.HLT,))
    assert one.cpu().log == [GP]
    assert one.cpu().answers[-1] == 0


def test_only_the_reasons_asked_for_exit(one: Rig) -> None:
    one.enable(C.KVM_CAP_X86_USER_SPACE_MSR, X.KVM_MSR_EXIT_REASON_INVAL)
    page = one.run((Event.MSR_READ, 0xDEAD), (Event.MSR_WRITE, X.MSR_K7_HWCR, 0, 0x1))
    assert page.exit_reason == C.KVM_EXIT_X86_WRMSR
    assert struct.unpack_from("<I", one.bytes(), 40)[0] == X.KVM_MSR_EXIT_REASON_INVAL
    assert one.cpu().log == [GP]


# Hypercalls.


def hypercall(rig: Rig, number: int, *args: int, user: bool = False, long: bool = True) -> int:
    def call(cpu: object) -> tuple[int, ...]:
        fake = rig.cpu()
        fake.gpr[0] = number
        for register, value in zip((3, 1, 2, 6), args, strict=False):
            fake.gpr[register] = value
        fake.efer = X.EFER_LMA if long else 0
        fake.segments[1] = (8, 0, 0xFFFFFFFF, 0xA09B if long else 0xC09B)
        fake.segments[2] = (16, 0, 0xFFFFFFFF, 0xC0F3 if user else 0xC093)
        return (Event.HYPERCALL,)

    rig.run(call, (Event.SHUTDOWN,))
    return rig.cpu().gpr[0]


def test_an_unknown_hypercall(one: Rig) -> None:
    assert hypercall(one, 999) == (1 << 64) - X.KVM_ENOSYS
    assert hypercall(one, 999, long=False) == (1 << 32) - X.KVM_ENOSYS


def test_one_from_user_mode(one: Rig) -> None:
    assert hypercall(one, X.KVM_HC_VAPIC_POLL_IRQ, user=True) == (1 << 64) - X.KVM_EPERM


def test_one_that_does_nothing(one: Rig) -> None:
    assert hypercall(one, X.KVM_HC_VAPIC_POLL_IRQ) == 0
    assert one.vm.vcpu_array[0].stats.as_dict()["hypercalls"] == 1


def test_kicking_needs_the_feature_once_that_is_enforced(chips: Rig) -> None:
    chips.create_vcpu()
    assert hypercall(chips, X.KVM_HC_KICK_CPU, 0, 0) == 0
    request = C.KvmEnableCap(cap=C.KVM_CAP_ENFORCE_PV_FEATURE_CPUID)
    request.args[0] = 1
    chips.ioctl(chips.vcpus[0], C.KVM_ENABLE_CAP, request)
    assert hypercall(chips, X.KVM_HC_KICK_CPU, 0, 0) == (1 << 64) - X.KVM_ENOSYS


# Many exits.


def test_everything_is_counted(one: Rig) -> None:
    for _ in range(5):
        one.run((Event.PIO_WRITE, 0x80, 1, 0))
    stats = one.vm.vcpu_array[0].stats.as_dict()
    assert (stats["exits"], stats["io_exits"]) == (5, 5)


def test_two_rigs_do_not_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    found: Iterator[Rig] = rigs(monkeypatch)
    install(monkeypatch)
    first, second = next(found), Rig()
    first.create_vcpu()
    second.create_vcpu()
    first.run((Event.HLT,))
    assert second.cpu().resets == 0
    second.close()
    assert next(found, None) is None
