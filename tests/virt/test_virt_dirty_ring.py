# SPDX-License-Identifier: GPL-2.0-only
"""The dirty ring: sizes and refusals, the ladder, and guests that write pages on both architectures."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fake_arch import Machine

from anykvm.api import (
    BackendUnavailable,
    DirtyRing,
    DirtyRingFull,
    GuestMemory,
    Kvm,
    MmioWrite,
    PioOut,
    UnsupportedArchitecture,
    Vcpu,
    Vm,
)
from anykvm.lab import trial
from anykvm.lab.guest import GUESTS
from anykvm.testing import FaultyBackend, Ledger, software
from anykvm.uapi import arm64, caps, common
from anykvm.uapi import requests as rq
from anykvm.uapi import x86 as X
from anykvm.uapi.structs import KvmEnableCap
from anykvm.virt.dirty_ring import KVM_DIRTY_RING_RSVD_ENTRIES

RING = 4096
ENTRIES = RING // 16
SOFT = ENTRIES - KVM_DIRTY_RING_RSVD_ENTRIES
PAGES = 1024


def _code(function: Any, *args: Any) -> str:
    try:
        function(*args)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "0"


# Guests: write a byte to each page from FIRST on, then report, then again.

_ARM64 = (
    0xD2A80001,  # mov x1, #0x40000000
    0x8B003021,  # add x1, x1, x0, lsl #12
    0x39000020,  # 1: strb w0, [x1]
    0x91400421,  # add x1, x1, #1, lsl #12
    0xF1000442,  # subs x2, x2, #1
    0x54FFFFA1,  # b.ne 1b
    0xD2A14003,  # mov x3, #0x0a000000
    0xB9000060,  # str w0, [x3]
    0x14000000,  # b .
)
# 1: movb $1, (%ebx); add $0x1000, %ebx; dec %ecx; jnz 1b; out %al, $0xe9; jmp .
_X86 = bytes.fromhex("67c60301 6681c300100000 6649 75f1 e6e9 ebfe")


@dataclass
class Board:
    """A VM with rings and PAGES pages of memory in slot 3."""

    arch: str
    backend: FaultyBackend
    vm: Vm
    memory: GuestMemory

    def vcpu(self, vcpu_id: int = 0) -> tuple[Vcpu, DirtyRing]:
        vcpu = self.vm.create_vcpu(vcpu_id)
        return vcpu, vcpu.dirty_ring(RING)

    def start(self, vcpu: Vcpu, first: int, count: int) -> None:
        """Let the vCPU write ``count`` pages from ``first`` on."""
        if self.arch == "arm64":
            vcpu.init(self.vm.preferred_target(), [arm64.KVM_ARM_VCPU_PSCI_0_2])
            vcpu.set_one_reg(arm64.x_reg(0), first)
            vcpu.set_one_reg(arm64.x_reg(2), count)
            vcpu.set_one_reg(arm64.REG_PC, GUESTS["arm64"].base)
            return
        sregs = vcpu.get_sregs()
        sregs.cs.base = sregs.cs.selector = 0
        # Real mode with 4 GiB segments.
        sregs.ds.limit = 0xFFFFFFFF
        sregs.ds.g = 1
        vcpu.set_sregs(sregs)
        vcpu.set_regs(X.KvmRegs(rip=0, rflags=2, rbx=first << 12, rcx=count))

    def ended(self, exit: object) -> bool:
        return isinstance(exit, MmioWrite if self.arch == "arm64" else PioOut)


@pytest.fixture(params=["arm64", "x86"])
def board(request: pytest.FixtureRequest) -> Iterator[Board]:
    arch = request.param
    backend = software(arch)
    with Kvm(backend) as kvm, GuestMemory(PAGES * 4096) as memory:
        code = b"".join(word.to_bytes(4, "little") for word in _ARM64) if arch == "arm64" else _X86
        memory.write(0, code)
        vm = kvm.create_vm()
        vm.enable_dirty_ring(RING)
        base = GUESTS[arch].base
        vm.set_user_memory_region(3, base, memory, flags=common.KVM_MEM_LOG_DIRTY_PAGES)
        yield Board(arch, backend, vm, memory)
        vm.set_user_memory_region(3, base, None)
        vm.close()
    backend.close_all()
    Ledger(backend.services).assert_empty()


# Refusals.


@pytest.fixture(params=["software", pytest.param("host", marks=pytest.mark.kvm)])
def x86(request: pytest.FixtureRequest) -> Iterator[Kvm]:
    """x86 here, and on the machine's own /dev/kvm."""
    try:
        with Kvm(request.param, arch="x86") as kvm:
            yield kvm
    except (BackendUnavailable, UnsupportedArchitecture) as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("cap", [caps.KVM_CAP_DIRTY_LOG_RING, caps.KVM_CAP_DIRTY_LOG_RING_ACQ_REL])
