# SPDX-License-Identifier: GPL-2.0-only
"""PSCI and SMCCC calls, made through the run loop."""

from __future__ import annotations

import errno
import threading
import time

import pytest
from arm64_fake import FakeCpu, Rig, errno_of

from anykvm.arch.arm64 import psci, smccc
from anykvm.arch.arm64.power import Power, ResetState
from anykvm.engine import Event
from anykvm.uapi import arm64 as A
from anykvm.uapi import common as C

U64 = (1 << 64) - 1
EXIT = (Event.MMIO_WRITE, 0x0700_0000, 4, 0)


def call(rig: Rig, function: int, *args: int, index: int = 0, event: int = Event.HVC, immediate: int = 0) -> list[int]:
    """Make a call on a vCPU; x0 to x3 after it."""
    cpu = rig.cpu(index)

    def enter(cpu: FakeCpu) -> tuple[int, ...]:
        for number, value in enumerate((function, *args, 0, 0, 0)[:4]):
            cpu.gpr[number] = value & U64
        return (event, immediate)

    cpu.script += [enter, EXIT]
    rig.run(index)
    return list(cpu.gpr)[:4]


def signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


# Versions.


@pytest.mark.parametrize(
    ("version", "features", "reset2"),
    [(psci.PSCI_0_2, False, False), (psci.PSCI_1_0, True, False), (psci.PSCI_1_1, True, True)],
)
def test_versions(rig: Rig, version: int, features: bool, reset2: bool) -> None:
    rig.create_vcpu()
    rig.set_reg(A.KVM_REG_ARM_PSCI_VERSION, version)
    assert call(rig, A.PSCI_0_2_FN_PSCI_VERSION)[0] == version
    got = signed(call(rig, A.PSCI_1_0_FN_PSCI_FEATURES, A.PSCI_0_2_FN64_CPU_ON)[0])
    assert got == (0 if features else A.PSCI_RET_NOT_SUPPORTED)
    if features:
        got = signed(call(rig, A.PSCI_1_0_FN_PSCI_FEATURES, A.PSCI_1_1_FN64_SYSTEM_RESET2)[0])
        assert got == (0 if reset2 else A.PSCI_RET_NOT_SUPPORTED)


def test_version_0_1_without_the_feature(rig: Rig) -> None:
    rig.create_vcpu(psci=False)
    assert rig.get_reg(A.KVM_REG_ARM_PSCI_VERSION) == psci.PSCI_0_1
    rig.set_reg(A.KVM_REG_ARM_PSCI_VERSION, psci.PSCI_0_1)
    assert errno_of(rig.set_reg, A.KVM_REG_ARM_PSCI_VERSION, psci.PSCI_1_0) == errno.EINVAL
    assert signed(call(rig, A.PSCI_0_2_FN_PSCI_VERSION)[0]) == A.PSCI_RET_NOT_SUPPORTED
    assert signed(call(rig, A.KVM_PSCI_FN_CPU_ON, 0)[0]) == A.PSCI_RET_INVALID_PARAMS


@pytest.mark.parametrize("version", [psci.PSCI_0_1, 0x10002, 0, U64])
def test_versions_that_are_not_offered(rig: Rig, version: int) -> None:
    rig.create_vcpu()
    assert errno_of(rig.set_reg, A.KVM_REG_ARM_PSCI_VERSION, version) == errno.EINVAL


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (A.PSCI_0_2_FN_CPU_OFF, 0),
        (A.PSCI_0_2_FN_SYSTEM_OFF, 0),
        (A.PSCI_1_0_FN_PSCI_FEATURES, 0),
        (A.ARM_SMCCC_VERSION_FUNC_ID, 0),
        (A.PSCI_0_2_FN_MIGRATE_INFO_TYPE, 0),
        (A.PSCI_0_2_FN_MIGRATE, -1),
        (A.PSCI_1_0_FN_SYSTEM_SUSPEND, -1),
        (0x1234, -1),
    ],
)
def test_features(rig: Rig, function: int, expected: int) -> None:
    rig.create_vcpu()
    assert signed(call(rig, A.PSCI_1_0_FN_PSCI_FEATURES, function)[0]) == expected


