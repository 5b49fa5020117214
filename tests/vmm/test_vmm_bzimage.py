# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vmm_bzimage import make_bzimage, make_elf_header
from vmm_fakes import make_image

from anykvm.vmm import bzimage, x86_map
from anykvm.vmm.errors import VmmError
from anykvm.vmm.memory import GIB, MIB, PAGE_SIZE


def load(folder: Path, data: bytes) -> bzimage.KernelImage:
    path = folder / "bzImage"
    path.write_bytes(data)
    return bzimage.load_kernel(path)


def test_the_header_is_read(tmp_path: Path) -> None:
    kernel = load(tmp_path, make_bzimage(payload=b"P" * 0x3000))
    assert kernel.preferred == 16 * MIB
    assert kernel.alignment == 2 * MIB
    assert kernel.memory_size == 32 * MIB
    assert kernel.initrd_max == 0x7FFFFFFF
    assert kernel.command_line_size == 2047
    assert kernel.content.size == 0x3000
    view = memoryview(bytearray(0x3000))
    kernel.content.load(view)
    assert bytes(view) == b"P" * 0x3000


def test_what_follows_the_kernel_is_not_loaded(tmp_path: Path) -> None:
    kernel = load(tmp_path, make_bzimage(payload=b"P" * 0x1000) + b"a signature")
    assert kernel.content.size == 0x1000


def test_no_setup_sectors_are_four(tmp_path: Path) -> None:
    kernel = load(tmp_path, make_bzimage(setup_sects=0))
    assert kernel.content.offset == 5 * 512


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 0x020B}, r"boot protocol 2\.11, which is too old: use Linux 3\.8"),
        ({"version": 0x0100}, r"boot protocol 1\.00"),
        ({"loadflags": 0}, "is a zImage"),
        ({"xloadflags": 0}, "is a 32-bit kernel"),
        ({"boot_flag": 0}, "damaged header"),
        ({"init_size": 0}, "damaged header"),
        ({"init_size": 0xFFFFFFFF}, "damaged header"),
        ({"preferred": 0}, "damaged header"),
        ({"preferred": 1 << 63}, "damaged header"),
        ({"preferred": 16 * MIB + 1}, "damaged header"),
        ({"alignment": 3 * MIB}, "damaged header"),
        ({"alignment": 16}, "damaged header"),
        ({"alignment": 1 << 31}, "damaged header"),
        ({"header_length": 0x10}, "damaged header"),
    ],
)
def test_a_header_that_is_not_right_is_one_line(tmp_path: Path, changes: dict[str, int], words: str) -> None:
    with pytest.raises(VmmError, match=words) as refused:
        load(tmp_path, make_bzimage(**changes))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "is an empty file"),
        (b"MZ", "too short"),
        (make_image(efi=True), "an arm64 Image: boot x86 needs"),
        (make_elf_header(62).ljust(8192, b"\0"), "an ELF file for x86-64"),
        (make_elf_header(183).ljust(8192, b"\0"), "an ELF file for arm64"),
        (b"070701".ljust(8192, b"\0"), "an initramfs"),
        (bytes(8192), "in no known kernel format"),
    ],
)
def test_other_files_are_named(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(VmmError, match=words):
        load(tmp_path, data)


def test_a_truncated_kernel_says_by_how_much(tmp_path: Path) -> None:
    whole = make_bzimage(payload=bytes(0x4000))
    with pytest.raises(VmmError, match=rf"truncated \({len(whole) - 1} of {len(whole)} bytes\)"):
        load(tmp_path, whole[:-1])


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(VmmError, match="is not there"):
        bzimage.load_kernel(tmp_path / "none")
    with pytest.raises(VmmError, match="is a directory"):
        bzimage.load_kernel(tmp_path)


@settings(max_examples=200)
@given(st.integers(0x1F0, 0x270), st.binary(min_size=1, max_size=8))
def test_any_damage_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes) -> None:
    data = bytearray(make_bzimage())
    data[at : at + len(junk)] = junk
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data)
    try:
        kernel = bzimage.load_kernel(path)
        layout = bzimage.place(kernel, 5 * MIB, 512 * MIB)
    except VmmError as error:
        assert "\n" not in str(error)
        return
    assert layout.kernel >= x86_map.HIGH_RAM
    assert layout.kernel + kernel.memory_size <= layout.initrd
    assert layout.initrd + 5 * MIB <= 512 * MIB
    assert kernel.content.offset + kernel.content.size <= len(data)


# Places.


def test_the_kernel_is_where_it_prefers_to_be_and_the_initrd_at_the_top(tmp_path: Path) -> None:
    kernel = load(tmp_path, make_bzimage())
    layout = bzimage.place(kernel, 5000, 512 * MIB)
    assert layout.kernel == 16 * MIB
    assert layout.entry == 16 * MIB + 0x200
    assert layout.initrd == 512 * MIB - 2 * PAGE_SIZE


def test_the_initrd_stays_below_the_kernels_limit_and_the_hole(tmp_path: Path) -> None:
    kernel = load(tmp_path, make_bzimage())
    assert bzimage.place(kernel, PAGE_SIZE, 8 * GIB).initrd == 2 * GIB - PAGE_SIZE
    kernel = load(tmp_path, make_bzimage(initrd_max=0xFFFFFFFF))
    assert bzimage.place(kernel, PAGE_SIZE, 8 * GIB).initrd == 3 * GIB - PAGE_SIZE


