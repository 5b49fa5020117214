# SPDX-License-Identifier: GPL-2.0-only
"""A vCPU's life: the create ladder and its mirror, halting, INIT and start-up."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

import pytest
from x86_fake import IF, Rig, errno_of, install

from anykvm.arch import contract, interface
from anykvm.arch.x86.hooks import X86Hooks
from anykvm.engine import Event
from anykvm.uapi import common as C
from anykvm.uapi import x86 as X
from anykvm.virt.backend import SoftwareBackend
from anykvm.virt.services import Charge, Memory, Services


def test_the_contract_is_kept() -> None:
    assert contract.breaches(X86Hooks()) == []
    assert interface.missing_files("x86") == []


# The ladder.


def test_the_order_of_creation(chips: Rig) -> None:
    chips.create_vcpu()
    steps = [step.removeprefix("arch: ") for step in chips.vm.vcpu_array[0].ladder.steps if step.startswith("arch: ")]
    assert steps == [
        "x86 vcpu",
        "wait queue",
        "lapic",
        "run page words",
        "pio page",
        "mce banks",
        "wbinvd mask",
        "cpu",
        "reset",
    ]


def test_without_a_chip_there_is_no_local_apic(rig: Rig) -> None:
    rig.create_vcpu()
    assert "arch: lapic" not in rig.vm.vcpu_array[0].ladder.steps
    assert errno_of(rig.get, X.KVM_GET_LAPIC, X.KvmLapicState) == errno.EINVAL
    assert errno_of(rig.set, X.KVM_SET_LAPIC, X.KvmLapicState()) == errno.EINVAL


class Failing(Services):
    """Fails the Nth time anything is acquired."""

    countdown = -1

    def _tick(self) -> None:
        self.countdown -= 1
        if self.countdown == 0:
            raise OSError(errno.ENOMEM, "out of memory, as the test wants")

    def charge(self, name: str, size: int = 0) -> Charge:
        self._tick()
        return super().charge(name, size)

    def alloc(self, name: str, size: int) -> Memory:
        self._tick()
        return super().alloc(name, size)

    def timer(self, name: str, callback: Callable[[], None]) -> object:  # type: ignore[override]
        self._tick()
        return super().timer(name, callback)


@pytest.mark.parametrize("step", range(1, 12))
def test_a_creation_that_fails_leaves_nothing(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    install(monkeypatch)
    services = Failing()
    backend = SoftwareBackend(X86Hooks(), services)
    system = backend.open()
    vm = backend.ioctl(system, C.KVM_CREATE_VM)
    backend.ioctl(vm, C.KVM_CREATE_IRQCHIP)
    before = services.ledger()
    services.countdown = step
    try:
        backend.ioctl(vm, C.KVM_CREATE_VCPU, 0)
    except OSError as error:
        assert error.errno == errno.ENOMEM
        assert services.ledger() == before
        services.countdown = -1
        backend.ioctl(vm, C.KVM_CREATE_VCPU, 0)
    else:
        assert step > 6, "every step can fail"
    backend.close_all()
    assert services.ledger() == {}


def test_a_vcpu_that_is_not_used_costs_no_cpu(rig: Rig) -> None:
    for _ in range(10):
        rig.create_vcpu()
    assert sum(rig.cpu(index).resets for index in range(10)) == 0
    rig.get(X.KVM_GET_REGS, X.KvmRegs, 3)
    assert [rig.cpu(index).resets for index in range(10)] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 0]


def test_creating_many(chips: Rig) -> None:
    for _ in range(64):
        chips.create_vcpu()
    assert len(chips.arch.irqchip.bus.lapics) == 64
    assert errno_of(chips.create_vcpu, 5) == errno.EEXIST
    assert len(chips.arch.irqchip.bus.lapics) == 64


# States.


def state(rig: Rig, index: int = 0) -> int:
    return int(rig.get(C.KVM_GET_MP_STATE, C.KvmMpState, index).mp_state)


def set_state(rig: Rig, value: int, index: int = 0) -> int:
    return rig.set(C.KVM_SET_MP_STATE, C.KvmMpState(value), index)


def test_only_the_boot_processor_runs_at_first(chips: Rig) -> None:
    for _ in range(3):
        chips.create_vcpu()
    assert [state(chips, index) for index in range(3)] == [
        C.KVM_MP_STATE_RUNNABLE,
        C.KVM_MP_STATE_UNINITIALIZED,
        C.KVM_MP_STATE_UNINITIALIZED,
    ]


def test_without_a_local_apic_all_run(rig: Rig) -> None:
    rig.create_vcpu()
    rig.create_vcpu()
    assert [state(rig, index) for index in range(2)] == [C.KVM_MP_STATE_RUNNABLE] * 2
    set_state(rig, C.KVM_MP_STATE_RUNNABLE)
    for value in (C.KVM_MP_STATE_HALTED, C.KVM_MP_STATE_UNINITIALIZED, C.KVM_MP_STATE_STOPPED):
        assert errno_of(set_state, rig, value) == errno.EINVAL


@pytest.mark.parametrize("value", [C.KVM_MP_STATE_STOPPED, 77])
def test_states_there_are_not(chips: Rig, value: int) -> None:
    chips.create_vcpu()
    assert errno_of(set_state, chips, value) == errno.EINVAL


def test_a_start_up_that_was_saved(chips: Rig) -> None:
    chips.create_vcpu()
    chips.create_vcpu()
    events = X.KvmVcpuEvents(sipi_vector=0x9A, flags=X.KVM_VCPUEVENT_VALID_SIPI_VECTOR)
    chips.set(X.KVM_SET_VCPU_EVENTS, events, 1)
    set_state(chips, C.KVM_MP_STATE_SIPI_RECEIVED, 1)
    assert state(chips, 1) == C.KVM_MP_STATE_RUNNABLE
    sregs = chips.get(X.KVM_GET_SREGS, X.KvmSregs, 1)
    assert (sregs.cs.selector, sregs.cs.base) == (0x9A00, 0x9A000)
    assert chips.get(X.KVM_GET_REGS, X.KvmRegs, 1).rip == 0


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


ICR_LOW, ICR_HIGH = 0xFEE00300, 0xFEE00310


def test_init_and_start_up_from_the_other_vcpu(chips: Rig) -> None:
    chips.create_vcpu()
    chips.create_vcpu()
    second = chips.in_thread(1)
    until(lambda: chips.vcpu(1).sleep.asleep)
    chips.run((Event.MMIO_WRITE, ICR_HIGH, 4, 1 << 24), (Event.MMIO_WRITE, ICR_LOW, 4, 0x4500), (Event.SHUTDOWN,))
    assert errno_of(second.join) == errno.EAGAIN
    assert state(chips, 1) == C.KVM_MP_STATE_INIT_RECEIVED
    second = chips.in_thread(1)
    until(lambda: chips.vcpu(1).sleep.asleep)
    chips.cpu(1).script.append((Event.SHUTDOWN,))
    chips.run((Event.MMIO_WRITE, ICR_LOW, 4, 0x4608), (Event.SHUTDOWN,))
    assert second.join() == 0
    assert chips.page(1).exit_reason == C.KVM_EXIT_SHUTDOWN
    assert chips.cpu(1).segments[1][:2] == (0x800, 0x8000)


def test_a_waiting_vcpu_can_be_interrupted(chips: Rig) -> None:
    chips.create_vcpu()
    chips.create_vcpu()
    second = chips.in_thread(1)
    until(lambda: chips.vcpu(1).sleep.asleep)
    chips.backend.interrupt(chips.vcpus[1])
    assert errno_of(second.join) == errno.EINTR
    assert state(chips, 1) == C.KVM_MP_STATE_UNINITIALIZED


def test_init_keeps_what_it_should(chips: Rig) -> None:
    chips.create_vcpu()
    vcpu = chips.vcpu()
    cpu = vcpu.load()
    cpu.fx = bytes(range(256)) * 2
    cpu.xcr0, cpu.tsc_offset, cpu.rip = 3, 1234, 0x8000
    cpu.msrs[X.MSR_IA32_CR_PAT] = 0x0606
    vcpu.msrs[X.MSR_IA32_MISC_ENABLE] = 9
    vcpu.init()
    assert (cpu.xcr0, cpu.tsc_offset, cpu.fx[:3]) == (3, 1234, b"\0\1\2")
    assert cpu.msrs[X.MSR_IA32_CR_PAT] == 0x0606
    assert chips.get_msr(X.MSR_IA32_MISC_ENABLE) == 9
    assert cpu.rip == 0xFFF0


def test_init_in_the_middle_of_an_instruction(chips: Rig) -> None:
    chips.create_vcpu()
    lapic = chips.vcpu().lapic

    def read(cpu: object) -> tuple[int, ...]:
        lapic.pending_events = 1
        chips.vcpu().attention = True
        return (Event.MMIO_READ, 0xFEE00030, 4)

    chips.run(read, (Event.SHUTDOWN,))
    assert "abandon" in chips.cpu().log
    assert chips.cpu().answers[-1] == 0
    assert chips.cpu().resets == 2


# Halting.


def halt(rig: Rig, *, enabled: bool = True) -> Callable[[object], tuple[int, ...]]:
    def event(cpu: object) -> tuple[int, ...]:
        rig.cpu().rflags = 2 | IF * enabled
        return (Event.HLT,)

    return event


def test_hlt_sleeps_until_an_interrupt(chips: Rig) -> None:
    chips.create_vcpu()
    chips.cpu().script.extend([(Event.MMIO_WRITE, 0xFEE000F0, 4, 0x1FF), halt(chips)])
    thread = chips.in_thread()
    until(lambda: chips.vcpu().sleep.asleep)
    assert chips.vcpu().mp_state == C.KVM_MP_STATE_HALTED
    chips.cpu().script.append((Event.SHUTDOWN,))
    chips.ioctl(chips.fd, C.KVM_SIGNAL_MSI, C.KvmMsi(0xFEE00000, 0, 0x41))
    assert thread.join() == 0
    assert 0x41 in chips.cpu().answers
    stats = chips.vm.vcpu_array[0].stats.as_dict()
    assert (stats["wfi_exit_stat"], stats["halt_wakeup"], stats["blocking"]) == (1, 1, 0)
    assert state(chips) == C.KVM_MP_STATE_RUNNABLE


@pytest.mark.parametrize("enabled", [True, False])
def test_an_nmi_ends_hlt(chips: Rig, enabled: bool) -> None:
    chips.create_vcpu()
    chips.cpu().script.append(halt(chips, enabled=enabled))
    thread = chips.in_thread()
    until(lambda: chips.vcpu().sleep.asleep)
    chips.cpu().script.append((Event.SHUTDOWN,))
    chips.vcpu().nmi()
    assert thread.join() == 0
    assert chips.cpu().log == ["nmi"]


def test_a_masked_interrupt_does_not(chips: Rig) -> None:
    chips.create_vcpu()
    chips.cpu().script.extend([(Event.MMIO_WRITE, 0xFEE000F0, 4, 0x1FF), halt(chips, enabled=False)])
    thread = chips.in_thread()
    until(lambda: chips.vcpu().sleep.asleep)
    chips.ioctl(chips.fd, C.KVM_SIGNAL_MSI, C.KvmMsi(0xFEE00000, 0, 0x41))
    time.sleep(0.02)
    assert thread.alive
    assert chips.vcpu().mp_state == C.KVM_MP_STATE_HALTED
    chips.backend.interrupt(chips.vcpus[0])
    assert errno_of(thread.join) == errno.EINTR
    assert state(chips) == C.KVM_MP_STATE_HALTED


def test_a_halt_that_was_saved(chips: Rig) -> None:
    chips.create_vcpu()
    set_state(chips, C.KVM_MP_STATE_HALTED)
    thread = chips.in_thread()
    until(lambda: chips.vcpu().sleep.asleep)
    assert chips.cpu().answers == []
    chips.cpu().script.append((Event.SHUTDOWN,))
    chips.vcpu().pv_unhalted = True
    assert state_of_halted(chips) == C.KVM_MP_STATE_HALTED
    chips.vcpu().sleep.wake()
    assert thread.join() == 0


def state_of_halted(rig: Rig) -> int:
    return int(rig.vcpu().mp_state)


def test_a_kick_from_another_vcpu(chips: Rig) -> None:
    chips.create_vcpu()
    chips.create_vcpu()
    leaf = (X.KVM_CPUID_FEATURES, 0, 0, 1 << X.KVM_FEATURE_PV_UNHALT, 0, 0, 0)
    chips.vcpu().set_cpuid((leaf,))
    set_state(chips, C.KVM_MP_STATE_HALTED, 1)
    thread = chips.in_thread(1)
    until(lambda: chips.vcpu(1).sleep.asleep)
    chips.cpu(1).script.append((Event.SHUTDOWN,))

    def call(_: object) -> tuple[int, ...]:
        chips.cpu().gpr[0], chips.cpu().gpr[1] = X.KVM_HC_KICK_CPU, 1
        return (Event.HYPERCALL,)

    chips.run(call, (Event.SHUTDOWN,))
    assert chips.cpu().gpr[0] == 0
    assert thread.join() == 0


def test_interrupts_go_by_the_default_routing(chips: Rig) -> None:
    chips.create_vcpu()
    chips.vcpu().load()
    pic = [(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0)]
    chips.run(*((Event.PIO_WRITE, port, 1, value) for port, value in pic), (Event.SHUTDOWN,))
    chips.cpu().rflags |= IF
    chips.ioctl(chips.fd, C.KVM_IRQ_LINE, C.KvmIrqLevel(C.KvmIrqLevel._Irq(4), 1))
    assert chips.cpu().line
    chips.run((Event.SHUTDOWN,))
    assert chips.cpu().answers[-1] == 0x24


def test_an_interrupt_acknowledged_while_a_signal_comes_is_not_lost(chips: Rig) -> None:
    chips.create_vcpu()
    lapic = chips.vcpu().lapic
    chips.run((Event.MMIO_WRITE, 0xFEE000F0, 4, 0x1FF), (Event.SHUTDOWN,))
    cpu = chips.cpu()
    cpu.rflags |= IF
    with lapic.bus.lock:
        lapic.accept(0, 0x55, False)

    def acknowledge(_: object = None) -> int:
        chips.vm.vcpu_array[0].interrupt()
        return type(lapic).ack(lapic)

    chips.vcpu().lapic = Wrapped(lapic, acknowledge)
    assert errno_of(chips.run) == errno.EINTR
    chips.vcpu().lapic = lapic
    cpu.kicked.clear()
    assert chips.vcpu().injected_irq == 0x55
    chips.run((Event.SHUTDOWN,))
    assert 0x55 in cpu.answers
    assert chips.vcpu().injected_irq is None


class Wrapped:
    """A local APIC whose ``ack`` is the test's."""

    def __init__(self, lapic: object, ack: Callable[[], int]) -> None:
        self._lapic = lapic
        self.ack = ack

    def __getattr__(self, name: str) -> object:
        return getattr(self._lapic, name)


