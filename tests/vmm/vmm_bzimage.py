# SPDX-License-Identifier: GPL-2.0-only
"""Kernel files of x86 for tests: headers without code behind them."""

from __future__ import annotations

import struct


def make_bzimage(
    *,
    payload: bytes = bytes(0x1000),
    setup_sects: int = 4,
    boot_flag: int = 0xAA55,
    version: int = 0x020F,
    loadflags: int = 1,
    xloadflags: int = 0x3F,
    initrd_max: int = 0x7FFFFFFF,
    alignment: int = 2 << 20,
    relocatable: int = 1,
    cmdline_size: int = 2047,
    preferred: int = 16 << 20,
    init_size: int = 32 << 20,
    header_length: int = 0x6A,
) -> bytes:
    head = bytearray(((setup_sects or 4) + 1) * 512)
    head[0x1F1] = setup_sects
    struct.pack_into("<I", head, 0x1F4, len(payload) // 16)
    struct.pack_into("<H", head, 0x1FE, boot_flag)
    head[0x200:0x202] = bytes((0xEB, header_length))
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x206, version)
    head[0x211] = loadflags
    struct.pack_into("<I", head, 0x214, 0x100000)
    struct.pack_into("<I", head, 0x22C, initrd_max)
    struct.pack_into("<I", head, 0x230, alignment)
    head[0x234] = relocatable
    struct.pack_into("<H", head, 0x236, xloadflags)
    struct.pack_into("<I", head, 0x238, cmdline_size)
    struct.pack_into("<Q", head, 0x258, preferred)
    struct.pack_into("<I", head, 0x260, init_size)
    return bytes(head) + payload


def make_elf_header(machine: int) -> bytes:
    return b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, machine)