def test_without_an_initrd_there_is_none(tmp_path: Path) -> None:
    layout = bzimage.place(load(tmp_path, make_bzimage()), 0, 512 * MIB)
    assert (layout.initrd, layout.initrd_size) == (0, 0)


def test_little_memory_moves_a_relocatable_kernel_down(tmp_path: Path) -> None:
    kernel = load(tmp_path, make_bzimage())
    assert bzimage.place(kernel, 0, 70 * MIB).kernel == 2 * MIB


def test_too_little_memory_says_how_much_is_needed(tmp_path: Path) -> None:
    kernel = load(tmp_path, make_bzimage(relocatable=0))
    with pytest.raises(VmmError, match="give at least --memory 80M"):
        bzimage.place(kernel, 0, 64 * MIB)
    assert bzimage.place(kernel, 0, 80 * MIB).kernel == 16 * MIB


def test_an_initrd_that_does_not_fit_below_its_limit(tmp_path: Path) -> None:
    kernel = load(tmp_path, make_bzimage(initrd_max=64 * MIB - 1))
    with pytest.raises(VmmError, match="too large for this kernel"):
        bzimage.place(kernel, 40 * MIB, 512 * MIB)


@given(st.integers(0, 200 * MIB), st.integers(16, 6000), st.sampled_from([0, 2 * MIB, 16 * MIB]), st.integers(1, 256))
def test_nothing_overlaps(initrd: int, ram_mib: int, alignment: int, init_mib: int) -> None:
    kernel = bzimage.KernelImage(None, b"", 16 * MIB, alignment, init_mib * MIB, 0x7FFFFFFF, 2047)  # type: ignore[arg-type]
    try:
        layout = bzimage.place(kernel, initrd, ram_mib * MIB)
    except VmmError:
        return
    assert layout.kernel >= x86_map.HIGH_RAM
    assert not alignment or layout.kernel % alignment == 0
    end = layout.kernel + kernel.memory_size
    assert end <= min(ram_mib * MIB, 3 * GIB)
    if initrd:
        assert end <= layout.initrd
        assert layout.initrd % PAGE_SIZE == 0
        assert layout.initrd + initrd <= min(ram_mib * MIB, 2 * GIB)


# The zero page.


def test_the_zero_page(tmp_path: Path) -> None:
    kernel = load(tmp_path, make_bzimage())
    layout = bzimage.place(kernel, 5000, 512 * MIB)
    page = bzimage.boot_params(
        kernel, layout, command_line=0x20000, rsdp=0xE0000, setup_data=0x30000, e820=x86_map.e820(512 * MIB)
    )
    assert len(page) == 4096
    assert page[0x202:0x206] == b"HdrS"
    assert struct.unpack_from("<Q", page, 0x70) == (0xE0000,)
    assert page[0x210] == 0xFF
    assert struct.unpack_from("<II", page, 0x218) == (layout.initrd, 5000)
    assert struct.unpack_from("<I", page, 0x228) == (0x20000,)
    assert struct.unpack_from("<Q", page, 0x250) == (0x30000,)
    entries = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * index) for index in range(page[0x1E8])]
    assert entries == x86_map.e820(512 * MIB)
    # What the kernel must not find: anything but the setup header was zero.
    assert page[:0x70] == bytes(0x70)
    assert page[0x78:0x1E8] == bytes(0x1E8 - 0x78)


def test_the_zero_page_has_room_for_so_many_ranges(tmp_path: Path) -> None:
    kernel = load(tmp_path, make_bzimage())
    layout = bzimage.place(kernel, 0, 512 * MIB)
    with pytest.raises(ValueError, match="129 ranges"):
        bzimage.boot_params(kernel, layout, command_line=0, rsdp=0, setup_data=0, e820=[(0, 1, 1)] * 129)


def test_random_numbers_as_setup_data() -> None:
    assert bzimage.rng_seed(b"x" * 32) == struct.pack("<QII", 0, 9, 32) + b"x" * 32


def test_a_command_line_that_is_longer_than_the_kernels(tmp_path: Path) -> None:
    kernel = load(tmp_path, make_bzimage(cmdline_size=255))
    bzimage.check_command_line(kernel.command_line_size, b"x" * 255)
    with pytest.raises(VmmError, match="256 bytes, and this kernel takes 255: shorten --append"):
        bzimage.check_command_line(kernel.command_line_size, b"x" * 256)


@pytest.mark.parametrize("size", [64 * MIB, 3 * GIB, 3 * GIB + PAGE_SIZE, 16 * GIB])
def test_the_memory_map_tells_of_all_memory_once(size: int) -> None:
    ranges = sorted(x86_map.e820(size))
    for (start, length, _), (following, _, _) in pairwise(ranges):
        assert start + length <= following
    ram = sum(length for _, length, kind in ranges if kind == x86_map.E820_RAM)
    assert size - ram == MIB - x86_map.LOW_RAM_END
    parts = x86_map.ram_parts(size)
    assert sum(part.size for part in parts) == size
    assert [part.offset for part in parts] == [0, 3 * GIB][: len(parts)]
    for part in parts:
        assert part.gpa + part.size <= x86_map.RAM_HOLE.base or part.gpa >= x86_map.RAM_HOLE.end
