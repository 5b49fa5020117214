# SPDX-License-Identifier: GPL-2.0-only
"""ELF kernels of x86: read, refused, placed, entered."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_vmm_x86 import config, off, run
from vmm_fakes_x86 import FakePc
from vmm_vmlinux import START, make_vmlinux

from anykvm.vmm import pvh, vmlinux, x86_map
from anykvm.vmm.errors import VmmError
from anykvm.vmm.memory import MIB


def write(folder: Path, data: bytes) -> Path:
    path = folder / "vmlinux"
    path.write_bytes(data)
    return path


def test_segments_and_entries_are_read(tmp_path: Path) -> None:
    path = write(tmp_path, make_vmlinux((START + 0x4000, 0, 0x1000), (START, 0x1000, 0x2000)))
    kernel = vmlinux.load_kernel(path)
    assert [(s.gpa, s.content.size, s.memory_size) for s in kernel.segments] == [
        (START, 0x1000, 0x2000),
        (START + 0x4000, 0, 0x1000),
    ]
    assert (kernel.entry_64, kernel.entry_pvh) == (START, START + 0x100)
    assert vmlinux.place(kernel, 5000, 128 * MIB).initrd == 128 * MIB - 0x2000
    with pytest.raises(VmmError, match="give at least --memory 49M"):
        vmlinux.place(kernel, 0, 32 * MIB)


def test_pvh_enters_32_bit_protected_mode(tmp_path: Path) -> None:
    backend = FakePc(off)
    run(backend, config(tmp_path, kernel=write(tmp_path, make_vmlinux(bits=32, machine=3))))
    regs, sregs = backend.regs[0], backend.sregs[0]
    assert (regs.rip, regs.rbx, regs.rflags) == (START + 0x100, x86_map.BOOT_PARAMS, 2)
    assert (sregs.cr0, sregs.cr4, sregs.efer) == (0x11, 0, 0)
    assert (sregs.cs.base, sregs.cs.limit, sregs.cs.l, sregs.cs.db, sregs.cs.type) == (0, 0xFFFFFFFF, 0, 1, 11)
    assert (sregs.ds.limit, sregs.ds.type, sregs.tr.type, sregs.tr.limit) == (0xFFFFFFFF, 3, 11, 0x67)


def test_the_64_bit_entry_is_as_a_bzimages(tmp_path: Path) -> None:
    backend = FakePc(off)
    run(backend, config(tmp_path, kernel=write(tmp_path, make_vmlinux()), entry="linux"))
    regs, sregs = backend.regs[0], backend.sregs[0]
    assert (regs.rip, regs.rsi, sregs.efer, sregs.cs.l) == (START, x86_map.BOOT_PARAMS, 0x500, 1)


def test_start_info() -> None:
    ranges = x86_map.e820(128 * MIB)
    data = pvh.start_info(0x7000, command_line=0x20000, rsdp=0xE0000, initrd=(0x5000000, 99), e820=ranges)
    magic, version, flags, modules, list_at, line, rsdp, map_at, count, _ = struct.unpack_from("<IIIIQQQQII", data)
    assert (magic, version, flags, modules, line, rsdp) == (0x336EC578, 1, 0, 1, 0x20000, 0xE0000)
    assert struct.unpack_from("<QQQQ", data, list_at - 0x7000) == (0x5000000, 99, 0, 0)
    found = [struct.unpack_from("<QQII", data, map_at - 0x7000 + 24 * index) for index in range(count)]
    assert found == [(*entry, 0) for entry in ranges]


@pytest.mark.parametrize(
    ("data", "changes", "words"),
    [
        (make_vmlinux()[:-1], {}, "is truncated"),
        (make_vmlinux()[:40], {}, "is a damaged ELF file"),
        (make_vmlinux(machine=183), {}, "an ELF file for arm64: boot x86 needs"),
        (make_vmlinux(kind=3), {}, "no executable with addresses"),
        (make_vmlinux((0x8000, 16, 16)), {}, "segment at 0x8000 to 0x8010, which is outside"),
        (make_vmlinux((3 << 30, 16, 16)), {}, "which is outside"),
        (make_vmlinux((START, 16, 0x2000), (START + 0x1000, 16, 16)), {}, "segments that overlap at 0x1001000"),
        (make_vmlinux((START, 32, 16)), {}, "more bytes than room"),
        (make_vmlinux(entry=MIB), {}, "entry at 0x100000, where it has no code"),
        (make_vmlinux(note=None), {"entry": "pvh"}, "has no PVH entry: use --entry linux"),
        (make_vmlinux(bits=32, machine=3, note=None), {}, "a 32-bit kernel without a PVH entry"),
        (make_vmlinux(bits=32, machine=3), {"entry": "linux"}, "is a 32-bit kernel: use --entry pvh"),
        (make_vmlinux(), {"entry": "uefi"}, "no kernel entry 'uefi'"),
        (make_vmlinux(), {"firmware": "bios"}, "no firmware 'bios'"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path: Path, data: bytes, changes: dict[str, str], words: str) -> None:
    with pytest.raises(VmmError, match=words) as refused:
        run(FakePc(off), config(tmp_path, kernel=write(tmp_path, data), **changes))
    assert "\n" not in str(refused.value)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 0xB0), st.binary(min_size=1, max_size=8))
def test_any_damage_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes) -> None:
    data = bytearray(make_vmlinux())
    data[at : at + len(junk)] = junk
    path = write(tmp_path_factory.getbasetemp(), bytes(data))
    try:
        kernel = vmlinux.load_kernel(path)
    except VmmError as error:
        assert "\n" not in str(error)
        return
    assert all(s.gpa >= MIB and s.end <= 3 << 30 and s.content.size <= s.memory_size for s in kernel.segments)
