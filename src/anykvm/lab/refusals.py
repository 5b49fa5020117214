# SPDX-License-Identifier: GPL-2.0-only
"""What KVM_CREATE_VCPU refuses without any fault: each refusal, its errno, and that it leaves nothing behind."""

from __future__ import annotations

import errno
from collections.abc import Callable
from functools import partial
from typing import Final

from anykvm.api import Kvm, Vcpu, Vm
from anykvm.testing import Ledger, software
from anykvm.testing.ledger import difference
from anykvm.uapi import arm64, caps, common

from . import errnos
from .history import SUBJECTS

Case = Callable[[Vm], Callable[[], object]]
"""Brings a VM to where it refuses, and gives the call that is refused."""


def _too_large(vm: Vm) -> Callable[[], object]:
    limit = vm.check_extension(caps.KVM_CAP_MAX_VCPU_ID)
    return lambda: vm.create_vcpu(limit)


def _beyond_32_bits(vm: Vm) -> Callable[[], object]:
    return lambda: vm.create_vcpu(1 << 32)


def _too_many(vm: Vm) -> Callable[[], object]:
    limit = vm.check_extension(caps.KVM_CAP_MAX_VCPUS)
    for vcpu_id in range(limit):
        # The vCPU stays, its file descriptor does not have to.
        vm.create_vcpu(vcpu_id).close()
    return lambda: vm.create_vcpu(limit) if limit < vm.check_extension(caps.KVM_CAP_MAX_VCPU_ID) else vm.create_vcpu(0)


def _duplicate(vm: Vm) -> Callable[[], object]:
    vcpu = vm.create_vcpu(3)
    # The partial keeps the vCPU, and so its file descriptor stays open.
    return partial(_again, vm, vcpu)


def _again(vm: Vm, vcpu: Vcpu) -> Vcpu:
    return vm.create_vcpu(vcpu.vcpu_id)


def _duplicate_closed(vm: Vm) -> Callable[[], object]:
    vm.create_vcpu(3).close()
    return lambda: vm.create_vcpu(3)


def _x86_limited(vm: Vm) -> Callable[[], object]:
    vm.enable_cap(caps.KVM_CAP_MAX_VCPU_ID, 8)
    vm.create_vcpu(7).close()
    return lambda: vm.create_vcpu(8)


def _x86_late_irqchip(vm: Vm) -> Callable[[], object]:
    vm.create_vcpu(0).close()
    return vm.create_irqchip


def _x86_second_irqchip(vm: Vm) -> Callable[[], object]:
    vm.create_irqchip()
    return vm.create_irqchip


def _arm64_initialised(vm: Vm) -> Callable[[], object]:
    vm.create_vcpu(0).close()
    with vm.create_device(common.KVM_DEV_TYPE_ARM_VGIC_V3) as gic:
        gic.set_attr(arm64.KVM_DEV_ARM_VGIC_GRP_CTRL, arm64.KVM_DEV_ARM_VGIC_CTRL_INIT)
    return lambda: vm.create_vcpu(1)


def _arm64_gicv2_id(vm: Vm) -> Callable[[], object]:
    vm.create_device(common.KVM_DEV_TYPE_ARM_VGIC_V2).close()
    return lambda: vm.create_vcpu(8)


def _arm64_second_irqchip(vm: Vm) -> Callable[[], object]:
    vm.create_device(common.KVM_DEV_TYPE_ARM_VGIC_V3).close()
    return lambda: vm.create_device(common.KVM_DEV_TYPE_ARM_VGIC_V3)


_EVERYWHERE: Final[dict[str, Case]] = {
    "id too large": _too_large,
    "id of 2**32": _beyond_32_bits,
    "too many vCPUs": _too_many,
    "duplicate id": _duplicate,
    "duplicate id after close": _duplicate_closed,
}
CASES: Final[dict[str, dict[str, Case]]] = {
    "arm64": {
        **_EVERYWHERE,
        "vgic initialised": _arm64_initialised,
        "id beyond the GIC's": _arm64_gicv2_id,
        "second irqchip": _arm64_second_irqchip,
    },
    "x86": {
        **_EVERYWHERE,
        "id beyond KVM_CAP_MAX_VCPU_ID": _x86_limited,
        "irqchip after a vCPU": _x86_late_irqchip,
        "second irqchip": _x86_second_irqchip,
    },
}
"""By architecture and by the name in :data:`.errnos.REFUSALS`."""


def judge(arch: str, name: str) -> list[str]:
    """Try one refusal; the findings."""
    backend = software(arch)
    ledger = Ledger(backend.services)
    life = SUBJECTS[f"{arch}/none"].life(backend)
    findings = []
    try:
        with Kvm(backend) as life.kvm, life.kvm.create_vm() as life.vm:
            ask = CASES[arch][name](life.vm)
            held, inside = ledger.held(), life.inside()
            wanted = errnos.REFUSALS[name]
            try:
                ask()
                findings.append(f"{name}: it is not refused")
            except OSError as failure:
                if failure.errno != wanted:
                    got = errno.errorcode.get(failure.errno or 0, "?")
                    findings.append(f"{name}: {got}, and the kernel gives {errno.errorcode[wanted]}")
            if leaked := difference(held, ledger.held()):
                findings.append(f"{name}: refused, and leaked {leaked}")
            now = life.inside()
            findings += [f"{name}: refused, and changed {key}" for key in inside if now.get(key) != inside[key]]
    finally:
        backend.close_all()
        backend.services.close()
        life.memory.close()
    if left := difference({}, ledger.held()):
        findings.append(f"{name}: at the end there is still {left}")
    return findings
