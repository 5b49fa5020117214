# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from guests_fakes import read_cpio
from hypothesis import given
from hypothesis import strategies as st

from anykvm.guests.cpio import Archive


def test_round_trip_of_every_kind() -> None:
    archive = Archive()
    archive.file("init", b"#!/bin/sh\n", 0o755)
    archive.symlink("bin/sh", "busybox")
    archive.character_device("dev/console", 5, 1)
    archive.directory("tmp", 0o1777)
    members = read_cpio(archive.tobytes())
    assert list(members) == ["bin", "bin/sh", "dev", "dev/console", "init", "tmp"]
    assert members["init"][0]["mode"] == stat.S_IFREG | 0o755
    assert members["init"][1] == b"#!/bin/sh\n"
    assert members["bin/sh"][0]["mode"] == stat.S_IFLNK | 0o777
    assert members["bin/sh"][1] == b"busybox"
    console = members["dev/console"][0]
    assert (console["mode"], console["rmaj"], console["rmin"]) == (stat.S_IFCHR | 0o600, 5, 1)
    assert members["tmp"][0]["mode"] == stat.S_IFDIR | 0o1777
    assert members["bin"][0]["mode"] == stat.S_IFDIR | 0o755


def test_nothing_but_the_entries_counts() -> None:
    one, two = Archive(), Archive()
    one.file("a/b", b"1")
    one.file("a/c", b"22")
    two.file("/a/c", b"22")
    two.file("a/b", b"1")
    assert one.tobytes() == two.tobytes()
    members = read_cpio(one.tobytes())
    assert {(f["uid"], f["gid"], f["mtime"]) for f, _ in members.values()} == {(0, 0, 0)}
    inodes = [f["ino"] for f, _ in members.values()]
    assert len(set(inodes)) == len(inodes) and 0 not in inodes


def test_an_entry_replaces_an_earlier_one() -> None:
    archive = Archive()
    archive.file("init", b"old")
    archive.file("init", b"new")
    assert read_cpio(archive.tobytes())["init"][1] == b"new"


@pytest.mark.parametrize("path", ["", "/", "a//b", "../a", "a/./b", "a\0b", "."])
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not a path inside"):
        Archive().file(path, b"")


def test_a_file_is_no_folder() -> None:
    archive = Archive()
    archive.file("a", b"")
    with pytest.raises(ValueError, match="a is not a folder"):
        archive.file("a/b", b"")
    with pytest.raises(ValueError, match="one of the two is a folder"):
        archive.directory("a")
    archive.directory("d")
    with pytest.raises(ValueError, match="one of the two is a folder"):
        archive.file("d", b"")


def test_an_empty_archive_is_one() -> None:
    assert read_cpio(Archive().tobytes()) == {}


@given(
    st.dictionaries(st.text("abcxyz.é", min_size=1, max_size=6).filter(lambda s: s.strip(".")), st.binary(max_size=40))
)
def test_any_content_comes_back(files: dict[str, bytes]) -> None:
    archive = Archive()
    for name, data in files.items():
        archive.file(f"d/{name}", data)
    members = read_cpio(archive.tobytes())
    assert {path[2:]: data for path, (_, data) in members.items() if path != "d"} == files


@pytest.mark.skipif(shutil.which("cpio") is None, reason="no cpio here")
def test_cpio_reads_it(tmp_path: Path) -> None:
    archive = Archive()
    archive.file("etc/hello", b"hello\n")
    archive.symlink("etc/link", "hello")
    subprocess.run(["cpio", "-i", "--quiet"], input=archive.tobytes(), cwd=tmp_path, check=True, timeout=20)
    assert (tmp_path / "etc/link").read_text() == "hello\n"
