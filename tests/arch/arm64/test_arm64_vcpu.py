# SPDX-License-Identifier: GPL-2.0-only
"""A vCPU's life: the create ladder, KVM_ARM_VCPU_INIT, destruction; and the VM around it."""

from __future__ import annotations

import errno
import threading
import time

import arm64_fake
import pytest
from arm64_fake import Rig, errno_of

from anykvm.arch import contract, interface
from anykvm.arch.arm64 import hooks
from anykvm.arch.arm64.power import Power
from anykvm.uapi import arm64 as A
from anykvm.uapi import caps
from anykvm.uapi import common as C
from anykvm.virt.backend import SoftwareBackend
from anykvm.virt.services import Services


def test_the_contract_is_kept() -> None:
    assert interface.missing_files("arm64") == []
    assert contract.breaches(hooks()) == []


# The ladder.


def test_the_ladder_shows_the_steps_in_order(rig: Rig) -> None:
    rig.create_vcpu(init=False)
    steps = rig.vm.vcpu_array[0].arch_ladder.steps
    assert steps == [
        "arm64 vcpu",
        "wait queue",
        "cpu",
        "timer lock",
        "timer",
        "timer",
        "timer stop",
        "vgic",
    ]
    assert not rig.vcpu().live, "a vCPU that has not run costs no engine"


class Failing(Services):
    """Services whose nth acquisition of a kind fails."""

    def __init__(self, kind: str, nth: int) -> None:
        super().__init__()
        self.left = {kind: nth}

    def _count(self, kind: str, name: str) -> None:
        if "arm64" in name or "arch timer" in name:
            self.left[kind] = self.left.get(kind, 0) - 1
            if self.left[kind] == 0:
                raise OSError(errno.ENOMEM, "no more")

    def charge(self, name: str, size: int = 0):
        self._count("charge", name)
        return super().charge(name, size)

    def timer(self, name: str, callback):
        self._count("timer", name)
        return super().timer(name, callback)


@pytest.mark.parametrize(("kind", "nth"), [("charge", 2), ("timer", 1), ("timer", 2)])
def test_a_failing_step_leaves_nothing(monkeypatch: pytest.MonkeyPatch, kind: str, nth: int) -> None:
    arm64_fake.install(monkeypatch)
    rig = Rig(SoftwareBackend(hooks(), Failing(kind, nth)))
    before = rig.backend.services.ledger()
    assert errno_of(rig.create_vcpu) == errno.ENOMEM
    assert rig.backend.services.ledger() == before
    rig.create_vcpu(0)
    rig.close()
    assert rig.backend.services.ledger() == {}


def test_the_cpu_dies_with_the_vm(rig: Rig) -> None:
    rig.create_vcpu()
    cpu, machine = rig.cpu(), rig.arch.machine
    rig.close()
    assert cpu.closed
    assert machine.closed


@pytest.mark.parametrize("gic", ["vgic_v2", "vgic_v3"])
def test_a_gic_made_after_the_vcpu_is_taken_away_too(rig: Rig, gic: str) -> None:
    rig.create_vcpu()
    getattr(rig, gic)()
    bus = rig.vm.mmio_bus
    rig.cpu().script.append((3, 0x0700_0000, 4, 0))
    rig.run()
    assert len(bus) == 2
    rig.close()
    assert len(bus) == 0


def test_many_vcpus(rig: Rig) -> None:
    for _ in range(64):
        rig.create_vcpu(init=False)
    assert errno_of(rig.create_vcpu, 512) == errno.EINVAL
    rig.create_vcpu(511, init=False)
    assert len({vcpu.mpidr for vcpu in rig.arch.vcpus}) == 65


# KVM_ARM_VCPU_INIT.


def test_preferred_target(rig: Rig) -> None:
    init = A.KvmVcpuInit(99)
    init.features[0] = 7
    rig.ioctl(rig.fd, A.KVM_ARM_PREFERRED_TARGET, init)
    assert (init.target, list(init.features)) == (A.KVM_ARM_TARGET_GENERIC_V8, [0] * 7)


