# SPDX-License-Identifier: GPL-2.0-only
"""Debian guests: fetches kernels and programs through the machine's own apt and builds initramfs images.

Stands alone: imports nothing of anykvm but itself.
"""

from .cache import cache_dir
from .errors import GuestError
from .guest import Guest, installed, list_guests
from .init import arguments
from .initramfs import Extra, build_initramfs
from .pull import pull
from .tools import Toolchain, assembler
from .transcript import Result, Transcript, parse_transcript, read_transcript

__all__ = [
    "Extra",
    "Guest",
    "GuestError",
    "Result",
    "Toolchain",
    "Transcript",
    "arguments",
    "assembler",
    "build_initramfs",
    "cache_dir",
    "installed",
    "list_guests",
    "parse_transcript",
    "pull",
    "read_transcript",
]
