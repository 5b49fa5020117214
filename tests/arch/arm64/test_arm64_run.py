# SPDX-License-Identifier: GPL-2.0-only
"""KVM_RUN over a CPU that does what the test says."""

from __future__ import annotations

import errno
import time

import pytest
from arm64_fake import FakeCpu, Rig, errno_of

from anykvm.arch.arm64 import sysreg_ids as ids
from anykvm.engine import Event
from anykvm.uapi import arm64 as A
from anykvm.uapi import common as C

UART = 0x0900_0000


def wait_for(condition, seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.001)


def test_run_before_init_is_enoexec(rig: Rig) -> None:
    rig.create_vcpu(init=False)
    assert errno_of(rig.run) == errno.ENOEXEC


def test_run_with_an_argument_is_einval(rig: Rig) -> None:
    fd = rig.create_vcpu()
    assert errno_of(rig.ioctl, fd, C.KVM_RUN, 1) == errno.EINVAL


def test_mmio_write_exits_with_the_data(rig: Rig) -> None:
    rig.create_vcpu()
    rig.cpu().script.append((Event.MMIO_WRITE, UART, 4, 0x1234_5678))
    page = rig.run()
    assert page.exit_reason == C.KVM_EXIT_MMIO
    assert (page.mmio.phys_addr, page.mmio.len, page.mmio.is_write) == (UART, 4, 1)
    assert bytes(page.mmio.data)[:4] == b"\x78\x56\x34\x12"


@pytest.mark.parametrize(("size", "expected"), [(1, 0x88), (2, 0x7788), (4, 0x5566_7788), (8, 0x1122_3344_5566_7788)])
def test_mmio_read_takes_the_answer_from_the_page(rig: Rig, size: int, expected: int) -> None:
    rig.create_vcpu()
    cpu = rig.cpu()
    cpu.script += [(Event.MMIO_READ, UART, size), (Event.MMIO_WRITE, UART, 4, 0)]
    page = rig.run()
    assert (page.exit_reason, page.mmio.is_write, page.mmio.len) == (C.KVM_EXIT_MMIO, 0, size)
    page.mmio.data[:] = (0x1122_3344_5566_7788).to_bytes(8, "little")
    rig.run()
    assert cpu.answers[1] == expected


def test_a_write_leaves_no_answer_behind(rig: Rig) -> None:
    rig.create_vcpu()
    cpu = rig.cpu()
    cpu.script += [(Event.MMIO_WRITE, UART, 4, 0xFFFF), (Event.MMIO_WRITE, UART, 4, 1)]
    rig.run()
    rig.run()
    assert cpu.answers == [0, 0]


def test_immediate_exit_completes_the_read_and_runs_nothing_else(rig: Rig) -> None:
    rig.create_vcpu()
    cpu = rig.cpu()
    cpu.script += [(Event.MMIO_READ, UART, 4), (Event.MMIO_WRITE, UART, 4, 7)]
    page = rig.run()
    page.mmio.data[0] = 0x42
    page.immediate_exit = 1
    assert errno_of(rig.run) == errno.EINTR
    assert cpu.answers == [0, 0x42]
    page.immediate_exit = 0
    assert rig.run().mmio.data[0] == 7


def test_what_the_guest_met_while_completing_is_undone(rig: Rig) -> None:
    rig.create_vcpu()
    cpu = rig.cpu()
    cpu.script += [(Event.MMIO_READ, UART, 4)]
    page = rig.run()

    def hypercall(cpu: FakeCpu) -> tuple[int, ...]:
        cpu.pc = 0x1004
        return (Event.HVC, 0)

    page.immediate_exit = 1
    cpu.script.append(hypercall)
    cpu.kick = lambda: None  # type: ignore[method-assign]
    assert errno_of(rig.run) == errno.EINTR
    assert cpu.pc == 0x1000


