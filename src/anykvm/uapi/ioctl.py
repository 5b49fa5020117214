# SPDX-License-Identifier: GPL-2.0-only
"""How an ioctl request number is made: direction, argument size, type and number in 32 bits.

Source: the generic encoding of ``include/uapi/asm-generic/ioctl.h``. It is the host's encoding that counts; the
hosts anykvm runs on (x86, arm64, riscv64, s390x) use the generic one.
"""

from __future__ import annotations

import ctypes
from typing import Any, Final, NamedTuple

IOC_NRBITS: Final = 8
IOC_TYPEBITS: Final = 8
IOC_SIZEBITS: Final = 14
IOC_DIRBITS: Final = 2

IOC_NRSHIFT: Final = 0
IOC_TYPESHIFT: Final = IOC_NRSHIFT + IOC_NRBITS
IOC_SIZESHIFT: Final = IOC_TYPESHIFT + IOC_TYPEBITS
IOC_DIRSHIFT: Final = IOC_SIZESHIFT + IOC_SIZEBITS

IOC_NONE: Final = 0
IOC_WRITE: Final = 1
IOC_READ: Final = 2

KVMIO: Final = 0xAE

_CType = type[ctypes.Structure] | type[ctypes.Union] | type["ctypes._SimpleCData[Any]"]


class Request(NamedTuple):
    """The four fields of a request number.

    ``direction`` is a mask of IOC_READ and IOC_WRITE seen from userspace, ``size`` the argument's size in bytes.
    """

    direction: int
    type: int
    nr: int
    size: int


def _ioc(direction: int, kind: int, nr: int, size: int) -> int:
    if not 0 <= size < 1 << IOC_SIZEBITS:
        raise ValueError(f"an ioctl argument has at most {(1 << IOC_SIZEBITS) - 1} bytes, not {size}")
    return direction << IOC_DIRSHIFT | size << IOC_SIZESHIFT | kind << IOC_TYPESHIFT | nr << IOC_NRSHIFT


def _IO(kind: int, nr: int) -> int:
    """A request without a structure (the argument is a plain number, or nothing)."""
    return _ioc(IOC_NONE, kind, nr, 0)


ARGUMENTS: Final[dict[int, _CType]] = {}
"""What a request's argument points at. Filled as the architectures' files are imported."""


def _with(direction: int, kind: int, nr: int, argument: _CType) -> int:
    request = _ioc(direction, kind, nr, ctypes.sizeof(argument))
    ARGUMENTS.setdefault(request, argument)
    return request


def _IOR(kind: int, nr: int, argument: _CType) -> int:
    """A request by which userspace reads a structure."""
    return _with(IOC_READ, kind, nr, argument)


def _IOW(kind: int, nr: int, argument: _CType) -> int:
    """A request by which userspace writes a structure."""
    return _with(IOC_WRITE, kind, nr, argument)


def _IOWR(kind: int, nr: int, argument: _CType) -> int:
    """A request whose structure goes both ways."""
    return _with(IOC_READ | IOC_WRITE, kind, nr, argument)


def decode(request: int) -> Request:
    """Take a request number apart.

    >>> decode(0x4020AE46)
    Request(direction=1, type=174, nr=70, size=32)
    """
    return Request(
        direction=request >> IOC_DIRSHIFT & (1 << IOC_DIRBITS) - 1,
        type=request >> IOC_TYPESHIFT & (1 << IOC_TYPEBITS) - 1,
        nr=request >> IOC_NRSHIFT & (1 << IOC_NRBITS) - 1,
        size=request >> IOC_SIZESHIFT & (1 << IOC_SIZEBITS) - 1,
    )