def test_unknown_calls(rig: Rig) -> None:
    rig.create_vcpu()
    assert call(rig, A.PSCI_0_2_FN_MIGRATE, 1, 2, 3) == [U64, 0, 0, 0]
    assert call(rig, 0xDEAD_BEEF) == [U64, 0, 0, 0]
    assert call(rig, A.PSCI_0_2_FN_MIGRATE_INFO_TYPE)[0] == A.PSCI_0_2_TOS_MP


# CPUs.


def test_cpu_on_resets_and_starts(rig: Rig) -> None:
    rig.create_vcpu()
    rig.create_vcpu(off=True)
    rig.set_reg(A.x_reg(5), 99, 1)
    second = rig.cpu(1)
    second.script.append(EXIT)
    thread = rig.in_thread(1)
    assert call(rig, A.PSCI_0_2_FN64_CPU_ON, 1, 0x4000_1000, 0x77)[0] == 0
    assert thread.join() == 0
    assert (second.pc, second.gpr[0], second.gpr[5], second.pstate) == (0x4000_1000, 0x77, 0, 0x3C5)
    assert signed(call(rig, A.PSCI_0_2_FN64_CPU_ON, 1)[0]) == A.PSCI_RET_ALREADY_ON


def test_cpu_on_before_the_target_runs(rig: Rig) -> None:
    rig.create_vcpu()
    rig.create_vcpu(off=True)
    assert call(rig, A.PSCI_0_2_FN_CPU_ON, 0xFFFF_0000_0000 << 16 | 1, 0x1_4000_1000, 5)[0] == 0
    rig.cpu(1).script.append(EXIT)
    rig.run(1)
    assert rig.cpu(1).pc == 0x4000_1000, "the 32-bit call takes 32 bits"


@pytest.mark.parametrize("mpidr", [5, 0x100, 1 << 24, 1 << 31, U64])
def test_cpu_on_of_nobody(rig: Rig, mpidr: int) -> None:
    rig.create_vcpu()
    assert signed(call(rig, A.PSCI_0_2_FN64_CPU_ON, mpidr)[0]) == A.PSCI_RET_INVALID_PARAMS


def test_cpu_off_sleeps_until_it_is_on_again(rig: Rig) -> None:
    rig.create_vcpu()
    rig.create_vcpu()
    cpu = rig.cpu(1)

    def off(cpu: FakeCpu) -> tuple[int, ...]:
        cpu.gpr[0] = A.PSCI_0_2_FN_CPU_OFF
        return (Event.HVC, 0)

    cpu.script += [off, EXIT]
    thread = rig.in_thread(1)
    end = time.monotonic() + 5
    while not rig.vcpu(1).power.asleep:
        assert time.monotonic() < end
    assert call(rig, A.PSCI_0_2_FN64_AFFINITY_INFO, 1, 0)[0] == A.PSCI_0_2_AFFINITY_LEVEL_OFF
    assert call(rig, A.PSCI_0_2_FN64_CPU_ON, 1, 0x8000, 0)[0] == 0
    assert thread.join() == 0
    assert cpu.pc == 0x8000


def test_cpu_on_that_comes_while_the_target_looks(rig: Rig) -> None:
    rig.create_vcpu(off=True)
    cpu, vcpu = rig.cpu(), rig.vcpu()

    class Racing(Power):
        """Another vCPU starts this one when its reset state has been looked at already."""

        @property
        def stopped(self) -> bool:
            if not cpu.gpr[0]:
                self.reset_state = ResetState(0x8000, 7)
            return False

        @stopped.setter
        def stopped(self, value: bool) -> None:
            pass

    vcpu.power = Racing(threading.Lock())
    cpu.script.append(EXIT)
    rig.run()
    assert (cpu.pc, cpu.gpr[0]) == (0x8000, 7)


