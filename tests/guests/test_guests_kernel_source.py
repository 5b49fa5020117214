# SPDX-License-Identifier: GPL-2.0-only
"""The kernel's source in the cache: what is kept of it, fetched once, and what is said when it cannot be."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from guests_fakes import FakeDebian

from anykvm.guests import GuestError
from anykvm.guests.kernel_source import PACKAGE, kernel_source

KEPT = {
    "Makefile": b"all:\n",
    "include/linux/kvm_host.h": b"struct kvm;\n",
    "tools/testing/selftests/kvm/Makefile": b"TEST_GEN_PROGS_x86_64 = some\n",
    "tools/testing/selftests/kselftest_harness.h": b"\n",
}
LEFT_OUT = {"drivers/gpu/huge.c": b"int x;\n", "tools/testing/selftests/mm/other.c": b"int y;\n", "README": b"Linux\n"}


def archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"{PACKAGE}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.fixture
def source(debian: FakeDebian) -> FakeDebian:
    debian.add(PACKAGE, {f"usr/src/{PACKAGE}.tar.xz": archive({**KEPT, **LEFT_OUT})})
    return debian


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fails(cache: Path, words: str) -> None:
    with pytest.raises(GuestError, match=words) as error:
        kernel_source()
    assert "\n" not in str(error.value)
    assert not (cache / "source" / PACKAGE).exists()
    assert list(cache.rglob(".tmp-*")) == []


def test_what_the_tests_need_is_kept_and_fetched_once(source: FakeDebian, cache: Path) -> None:
    folder = kernel_source()
    assert folder == cache / "source" / PACKAGE
    assert files(folder) == KEPT
    asked = len(source.log)
    assert kernel_source() == folder
    assert len(source.log) == asked


def test_an_archive_without_it(debian: FakeDebian, cache: Path) -> None:
    fails(cache, PACKAGE)


WHOLE = archive(KEPT)
TURNED = WHOLE[:100] + bytes([WHOLE[100] ^ 0xFF]) + WHOLE[101:]


@pytest.mark.parametrize("damage", [b"", b"no archive at all", WHOLE[:200], TURNED])
def test_a_damaged_source_says_what_to_remove(debian: FakeDebian, cache: Path, damage: bytes) -> None:
    debian.add(PACKAGE, {f"usr/src/{PACKAGE}.tar.xz": damage})
    fails(cache, "is damaged .*: remove .* and run this again")
    debian.add(PACKAGE, {f"usr/src/{PACKAGE}.tar.xz": archive(KEPT)}, version="1:6.1.1-2")
    assert files(kernel_source()) == KEPT


def test_no_room(source: FakeDebian, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1, used=1, free=1))
    fails(cache, "space")
    assert source.log == []


def test_a_member_that_points_out_of_the_folder_is_refused(debian: FakeDebian, cache: Path, tmp_path: Path) -> None:
    debian.add(PACKAGE, {f"usr/src/{PACKAGE}.tar.xz": archive({**KEPT, "include/../../../../escaped": b"!"})})
    fails(cache, "damaged")
    assert list(tmp_path.rglob("escaped")) == []
