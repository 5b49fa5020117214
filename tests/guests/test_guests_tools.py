# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
from guests_fakes import FakeDebian

from anykvm.guests import GuestError, Toolchain, assembler, cache_dir
from anykvm.guests.tools import _host

OWN = shutil.which("aarch64-linux-gnu-as") is not None
own = pytest.mark.skipif(not OWN, reason="no aarch64-linux-gnu-as on this machine")
PROGRAM = "ldr x0, =0x1234567890\nadr x1, value\n1: b 1b\n.data\nvalue: .quad value\n"


def check(tools: Toolchain) -> None:
    base = 0x4008_0000
    image = tools.assemble(PROGRAM, base=base)
    assert struct.unpack_from("<I", image, 8) == (0x14000000,)
    # The word in .data is its own address: linked where it lies.
    (address,) = struct.unpack_from("<Q", image, len(image) - 8)
    assert address == base + len(image) - 8
    assert struct.pack("<Q", 0x1234567890) in image
    assert tools.assemble("nop", base=0) == bytes.fromhex("1f2003d5")
    with pytest.raises(GuestError, match=r"refused the source: .*bogus"):
        tools.assemble("bogus x1", base=0)
    with pytest.raises(GuestError, match=r"refused the source: .*nowhere"):
        tools.assemble("bl nowhere", base=0)


@own
def test_the_machines_own() -> None:
    tools = assembler("arm64")
    assert not tools.assembler.is_relative_to(cache_dir())
    check(tools)


@own
def test_files_with_what_they_include(tmp_path: Path) -> None:
    (tmp_path / "common.inc").write_text(".equ ANSWER, 42\n")
    source = tmp_path / "a.S"
    source.write_text('.include "common.inc"\n.ifdef MORE\n.word MORE\n.endif\n.word ANSWER\n')
    tools = assembler("arm64")
    assert tools.assemble(source, base=0x1000) == bytes([42, 0, 0, 0])
    assert tools.assemble(source, base=0x1000, options=["--defsym", "MORE=7"]) == bytes([7, 0, 0, 0, 42, 0, 0, 0])
    with pytest.raises(GuestError, match="refused the source"):
        tools.assemble(tmp_path / "gone.S", base=0)


@own
def test_sections_keep_their_places() -> None:
    tools = assembler("arm64")
    image = tools.assemble(".org 0x10\n.word 1\n.bss\n.space 64\n", base=0x8000_0000)
    assert image == bytes(16) + b"\1\0\0\0"
    assert tools.assemble("", base=0x1000) == b""


@pytest.mark.parametrize("base", [-1, 1 << 64])
def test_impossible_bases(base: int) -> None:
    tools = Toolchain("arm64", Path("/x"), Path("/x"), Path("/x"))
    with pytest.raises(GuestError, match="does not fit 64 bits"):
        tools.assemble("nop", base=base)


def test_an_assembler_that_is_not_there_or_fails_without_words() -> None:
    with pytest.raises(GuestError, match=r"/nonexistent cannot be started .*install binutils for arm64"):
        Toolchain("arm64", Path("/nonexistent"), Path("/x"), Path("/x")).assemble("nop", base=0)
    false = Path(shutil.which("false") or "/bin/false")
    with pytest.raises(GuestError, match="refused the source: exit status 1"):
        Toolchain("arm64", false, false, false).assemble("nop", base=0)


def test_nothing_to_fetch_it_from(debian: FakeDebian) -> None:
    with pytest.raises(GuestError, match=r"package binutils-aarch64-linux-gnu for .* is in none of apt's archives"):
        assembler("arm64")
    debian.fail("update", "E: no network")
    with pytest.raises(GuestError, match="no network"):
        assembler("arm64")


def test_the_environment_can_ask_for_fetched_tools(debian: FakeDebian, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("as", "ld", "objcopy"):
        path = debian.bin / f"aarch64-linux-gnu-{name}"
        path.write_text("#!/bin/sh\n")
        path.chmod(0o755)
    assert assembler("arm64").assembler == debian.bin / "aarch64-linux-gnu-as"
    monkeypatch.setenv("ANYKVM_FETCH_TOOLS", "1")
    with pytest.raises(GuestError, match="binutils-aarch64-linux-gnu"):
        assembler("arm64")


def test_hosts() -> None:
    assert _host().debian in ("arm64", "amd64")
    with pytest.raises(GuestError, match="no Debian guest for 'vax'"):
        assembler("vax")


@pytest.mark.guest
def test_debians_own() -> None:
    tools = assembler("arm64", own=False)
    assert tools.assembler.is_relative_to(cache_dir())
    assert Path(tools.env["LD_LIBRARY_PATH"]).is_dir()
    assert not (Path(tools.env["LD_LIBRARY_PATH"]) / "libc.so.6").exists()
    check(tools)
