# SPDX-License-Identifier: GPL-2.0-only
"""Work for the tests of spread."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

THREE = 3
MPIDR = 0x6030_0000_0013_C005


def square(number: int) -> dict[str, Any]:
    print("what is printed is no result")
    return {"square": number * number, "pair": (number, number)}


def whose(item: int) -> int:
    time.sleep(0.01)
    return os.getpid()


def uneven(item: float) -> float:
    """The first items take longest: results come out of order."""
    time.sleep(item)
    return item


def marked(item: dict[str, Any]) -> int:
    """Leave a mark for every time an item is done."""
    path = Path(item["directory"]) / f"{item['number']}.{os.getpid()}.{time.monotonic_ns()}"
    path.touch()
    if item.get("stop") and not list(Path(item["directory"]).glob("go")):
        raise ValueError("stopped half way")
    return int(item["number"])


def dies(item: int) -> int:
    if item == THREE:
        os.kill(os.getpid(), signal.SIGSEGV)
    return item


def leaves(item: int) -> int:
    raise SystemExit(5)


def fails(item: int) -> int:
    return 1 // (item - THREE)


def no_json(item: int) -> object:
    return {item}


def sleeps(directory: str) -> None:
    (Path(directory) / str(os.getpid())).touch()
    time.sleep(600)


def registers(item: dict[str, Any]) -> dict[str, Any]:
    """Make a VM with vCPUs and read registers of the last one: what a lab does."""
    from anykvm import Kvm

    with Kvm("software", arch=item["arch"]) as kvm, kvm.create_vm() as vm:
        vcpu = [vm.create_vcpu(number) for number in range(item["vcpus"])][-1]
        if item["arch"] == "arm64":
            vcpu.init(vm.preferred_target())
            found = bytes(vcpu.get_one_reg(MPIDR).to_bytes(8, "little"))
        else:
            found = bytes(vcpu.get_sregs())
    return {"item": item, "registers": found.hex()}
