# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import gzip
import lzma
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vmm_fakes import IMAGE_SIZE, make_image

from anykvm.vmm import image, memory
from anykvm.vmm.errors import VmmError


@pytest.fixture
def load(tmp_path: Path):
    def load_bytes(data: bytes) -> image.KernelImage:
        path = tmp_path / "kernel"
        path.write_bytes(data)
        return image.load_kernel(path)

    return load_bytes


def zboot(payload: bytes, kind: bytes = b"gzip", *, size: int | None = None) -> bytes:
    header = bytearray(128)
    header[:2] = b"MZ"
    header[4:8] = b"zimg"
    struct.pack_into("<II", header, 8, len(header), len(payload) if size is None else size)
    header[24 : 24 + len(kind)] = kind
    return bytes(header) + payload


def loaded(kernel: image.KernelImage) -> bytes:
    memory = bytearray(kernel.content.size)
    with memoryview(memory) as view:
        kernel.content.load(view)
    return bytes(memory)


def test_a_raw_image_is_taken_as_it_is(load) -> None:
    data = make_image(image_size=0x9000)
    kernel = load(data)
    assert loaded(kernel) == data
    assert (kernel.text_offset, kernel.memory_size) == (0, 0x9000)


def test_an_old_image_without_a_size_has_the_old_text_offset(load) -> None:
    kernel = load(make_image(image_size=0))
    assert (kernel.text_offset, kernel.memory_size) == (0x80000, IMAGE_SIZE)


@pytest.mark.parametrize(
    "pack",
    [
        gzip.compress,
        lzma.compress,
        lambda data: gzip.compress(data) + b"what follows",
        lambda data: zboot(gzip.compress(data)),
        lambda data: zboot(lzma.compress(data), b"xzkern"),
    ],
)
def test_packed_images_are_unpacked(load, pack) -> None:
    assert loaded(load(pack(make_image()))) == make_image()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "an empty file"),
        (b"hello", "too short"),
        (b"#!/bin/sh\n" + bytes(100), "no known kernel format"),
        (b"\x7fELF\x02\x01\x01" + bytes(11) + b"\x3e\x00" + bytes(64), "an ELF file for x86-64"),
        (b"\x7fELF\x02\x02\x01" + bytes(11) + b"\x00\x16" + bytes(64), "an ELF file for s390"),
        (bytes(0x202) + b"HdrS" + bytes(100), "an x86 bzImage"),
        (bytes(0x30) + b"RISCV\0" + bytes(100), "a riscv Image"),
        (bytes(0x24) + b"\x18\x28\x6f\x01" + bytes(100), "zImage"),
        (b"070701" + bytes(200), "initramfs"),
        (zboot(b"x" * 100, b"zstd"), "'zstd', which is not supported"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "'zstd', which is not supported"),
        (zboot(gzip.compress(make_image()), size=1 << 20), "truncated"),
        (zboot(b"")[:40], "truncated"),
        (gzip.compress(make_image())[:-20], "truncated"),
        (lzma.compress(make_image())[:-40], "truncated"),
        (gzip.compress(make_image())[:30] + bytes(500), "damaged gzip data"),
        (gzip.compress(b"not a kernel at all" * 10), "no known kernel format"),
        (make_image(efi=True)[:-1], "truncated"),
        (make_image(efi=True)[:90], "truncated"),
        (make_image(flags=1), "big-endian"),
        (make_image(text_offset=1 << 40), "damaged header"),
        (make_image(image_size=1 << 50), "damaged header"),
    ],
)
def test_what_is_no_arm64_kernel_is_refused_in_one_line(load, data: bytes, words: str) -> None:
    with pytest.raises(VmmError, match=words) as refused:
        load(data)
    assert "\n" not in str(refused.value)


def test_an_efi_image_with_all_its_sections_is_taken(load) -> None:
    assert load(make_image(efi=True)).memory_size == IMAGE_SIZE


def test_a_bomb_is_refused(load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image, "_MAX_UNPACKED", 1 << 16)
    with pytest.raises(VmmError, match="it is no kernel"):
        load(gzip.compress(bytes(1 << 20)))


def test_missing_files_directories_and_odd_names_are_one_line(tmp_path: Path) -> None:
    for path, words in (
        (tmp_path / "none", "is not there: check --kernel"),
        (tmp_path, "is a directory"),
        (Path("/dev/null"), "not a regular file"),
        (Path("a\0b"), "cannot be read"),
    ):
        with pytest.raises(VmmError, match=words):
            image.load_kernel(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_header_is_refused_or_loaded_but_nothing_else(load, data: st.DataObject) -> None:
    damaged = bytearray(make_image(efi=True))
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, 200))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(damaged)))
    try:
        kernel = load(bytes(damaged[:cut]))
    except VmmError as error:
        assert "\n" not in str(error)
    else:
        assert kernel.memory_size >= kernel.content.size


def test_a_file_that_becomes_shorter_meanwhile_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "initrd"
    path.write_bytes(bytes(5000))
    content = image.find_file(path, "initrd")
    path.write_bytes(bytes(100))
    with pytest.raises(VmmError, match="became shorter"):
        content.load(memoryview(bytearray(5000)))
    path.unlink()
    with pytest.raises(VmmError, match="cannot be read"):
        content.load(memoryview(bytearray(5000)))


def test_places_do_not_overlap_and_are_aligned() -> None:
    kernel = image.KernelImage(image.Content(Path("k"), "kernel", 0), 0x80000, 33 * memory.MIB)
    layout = image.place(kernel, 5_000_000, 1 << 30)
    assert layout.kernel == memory.RAM_BASE + 0x80000
    assert layout.device_tree >= layout.kernel + kernel.memory_size
    assert layout.device_tree % (2 * memory.MIB) == 0
    assert layout.initrd == layout.device_tree + 2 * memory.MIB
    assert image.place(kernel, 5_000_000, layout.needed) == layout


def test_too_little_memory_says_how_much_is_needed() -> None:
    kernel = image.KernelImage(image.Content(Path("k"), "kernel", 0), 0, 33 * memory.MIB)
    with pytest.raises(VmmError, match=r"give at least --memory (\d+M)") as refused:
        image.place(kernel, 10_000_000, 64 * memory.MIB)
    enough = memory.parse_size(str(refused.value).rsplit(" ", 1)[1])
    assert image.place(kernel, 10_000_000, enough).initrd_size == 10_000_000