@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        *[(0, "EINVAL"), (1, "EINVAL"), (2048, "EINVAL"), (5000, "EINVAL"), (4096, "0"), (1 << 20, "0")],
        *[(1 << 21, "E2BIG"), (1 << 63, "EINVAL"), ((1 << 64) - 1, "EINVAL"), (4096 + (1 << 32), "0")],
    ],
)
def test_sizes(x86: Kvm, cap: int, size: int, wanted: str) -> None:
    with x86.create_vm() as vm:
        assert _code(vm.enable_cap, cap, size) == wanted


def test_the_weaker_promise_is_x86s_only() -> None:
    for arch, wanted in (("x86", 1 << 20), ("arm64", 0)):
        with Kvm("software", arch=arch) as kvm, kvm.create_vm() as vm:
            assert vm.check_extension(caps.KVM_CAP_DIRTY_LOG_RING) == wanted
            assert vm.check_extension(caps.KVM_CAP_DIRTY_LOG_RING_ACQ_REL) == 1 << 20
            assert _code(vm.enable_cap, caps.KVM_CAP_DIRTY_LOG_RING, 4096) == ("0" if wanted else "EINVAL")


def test_only_before_the_first_vcpu_and_once(x86: Kvm) -> None:
    with x86.create_vm() as vm, vm.create_vcpu(0):
        assert _code(vm.enable_dirty_ring, RING) == "EINVAL"
        assert _code(vm.reset_dirty_rings) == "EINVAL"
    with x86.create_vm() as vm:
        vm.enable_dirty_ring(RING)
        assert _code(vm.enable_dirty_ring, RING) == "EINVAL"
        assert vm.reset_dirty_rings() == 0


def test_there_are_no_bitmaps_then(board: Board) -> None:
    assert _code(board.vm.get_dirty_log, 3) == "ENXIO"
    assert _code(board.vm.clear_dirty_log, 3, 0, 64, bytes(8)) == "ENXIO"


def test_what_can_be_mapped(board: Board) -> None:
    vcpu, _ = board.vcpu()
    for length, offset, wanted in (
        *[(RING, 64 << 12, "0"), (16, 64 << 12, "0"), (RING + 1, 64 << 12, "EINVAL"), (0, 64 << 12, "EINVAL")],
        *[(4096, 65 << 12, "EINVAL"), (4096, 4096, "EINVAL"), (4096, 0, "0")],
    ):
        assert _code(board.backend.mmap, vcpu.fd, length, offset) == wanted, (length, offset)


# The ladder.


def test_made_after_the_arch_hook_and_freed_after_it(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, bool]] = []
    for name in ("vcpu_create", "vcpu_destroy"):
        original = getattr(type(machine.arch), name)

        def hook(self: Any, vcpu: Any, name: str = name, original: Any = original) -> None:
            seen.append((name, vcpu.dirty_ring is not None))
            original(self, vcpu)

        monkeypatch.setattr(type(machine.arch), name, hook)
    vm = machine.vm()
    request = KvmEnableCap(cap=caps.KVM_CAP_DIRTY_LOG_RING_ACQ_REL)
    request.args[0] = RING
    machine.ioctl(vm, rq.KVM_ENABLE_CAP, request)
    vcpu = machine.vcpu(vm)
    assert machine.vcpu_of(vcpu).dirty_ring.size == RING
    machine.backend.close(vcpu)
    machine.backend.close(vm)
    assert seen == [("vcpu_create", False), ("vcpu_destroy", True)]


@pytest.mark.parametrize("plan", ["map:dirty ring", "memory:dirty ring counts", "KVM_CREATE_VCPU/publish:vcpu fd"])
def test_a_ring_that_cannot_be_had_leaves_nothing(plan: str) -> None:
    assert trial.judge(["x86/ring", plan])["findings"] == []
    assert trial.judge(["arm64/ring", plan])["failed"] == ["vCPU 0"]


# Guests.