@pytest.mark.parametrize(
    ("feature", "expected"),
    [
        (A.KVM_ARM_VCPU_EL1_32BIT, errno.EINVAL),
        (A.KVM_ARM_VCPU_PMU_V3, errno.EINVAL),
        (A.KVM_ARM_VCPU_SVE, errno.EINVAL),
        (A.KVM_ARM_VCPU_PTRAUTH_ADDRESS, errno.EINVAL),
        (A.KVM_ARM_VCPU_PTRAUTH_GENERIC, errno.EINVAL),
        (A.KVM_ARM_VCPU_HAS_EL2, errno.EINVAL),
        (9, errno.ENOENT),
        (31, errno.ENOENT),
    ],
)
def test_features_that_are_refused(rig: Rig, feature: int, expected: int) -> None:
    fd = rig.create_vcpu(init=False)
    assert errno_of(rig.init, fd, features=1 << feature) == expected
    assert rig.vcpu().features is None


def test_feature_words_beyond_the_first(rig: Rig) -> None:
    fd = rig.create_vcpu(init=False)
    init = A.KvmVcpuInit(5)
    init.features[3] = 1
    assert errno_of(rig.ioctl, fd, A.KVM_ARM_VCPU_INIT, init) == errno.ENOENT


@pytest.mark.parametrize("target", [0, 1, 3, 6, 0xFFFF_FFFF])
def test_targets_that_are_refused(rig: Rig, target: int) -> None:
    fd = rig.create_vcpu(init=False)
    assert errno_of(rig.init, fd, target=target) == errno.EINVAL


def test_init_again(rig: Rig) -> None:
    fd = rig.create_vcpu()
    rig.set_reg(A.x_reg(1), 5)
    rig.init(fd)
    assert rig.get_reg(A.x_reg(1)) == 0
    assert errno_of(rig.init, fd, psci=False) == errno.EINVAL
    assert errno_of(rig.init, fd, target=A.KVM_ARM_TARGET_CORTEX_A57) == errno.EINVAL
    rig.init(fd, off=True)
    assert rig.vcpu().power.stopped
    rig.init(fd)
    assert not rig.vcpu().power.stopped


def test_all_vcpus_have_the_same_features(rig: Rig) -> None:
    rig.create_vcpu()
    fd = rig.create_vcpu(init=False)
    assert errno_of(rig.init, fd, psci=False) == errno.EINVAL
    rig.init(fd)


def test_reset_values(rig: Rig) -> None:
    rig.create_vcpu()
    assert rig.get_reg(A.REG_PSTATE) == 0x3C5
    assert rig.get_reg(A.sys_reg(3, 0, 1, 0, 0)) == 0x00C50078
    assert rig.get_reg(A.sys_reg(3, 0, 12, 0, 0)) == 0
    assert rig.cpu().cntvoff == rig.arch.cntvoff


def test_init_gives_up_an_outstanding_access(rig: Rig) -> None:
    fd = rig.create_vcpu()
    rig.cpu().script.append((2, 0x0700_0000, 4))
    rig.run()
    rig.init(fd)
    assert rig.cpu().log[-2:] == ["abandon", "reset"]
    rig.cpu().script.append((3, 0x0700_0000, 4, 0))
    rig.run()
    assert rig.cpu().answers[-1] == 0


def test_a_line_that_rose_before_the_first_run_is_seen(rig: Rig) -> None:
    rig.create_vcpu()
    rig.irq_line(0, 1)
    assert rig.cpu().lines == [False, False]
    rig.get_reg(A.REG_PC)
    assert rig.cpu().lines == [True, False]
    rig.irq_line(0, 0)
    assert rig.cpu().lines == [False, False]


# The VM.


@pytest.mark.parametrize(("vm_type", "size"), [(0, 1 << 40), (32, 1 << 32), (40, 1 << 40), (44, 1 << 44)])
def test_address_sizes(rig: Rig, vm_type: int, size: int) -> None:
    other = Rig(rig.backend, vm_type)
    assert other.arch.ipa_size == size


@pytest.mark.parametrize("vm_type", [31, 45, 48, 255, 0x100, 1 << 31])
def test_address_sizes_that_are_refused(rig: Rig, vm_type: int) -> None:
    assert errno_of(rig.ioctl, rig.system, C.KVM_CREATE_VM, vm_type) == errno.EINVAL


def test_slots_reach_the_engine(rig: Rig) -> None:
    memory = rig.add_memory(0x4000_0000, 8192)
    regions = rig.arch.machine.regions
    assert regions[0x4000_0000]["size"] == 8192
    assert not regions[0x4000_0000]["readonly"]
    assert regions[0x4000_0000]["dirty"] == 0
    rig.set_region(0x4000_0000, 8192, memory, flags=C.KVM_MEM_LOG_DIRTY_PAGES)
    assert regions[0x4000_0000]["dirty"] != 0
    rig.set_region(0x5000_0000, 8192, memory, flags=C.KVM_MEM_LOG_DIRTY_PAGES)
    assert list(regions) == [0x5000_0000]
    rig.ioctl(rig.fd, C.KVM_SET_USER_MEMORY_REGION, C.KvmUserspaceMemoryRegion(0, 0, 0x5000_0000, 0, 0))
    assert regions == {}


