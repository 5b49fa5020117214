# SPDX-License-Identifier: GPL-2.0-only
"""arm64's refusals, where no hardware is there to ask: expectations by hand, each from the document it names.

"api" is Documentation/virt/kvm/api.rst, "vgic" Documentation/virt/kvm/devices/arm-vgic.rst, "arm.c" the file in
arch/arm64/kvm.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from differential_player import Operation, Player, playing

VM: Operation = ["make", "vm0", "sys", "KVM_CREATE_VM", 0]
GIC: Operation = ["make", "gic", "vm0", "KVM_CREATE_DEVICE", ["KvmCreateDevice", {"type": 5}]]
RUN: Operation = ["run", "cpu0", None]
GENERIC = 5  # KVM_ARM_TARGET_GENERIC_V8
PC = 0x6030000000100040


def vcpu(vcpu_id: int = 0, name: str = "cpu0") -> Operation:
    return ["make", name, "vm0", "KVM_CREATE_VCPU", vcpu_id]


def init(features: int = 0, target: int = GENERIC) -> Operation:
    return ["ioctl", "cpu0", "KVM_ARM_VCPU_INIT", ["KvmVcpuInit", {"target": target, "features.0": features}]]


def attr(group: int, number: int, where: str = "@ram", request: str = "KVM_SET_DEVICE_ATTR") -> Operation:
    return ["ioctl", "gic", request, ["KvmDeviceAttr", {"group": group, "attr": number, "addr": where}]]


def word(value: int) -> Operation:
    return ["load", 0, value.to_bytes(8, "little").hex()]


def one_reg(number: int, where: str = "@ram") -> Operation:
    return ["ioctl", "cpu0", "KVM_GET_ONE_REG", ["KvmOneReg", {"id": number, "addr": where}]]


ADDR, IRQS, CTRL = 0, 3, 4
DIST, CPU = 0, 1
READY: list[Operation] = [word(0x8000000), attr(ADDR, DIST), word(0x8010000), attr(ADDR, CPU)]

CASES: dict[str, tuple[list[Operation], list[Any], str]] = {
    "not initialised": (
        [VM, vcpu(), RUN, one_reg(PC)],
        ["ENOEXEC", "ENOEXEC"],
        "api 4.10; arm.c: kvm_vcpu_initialized",
    ),
    "an unknown target": ([VM, vcpu(), init(target=77)], ["EINVAL"], "api 4.82: EINVAL, the target is unknown"),
    "an unknown feature": ([VM, vcpu(), init(1 << 31)], ["ENOENT"], "api 4.82: ENOENT, a features bit is unknown"),
    "other features": ([VM, vcpu(), init(), init(4), init()], [0, "EINVAL", 0], "api 4.82: the same set of features"),
    "no such register": ([VM, vcpu(), init(), one_reg(0x6030000000FFFF00)], ["ENOENT"], "api 4.69: ENOENT"),
    "a register's bad address": ([VM, vcpu(), init(), one_reg(PC, "@hole")], ["EFAULT"], "api 4.69; copy_to_user"),
    "no room for the list": (
        [VM, vcpu(), init(), ["ioctl", "cpu0", "KVM_GET_REG_LIST", ["KvmRegList", {"n": 1}]]],
        ["E2BIG"],
        "api 4.84: E2BIG",
    ),
    "ids with a GICv2": ([VM, GIC, vcpu(7), vcpu(8)], ["fd", "EINVAL"], "arm.c: kvm_arch_vcpu_precreate, max_vcpus 8"),
    "ids without a GIC": (
        [VM, vcpu(511), vcpu(512)],
        ["fd", "EINVAL"],
        "arm.c: kvm_arch_vcpu_precreate, max_vcpus 512",
    ),
    "the same id twice": ([VM, vcpu(), vcpu(0, "cpu1")], ["fd", "EEXIST"], "virt/kvm: kvm_vm_ioctl_create_vcpu"),
    "a vCPU after the GIC": (
        [VM, GIC, vcpu(), *READY, attr(CTRL, 0), vcpu(1, "cpu1")],
        [0, "EBUSY"],
        "arm.c: kvm_arch_vcpu_precreate, vgic_initialized",
    ),
    "two GICs": ([VM, GIC, [GIC[0], "other", *GIC[2:]]], ["EEXIST"], "vgic-init.c: kvm_vgic_create"),
    "no such device": (
        [VM, ["ioctl", "vm0", "KVM_CREATE_DEVICE", ["KvmCreateDevice", {"type": 9999}]]],
        ["ENODEV"],
        "api 4.79: ENODEV, the type is unknown",
    ),
    "a misaligned frame": ([VM, GIC, word(0x8000800), attr(ADDR, DIST)], ["EINVAL"], "vgic: EINVAL, not aligned"),
    "a frame out of range": ([VM, GIC, word(1 << 50), attr(ADDR, DIST)], ["E2BIG"], "vgic: E2BIG, outside of the IPA"),
    "a frame twice": ([VM, GIC, *READY, attr(ADDR, CPU)], ["EEXIST"], "vgic: EEXIST, already configured"),
    "a frame's bad address": ([VM, GIC, attr(ADDR, DIST, "@hole")], ["EFAULT"], "vgic: EFAULT"),
    "no such attribute": ([VM, GIC, word(64), attr(99, 0)], ["ENXIO"], "vgic: ENXIO, unknown"),
    "too few interrupts": ([VM, GIC, word(32), attr(IRQS, 0)], ["EINVAL"], "vgic: EINVAL, out of range"),
    "too many interrupts": ([VM, GIC, word(2048), attr(IRQS, 0)], ["EINVAL"], "vgic: EINVAL, out of range"),
    "interrupts twice": ([VM, GIC, word(64), attr(IRQS, 0), attr(IRQS, 0)], [0, "EBUSY"], "vgic: EBUSY, already set"),
    "no vCPU": ([VM, GIC, *READY, attr(CTRL, 0)], [0], "vgic-init.c: vgic_init with no vCPU is allowed"),
}


@pytest.fixture(scope="module")
def player() -> Iterator[Player]:
    pytest.importorskip("anykvm.engine", reason="the engine is not built")
    from anykvm.arch.software import backend

    with playing(backend("arm64")) as player:
        yield player


@pytest.mark.parametrize("name", CASES)
def test_as_documented(player: Player, name: str) -> None:
    sequence, expected, source = CASES[name]
    outcomes = player.play(sequence)
    assert outcomes[-len(expected) :] == expected, f"{source}: {outcomes}"