def test_each_page_once_until_it_is_given_back(board: Board) -> None:
    vcpu, ring = board.vcpu()
    board.start(vcpu, 16, 8)
    assert board.ended(vcpu.run())
    assert sorted(ring.take()) == [(3, page) for page in range(16, 24)]
    assert ring.take() == []
    # Taken and not given back: the pages are not watched.
    board.start(vcpu, 16, 9)
    assert board.ended(vcpu.run())
    assert ring.take() == [(3, 24)]
    assert board.vm.reset_dirty_rings() == 9
    assert board.vm.reset_dirty_rings() == 0
    board.start(vcpu, 20, 2)
    assert board.ended(vcpu.run())
    assert sorted(ring.take()) == [(3, 20), (3, 21)]


def test_a_full_ring_ends_the_run_and_nothing_is_lost(board: Board) -> None:
    vcpu, ring = board.vcpu()
    board.start(vcpu, 8, 700)
    seen: list[tuple[int, int]] = []
    fulls = 0
    while not board.ended(exit := vcpu.run()):
        assert exit == DirtyRingFull()
        # The guest goes on only when there is room.
        assert vcpu.run() == DirtyRingFull()
        fulls += 1
        taken = ring.take()
        assert SOFT <= len(taken) <= ENTRIES
        assert board.vm.reset_dirty_rings() == len(taken)
        seen += taken
    seen += ring.take()
    assert [page for _, page in seen] == list(range(8, 708))
    assert fulls == 700 // SOFT


def test_a_part_can_be_given_back_in_order(board: Board) -> None:
    vcpu, _ = board.vcpu()
    board.start(vcpu, 8, 4)
    assert board.ended(vcpu.run())
    words = board.backend.mmap(vcpu.fd, RING, 64 << 12).cast("I")
    assert list(words[0:16:4]) == [1, 1, 1, 1]
    words[4] |= 2
    assert board.vm.reset_dirty_rings() == 0
    words[0] |= 2
    assert board.vm.reset_dirty_rings() == 2
    assert list(words[0:16:4]) == [0, 0, 1, 1]
    board.start(vcpu, 8, 4)
    assert board.ended(vcpu.run())
    assert [(words[4 * n + 1], words[4 * n + 2]) for n in range(4, 6)] == [(3, 8), (3, 9)]


def test_rubbish_in_the_ring_harms_nobody(board: Board) -> None:
    vcpu, _ = board.vcpu()
    board.start(vcpu, 8, 3)
    assert board.ended(vcpu.run())
    view = board.backend.mmap(vcpu.fd, RING, 64 << 12)
    words, quads = view.cast("I"), view.cast("Q")
    words[1], quads[3], words[9] = 77, 1 << 60, 0xFFFFFFFF
    for index in range(ENTRIES):
        words[4 * index] = 3
    assert board.vm.reset_dirty_rings() == 3


def test_every_vcpu_has_its_own(board: Board) -> None:
    one, first = board.vcpu(0)
    two, second = board.vcpu(1)
    board.start(one, 32, 60)
    board.start(two, 128, 60)
    threads = [threading.Thread(target=vcpu.run) for vcpu in (one, two)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(page for _, page in first.take()) == list(range(32, 92))
    assert sorted(page for _, page in second.take()) == list(range(128, 188))
    assert board.vm.reset_dirty_rings() == 120


def test_entries_are_given_back_while_the_guest_runs(board: Board) -> None:
    vcpu, ring = board.vcpu()
    board.start(vcpu, 8, 1000)
    done = threading.Event()

    def run() -> None:
        while not board.ended(vcpu.run()):
            pass
        done.set()

    thread = threading.Thread(target=run)
    thread.start()
    seen: list[int] = []
    while not done.is_set():
        seen += [page for _, page in ring.take()]
        board.vm.reset_dirty_rings()
    thread.join(20)
    seen += [page for _, page in ring.take()]
    assert seen == list(range(8, 1008))


def test_the_ring_is_in_the_file_of_the_vcpu(board: Board) -> None:
    """A program that maps the fd itself finds the entries at page 64."""
    import mmap
    import os

    vcpu, _ = board.vcpu()
    board.start(vcpu, 40, 1)
    assert board.ended(vcpu.run())
    assert os.fstat(vcpu.fd).st_size == (64 << 12) + RING
    with mmap.mmap(vcpu.fd, RING, offset=64 << 12) as mapped:
        assert mapped[:16] == bytes.fromhex("01000000 03000000 2800000000000000")