@pytest.mark.parametrize(
    ("affinity", "level", "expected"),
    [
        (0, 0, A.PSCI_0_2_AFFINITY_LEVEL_ON),
        (1, 0, A.PSCI_0_2_AFFINITY_LEVEL_OFF),
        (1, 1, A.PSCI_0_2_AFFINITY_LEVEL_ON),
        (0, 3, A.PSCI_0_2_AFFINITY_LEVEL_ON),
        (2, 0, A.PSCI_RET_INVALID_PARAMS),
        (0x100, 1, A.PSCI_RET_INVALID_PARAMS),
        (0, 4, A.PSCI_RET_INVALID_PARAMS),
        (1 << 24, 0, A.PSCI_RET_INVALID_PARAMS),
    ],
)
def test_affinity_info(rig: Rig, affinity: int, level: int, expected: int) -> None:
    rig.create_vcpu()
    rig.create_vcpu(off=True)
    assert signed(call(rig, A.PSCI_0_2_FN64_AFFINITY_INFO, affinity, level)[0]) == expected


def test_cpu_suspend_is_wfi(rig: Rig) -> None:
    rig.create_vcpu()
    rig.irq_line(0, 1)
    assert call(rig, A.PSCI_0_2_FN64_CPU_SUSPEND, 0, 0x1234)[0] == 0
    assert rig.cpu().pc == 0, "the entry point is not used: registers are kept"
    assert rig.vm.vcpu_array[0].stats.as_dict()["wfi_exit_stat"] == 1


# The machine.


@pytest.mark.parametrize(
    ("function", "argument", "kind", "flags"),
    [
        (A.PSCI_0_2_FN_SYSTEM_OFF, 0, C.KVM_SYSTEM_EVENT_SHUTDOWN, 0),
        (A.PSCI_0_2_FN_SYSTEM_RESET, 0, C.KVM_SYSTEM_EVENT_RESET, 0),
        (A.PSCI_1_1_FN64_SYSTEM_RESET2, 0, C.KVM_SYSTEM_EVENT_RESET, A.KVM_SYSTEM_EVENT_RESET_FLAG_PSCI_RESET2),
        (A.PSCI_1_1_FN_SYSTEM_RESET2, 0x8000_0000, C.KVM_SYSTEM_EVENT_RESET, 1),
    ],
)
def test_system_events(rig: Rig, function: int, argument: int, kind: int, flags: int) -> None:
    rig.create_vcpu()
    rig.create_vcpu()
    call(rig, function, argument)
    page = rig.page()
    assert page.exit_reason == C.KVM_EXIT_SYSTEM_EVENT
    assert (page.system_event.type, page.system_event.ndata, page.system_event.data[0]) == (kind, 1, flags)
    assert signed(rig.cpu().gpr[0]) == A.PSCI_RET_INTERNAL_FAILURE
    assert rig.vcpu(0).power.stopped
    assert rig.vcpu(1).power.stopped


def test_reset2_of_an_unknown_type(rig: Rig) -> None:
    rig.create_vcpu()
    assert signed(call(rig, A.PSCI_1_1_FN64_SYSTEM_RESET2, 1)[0]) == A.PSCI_RET_INVALID_PARAMS


def test_a_running_vcpu_stops_at_a_system_event(rig: Rig) -> None:
    rig.create_vcpu()
    rig.create_vcpu()
    thread = rig.in_thread(1)
    end = time.monotonic() + 5
    while not rig.cpu(1).answers:
        assert time.monotonic() < end
    call(rig, A.PSCI_0_2_FN_SYSTEM_OFF)
    while not rig.vcpu(1).power.asleep:
        assert time.monotonic() < end
    rig.backend.interrupt(rig.vcpus[1])
    assert errno_of(thread.join) == errno.EINTR


# SMCCC.


def test_smccc_version(rig: Rig) -> None:
    rig.create_vcpu()
    assert call(rig, A.ARM_SMCCC_VERSION_FUNC_ID, 1, 2, 3) == [A.ARM_SMCCC_VERSION_1_1, 0, 0, 0]


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        (A.ARM_SMCCC_ARCH_WORKAROUND_1, -2),
        (A.ARM_SMCCC_ARCH_WORKAROUND_2, -2),
        (A.ARM_SMCCC_ARCH_WORKAROUND_3, -2),
        (A.ARM_SMCCC_VERSION_FUNC_ID, 0),
        (A.ARM_SMCCC_ARCH_SOC_ID, -1),
        (A.ARM_SMCCC_HV_PV_TIME_FEATURES, -1),
    ],
)
def test_no_workaround_is_required(rig: Rig, feature: int, expected: int) -> None:
    rig.create_vcpu()
    assert signed(call(rig, A.ARM_SMCCC_ARCH_FEATURES_FUNC_ID, feature)[0]) == expected


