# SPDX-License-Identifier: GPL-2.0-only
"""ACPI Machine Language, as much of it as a table of devices needs.

Source: ACPI specification 6.4, chapter 20 (encoding), section 6.4 (resource descriptors), 19.3.4 (EISAID).
"""

from __future__ import annotations

import re
import struct
from typing import Final

Term = bytes
"""Encoded AML."""

_ZERO: Final = 0x00
_ONE: Final = 0x01
_NAME: Final = 0x08
_STRING: Final = 0x0D
_SCOPE: Final = 0x10
_BUFFER: Final = 0x11
_PACKAGE: Final = 0x12
_DEVICE: Final = b"\x5b\x82"
_END_TAG: Final = b"\x79\x00"
_INTEGERS: Final = ((0x0A, "<B"), (0x0B, "<H"), (0x0C, "<I"), (0x0E, "<Q"))


def integer(value: int) -> Term:
    """A number of up to 64 bits, in the shortest form."""
    if value in (0, 1):
        return bytes((_ONE if value else _ZERO,))
    for prefix, layout in _INTEGERS:
        if value < 1 << 8 * struct.calcsize(layout):
            return bytes((prefix,)) + struct.pack(layout, value)
    raise ValueError(f"{value:#x} does not fit 64 bits")


def string(text: str) -> Term:
    """A string of ASCII characters."""
    return bytes((_STRING,)) + text.encode("ascii") + b"\0"


def eisa_id(name: str) -> Term:
    """A plug and play id, such as ``PNP0501``: three letters of five bits, and four hexadecimal digits."""
    if re.fullmatch(r"[A-Z]{3}[0-9A-F]{4}", name) is None:
        raise ValueError(f"{name!r} is no plug and play id")
    first, second, third = (ord(letter) - 0x40 for letter in name[:3])
    packed = first << 26 | second << 21 | third << 16 | int(name[3:], 16)
    return integer(int.from_bytes(packed.to_bytes(4, "big"), "little"))


def name(path: str, value: Term) -> Term:
    """``Name (path, value)``."""
    return bytes((_NAME,)) + _path(path) + value


def package(*items: Term) -> Term:
    """``Package () {...}``."""
    return bytes((_PACKAGE,)) + _sized(bytes((len(items),)) + b"".join(items))


def scope(path: str, *body: Term) -> Term:
    """``Scope (path) {...}``."""
    return bytes((_SCOPE,)) + _sized(_path(path) + b"".join(body))


def device(path: str, *body: Term) -> Term:
    """``Device (path) {...}``."""
    return _DEVICE + _sized(_path(path) + b"".join(body))


def resources(*descriptors: bytes) -> Term:
    """``ResourceTemplate () {...}``."""
    data = b"".join(descriptors) + _END_TAG
    return bytes((_BUFFER,)) + _sized(integer(len(data)) + data)


def io(base: int, count: int) -> bytes:
    """``IO (Decode16, base, base, 1, count)``: ports."""
    return struct.pack("<BBHHBB", 0x47, 1, base, base, 1, count)


def irq(number: int) -> bytes:
    """``IRQNoFlags () {number}``: an ISA interrupt, edge-triggered."""
    return struct.pack("<BH", 0x22, 1 << number)


def memory(base: int, size: int) -> bytes:
    """``Memory32Fixed (ReadWrite, base, size)``."""
    return struct.pack("<BHBII", 0x86, 9, 1, base, size)


def interrupt(gsi: int) -> bytes:
    """``Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive) {gsi}``."""
    return struct.pack("<BHBBI", 0x89, 6, 1, 1, gsi)


def _path(path: str) -> bytes:
    """One name segment, from the root where it starts with a backslash."""
    root, segment = (b"\\", path[1:]) if path.startswith("\\") else (b"", path)
    if re.fullmatch(r"[A-Z_][A-Z0-9_]{0,3}", segment) is None:
        raise ValueError(f"{path!r} is no name of one segment")
    return root + segment.ljust(4, "_").encode()


def _sized(body: bytes) -> bytes:
    """The body behind its length, which counts itself too (PkgLength)."""
    size = len(body)
    if size + 1 < 1 << 6:
        return bytes((size + 1,)) + body
    for more in (1, 2, 3):
        length = size + 1 + more
        if length < 1 << 4 + 8 * more:
            return bytes((more << 6 | length & 0xF,)) + (length >> 4).to_bytes(more, "little") + body
    raise ValueError(f"{size} bytes are too many for one AML object")
