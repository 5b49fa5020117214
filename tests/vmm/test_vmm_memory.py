# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anykvm.vmm import memory
from anykvm.vmm.errors import VmmError
from anykvm.vmm.memory import GIB, MIB


@pytest.mark.parametrize(
    ("text", "size"),
    [("512", 512 * MIB), ("512M", 512 * MIB), ("2g", 2 * GIB), ("1T", 1 << 40), ("2048K", 2 * MIB), (" 1GiB ", GIB)],
)
def test_sizes(text: str, size: int) -> None:
    assert memory.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5G", "512 M B", "1P", "١٢", "9" * 30])
def test_what_is_no_size_is_refused(text: str) -> None:
    if text == "١٢":
        # Digits of other scripts are digits to Python, and harmless.
        assert memory.parse_size(text) == 12 * MIB
        return
    with pytest.raises(VmmError, match="no memory size"):
        memory.parse_size(text)


@given(st.integers(1, 1 << 50))
def test_a_formatted_size_is_no_less_when_parsed_again(size: int) -> None:
    assert size <= memory.parse_size(memory.format_size(size)) < size + MIB


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "give at least"),
        (-5, "give at least"),
        (1000, "multiple of 4096"),
        (1 << 40, "do not fit 40-bit addresses: give at most --memory 1023G"),
        (8 * GIB, "more than this host has"),
    ],
)
def test_impossible_sizes_are_refused(size: int, words: str) -> None:
    with pytest.raises(VmmError, match=words):
        memory.check_memory(size, 40, 4 * GIB)


def test_what_is_proposed_instead_is_accepted() -> None:
    memory.check_memory(1023 * GIB, 40, None)
    memory.check_memory(4 * GIB, 40, 4 * GIB)


def test_host_memory_is_the_least_limit(tmp_path: Path) -> None:
    (tmp_path / "meminfo").write_text("MemTotal:  1024 kB\nMemFree: 1 kB\nSwapTotal:  1024 kB\n")
    assert memory.host_memory(tmp_path, tmp_path) == 2 * MIB
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.host_memory(tmp_path, tmp_path) == 2 * MIB
    (tmp_path / "memory.max").write_text("4096\n")
    assert memory.host_memory(tmp_path, tmp_path) == 4096
    assert memory.host_memory(tmp_path / "none", tmp_path / "none") is None


def test_regions_do_not_overlap() -> None:
    regions = [
        memory.GIC_DISTRIBUTOR,
        memory.GIC_V2_CPU_INTERFACE,
        memory.UART,
        memory.VIRTIO,
        memory.GIC_V3_REDISTRIBUTORS,
        memory.Region(memory.RAM_BASE, 1 << 40),
    ]
    ordered = sorted(regions, key=lambda region: region.base)
    assert all(a.end <= b.base for a, b in pairwise(ordered))
    assert memory.GIC_V3_REDISTRIBUTORS.size >= 512 * memory.GIC_V3_REDISTRIBUTOR_SIZE
    assert memory.virtio_slot(memory.VIRTIO_SLOTS - 1).end == memory.VIRTIO.end
    assert memory.virtio_irq(memory.VIRTIO_SLOTS - 1).spi + 32 < memory.GIC_INTERRUPTS
