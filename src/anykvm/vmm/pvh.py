# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel that is entered by PVH is told: ``struct hvm_start_info``, version 1.

Source: ``xen/include/public/arch-x86/hvm/start_info.h`` (the structures), ``docs/misc/pvh.pandoc`` (the entry).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

_MAGIC: Final = 0x336E_C578
_VERSION: Final = 1  # the first with a memory map
_START_INFO: Final = struct.Struct("<IIIIQQQQII")
_MODULE: Final = struct.Struct("<QQQQ")
_RANGE: Final = struct.Struct("<QQII")


def start_info(
    base: int,
    *,
    command_line: int,
    rsdp: int,
    initrd: tuple[int, int] | None,
    e820: Sequence[tuple[int, int, int]],
) -> bytes:
    """The structure and its lists, to be placed at guest-physical `base`.

    `rsdp` is 0 if there is no ACPI; `initrd` is (address, bytes); the types of `e820` are those of E820.
    """
    modules = base + _START_INFO.size
    memory = modules + (_MODULE.size if initrd is not None else 0)
    data = _START_INFO.pack(
        *(_MAGIC, _VERSION, 0, initrd is not None, modules if initrd is not None else 0),
        *(command_line, rsdp, memory, len(e820), 0),
    )
    if initrd is not None:
        data += _MODULE.pack(*initrd, 0, 0)
    return data + b"".join(_RANGE.pack(*entry, 0) for entry in e820)