def test_a_device_access_met_while_completing_is_abandoned(rig: Rig) -> None:
    rig.create_vcpu()
    cpu = rig.cpu()
    cpu.script += [(Event.MMIO_READ, UART, 4), (Event.MMIO_READ, UART + 4, 4)]
    rig.run()
    cpu.kick = lambda: None  # type: ignore[method-assign]
    rig.set_reg(A.x_reg(3), 99)
    assert cpu.log[-1] == "abandon"
    assert cpu.gpr[3] == 99


def test_interrupt_leaves_a_computing_guest(rig: Rig) -> None:
    fd = rig.create_vcpu()
    thread = rig.in_thread()
    wait_for(lambda: rig.vm.vcpu_array[0].running and rig.cpu().answers)
    rig.backend.interrupt(fd)
    assert errno_of(thread.join) == errno.EINTR
    assert rig.page().exit_reason == C.KVM_EXIT_INTR


def test_a_trapped_read_survives_an_interruption(rig: Rig) -> None:
    rig.create_vcpu()
    cpu, vcpu = rig.cpu(), rig.vcpu()
    vcpu.timers.vtimer.cval = 0x5555

    def interrupted(cpu: FakeCpu) -> tuple[int, ...]:
        vcpu.vcpu.signal_pending = True
        vcpu.attention = True
        return (Event.SYSREG_READ, ids.CNTV_CVAL_EL0)

    cpu.script += [interrupted, (Event.MMIO_WRITE, UART, 4, 0)]
    assert errno_of(rig.run) == errno.EINTR
    assert cpu.answers == [0]
    rig.run()
    assert cpu.answers == [0, 0x5555]


def test_wfi_sleeps_until_a_line_rises(rig: Rig) -> None:
    rig.create_vcpu()
    cpu = rig.cpu()
    cpu.script += [(Event.WFI,), (Event.MMIO_WRITE, UART, 4, 0)]
    thread = rig.in_thread()
    wait_for(lambda: rig.vcpu().power.asleep)
    rig.irq_line(0, 1)
    assert thread.join() == 0
    assert cpu.lines == [True, False]
    stats = rig.vm.vcpu_array[0].stats.as_dict()
    assert (stats["wfi_exit_stat"], stats["halt_wakeup"], stats["blocking"]) == (1, 1, 0)
    assert stats["halt_wait_ns"] > 0


def test_wfi_with_a_pending_line_does_not_sleep(rig: Rig) -> None:
    rig.create_vcpu()
    rig.irq_line(1, 1)
    rig.cpu().script += [(Event.WFI,), (Event.MMIO_WRITE, UART, 4, 0)]
    rig.run()
    assert rig.cpu().lines == [False, True]
    assert rig.vm.vcpu_array[0].stats.as_dict()["halt_wakeup"] == 0


def test_interrupt_wakes_from_wfi_with_eintr(rig: Rig) -> None:
    fd = rig.create_vcpu()
    rig.cpu().script += [(Event.WFI,)]
    thread = rig.in_thread()
    wait_for(lambda: rig.vcpu().power.asleep)
    rig.backend.interrupt(fd)
    assert errno_of(thread.join) == errno.EINTR


def test_a_stopped_vcpu_sleeps_and_is_interruptible(rig: Rig) -> None:
    fd = rig.create_vcpu(off=True)
    thread = rig.in_thread()
    wait_for(lambda: rig.vcpu().power.asleep)
    assert rig.cpu().answers == []
    rig.backend.interrupt(fd)
    assert errno_of(thread.join) == errno.EINTR


def test_mp_state_starts_a_stopped_vcpu(rig: Rig) -> None:
    fd = rig.create_vcpu(off=True)
    state = C.KvmMpState()
    rig.ioctl(fd, C.KVM_GET_MP_STATE, state)
    assert state.mp_state == C.KVM_MP_STATE_STOPPED
    rig.ioctl(fd, C.KVM_SET_MP_STATE, C.KvmMpState(C.KVM_MP_STATE_RUNNABLE))
    rig.ioctl(fd, C.KVM_GET_MP_STATE, state)
    assert state.mp_state == C.KVM_MP_STATE_RUNNABLE
    rig.cpu().script.append((Event.MMIO_WRITE, UART, 4, 0))
    assert rig.run().exit_reason == C.KVM_EXIT_MMIO
    assert errno_of(rig.ioctl, fd, C.KVM_SET_MP_STATE, C.KvmMpState(C.KVM_MP_STATE_HALTED)) == errno.EINVAL


