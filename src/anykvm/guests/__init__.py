# SPDX-License-Identifier: GPL-2.0-only
"""Debian guests: fetches kernels and programs through the machine's own apt and builds initramfs images.

Stands alone: imports nothing of anykvm but itself. The names below are loaded when first used: a guest in the cache
needs neither apt nor what builds images.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .cache import cache_dir
    from .errors import GuestError
    from .fetch import pull
    from .guest import Guest, installed, list_guests
    from .init import arguments
    from .initramfs import Extra, build_initramfs
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

_MODULES: Final = {
    "Extra": "initramfs",
    "Guest": "guest",
    "GuestError": "errors",
    "Result": "transcript",
    "Toolchain": "tools",
    "Transcript": "transcript",
    "arguments": "init",
    "assembler": "tools",
    "build_initramfs": "initramfs",
    "cache_dir": "cache",
    "installed": "guest",
    "list_guests": "guest",
    "parse_transcript": "transcript",
    "pull": "fetch",
    "read_transcript": "transcript",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module 'anykvm.guests' has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
