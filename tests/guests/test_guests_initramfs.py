# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import gzip
import lzma
import stat
from dataclasses import replace
from pathlib import Path

import pytest
from guests_fakes import FakeDebian, module, read_cpio, tiny_elf

from anykvm.guests import Extra, Guest, GuestError, build_initramfs, pull
from anykvm.guests.elf import linkage, module_bytes, module_info
from anykvm.guests.init import INIT


@pytest.fixture
def guest(debian: FakeDebian) -> Guest:
    return pull("arm64")


def test_what_is_in_an_image(guest: Guest) -> None:
    members = read_cpio(build_initramfs(guest).read_bytes())
    assert members["init"][1] == INIT.encode()
    assert members["init"][0]["mode"] == stat.S_IFREG | 0o755
    assert members["dev/console"][0]["mode"] == stat.S_IFCHR | 0o600
    assert (members["dev/null"][0]["rmaj"], members["dev/null"][0]["rmin"]) == (1, 3)
    assert {"proc", "sys", "tmp", "run", "root"} <= set(members)
    assert members["bin/sh"] == (members["bin/sh"][0], b"busybox")
    for path, file in guest.programs.items():
        assert members[path][1] == file.path.read_bytes()
        assert members[path][0]["mode"] == stat.S_IFREG | 0o755
    assert members["lib/modules/virtio_rng.ko"][1] == guest.modules["virtio_rng"].read_bytes()
    assert members["etc/anykvm/modules"][1].decode().splitlines() == [
        "of:N*T*Cvirtio,mmio /lib/modules/virtio.ko /lib/modules/virtio_ring.ko /lib/modules/virtio_mmio.ko",
        "virtio:d00000002v* /lib/modules/virtio.ko /lib/modules/virtio_ring.ko /lib/modules/virtio_blk.ko",
        "virtio:d00000004v* /lib/modules/virtio.ko /lib/modules/virtio_rng.ko",
    ]


def test_an_image_is_built_once(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_initramfs(guest)
    stamp = first.stat().st_mtime_ns
    monkeypatch.setenv("PATH", "")
    assert build_initramfs(guest) == first
    assert first.stat().st_mtime_ns == stamp
    content = first.read_bytes()
    first.unlink()
    assert build_initramfs(guest).read_bytes() == content


def test_what_changes_an_image(guest: Guest, tmp_path: Path) -> None:
    file = tmp_path / "tool"
    file.write_bytes(b"1")
    images = {
        build_initramfs(guest),
        build_initramfs(guest, modules=["loop"]),
        build_initramfs(guest, extra=[Extra("tool", file)]),
        build_initramfs(guest, extra=[Extra("tool", b"2")]),
        build_initramfs(guest, extra=[Extra("tool", b"2", 0o644)]),
        build_initramfs(guest, compress=True),
    }
    assert len(images) == 6
    assert build_initramfs(guest, extra=[Extra("x", file)]) not in images
    file.write_bytes(b"3")
    changed = build_initramfs(guest, extra=[Extra("tool", file)])
    assert changed not in images
    assert read_cpio(changed.read_bytes())["tool"][1] == b"3"


def test_extra_files_may_replace_ours(guest: Guest) -> None:
    members = read_cpio(build_initramfs(guest, extra=[Extra("/init", b"mine", 0o700)]).read_bytes())
    assert members["init"][1] == b"mine"
    assert members["init"][0]["mode"] == stat.S_IFREG | 0o700


def test_named_modules_come_with_what_they_need(guest: Guest) -> None:
    members = read_cpio(build_initramfs(guest, modules=["virtio-blk", "loop"]).read_bytes())
    lines = members["etc/anykvm/modules"][1].decode().splitlines()
    assert lines[:2] == [
        "- /lib/modules/virtio.ko /lib/modules/virtio_ring.ko /lib/modules/virtio_blk.ko",
        "- /lib/modules/loop.ko",
    ]
    assert "virtio:d00000002v*" not in members["etc/anykvm/modules"][1].decode()
    assert "lib/modules/loop.ko" in members


def test_modules_that_are_not_there_or_depend_in_a_circle(guest: Guest) -> None:
    with pytest.raises(GuestError, match="has no module nonsuch: it may be built in"):
        build_initramfs(guest, modules=["nonsuch"])
    with pytest.raises(GuestError, match="in a circle: round trip round"):
        build_initramfs(guest, modules=["round"])


def test_a_kernel_with_everything_built_in(guest: Guest) -> None:
    members = read_cpio(build_initramfs(replace(guest, modules={}, directory=Path("/other"))).read_bytes())
    assert "etc/anykvm/modules" not in members


def test_compressed(guest: Guest) -> None:
    image = build_initramfs(guest, compress=True)
    assert image.name.endswith(".cpio.gz")
    assert gzip.decompress(image.read_bytes()) == build_initramfs(guest).read_bytes()


@pytest.mark.parametrize("path", ["../out", "", "init/below", "bin"])
def test_extra_files_at_impossible_places(guest: Guest, path: str) -> None:
    with pytest.raises(GuestError, match="extra file"):
        build_initramfs(guest, extra=[Extra(path, b"")])


def test_an_extra_file_that_is_not_there(guest: Guest, tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="cannot be read"):
        build_initramfs(guest, extra=[Extra("x", tmp_path / "gone")])


def test_linkage_of_programs(tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_bytes(tiny_elf(needed=("liba.so.1", "libb.so"), interp="/lib/ld.so"))
    found = linkage(path)
    assert (found.interpreter, found.needed) == ("/lib/ld.so", ("liba.so.1", "libb.so"))
    for damaged in (b"", b"\x7fELF", b"\x7fELF\x02\x01\x01" + bytes(20)):
        path.write_bytes(damaged)
        with pytest.raises(GuestError, match="not an ELF file"):
            linkage(path)


def test_modules_packed_in_any_way(tmp_path: Path) -> None:
    plain = module(depends="a,b", aliases=("x:*", "y:1"))
    for name, data in (("m.ko", plain), ("m.ko.xz", lzma.compress(plain)), ("m.ko.gz", gzip.compress(plain))):
        (tmp_path / name).write_bytes(data)
        assert module_bytes(tmp_path / name) == plain
        if name != "m.ko":
            (tmp_path / name).write_bytes(data[:-10])
            with pytest.raises(GuestError, match="is damaged"):
                module_bytes(tmp_path / name)
    info = module_info(plain)
    assert (info.depends, info.aliases) == (("a", "b"), ("x:*", "y:1"))
    (tmp_path / "m.ko.zst").write_bytes(plain)
    with pytest.raises(GuestError, match="a compression that is not known"):
        module_bytes(tmp_path / "m.ko.zst")
    with pytest.raises(GuestError, match="not a kernel module"):
        module_info(b"MZ")
    assert module_info(tiny_elf()).depends == ()


@pytest.mark.guest
def test_debians_own_image() -> None:
    guest = pull("arm64")
    image = build_initramfs(guest)
    members = read_cpio(image.read_bytes())
    assert image.stat().st_size < 6_000_000
    table = members["etc/anykvm/modules"][1].decode()
    assert "of:N*T*Cvirtio,mmio /lib/modules/virtio" in table
    assert "virtio:d00000004v* " in table
    assert b"cttyhack" in members["bin/busybox"][1]
