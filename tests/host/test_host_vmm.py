# SPDX-License-Identifier: GPL-2.0-only
"""The VMM's x86 machine on both backends: memory, irqchip, boot protocol, serial port, and how it ends."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from anykvm.api import architectures
from anykvm.host import host_arch, probe
from anykvm.vmm.config import MachineConfig
from anykvm.vmm.outcome import Kind
from anykvm.vmm.session import Session

pytestmark = pytest.mark.timeout(60)

SAY = "66baf803 b0{:02x} ee"  # mov dx,0x3f8; mov al,X; out dx,al
# In 64-bit mode: "ok" on the serial port, the letter at the start of the command line, then a reset.
CODE = (
    SAY.format(ord("o"))
    + SAY.format(ord("k"))
    + "8b8628020000 8a00 66baf803 ee"  # mov eax,[rsi+0x228], the command line; mov al,[rax]; out dx,al
    + "66baf90c b006 ee"  # mov dx,0xcf9; mov al,6; out dx,al
    + "f4 ebfd"
)


def kernel(path: Path) -> Path:
    """A bzImage whose 64-bit entry is the code."""
    head = bytearray(5 * 512)
    payload = (bytes(0x200) + bytes.fromhex(CODE)).ljust(0x1000, b"\0")
    head[0x1F1] = 4
    struct.pack_into("<I", head, 0x1F4, len(payload) // 16)
    head[0x1FE:0x206] = b"\x55\xaa\xeb\x6aHdrS"
    struct.pack_into("<HB", head, 0x206, 0x020F, 0)
    head[0x211] = 1
    struct.pack_into("<I", head, 0x214, 0x100000)
    struct.pack_into("<II", head, 0x22C, 0x7FFFFFFF, 2 << 20)
    head[0x234] = 1
    struct.pack_into("<H", head, 0x236, 0x3F)
    struct.pack_into("<I", head, 0x238, 2047)
    struct.pack_into("<QI", head, 0x258, 16 << 20, 2 << 20)
    path.write_bytes(bytes(head) + payload)
    return path


@pytest.mark.parametrize("vcpus", [1, 2])
@pytest.mark.parametrize("backend", ["software", pytest.param("host", marks=pytest.mark.kvm)])
def test_a_small_kernel_says_ok_and_resets(tmp_path: Path, backend: str, vcpus: int) -> None:
    if backend == "software" and "x86" not in architectures():
        pytest.skip("the software backend has no x86")
    if backend == "host" and (host_arch() != "x86" or probe() is not None):
        pytest.skip(probe() or "this machine's /dev/kvm is not x86's")
    said = bytearray()
    config = MachineConfig(
        arch="x86",
        backend=backend,
        kernel=kernel(tmp_path / "bzImage"),
        command_line="!",
        vcpus=vcpus,
        memory=64 << 20,
    )
    source = os.open("/dev/null", os.O_RDONLY)
    try:
        session = Session(config, source=source, tap=said.extend, reboot=False, timeout=20)
        outcome = session.run()
    finally:
        os.close(source)
    assert (outcome.kind, bytes(said)) == (Kind.RESET, b"ok!"), outcome.message
    assert session.backend_name == backend
