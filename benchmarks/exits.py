# SPDX-License-Identifier: GPL-2.0-only
"""Round trips through the typed API: an ioctl that does next to nothing, and an access of the guest to a device."""

from __future__ import annotations

import time
from typing import Final

from anykvm.api import Kvm, MmioRead, MmioWrite, PioIn, PioOut, Vcpu
from anykvm.uapi import common

from . import quiet
from .context import Benchmark, Context
from .kvms import Side, compare, sides, x86_program
from .measure import OURS, Row, Target, alternate
from .native import Native
from .vmms import BenchmarkError

_ROUNDS: Final = 20_000
_WARM: Final = 200
_OUT: Final = "port write: exit and back"
_IN: Final = "port read: exit, answer and back"


def _measure(side: Side) -> dict[str, float]:
    quiet.wait()
    clock = time.perf_counter
    numbers = {}
    with Kvm(side.backend, arch=side.arch) as kvm, kvm.create_vm() as vm:
        before = clock()
        for _ in range(_ROUNDS):
            kvm.api_version()
        numbers["ioctl KVM_GET_API_VERSION"] = (clock() - before) / _ROUNDS * 1e6
        before = clock()
        for _ in range(_ROUNDS):
            vm.check_extension(common.KVM_CAP_MAX_VCPUS)
        numbers["ioctl KVM_CHECK_EXTENSION on a VM"] = (clock() - before) / _ROUNDS * 1e6
    with side.looping("write") as vcpu:
        for _ in range(_WARM):
            exit = vcpu.run()
        if not isinstance(exit, MmioWrite):
            raise BenchmarkError(f"{side.name}: the guest was to write to a device: {exit}")
        before = clock()
        for _ in range(_ROUNDS):
            vcpu.run()
        numbers["MMIO write: exit and back"] = (clock() - before) / _ROUNDS * 1e6
    with side.looping("read") as vcpu:
        for _ in range(_WARM):
            exit = vcpu.run()
        if not isinstance(exit, MmioRead):
            raise BenchmarkError(f"{side.name}: the guest was to read from a device: {exit}")
        before = clock()
        for _ in range(_ROUNDS):
            match vcpu.run():
                case MmioRead() as read:
                    read.reply(0)
        numbers["MMIO read: exit, answer and back"] = (clock() - before) / _ROUNDS * 1e6
    if side.arch == "x86":
        numbers |= _ports(side)
    return numbers


def _ports(side: Side) -> dict[str, float]:
    numbers = {}
    for access, name in ((_OUT, "out"), (_IN, "in")):
        with side.looping(name) as vcpu:
            numbers[access] = _port(vcpu, side)
    return numbers


def _port(vcpu: Vcpu, side: Side) -> float:
    begin = 0.0
    for round_ in range(-_WARM, _ROUNDS):
        if round_ == 0:
            begin = time.perf_counter()
        match vcpu.run():
            case PioOut():
                pass
            case PioIn() as read:
                read.reply(0)
            case other:
                raise BenchmarkError(f"{side.name}: the guest was to access a port: {other}")
    return (time.perf_counter() - begin) / _ROUNDS * 1e6


def _beside_c(context: Context) -> list[Row]:
    """The machine's own /dev/kvm through the typed API, beside the same loop in C."""
    host = [side for side in sides(context.say, context.arch) if side.backend == "host" and side.arch == "x86"]
    if not host:
        return []
    made = []
    for access, name in ((_OUT, "out"), (_IN, "in")):
        native = Native(x86_program(name))

        def measure(who: Side | Native) -> dict[str, float]:
            quiet.wait()
            if isinstance(who, Native):
                return {"": who.measure(_ROUNDS, _WARM)}
            with who.looping(name) as vcpu:  # noqa: B023  (called in this round only)
                return {"": _port(vcpu, who)}

        try:
            ours, peer = alternate([host[0], native], context.repetitions, measure)[""]
        finally:
            native.close()
        made.append(Row(f"{access}, {OURS}'s host backend", "us", ours, peer, "C", Target("ratio", 1.3)))
        context.say(f"{access} on /dev/kvm: typed API {min(ours):.2f}, C {min(peer):.2f} at best")
    return made


def _run(context: Context) -> list[Row]:
    targets = {_OUT: Target("value", 2.5), _IN: Target("value", 2.5)}
    made = compare(context, _measure, unit="us", targets=targets)
    return made + (_beside_c(context) if context.arch == "x86" else [])


BENCHMARK: Final = Benchmark("exits", "a trivial ioctl, MMIO and port-I/O exits through the typed API", _run)
