# SPDX-License-Identifier: GPL-2.0-only
"""A headless browser: a page's picture, and its elements after layout."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from pathlib import Path

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
]
_DARK = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"]


def _run(profile: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}", *arguments]
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return done.stdout.decode()


def screenshot(page: Path, width: int, height: int, *, dark: bool = False) -> list[bytes]:
    """Take a picture of a page: its rows of RGB or RGBA bytes, and each pixel's size in front."""
    picture = page.with_suffix(".png")
    _run(
        page.with_suffix(".profile"),
        *(_DARK if dark else []),
        f"--window-size={width},{height}",
        f"--screenshot={picture}",
        page.as_uri(),
    )
    return pixels(picture.read_bytes())


def dom(page: Path, width: int) -> str:
    """The page's elements after its scripts and layout."""
    return _run(page.with_suffix(".profile"), f"--window-size={width},900", "--dump-dom", page.as_uri())


def pixels(data: bytes) -> list[bytes]:
    """Decode a PNG of 8 bits a channel, not interlaced (RFC 2083): rows of three bytes a pixel."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    assert depth == 8
    size = {2: 3, 6: 4}[colour]
    packed, at = b"", 8
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        if kind == b"IDAT":
            packed += data[at + 8 : at + 8 + length]
        at += 12 + length
    raw = zlib.decompress(packed)
    stride = width * size
    before = bytearray(stride)
    rows = []
    for number in range(height):
        start = number * (stride + 1)
        row = bytearray(raw[start + 1 : start + 1 + stride])
        _unfilter(raw[start], row, before, size)
        rows.append(b"".join(bytes(row[x : x + 3]) for x in range(0, stride, size)))
        before = row
    return rows


def _unfilter(kind: int, row: bytearray, before: bytearray, size: int) -> None:
    for x in range(len(row)):
        left = row[x - size] if x >= size else 0
        up = before[x]
        if kind == 1:
            row[x] = row[x] + left & 255
        elif kind == 2:
            row[x] = row[x] + up & 255
        elif kind == 3:
            row[x] = row[x] + (left + up) // 2 & 255
        elif kind == 4:
            corner = before[x - size] if x >= size else 0
            guess = left + up - corner
            distances = abs(guess - left), abs(guess - up), abs(guess - corner)
            nearest = (left, up, corner)[distances.index(min(distances))]
            row[x] = row[x] + nearest & 255
