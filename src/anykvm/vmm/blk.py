# SPDX-License-Identifier: GPL-2.0-only
"""A virtio disk over a raw file.

Source: Virtual I/O Device (VIRTIO) Version 1.2, section 5.2. A request that the host's file system cannot do (EIO,
ENOSPC and all others) ends with VIRTIO_BLK_S_IOERR, and the guest deals with it as with a bad disk.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, Final

from .errors import VmmError
from .virtqueue import Chain, RingError

SECTOR_SIZE: Final = 512
QUEUE_SIZE: Final = 256

T_IN: Final = 0
T_OUT: Final = 1
T_FLUSH: Final = 4
T_GET_ID: Final = 8
S_OK: Final = 0
S_IOERR: Final = 1
S_UNSUPP: Final = 2
F_SEG_MAX: Final = 1 << 2
F_RO: Final = 1 << 5
F_BLK_SIZE: Final = 1 << 6
F_FLUSH: Final = 1 << 9

_HEADER: Final = struct.Struct("<IIQ")
_ID_SIZE: Final = 20
_SEGMENTS: Final = QUEUE_SIZE - 2  # of a request, besides header and status; less than IOV_MAX
_MOST: Final = 64 << 20  # bytes of one request; buffers may overlap, so memory alone does not bound it


class Disk:
    """The device. ``VmmError`` if the file cannot be used."""

    device_id: ClassVar[int] = 2
    name: ClassVar[str] = "disk"

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.read_only = read_only
        try:
            self._fd = os.open(path, (os.O_RDONLY if read_only else os.O_RDWR) | os.O_CLOEXEC)
        except FileNotFoundError:
            raise VmmError(f"disk {path} is not there: make one with truncate -s 1G, or check --disk") from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            hint = "" if read_only else ", or add ,ro to only read it"
            raise VmmError(f"disk {path} cannot be opened ({reason}): check --disk{hint}") from None
        try:
            kind = os.fstat(self._fd).st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISBLK(kind)):
                raise VmmError(f"disk {path} is neither a file nor a block device: check --disk")
            try:
                size = os.lseek(self._fd, 0, os.SEEK_END)
            except OSError as error:
                raise VmmError(f"disk {path} has no size ({error.strerror}): check --disk") from None
            if size < SECTOR_SIZE:
                raise VmmError(f"disk {path} has no whole sector ({size} bytes): make it larger with truncate -s 1G")
        except VmmError:
            self.close()
            raise
        self.sectors = size // SECTOR_SIZE
        self._id = path.name.encode()[:_ID_SIZE].ljust(_ID_SIZE, b"\0")
        self.features = F_SEG_MAX | F_BLK_SIZE | F_FLUSH | (F_RO if read_only else 0)
        self.queue_sizes: Sequence[int] = (QUEUE_SIZE,)
        # capacity, size_max, seg_max, geometry, blk_size
        self.config = struct.pack("<QII4xI", self.sectors, 0, _SEGMENTS, SECTOR_SIZE)

    def serve(self, index: int, chain: Chain) -> int:
        """One request: header, data, and a status byte at the very end."""
        if chain.readable_size < _HEADER.size or chain.writable_size < 1:
            raise RingError("a disk request without header or status")
        header, data = _split(chain.readable, _HEADER.size)
        kind, _, sector = _HEADER.unpack(b"".join(header))
        room, tail = _split(chain.writable, chain.writable_size - 1)
        written = 0
        try:
            status, written = self._request(kind, sector, data, room)
        except OSError:
            status = S_IOERR
        (view,) = (part for part in tail if len(part))
        view[0] = status
        # What counts as written goes up to the status byte, whatever the data came to.
        return written + 1

    def _request(
        self, kind: int, sector: int, data: Sequence[memoryview], room: Sequence[memoryview]
    ) -> tuple[int, int]:
        match kind:
            case 0:
                size = _size(room)
                if not self._inside(sector, size):
                    return S_IOERR, 0
                _read_fully(self._fd, room, sector * SECTOR_SIZE)
                return S_OK, size
            case 1:
                if self.read_only or not self._inside(sector, _size(data)):
                    return S_IOERR, 0
                _write_fully(self._fd, data, sector * SECTOR_SIZE)
                return S_OK, 0
            case 4:
                if not self.read_only:
                    os.fdatasync(self._fd)
                return S_OK, 0
            case 8:
                left = self._id
                for view in room:
                    part = left[: len(view)]
                    view[: len(part)] = part
                    left = left[len(part) :]
                return S_OK, _ID_SIZE - len(left)
            case _:
                return S_UNSUPP, 0

    def _inside(self, sector: int, size: int) -> bool:
        return size <= _MOST and size % SECTOR_SIZE == 0 and sector + size // SECTOR_SIZE <= self.sectors

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _size(views: Sequence[memoryview]) -> int:
    return sum(len(view) for view in views)


def _split(views: Sequence[memoryview], at: int) -> tuple[list[memoryview], list[memoryview]]:
    """The first `at` bytes, and the rest."""
    first: list[memoryview] = []
    rest: list[memoryview] = []
    for view in views:
        if at >= len(view):
            first.append(view)
            at -= len(view)
        elif at:
            first.append(view[:at])
            rest.append(view[at:])
            at = 0
        else:
            rest.append(view)
    return first, rest


def _read_fully(fd: int, views: Sequence[memoryview], offset: int) -> None:
    left = [view for view in views if len(view)]
    while left:
        count = os.preadv(fd, left, offset)
        if count == 0:  # the file became shorter: what is not there reads as zero
            for view in left:
                view[:] = bytes(len(view))
            return
        offset += count
        left = [view for view in _split(left, count)[1] if len(view)]


def _write_fully(fd: int, views: Sequence[memoryview], offset: int) -> None:
    left = [view for view in views if len(view)]
    while left:
        count = os.pwritev(fd, left, offset)
        if count == 0:
            raise OSError("nothing was written")
        offset += count
        left = [view for view in _split(left, count)[1] if len(view)]