@pytest.mark.parametrize("function", [A.ARM_SMCCC_TRNG_RND32, A.ARM_SMCCC_TRNG_RND64])
def test_random_numbers(rig: Rig, function: int) -> None:
    rig.create_vcpu()
    width = 64 if function == A.ARM_SMCCC_TRNG_RND64 else 32
    seen = [0, 0, 0]
    for _ in range(20):
        status, *words = call(rig, function, 3 * width)
        assert status == 0
        assert all(word < 1 << width for word in words)
        seen = [old | word for old, word in zip(seen, words, strict=True)]
    assert all(bits.bit_count() > width * 0.9 for bits in seen)


@pytest.mark.parametrize("bits", [1, 17, 64, 65, 128, 191])
def test_random_numbers_have_as_many_bits_as_asked_for(rig: Rig, bits: int) -> None:
    rig.create_vcpu()
    _, high, middle, low = call(rig, A.ARM_SMCCC_TRNG_RND64, bits)
    assert (high << 128 | middle << 64 | low) < 1 << bits


@pytest.mark.parametrize(
    ("function", "bits"), [(A.ARM_SMCCC_TRNG_RND32, 97), (A.ARM_SMCCC_TRNG_RND64, 193), (A.ARM_SMCCC_TRNG_RND64, 0)]
)
def test_too_many_random_bits(rig: Rig, function: int, bits: int) -> None:
    rig.create_vcpu()
    assert signed(call(rig, function, bits)[0]) == -2


def test_trng_features_and_name(rig: Rig) -> None:
    rig.create_vcpu()
    assert call(rig, A.ARM_SMCCC_TRNG_VERSION)[0] == 0x10000
    assert call(rig, A.ARM_SMCCC_TRNG_FEATURES, A.ARM_SMCCC_TRNG_RND64)[0] == 0
    assert signed(call(rig, A.ARM_SMCCC_TRNG_FEATURES, 0x8400_0060)[0]) == -1
    assert tuple(call(rig, A.ARM_SMCCC_TRNG_GET_UUID)) == smccc.TRNG_UUID


def test_trng_can_be_switched_off(rig: Rig) -> None:
    rig.create_vcpu()
    rig.set_reg(A.KVM_REG_ARM_STD_BMAP, 0)
    assert signed(call(rig, A.ARM_SMCCC_TRNG_VERSION)[0]) == -1
    assert errno_of(rig.set_reg, A.KVM_REG_ARM_STD_BMAP, 1) == errno.EBUSY
    rig.set_reg(A.KVM_REG_ARM_STD_BMAP, 0)


@pytest.mark.parametrize(
    "register", [A.KVM_REG_ARM_STD_BMAP, A.KVM_REG_ARM_STD_HYP_BMAP, A.KVM_REG_ARM_VENDOR_HYP_BMAP]
)
def test_bitmaps_hold_only_what_there_is(rig: Rig, register: int) -> None:
    rig.create_vcpu()
    assert rig.get_reg(register) == (1 if register == A.KVM_REG_ARM_STD_BMAP else 0)
    assert errno_of(rig.set_reg, register, 1 << 5) == errno.EINVAL


def test_smc_is_a_conduit_too(rig: Rig) -> None:
    rig.create_vcpu()
    assert call(rig, A.PSCI_0_2_FN_PSCI_VERSION, event=Event.SMC)[0] == psci.LATEST
    assert call(rig, A.PSCI_0_2_FN_PSCI_VERSION, event=Event.SMC, immediate=1)[0] == U64
    assert call(rig, A.PSCI_0_2_FN_PSCI_VERSION, immediate=1)[0] == psci.LATEST
    assert rig.vm.vcpu_array[0].stats.as_dict()["hvc_exit_stat"] == 3
