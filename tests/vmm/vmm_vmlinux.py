# SPDX-License-Identifier: GPL-2.0-only
"""ELF kernels of x86 for tests: headers without code behind them."""

from __future__ import annotations

import struct

START = 16 << 20


def make_vmlinux(
    *segments: tuple[int, int, int],
    entry: int = START,
    note: int | None = START + 0x100,
    machine: int = 62,
    kind: int = 2,
    bits: int = 64,
) -> bytes:
    """`segments` are (address, bytes in the file, bytes in memory)."""
    segments = segments or ((START, 0x1000, 0x2000),)
    notes = b"" if note is None else struct.pack("<III4sQ", 4, 8, 18, b"Xen\0", note)
    count = len(segments) + bool(notes)
    wide = bits == 64
    body = 64 + 56 * count
    head = b"\x7fELF" + bytes((2 if wide else 1, 1, 1)) + bytes(9)
    form = "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH"
    sizes = (64, 56) if wide else (52, 32)
    head += struct.pack(form, kind, machine, 1, entry, sizes[0], 0, 0, *sizes, count, 0, 0, 0)
    data = b""
    for address, size, room in segments:
        at = body + len(data)
        if wide:
            head += struct.pack("<IIQQQQQQ", 1, 5, at, address, address, size, room, 0x1000)
        else:
            head += struct.pack("<IIIIIIII", 1, at, address, address, size, room, 5, 0x1000)
        data += b"K" * size
    if notes:
        at = body + len(data)
        if wide:
            head += struct.pack("<IIQQQQQQ", 4, 4, at, 0, 0, len(notes), len(notes), 4)
        else:
            head += struct.pack("<IIIIIIII", 4, at, 0, 0, len(notes), len(notes), 4, 4)
    return head.ljust(body, b"\0") + data + notes
