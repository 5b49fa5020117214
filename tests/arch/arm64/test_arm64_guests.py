# SPDX-License-Identifier: GPL-2.0-only
"""Small assembled guests on the real engine."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from arm64_fake import Rig, RunThread, errno_of

from anykvm.guests.tools import Toolchain, assembler
from anykvm.uapi import arm64 as A
from anykvm.uapi import common as C

RAM = 0x4000_0000
SIZE = 1 << 20
PORT = 0x0700_0000
GUESTS = Path(__file__).parent / "guests"


class Board(Rig):
    """RAM with a program at its start; ``reports`` is what the guest wrote to the port."""

    def __init__(self, tools: Toolchain, program: str, *, tail: bytes = b"") -> None:
        super().__init__()
        self.ram = self.add_memory(RAM, SIZE)
        code = tools.assemble(GUESTS / f"{program}.S", base=RAM) + tail
        self.ram[: len(code)] = code
        self.reports: list[int] = []
        self.answers: dict[int, Callable[[], int]] = {}

    def start(self, *, pc: int = RAM, index: int = 0) -> None:
        self.set_reg(A.REG_PC, pc, index)

    def step(self, index: int = 0) -> int:
        """One KVM_RUN; the exit reason, 0 if the exit was for the port."""
        page = self.run(index)
        if page.exit_reason != C.KVM_EXIT_MMIO or page.mmio.phys_addr != PORT:
            return int(page.exit_reason)
        if page.mmio.is_write:
            self.reports.append(int.from_bytes(bytes(page.mmio.data)[: page.mmio.len], "little"))
        else:
            page.mmio.data[:] = self.answers[PORT]().to_bytes(8, "little")
        return 0

    def until_exit(self, index: int = 0) -> int:
        for _ in range(1000):
            reason = self.step(index)
            if reason:
                return reason
        raise AssertionError(f"the guest does not end: {self.reports[-10:]}")

    def until_off(self, index: int = 0) -> list[int]:
        assert self.until_exit(index) == C.KVM_EXIT_SYSTEM_EVENT
        assert self.page(index).system_event.type == C.KVM_SYSTEM_EVENT_SHUTDOWN
        return self.reports


@pytest.fixture(scope="session")
def tools() -> Toolchain:
    return assembler("arm64")


@pytest.fixture
def board(tools: Toolchain) -> Iterator[Callable[..., Board]]:
    boards: list[Board] = []

    def make(program: str, **options: bytes) -> Board:
        boards.append(Board(tools, program, **options))
        return boards[-1]

    yield make
    for one in boards:
        one.close()
        assert one.backend.services.ledger() == {}


def test_virtual_timer_through_gicv2(board: Callable[..., Board]) -> None:
    guest = board("timer_v2")
    guest.create_vcpu()
    guest.vgic_v2()
    guest.start()
    before = time.monotonic()
    assert guest.until_off() == [27, 5, 27, 5, 27, 5, 3]
    assert time.monotonic() - before >= 0.003
    stats = guest.vm.vcpu_array[0].stats.as_dict()
    # On a busy machine a tick may come before the guest gets to its WFI, which then does not sleep.
    assert stats["wfi_exit_stat"] >= 1
    assert stats["irq_injections"] == 3


def test_physical_timer_through_gicv3(board: Callable[..., Board]) -> None:
    guest = board("timer_v3")
    guest.create_vcpu()
    guest.vgic_v3()
    guest.start()
    assert guest.until_off() == [7, 30, 30, 30, 3]


def test_a_second_vcpu_comes_and_goes(board: Callable[..., Board]) -> None:
    guest = board("smp")
    guest.create_vcpu()
    guest.create_vcpu(off=True)
    guest.vgic_v3()
    guest.start()
    second = guest.in_thread(1)
    assert guest.until_exit() == C.KVM_EXIT_SYSTEM_EVENT
    assert guest.page().system_event.type == C.KVM_SYSTEM_EVENT_RESET
    already_on = (1 << 64) - 4
    assert guest.reports == [0, 0x77, already_on, 3, 1]
    guest.backend.interrupt(guest.vcpus[1])
    assert errno_of(second.join) == errno.EINTR
    # Who runs a vCPU again after SYSTEM_RESET is stopped first; once started, it finds INTERNAL_FAILURE.
    guest.ioctl(guest.vcpus[0], C.KVM_SET_MP_STATE, C.KvmMpState(C.KVM_MP_STATE_RUNNABLE))
    assert guest.until_off()[-1] == (1 << 64) - 6


def test_exceptions(board: Callable[..., Board]) -> None:
    guest = board("faults")
    fd = guest.create_vcpu()
    guest.start()
    assert guest.until_exit() == C.KVM_EXIT_MMIO
    page = guest.page()
    assert (page.mmio.phys_addr, page.mmio.is_write, page.mmio.len) == (0x0600_0008, 0, 4)
    events = A.KvmVcpuEvents()
    events.exception.ext_dabt_pending = 1
    guest.ioctl(fd, A.KVM_SET_VCPU_EVENTS, events)
    reports = guest.until_off()
    il = 1 << 25
    faults = [tuple(reports[start : start + 3]) for start in range(0, len(reports), 3)]
    assert [(esr, distance) for esr, _, distance in faults] == [
        (il, 0),
        (il, 0),
        (0x25 << 26 | il | 0x10, 0),
        (0x21 << 26 | il | 0x10, 0),
        (il, 0),
        (0x15 << 26 | il | 5, 4),
    ]
    assert faults[2][1] == 0x0600_0008
    assert faults[3][1] == 0x5000_0000


def test_a_guest_that_is_nowhere_at_all(board: Callable[..., Board]) -> None:
    guest = board("spin")
    guest.create_vcpu()
    guest.start(pc=0x6000_0000)
    assert guest.until_exit() == C.KVM_EXIT_INTERNAL_ERROR
    assert guest.page().internal.suberror == C.KVM_INTERNAL_ERROR_EMULATION


def _table(*calls: tuple[int, ...]) -> bytes:
    words = [word for call in calls for word in (*call, 0, 0, 0)[:4]]
    return b"".join((word & (1 << 64) - 1).to_bytes(8, "little") for word in words)


def test_firmware_calls(board: Callable[..., Board]) -> None:
    calls = (
        (A.PSCI_0_2_FN_PSCI_VERSION,),
        (A.ARM_SMCCC_VERSION_FUNC_ID,),
        (A.ARM_SMCCC_ARCH_FEATURES_FUNC_ID, A.ARM_SMCCC_ARCH_WORKAROUND_1),
        (A.ARM_SMCCC_TRNG_VERSION,),
        (A.ARM_SMCCC_TRNG_RND64, 192),
        (0x8600_1234,),
        (0, 0, 0, 0),
        (A.PSCI_0_2_FN_PSCI_VERSION, 0),
    )
    guest = board("calls", tail=_table(*calls))
    guest.create_vcpu()
    guest.start()
    reports = guest.until_off()
    first = reports[0:24:4]
    assert first == [0x10001, 0x10001, (1 << 64) - 2, 0x10000, 0, (1 << 64) - 1]
    assert any(reports[17:20])
    assert reports[24:] == [0x10001, (1 << 64) - 1]


# Memory.


def commands(guest: Board, *values: int) -> None:
    queue = list(values)
    guest.answers[PORT] = lambda: queue.pop(0)


def test_dirty_log(board: Callable[..., Board]) -> None:
    guest = board("memory")
    guest.create_vcpu()
    data = guest.add_memory(0x8000_0000, 256 * 4096, slot=1, flags=C.KVM_MEM_LOG_DIRTY_PAGES)
    guest.start()

    def dirty() -> list[int]:
        bitmap = ctypes.create_string_buffer(32)
        guest.ioctl(guest.fd, C.KVM_GET_DIRTY_LOG, C.KvmDirtyLog(1, 0, C.KvmDirtyLog._Bitmap(ctypes.addressof(bitmap))))
        bits = int.from_bytes(bitmap.raw, "little")
        return [page for page in range(256) if bits >> page & 1]

    writes = [0x8000_0000 + page * 4096 for page in (3, 64, 255, 3)]
    commands(guest, *writes, *writes[:1], 0)
    for _ in range(5):
        assert guest.step() == 0
    assert dirty() in ([3, 64, 255], [3, 64])
    guest.until_off()
    assert data[3 * 4096 : 3 * 4096 + 8] == writes[0].to_bytes(8, "little")
    assert 3 in dirty()
    assert dirty() == []


def test_a_read_only_slot_exits_on_writes(board: Callable[..., Board]) -> None:
    guest = board("memory")
    guest.create_vcpu()
    data = guest.add_memory(0x8000_0000, 4096, slot=1, flags=C.KVM_MEM_READONLY)
    data[8:16] = (0x1234).to_bytes(8, "little")
    guest.start()
    commands(guest, 1, 0x8000_0008, 0x8000_0010, 0)
    assert guest.until_exit() == C.KVM_EXIT_MMIO
    assert guest.reports == [0x1234]
    assert (guest.page().mmio.phys_addr, guest.page().mmio.is_write) == (0x8000_0010, 1)
    guest.until_off()
    assert data[16:24] == bytes(8)


def test_a_slot_that_moves_and_goes(board: Callable[..., Board]) -> None:
    guest = board("memory")
    guest.create_vcpu()
    data = guest.add_memory(0x8000_0000, 4096, slot=1)
    data[0:8] = (0xABCD).to_bytes(8, "little")
    guest.start()
    commands(guest, 1, 0x8000_0000, 1, 0x9000_0000, 0x9000_0000, 0)
    while not guest.reports:
        guest.step()
    guest.set_region(0x9000_0000, 4096, data, slot=1)
    while len(guest.reports) < 2:
        assert guest.step() == 0
    assert guest.reports == [0xABCD, 0xABCD]
    region = C.KvmUserspaceMemoryRegion(1, 0, 0x9000_0000, 0, 0)
    guest.ioctl(guest.fd, C.KVM_SET_USER_MEMORY_REGION, region)
    assert guest.until_exit() == C.KVM_EXIT_MMIO
    assert guest.page().mmio.phys_addr == 0x9000_0000


def test_the_dirty_log_is_switched_while_the_guest_writes(board: Callable[..., Board]) -> None:
    guest = board("spin")
    guest.create_vcpu()
    data = guest.add_memory(0x8000_0000, 4096, slot=1)
    guest.start()
    guest.set_reg(A.x_reg(1), 0x8000_0000)
    thread = guest.in_thread()
    for _ in range(20):
        for flags in (C.KVM_MEM_LOG_DIRTY_PAGES, 0):
            guest.set_region(0x8000_0000, 4096, data, slot=1, flags=flags)
    before = data[:8]
    end = time.monotonic() + 5
    while data[:8] == before:
        assert time.monotonic() < end, "the guest stands still"
    assert thread.alive
    guest.backend.interrupt(guest.vcpus[0])
    assert errno_of(thread.join) == errno.EINTR


# Registers on the real engine.


def test_every_register_can_be_read_and_written_back(board: Callable[..., Board]) -> None:
    guest = board("spin")
    fd = guest.create_vcpu()
    guest.vgic_v3()
    size = C.KvmRegList(0)
    assert errno_of(guest.ioctl, fd, C.KVM_GET_REG_LIST, size) == errno.E2BIG
    buffer = (ctypes.c_uint64 * (size.n + 1))(size.n)
    guest.backend.ioctl(fd, C.KVM_GET_REG_LIST, ctypes.addressof(buffer))
    registers = list(buffer)[1:]
    assert len(set(registers)) == len(registers) == size.n
    for register in registers:
        value = guest.get_reg(register)
        guest.set_reg(register, value)
        if register not in (A.KVM_REG_ARM_TIMER_CNT, A.KVM_REG_ARM_PTIMER_CNT):
            assert guest.get_reg(register) == value, hex(register)


@pytest.mark.parametrize(
    "register",
    [
        *(A.x_reg(number) for number in (0, 15, 30)),
        *(A.REG_SP, A.REG_PC, A.REG_SP_EL1, A.REG_ELR_EL1, A.REG_SPSR_EL1, A.v_reg(0), A.v_reg(31)),
        *(A.sys_reg(3, 0, 12, 0, 0), A.sys_reg(3, 3, 13, 0, 2), A.KVM_REG_ARM_TIMER_CVAL),
    ],
)
def test_registers_keep_what_is_written(board: Callable[..., Board], register: int) -> None:
    guest = board("spin")
    guest.create_vcpu()
    value = int.from_bytes(os.urandom(C.reg_size(register)), "little") & ~0xFFF
    guest.set_reg(register, value)
    assert guest.get_reg(register) == value
    guest.init(guest.vcpus[0])
    assert guest.get_reg(register) == 0


def test_interrupting_a_real_guest(board: Callable[..., Board]) -> None:
    guest = board("spin")
    guest.create_vcpu()
    guest.start()
    guest.set_reg(A.x_reg(1), RAM + 0x8000)
    for _ in range(20):
        thread = RunThread(lambda: guest.ioctl(guest.vcpus[0], C.KVM_RUN))
        time.sleep(0.002)
        while thread.alive:
            guest.backend.interrupt(guest.vcpus[0])
            time.sleep(0.001)
        assert errno_of(thread.join) == errno.EINTR
    assert int.from_bytes(guest.ram[0x8000:0x8008], "little") > 20


# eventfds.


def test_irqfd_ioeventfd_and_resampling(board: Callable[..., Board]) -> None:
    guest = board("spi")
    guest.create_vcpu()
    guest.vgic_v3()
    irq, resample, doorbell = (os.eventfd(0, os.EFD_CLOEXEC) for _ in range(3))
    try:
        guest.ioctl(guest.fd, C.KVM_IRQFD, C.KvmIrqfd(irq, 8, C.KVM_IRQFD_FLAG_RESAMPLE, resample))
        guest.ioctl(guest.fd, C.KVM_IOEVENTFD, C.KvmIoeventfd(0, 0x0600_0000, 4, doorbell, 0))
        guest.start()
        os.eventfd_write(irq, 1)
        assert guest.step() == 0
        assert guest.reports == [40]
        thread = guest.in_thread()
        assert os.eventfd_read(doorbell) == 1
        assert os.eventfd_read(resample) == 1
        os.eventfd_write(irq, 1)
        assert thread.join() == 0
        assert guest.until_off() == [40]
        assert os.eventfd_read(doorbell) == 1
        assert os.eventfd_read(resample) == 1
    finally:
        for fd in (irq, resample, doorbell):
            os.close(fd)