def test_an_unknown_system_register_is_undefined(rig: Rig) -> None:
    rig.create_vcpu()
    cpu = rig.cpu()
    rig.set_reg(A.REG_PC, 0x4000_0000)
    cpu.set_sysreg(ids.VBAR_EL1, 0x8000)
    cpu.script += [(Event.SYSREG_READ, ids.ICC_IAR1_EL1), (Event.MMIO_WRITE, UART, 4, 0)]
    rig.run()
    assert cpu.log[-1] == "abandon"
    assert (cpu.pc, cpu.elr_el1, cpu.sysregs[ids.ESR_EL1]) == (0x8200, 0x4000_0000, 1 << 25)


def test_writing_a_read_only_id_register_is_undefined(rig: Rig) -> None:
    rig.create_vcpu()
    cpu = rig.cpu()
    cpu.script += [(Event.SYSREG_WRITE, ids.ID_AA64PFR0_EL1, 0, 5), (Event.MMIO_WRITE, UART, 4, 0)]
    rig.run()
    assert cpu.sysregs[ids.ESR_EL1] >> 26 == 0
    assert cpu.pc == 0x200


def test_a_fetch_from_nowhere_aborts_in_the_guest(rig: Rig) -> None:
    rig.create_vcpu()
    cpu = rig.cpu()

    def nowhere(cpu: FakeCpu) -> tuple[int, ...]:
        cpu.pc = 0xDEAD_0000
        cpu.set_sysreg(ids.VBAR_EL1, 0x4000_0800)
        return (Event.FETCH, 0xDEAD_0000)

    cpu.script += [nowhere, (Event.MMIO_WRITE, UART, 4, 0)]
    rig.run()
    assert cpu.pc == 0x4000_0A00
    assert cpu.sysregs[ids.FAR_EL1] == 0xDEAD_0000
    assert cpu.sysregs[ids.ESR_EL1] == 0x21 << 26 | 1 << 25 | 0x10


def test_a_vector_that_is_nowhere_is_an_internal_error(rig: Rig) -> None:
    rig.create_vcpu()
    cpu = rig.cpu()

    def nowhere(cpu: FakeCpu) -> tuple[int, ...]:
        cpu.pc = 0xDEAD_0000
        return (Event.FETCH, 0xDEAD_0000)

    cpu.script += [nowhere, (Event.FETCH, 0x200)]
    page = rig.run()
    assert page.exit_reason == C.KVM_EXIT_INTERNAL_ERROR
    assert page.internal.suberror == C.KVM_INTERNAL_ERROR_EMULATION
    assert (page.internal.ndata, page.internal.data[0]) == (1, 0x200)


def test_an_engine_error_is_an_internal_error(rig: Rig) -> None:
    rig.create_vcpu()
    rig.cpu().script.append((Event.ERROR, 17, 3))
    page = rig.run()
    assert page.exit_reason == C.KVM_EXIT_INTERNAL_ERROR
    assert page.internal.suberror == C.KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON
    assert list(page.internal.data)[:3] == [Event.ERROR, 17, 3]


def test_ext_dabt_replaces_the_outstanding_access(rig: Rig) -> None:
    fd = rig.create_vcpu()
    cpu = rig.cpu()
    cpu.script += [(Event.MMIO_READ, 0x7000, 4), (Event.MMIO_WRITE, UART, 4, 0)]
    rig.run()
    cpu.fault_va, cpu.pc = 0xFFFF_0000_0000_7000, 0x1000
    events = A.KvmVcpuEvents()
    events.exception.ext_dabt_pending = 1
    rig.ioctl(fd, A.KVM_SET_VCPU_EVENTS, events)
    assert cpu.log[-1] == "abandon"
    assert cpu.sysregs[ids.FAR_EL1] == 0xFFFF_0000_0000_7000
    assert cpu.sysregs[ids.ESR_EL1] == 0x25 << 26 | 1 << 25 | 0x10
    assert (cpu.elr_el1, cpu.pc) == (0x1000, 0x200)
    rig.run()
    assert cpu.answers[-1] == 0


