# SPDX-License-Identifier: GPL-2.0-only
"""Mappings of a memfd that do not hold a descriptor of their own, and end with their last view.

``mmap.mmap`` duplicates the fd it maps and keeps the duplicate, which would double what a vCPU takes of RLIMIT_NOFILE.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from typing import Any, Final

_libc: Final = ctypes.CDLL(None, use_errno=True)
_mmap: Any = _libc.mmap
_mmap.restype = ctypes.c_void_p
_mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_munmap: Any = _libc.munmap
_munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_mremap: Any = _libc.mremap
_mremap.restype = ctypes.c_void_p
_mremap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p)
_MREMAP_MAYMOVE: Final = 1
_MREMAP_FIXED: Final = 2
_MAP_FAILED: Final = ctypes.c_void_p(-1).value
_READ_WRITE: Final = mmap.PROT_READ | mmap.PROT_WRITE

Mapping = ctypes.Array[ctypes.c_char]
"""The mapped bytes; a memoryview of it, or a structure made by ``from_buffer``, keeps it mapped."""


def _unmap(mapping: Any) -> None:
    _munmap(ctypes.addressof(mapping), ctypes.sizeof(mapping))


_types: dict[int, Any] = {}


def _type(size: int) -> Any:
    kind = _types.get(size)
    if kind is None:
        body = {"_type_": ctypes.c_char, "_length_": size, "__del__": _unmap}
        kind = _types[size] = type("Mapping", (ctypes.Array,), body)
    return kind


def map_shared(fd: int, size: int, offset: int = 0) -> Mapping:
    """Map a memfd from ``offset`` on, or new anonymous memory for -1, shared and writable; ENOMEM, EBADF."""
    flags = mmap.MAP_SHARED | (mmap.MAP_ANONYMOUS if fd < 0 else 0)
    address = _mmap(None, size, _READ_WRITE, flags, fd, 0 if fd < 0 else offset)
    if address == _MAP_FAILED:
        code = ctypes.get_errno() or errno.ENOMEM
        raise OSError(code, os.strerror(code))
    mapping: Mapping = _type(size).from_address(address)
    return mapping


def show_also_at(source: int, target: int, size: int) -> None:
    """Let ``size`` bytes of a shared mapping appear at ``target`` too, in place of what is mapped there; ENOMEM.

    Whole pages. An old size of 0 makes mremap(2) leave the source as it is.
    """
    address = _mremap(source, 0, size, _MREMAP_MAYMOVE | _MREMAP_FIXED, target)
    if address == _MAP_FAILED:
        code = ctypes.get_errno() or errno.ENOMEM
        raise OSError(code, os.strerror(code))
