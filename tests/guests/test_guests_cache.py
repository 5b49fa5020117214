# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import anykvm.guests
from anykvm.guests import GuestError, cache_dir
from anykvm.guests.cache import locked, remove_leftovers, staged, write_atomic


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/h")
    monkeypatch.delenv("ANYKVM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == Path("/home/h/.cache/anykvm")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == Path("/home/h/.cache/anykvm")
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/anykvm")
    monkeypatch.setenv("ANYKVM_CACHE", "~/own")
    assert cache_dir() == Path("/home/h/own")


def test_nobody_has_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ANYKVM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(GuestError, match="set ANYKVM_CACHE"):
        cache_dir()


def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "a/b"
    write_atomic(path, [b"1", b"2"])
    assert path.read_bytes() == b"12"
    assert path.stat().st_mode & 0o777 == 0o644

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, broken())
    assert path.read_bytes() == b"12"
    assert os.listdir(path.parent) == ["b"]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left in the cache .*: free about 300 MB there or set ANYKVM_CACHE elsewhere"),
        (errno.EDQUOT, "no space left"),
        (errno.EACCES, "is not writable .Permission denied.: set ANYKVM_CACHE"),
        (errno.EROFS, "is not writable .Read-only file system."),
        (errno.EIO, "failed .Input/output error.*: set ANYKVM_CACHE"),
    ],
)
def test_what_the_kernel_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(GuestError, match=words) as error:
        write_atomic(tmp_path / "x", [b"data"])
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path) == []


def test_a_cache_that_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(GuestError, match="not writable"), locked(tmp_path / "cache"):
        raise AssertionError("never reached")


def test_a_real_full_file_system() -> None:
    # /dev/full accepts no byte; opening works.
    with pytest.raises(GuestError, match="no space left"):
        from anykvm.guests.errors import cache_errors

        with cache_errors(Path("/dev/full")), open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")


def test_a_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    final = tmp_path / "base/final"
    with staged(final) as temporary:
        (temporary / "sub").mkdir()
        (temporary / "sub/file").write_text("1")
        (temporary / "link").symlink_to("nowhere")
        assert not final.exists()
        assert temporary.parent == final.parent
    assert (final / "sub/file").read_text() == "1"
    assert final.stat().st_mode & 0o777 == 0o755
    with staged(final) as temporary:
        (temporary / "new").write_text("2")
    assert os.listdir(final) == ["new"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ValueError, SystemExit])
def test_a_folder_that_was_not_completed_vanishes(tmp_path: Path, kind: type[BaseException]) -> None:
    with pytest.raises(kind), staged(tmp_path / "final") as temporary:
        (temporary / "file").write_text("1")
        raise kind
    assert os.listdir(tmp_path) == []


def test_leftovers_go_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / ".tmp-dir").mkdir()
    (tmp_path / ".tmp-dir/file").write_text("")
    (tmp_path / ".tmp-file").write_text("")
    (tmp_path / "kept").mkdir()
    remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["kept"]


def test_the_lock_is_let_go_after_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with pytest.raises(ValueError, match="x"), locked(tmp_path):
            raise ValueError("x")
    assert capsys.readouterr().err == ""


def test_what_is_in_the_cache_is_found_without_apt() -> None:
    code = "import sys, anykvm.guests as g; g.installed, g.build_initramfs; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True).stdout.split()
    assert "anykvm.guests.initramfs" in loaded
    assert not {"subprocess", "tempfile", "lzma", "anykvm.guests.apt", "anykvm.guests.contents"} & set(loaded)
    assert all(getattr(anykvm.guests, name) is not None for name in anykvm.guests.__all__)
    with pytest.raises(AttributeError, match="no attribute 'push'"):
        anykvm.guests.push  # noqa: B018
