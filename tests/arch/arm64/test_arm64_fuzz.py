# SPDX-License-Identifier: GPL-2.0-only
"""Random requests with random arguments end in a value or an errno, and leave nothing behind."""

from __future__ import annotations

import ctypes
import errno

import arm64_fake
import pytest
from arm64_fake import Rig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anykvm.arch.arm64 import vcpu_ioctl, vm_ioctl
from anykvm.engine import Event
from anykvm.uapi import arm64 as A
from anykvm.uapi import common as C

_DEVICE = (C.KVM_SET_DEVICE_ATTR, C.KVM_GET_DEVICE_ATTR, C.KVM_HAS_DEVICE_ATTR)
_VM = (
    *vm_ioctl.IOCTLS,
    C.KVM_CREATE_VCPU,
    C.KVM_IRQ_LINE,
    C.KVM_CREATE_DEVICE,
    C.KVM_SIGNAL_MSI,
    C.KVM_SET_GSI_ROUTING,
)
_SMALL = st.one_of(
    st.integers(0, 16), st.sampled_from([0x0800_0000, 0x080A_0000, (1 << 64) - 1, 1 << 40, 0x1000, 5, 7])
)
_WORDS = st.lists(st.one_of(_SMALL, st.integers(0, (1 << 64) - 1)), min_size=8, max_size=8)


def _attempt(rig: Rig, fd: int, request: int, words: list[int], pointer: int) -> None:
    buffer = (ctypes.c_uint64 * 64)(*words)
    value = (ctypes.c_uint64 * 64)(*reversed(words))
    if request in (*_DEVICE, C.KVM_GET_ONE_REG, C.KVM_SET_ONE_REG):
        # A good pointer where the value is, most of the time.
        buffer[2 if request in _DEVICE else 1] = ctypes.addressof(value) if pointer else words[2]
    if request == A.KVM_ARM_GET_REG_WRITABLE_MASKS:
        buffer[0] = words[0] & 0xFFF
    arg = (
        words[0] & 0x3FF if request == C.KVM_CREATE_VCPU else ctypes.addressof(buffer) if pointer else words[1] & 0xFFF
    )
    if request == C.KVM_GET_REG_LIST:
        buffer[0] = min(buffer[0], 60)
    try:
        result = rig.ioctl(fd, request, arg)
    except OSError as failure:
        assert failure.errno is not None
        assert errno.errorcode[failure.errno]
    else:
        assert isinstance(result, int)
        if request == C.KVM_CREATE_VCPU:
            rig.vcpus.append(result)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["", "v2", "v3"]),
    st.lists(
        st.tuples(st.sampled_from(["vm", "vcpu", "device"]), st.integers(0, 99), _WORDS, st.integers(0, 3)), max_size=40
    ),
)
def test_any_sequence_of_requests(
    monkeypatch: pytest.MonkeyPatch, gic: str, steps: list[tuple[str, int, list[int], int]]
) -> None:
    arm64_fake.install(monkeypatch)
    rig = Rig()
    rig.create_vcpu()
    device = getattr(rig, f"vgic_{gic}")(init=False) if gic else None
    for kind, number, words, pointer in steps:
        if kind == "vm":
            _attempt(rig, rig.fd, _VM[number % len(_VM)], words, pointer)
        elif kind == "vcpu":
            requests = tuple(vcpu_ioctl.IOCTLS)
            _attempt(rig, rig.vcpus[number % len(rig.vcpus)], requests[number % len(requests)], words, pointer)
        elif device is not None:
            _attempt(rig, device, _DEVICE[number % 3], [words[0] & 15, words[1], *words[2:]], pointer)
    rig.close()
    assert rig.backend.services.ledger() == {}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["v2", "v3"]),
    st.lists(
        st.tuples(st.integers(0, 0x5FFFF), st.sampled_from([1, 2, 4, 8]), st.integers(0, (1 << 64) - 1), st.booleans()),
        max_size=60,
    ),
)
def test_any_access_to_the_gic(
    monkeypatch: pytest.MonkeyPatch, gic: str, accesses: list[tuple[int, int, int, bool]]
) -> None:
    arm64_fake.install(monkeypatch)
    rig = Rig()
    for _ in range(2):
        rig.create_vcpu()
    rig.vgic_v2() if gic == "v2" else rig.vgic_v3(redist=0x0802_0000)
    cpu = rig.cpu()
    cpu.script.append((Event.MMIO_WRITE, 0x0700_0000, 4, 0))
    rig.run()
    for offset, size, value, write in accesses:
        address = 0x0800_0000 + offset // size * size
        vcpu = rig.vm.vcpu_array[value & 1]
        if write:
            rig.vm.mmio_bus.write(vcpu, address, size, value & (1 << size * 8) - 1)
        else:
            answer = rig.vm.mmio_bus.read(vcpu, address, size)
            assert answer is None or 0 <= answer < 1 << 64
    for vcpu in rig.arch.vcpus:
        ready = sum(
            irq.bit
            for irq in (*vcpu.vgic.private, *rig.arch.vgic.vgic.spis)
            if irq.target is vcpu.vgic and irq.enabled and irq.pending and not irq.active
        )
        assert vcpu.vgic.ready == ready
    rig.close()