def test_serror_waits_until_it_is_unmasked(rig: Rig) -> None:
    fd = rig.create_vcpu()
    cpu = rig.cpu()
    events = A.KvmVcpuEvents()
    events.exception.serror_pending = 1
    rig.ioctl(fd, A.KVM_SET_VCPU_EVENTS, events)
    cpu.script += [(Event.MMIO_WRITE, UART, 4, 0)] * 2
    rig.run()
    assert cpu.pc == 0
    read = A.KvmVcpuEvents()
    rig.ioctl(fd, A.KVM_GET_VCPU_EVENTS, read)
    assert read.exception.serror_pending == 1
    rig.set_reg(A.REG_PSTATE, 0x5)
    rig.run()
    assert cpu.pc == 0x380
    rig.ioctl(fd, A.KVM_GET_VCPU_EVENTS, read)
    assert read.exception.serror_pending == 0


@pytest.mark.parametrize("field", ["serror_esr", "pad", "reserved"])
def test_vcpu_events_refuses_what_it_does_not_know(rig: Rig, field: str) -> None:
    fd = rig.create_vcpu()
    events = A.KvmVcpuEvents()
    if field == "serror_esr":
        events.exception.serror_pending = events.exception.serror_has_esr = 1
    elif field == "pad":
        events.exception.pad[2] = 1
    else:
        events.reserved[11] = 1
    assert errno_of(rig.ioctl, fd, A.KVM_SET_VCPU_EVENTS, events) == errno.EINVAL


def test_the_timer_of_a_vm_without_gic_is_shown_to_userspace(rig: Rig) -> None:
    rig.create_vcpu()
    cpu = rig.cpu()
    cpu.script += [
        (Event.SYSREG_WRITE, ids.CNTV_CVAL_EL0, 0, 0),
        (Event.SYSREG_WRITE, ids.CNTV_CTL_EL0, 0, 1),
        (Event.SYSREG_WRITE, ids.CNTV_CTL_EL0, 0, 0),
    ]
    assert errno_of(rig.run) == errno.EINTR
    assert rig.page().exit_reason == C.KVM_EXIT_INTR
    level = A.KvmSyncRegs.from_buffer(rig.page().s)
    assert level.device_irq_level == A.KVM_ARM_DEV_EL1_VTIMER
    assert errno_of(rig.run) == errno.EINTR
    assert level.device_irq_level == 0


def test_a_moved_counter_reaches_the_cpu_before_it_runs(rig: Rig) -> None:
    rig.create_vcpu()
    rig.cpu().script += [(Event.MMIO_WRITE, UART, 4, 0)]
    rig.ioctl(rig.fd, A.KVM_ARM_SET_COUNTER_OFFSET, A.KvmArmCounterOffset(77, 0))
    rig.run()
    assert rig.cpu().cntvoff == 77
    assert rig.get_reg(A.KVM_REG_ARM_TIMER_CNT) == FakeCpu.ticks - 77


def test_counter_offset_refuses_reserved_bits(rig: Rig) -> None:
    assert errno_of(rig.ioctl, rig.fd, A.KVM_ARM_SET_COUNTER_OFFSET, A.KvmArmCounterOffset(1, 1)) == errno.EINVAL


def test_in_kernel_accesses_do_not_exit_and_are_counted(rig: Rig) -> None:
    rig.create_vcpu()
    rig.vgic_v2()
    cpu = rig.cpu()
    cpu.script += [(Event.MMIO_READ, 0x0800_0004, 4), (Event.MMIO_WRITE, UART, 4, 0)]
    rig.run()
    assert cpu.answers[1] == 0x7
    stats = rig.vm.vcpu_array[0].stats.as_dict()
    assert (stats["mmio_exit_kernel"], stats["mmio_exit_user"], stats["exits"]) == (1, 1, 2)