def test_a_slot_that_changes_is_one_change_to_the_guest(rig: Rig) -> None:
    memory = rig.add_memory(0x4000_0000, 8192)
    changes = rig.arch.machine.changes
    assert changes == ["map"]
    rig.set_region(0x4000_0000, 8192, memory, flags=C.KVM_MEM_LOG_DIRTY_PAGES)
    assert changes[1:] == ["stop", "unmap", "map", "go"]
    rig.set_region(0x5000_0000, 8192, memory, flags=C.KVM_MEM_LOG_DIRTY_PAGES)
    assert changes[5:] == ["stop", "unmap", "map", "go"]


def test_a_slot_beyond_the_address_space(rig: Rig) -> None:
    assert errno_of(rig.add_memory, (1 << 40) - 4096, 8192) == errno.EFAULT
    rig.add_memory((1 << 40) - 4096, 4096)


def test_clearing_the_dirty_log_protects_again(rig: Rig) -> None:
    enable = C.KvmEnableCap(caps.KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2)
    enable.args[0] = 1
    rig.ioctl(rig.fd, C.KVM_ENABLE_CAP, enable)
    rig.add_memory(0x4000_0000, 100 * 4096, flags=C.KVM_MEM_LOG_DIRTY_PAGES)
    slot = rig.vm.memory.by_id(0)
    slot.dirty.mark(70)
    slot.dirty.mark(71)
    rig.vm.hooks.clear_dirty(rig.vm, slot, 64, (1 << 6).to_bytes(8, "little"))
    assert bytes(slot.dirty.view)[8:16] == (1 << 7).to_bytes(8, "little")
    assert rig.arch.machine.reprotected == [(0x4000_0000, 64, 36)]
    assert rig.arch.machine.changes[1:] == ["stop", "reprotect", "go"]


def test_capabilities(rig: Rig) -> None:
    for cap, value in (
        (caps.KVM_CAP_ARM_VM_IPA_SIZE, 44),
        (caps.KVM_CAP_ARM_PSCI_0_2, 1),
        (caps.KVM_CAP_IRQCHIP, 1),
        (caps.KVM_CAP_MAX_VCPUS, 512),
        (caps.KVM_CAP_READONLY_MEM, 1),
        (caps.KVM_CAP_SIGNAL_MSI, 0),
        (caps.KVM_CAP_ARM_SVE, 0),
        (caps.KVM_CAP_ARM_PMU_V3, 0),
        (caps.KVM_CAP_ARM_EL1_32BIT, 0),
        (caps.KVM_CAP_SET_GUEST_DEBUG, 0),
    ):
        for fd in (rig.system, rig.fd):
            assert rig.ioctl(fd, C.KVM_CHECK_EXTENSION, cap) == value


def test_unknown_requests(rig: Rig) -> None:
    fd = rig.create_vcpu()
    assert errno_of(rig.ioctl, rig.system, 0xAEFF) == errno.EINVAL
    assert errno_of(rig.ioctl, rig.fd, 0xAEFF) == errno.ENOTTY
    assert errno_of(rig.ioctl, fd, 0xAEFF) == errno.EINVAL
    assert errno_of(rig.ioctl, rig.fd, C.KVM_ENABLE_CAP, C.KvmEnableCap(caps.KVM_CAP_ARM_MTE)) == errno.EINVAL
    assert errno_of(rig.ioctl, rig.fd, C.KVM_SET_DEVICE_ATTR, C.KvmDeviceAttr()) == errno.ENXIO


# Sleeping and pausing.


def test_a_wake_before_the_sleep_is_not_lost() -> None:
    power = Power(threading.Lock())
    power.wake()
    power.wake()
    looks: list[int] = []
    power.until(lambda: len(looks) >= 1 or bool(looks.append(1)))
    assert not power.asleep


def test_sleeping_costs_nothing() -> None:
    power = Power(threading.Lock())
    done: list[int] = []
    thread = threading.Thread(target=power.until, args=(lambda: bool(done),))
    used = time.process_time()
    thread.start()
    time.sleep(0.05)
    assert thread.is_alive()
    assert time.process_time() - used < 0.04
    done.append(1)
    power.wake()
    thread.join(5)
    assert not thread.is_alive()
