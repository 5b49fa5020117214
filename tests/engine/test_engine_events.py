# SPDX-License-Identifier: GPL-2.0-only
"""What parks a cpu, how it is answered, and exceptions delivered natively."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from engine_board import RAM, sys

from anykvm.engine import Cpu, Event, Machine

CNTV_CTL = sys(3, 3, 14, 3, 1)
CTR = sys(3, 3, 0, 0, 1)


def test_each_event_in_order(board):
    b = board("events", traps=[CNTV_CTL], constants={CTR: 0x8444000A})
    c = b.cpu()
    assert c.run() == (Event.MMIO_WRITE, 0x9000000, 4, 5)
    assert c.parked == Event.MMIO_WRITE
    assert c.fault_va == 0x9000000
    assert c.pc == RAM + 8
    assert c.run() == (Event.MMIO_READ, 0x9000004, 4, 0)
    assert c.run(0xDEADBEEF) == (Event.MMIO_READ, 0x9000008, 8, 0)
    assert c.run(0x1122334455667788) == (Event.MMIO_READ, 0x9000003, 1, 0)
    assert c.run(0xAB) == (Event.MMIO_WRITE, 0x9000006, 2, 5)
    assert c.run() == (Event.MMIO_READ, 0x9000010, 4, 0)
    assert c.run(1) == (Event.MMIO_READ, 0x9000014, 4, 0)
    assert c.run(2) == (Event.SYSREG_WRITE, CNTV_CTL, 0, 0x1234)
    assert c.run() == (Event.SYSREG_READ, CNTV_CTL, 0, 0)
    assert c.run(77) == (Event.HVC, 7, 0, 0)
    assert [c.gpr[i] for i in (2, 3, 4, 5, 6, 8, 9, 10)] == [
        0xDEADBEEF,
        0x1122334455667788,
        0xAB,
        1,
        2,
        77,
        0x8444000A,
        0x80000000,
    ]
    assert c.pc == RAM + 14 * 4
    assert c.run()[0] == Event.WFI
    assert c.run() == (Event.SMC, 9, 0, 0)


def test_wfi_goes_on_when_a_line_is_high(board):
    c = board("events", traps=[CNTV_CTL]).cpu()
    while c.run()[0] != Event.HVC:
        pass
    c.set_irq(0, True)
    assert c.run() == (Event.SMC, 9, 0, 0)


def test_registers_read_back(board):
    c = board("events").cpu()
    for i in range(31):
        c.gpr[i] = i * 0x0101010101010101
    c.sp_el0, c.sp_el1, c.elr_el1 = 0x1000, 0x2000, 0x3000
    for i in range(5):
        c.set_spsr(i, 0x100 + i)
    for i in range(32):
        c.set_vreg(i, bytes([i]) * 16)
    c.fpcr, c.fpsr, c.cntvoff = 0x03000000, 0x1F, 1 << 40
    assert list(c.gpr[:31]) == [i * 0x0101010101010101 for i in range(31)]
    assert (c.sp_el0, c.sp_el1, c.elr_el1) == (0x1000, 0x2000, 0x3000)
    assert c.gpr[31] == 0x2000
    c.pstate = 0x3C4  # EL1t: the other stack pointer
    assert c.gpr[31] == 0x1000
    c.sp_el0 = 0x1008
    assert c.gpr[31] == 0x1008
    c.pstate = 0x600003C5
    assert (c.pstate, c.gpr[31], c.sp_el0) == (0x600003C5, 0x2000, 0x1008)
    assert [c.get_spsr(i) for i in range(5)] == [0x100, 0x101, 0x102, 0x103, 0x104]
    assert [c.get_vreg(i) for i in range(32)] == [bytes([i]) * 16 for i in range(32)]
    assert (c.fpcr, c.fpsr & 0x1F, c.cntvoff) == (0x03000000, 0x1F, 1 << 40)
    vbar = sys(3, 0, 12, 0, 0)
    c.set_sysreg(vbar, 0x8000)
    assert c.get_sysreg(vbar) == 0x8000
    with pytest.raises(KeyError):
        c.get_sysreg(sys(3, 7, 15, 15, 7))
    c.reset()
    assert list(c.gpr) == [0] * 32
    assert (c.pc, c.pstate, c.get_sysreg(vbar)) == (0, 0x3C5, 0)


def test_counter_is_the_hosts_less_the_offset(board):
    c = board("events").cpu()
    before = time.monotonic_ns() // 16
    assert before <= c.counter() <= before + 62_500_000


@pytest.mark.parametrize(
    ("offset", "vector", "esr_class"), [(0x1000, 4, 0x00), (0x1080, 4, 0x15)], ids=["undefined", "svc"]
)
def test_exceptions_are_delivered_natively(board, offset, vector, esr_class):
    b = board("vectors")
    c = b.cpu(x1=RAM + offset)
    assert c.run() == (Event.HVC, 0x200, 0, 0)
    assert c.gpr[24] == vector
    assert c.gpr[20] >> 26 == esr_class
    assert c.gpr[22] == RAM + offset + (4 if esr_class == 0x15 else 0)


def test_fetch_from_nowhere(board):
    c = board("vectors").cpu(x1=RAM + 0x1180)
    assert c.run() == (Event.FETCH, 0x9000000, 0, 0)
    assert c.pc == 0x9000000
    c.pc = RAM + 0x1100
    assert c.run() == (Event.MMIO_READ, 0x9000000, 8, 0)


def test_abandon_gives_the_state_at_the_instruction(board):
    c = board("vectors").cpu(x1=RAM + 0x1100)
    assert c.run() == (Event.MMIO_READ, 0x9000000, 8, 0)
    c.gpr[3] = 0
    c.abandon()
    assert c.parked is None
    assert c.pc == RAM + 0x1104
    c.abandon()  # nothing is parked: nothing happens
    assert c.run() == (Event.MMIO_READ, 0x9000000, 8, 0)
    assert c.run(0x55) == (Event.HVC, 3, 0, 0)
    assert c.gpr[3] == 0x55


def test_abandon_a_system_register(board):
    b = board("events", traps=[CNTV_CTL])
    c = b.cpu()
    while (event := c.run())[0] != Event.SYSREG_WRITE:
        pass
    assert event[1] == CNTV_CTL
    c.abandon()
    pc = c.pc
    assert int.from_bytes(b.ram[pc - RAM : pc - RAM + 4], "little") == 0xD51BE327  # msr cntv_ctl_el0, x7
    assert c.run() == event


def test_interrupt_lines_respect_the_mask(board):
    c = board("vectors").cpu()
    c.set_irq(0, True)
    assert c.run() == (Event.HVC, 0x100, 0, 0)  # masked: the guest reaches its end
    assert c.run() == (Event.HVC, 0x200, 0, 0)  # unmasked by the next instruction: taken at once
    assert c.gpr[24] == 5
    assert c.gpr[22] == RAM + 7 * 4
    c.set_irq(0, False)


def test_an_interrupt_reaches_a_running_guest(board, runner):
    c = board("vectors").cpu()
    assert c.run() == (Event.HVC, 0x100, 0, 0)
    r = runner(c)
    time.sleep(0.05)
    c.set_irq(0, True)
    assert r.result() == (Event.HVC, 0x200, 0, 0)
    assert c.gpr[19] > 1000


def test_kick_is_sticky_and_wakes(board):
    c = board("events", traps=[CNTV_CTL]).cpu()
    c.kick()
    assert c.run()[0] == Event.KICK
    assert c.pc == RAM
    while c.run()[0] != Event.SMC:
        pass
    threading.Timer(0.05, c.kick).start()
    assert c.run()[0] == Event.KICK
    assert c.stats()["kicks"] == 2


def test_a_kick_while_parked_lets_the_access_finish(board):
    c = board("events", traps=[CNTV_CTL]).cpu()
    c.run()
    assert c.run()[0] == Event.MMIO_READ
    c.kick()
    events = [c.run(0xDEADBEEF)]
    while events[-1][0] != Event.KICK:
        events.append(c.run())
    assert c.gpr[2] == 0xDEADBEEF


class Alarm(Exception):
    pass


def test_signal_handlers_run_on_the_main_thread(board):
    c = board("count").cpu(x0=RAM + 0x8000, x1=1 << 60, x2=1)

    def alarm(number: int, frame: object) -> None:
        raise Alarm

    old = signal.signal(signal.SIGALRM, alarm)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        started = time.monotonic()
        with pytest.raises(Alarm):
            c.run()
        assert time.monotonic() - started < 5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    c.kick()
    assert c.run()[0] == Event.KICK  # it goes on where it stood
    seen = []
    old = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert c.run()[0] == Event.SIGNAL
        assert seen == [signal.SIGALRM]
    finally:
        signal.signal(signal.SIGALRM, old)
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGALRM, alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        try:
            c.run()
        except Alarm:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_one_thread_at_a_time(board, runner):
    c = board("count").cpu(x0=RAM + 0x8000, x1=100_000_000, x2=1)
    r = runner(c)
    time.sleep(0.05)
    for use in (c.run, c.reset, c.close, c.abandon):
        with pytest.raises(RuntimeError, match="running on another thread"):
            use()
    r.result()


def test_closed_things_say_so():
    m = Machine("arm64")
    c = Cpu(m)
    d = Cpu(m)
    d.pc = 0
    with pytest.raises(RuntimeError, match="cpus first"):
        m.close()
    d.close()
    d.close()
    c.close()
    m.close()
    for use in (c.run, lambda: c.pc, c.reset):
        with pytest.raises(RuntimeError, match="closed"):
            use()
    for use in (lambda: m.map(0, 4096, 4096), lambda: m.unmap(0), lambda: Cpu(m)):
        with pytest.raises(RuntimeError, match="closed"):
            use()


def test_unknown_target():
    with pytest.raises(ValueError, match="no target 'z80'"):
        Machine("z80")
