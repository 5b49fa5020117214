# SPDX-License-Identifier: GPL-2.0-only
"""A signal on Python's main thread ends KVM_RUN, as in the kernel."""

from __future__ import annotations

import signal
from types import FrameType

import pytest

from anykvm import GuestMemory, Interrupted, Kvm
from anykvm.uapi import arm64

BRANCH_TO_SELF = 0x14000000


def test_a_signal_on_the_main_thread_ends_kvm_run() -> None:
    seen: list[int] = []

    def handler(number: int, frame: FrameType | None) -> None:
        seen.append(number)

    with GuestMemory(4096) as memory, Kvm(backend="software", arch="arm64") as kvm, kvm.create_vm() as vm:
        vm.set_user_memory_region(0, 0x1000, memory)
        memory.write(0, BRANCH_TO_SELF.to_bytes(4, "little"))
        with vm.create_vcpu(0) as vcpu:
            vcpu.init(vm.preferred_target())
            vcpu.set_one_reg(arm64.REG_PC, 0x1000)
            old = signal.signal(signal.SIGALRM, handler)
            try:
                for n in (1, 2):
                    signal.setitimer(signal.ITIMER_REAL, 0.05)
                    assert isinstance(vcpu.run(), Interrupted)
                    assert seen == [signal.SIGALRM] * n
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, old)
            assert vcpu.get_one_reg(arm64.REG_PC) == 0x1000


class Stop(Exception):
    pass


def test_an_exception_of_a_handler_comes_out_of_run() -> None:
    def handler(number: int, frame: FrameType | None) -> None:
        raise Stop

    with GuestMemory(4096) as memory, Kvm(backend="software", arch="arm64") as kvm, kvm.create_vm() as vm:
        vm.set_user_memory_region(0, 0x1000, memory)
        memory.write(0, BRANCH_TO_SELF.to_bytes(4, "little"))
        with vm.create_vcpu(0) as vcpu:
            vcpu.init(vm.preferred_target())
            vcpu.set_one_reg(arm64.REG_PC, 0x1000)
            old = signal.signal(signal.SIGALRM, handler)
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                with pytest.raises(Stop):
                    vcpu.run()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
                signal.signal(signal.SIGALRM, old)
