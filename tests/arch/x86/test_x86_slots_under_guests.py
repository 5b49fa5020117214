# SPDX-License-Identifier: GPL-2.0-only
"""Memory slots that come and go while the guest runs, in numbers, and with the guest's own tables in them."""

from __future__ import annotations

import threading
import time

import pytest
from x86_guest_board import DEVICE, Board, software

from anykvm.api import GuestMemory, InternalError, Kvm, MmioRead, Shutdown
from anykvm.uapi import common as C


@pytest.mark.parametrize("code", [f"mov ${DEVICE}, %ebx; 1: mov (%rbx), %eax; jmp 1b", "1: mov 0x3000, %eax; jmp 1b"])
def test_the_memory_under_its_feet_goes_and_is_unmapped(board: Board, code: str) -> None:
    """The guest's code and page tables vanish: it ends in the exit KVM would give, and nothing reads what is gone."""
    vcpu = board.long(code)
    ended: list[object] = []
    started = threading.Event()

    def run() -> None:
        while isinstance(exit := vcpu.run(), MmioRead):
            started.set()
            exit.reply(0)
        ended.append(exit)

    thread = threading.Thread(target=run)
    thread.start()
    started.wait(0.2)
    time.sleep(0.05)
    board.vm.set_user_memory_region(0, 0, None)
    board.memory.close()
    thread.join(10)
    assert not thread.is_alive()
    assert isinstance(ended[0], (Shutdown, InternalError))


def test_thousands_of_slots() -> None:
    page, count = 4096, 5000
    with GuestMemory(page) as memory, Kvm(software()) as kvm, kvm.create_vm() as vm:
        limit = vm.check_extension(C.KVM_CAP_NR_MEMSLOTS)
        region = C.KvmUserspaceMemoryRegion(memory_size=page, userspace_addr=memory.address)
        started = time.monotonic()
        for slot in (*range(count), limit - 1):
            region.slot, region.guest_phys_addr = slot, slot * 2 * page
            vm.ioctl(C.KVM_SET_USER_MEMORY_REGION, region)
        # It takes 0.3 s; sorting all of them for each takes 2 s.
        assert time.monotonic() - started < 20
        region.slot = limit
        region.guest_phys_addr = limit * 2 * page
        with pytest.raises(OSError, match="Errno 22"):
            vm.ioctl(C.KVM_SET_USER_MEMORY_REGION, region)