# A split irqchip.


def test_userspaces_interrupts_with_a_split_irqchip(rig: Rig) -> None:
    rig.enable(C.KVM_CAP_SPLIT_IRQCHIP, 24)
    rig.create_vcpu()
    rig.set(C.KVM_INTERRUPT, C.KvmInterrupt(irq=0x33))
    assert errno_of(rig.set, C.KVM_INTERRUPT, C.KvmInterrupt(irq=0x34)) == errno.EEXIST
    rig.vcpu().load()
    rig.cpu().rflags |= IF
    rig.run((Event.SHUTDOWN,))
    assert 0x33 in rig.cpu().answers


def test_the_end_of_an_interrupt_is_userspaces_ioapics(rig: Rig) -> None:
    rig.enable(C.KVM_CAP_SPLIT_IRQCHIP, 24)
    rig.create_vcpu()

    def end(_: object) -> tuple[int, ...]:
        rig.vcpu().ioapic_eoi(0x61)
        return (Event.MMIO_WRITE, 0xFEE000B0, 4, 0)

    page = rig.run(end)
    assert page.exit_reason == C.KVM_EXIT_IOAPIC_EOI
    assert rig.bytes()[32] == 0x61
    assert rig.run((Event.SHUTDOWN,)).exit_reason == C.KVM_EXIT_SHUTDOWN
