# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import os
import struct
from typing import Any

import fdt as libfdt
import pytest

from anykvm.vmm import memory
from anykvm.vmm.fdt import MachineDescription, build


def describe(**changes: Any) -> MachineDescription:
    values: dict[str, Any] = {
        "mpidrs": [0, 1],
        "ram_size": 3 << 30,
        "gic": "v3",
        "command_line": "console=ttyAMA0 a=b",
        "initrd": (0x4800_0000, 0x4812_3456),
        "virtio_slots": 2,
    }
    return MachineDescription(**(values | changes))


def parse(machine: MachineDescription) -> Any:
    return libfdt.parse_dtb(build(machine))


def cells(tree: Any, path: str, name: str) -> list[int]:
    return list(tree.get_property(name, path).data)


def strings(tree: Any, path: str, name: str) -> list[str]:
    return list(tree.get_property(name, path).data)


def test_the_blob_has_a_version_17_header_and_is_small() -> None:
    blob = build(describe())
    magic, total, *_ = struct.unpack(">10I", blob[:40])
    assert magic == 0xD00DFEED
    assert total == len(blob) < 2 << 20
    assert struct.unpack(">I", blob[20:24]) == (17,)


def test_chosen() -> None:
    tree = parse(describe())
    assert strings(tree, "/chosen", "bootargs") == ["console=ttyAMA0 a=b"]
    assert cells(tree, "/chosen", "linux,initrd-start") == [0, 0x4800_0000]
    assert cells(tree, "/chosen", "linux,initrd-end") == [0, 0x4812_3456]
    assert tree.exist_node(strings(tree, "/chosen", "stdout-path")[0].lstrip("/"))
    assert tree.get_property("rng-seed", "/chosen") is not None
    assert tree.get_property("kaslr-seed", "/chosen") is None
    assert b"kaslr" not in build(describe())


def test_a_command_line_that_is_not_utf_8_stays_as_it_is() -> None:
    line = os.fsdecode(b"label=f\xfcr")
    assert b"label=f\xfcr\0" in build(describe(command_line=line))


def test_the_random_seed_differs_each_time() -> None:
    assert build(describe()) != build(describe())


def test_no_initrd_no_properties() -> None:
    tree = parse(describe(initrd=None))
    assert tree.get_property("linux,initrd-start", "/chosen") is None


def test_memory_of_more_than_4_gib_has_two_cells() -> None:
    tree = parse(describe(ram_size=5 << 30))
    assert cells(tree, "/memory@40000000", "reg") == [0, 0x4000_0000, 1, 0x4000_0000]


def test_cpus_are_named_by_their_mpidr_and_started_by_psci() -> None:
    tree = parse(describe(mpidrs=[0, 1, 0x100]))
    assert cells(tree, "/cpus", "#address-cells") == [1]
    for mpidr in (0, 1, 0x100):
        assert cells(tree, f"/cpus/cpu@{mpidr:x}", "reg") == [mpidr]
        assert strings(tree, f"/cpus/cpu@{mpidr:x}", "enable-method") == ["psci"]
    assert strings(tree, "/psci", "compatible")[0] == "arm,psci-1.0"
    assert strings(tree, "/psci", "method") == ["hvc"]


def test_an_aff3_takes_a_second_cell() -> None:
    tree = parse(describe(mpidrs=[0, 1 << 32]))
    assert cells(tree, "/cpus", "#address-cells") == [2]
    assert cells(tree, "/cpus/cpu@100000000", "reg") == [1, 0]


def test_timer_interrupts_are_level_low_in_the_binding_s_order() -> None:
    assert cells(parse(describe()), "/timer", "interrupts") == [1, 13, 8, 1, 14, 8, 1, 11, 8, 1, 10, 8]
    assert cells(parse(describe(gic="v2")), "/timer", "interrupts")[2] == 8 | 0b11 << 8


@pytest.mark.parametrize(("gic", "compatible"), [("v2", "arm,cortex-a15-gic"), ("v3", "arm,gic-v3")])
def test_the_interrupt_controller(gic: str, compatible: str) -> None:
    tree = parse(describe(gic=gic, mpidrs=[0, 1, 2]))
    path = "/interrupt-controller@8000000"
    assert strings(tree, path, "compatible") == [compatible]
    assert cells(tree, path, "#interrupt-cells") == [3]
    assert tree.get_property("interrupt-controller", path) is not None
    assert cells(tree, path, "phandle") == cells(tree, "/", "interrupt-parent")
    reg = cells(tree, path, "reg")
    assert reg[:2] == [0, memory.GIC_DISTRIBUTOR.base]
    if gic == "v3":
        assert reg[4:] == [0, memory.GIC_V3_REDISTRIBUTORS.base, 0, 3 * 0x20000]
    else:
        assert reg[4:] == [0, memory.GIC_V2_CPU_INTERFACE.base, 0, 0x2000]


def test_devices() -> None:
    tree = parse(describe())
    uart = f"/pl011@{memory.UART.base:x}"
    assert strings(tree, uart, "compatible") == ["arm,pl011", "arm,primecell"]
    assert cells(tree, uart, "interrupts") == [0, 1, 4]
    assert cells(tree, uart, "clocks") == cells(tree, "/apb-pclk", "phandle") * 2
    for index in range(2):
        region = memory.virtio_slot(index)
        path = f"/virtio_mmio@{region.base:x}"
        assert cells(tree, path, "reg") == [0, region.base, 0, region.size]
        assert cells(tree, path, "interrupts") == [0, 16 + index, 4]
    assert not tree.exist_node(f"virtio_mmio@{memory.virtio_slot(2).base:x}")


def test_512_cpus_fit_the_space_for_the_tree() -> None:
    assert len(build(describe(mpidrs=[cpu & 0xF | cpu >> 4 << 8 for cpu in range(512)]))) < 2 << 20
