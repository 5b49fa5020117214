# SPDX-License-Identifier: GPL-2.0-only
"""Binary statistics: the file behind KVM_GET_STATS_FD, read and named."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from dataclasses import dataclass

from anykvm.api.backend import Backend
from anykvm.api.handle import Handle
from anykvm.uapi.common import (
    KVM_STATS_BASE_MASK,
    KVM_STATS_BASE_POW2,
    KVM_STATS_TYPE_MASK,
    KVM_STATS_UNIT_MASK,
    KVM_STATS_UNIT_SHIFT,
    KvmStatsDesc,
    KvmStatsHeader,
)

_TYPES = ("cumulative", "instant", "peak", "linear-histogram", "log-histogram")
_UNITS = ("", "bytes", "seconds", "cycles", "boolean")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One statistic: ``size`` 64-bit values at ``offset`` bytes in the data block.

    A value counts in ``unit`` times ``base`` to the power of ``exponent``; ``bucket_size`` is a linear histogram's.
    """

    name: str
    type: str
    unit: str
    base: int
    exponent: int
    size: int
    offset: int
    bucket_size: int


class Stats(Handle):
    """A statistics file: who it is about, what there is, and the values now.

    It outlives the VM or vCPU handle it came from.

    >>> with vm.stats_fd() as stats:
    ...     all(len(values) == stats.descriptors[name].size for name, values in stats.read().items())
    True
    """

    def __init__(self, backend: Backend, fd: int) -> None:
        super().__init__(backend, fd)
        try:
            self._read_layout()
        except BaseException:
            self.close()
            raise

    def _close_fd(self, fd: int) -> None:
        os.close(fd)  # an ordinary file: it takes no requests, and no backend keeps track of it

    def _read_layout(self) -> None:
        header = KvmStatsHeader.from_buffer_copy(self._pread(ctypes.sizeof(KvmStatsHeader), 0))
        raw_id = self._pread(header.name_size, header.id_offset)
        self.id: str = raw_id.split(b"\0", 1)[0].decode()
        """Whose statistics: ``kvm-<pid>`` or ``kvm-<pid>/vcpu-<id>``."""
        self._data_offset: int = header.data_offset
        size = ctypes.sizeof(KvmStatsDesc) + header.name_size
        block = self._pread(size * header.num_desc, header.desc_offset)
        self.descriptors: dict[str, Descriptor] = {}
        """By name, in the file's order."""
        for start in range(0, len(block), size):
            descriptor = _descriptor(block[start : start + size])
            self.descriptors[descriptor.name] = descriptor
        self._data_size = max((d.offset + d.size * 8 for d in self.descriptors.values()), default=0)

    def _pread(self, length: int, offset: int) -> bytes:
        data = os.pread(self.fd, length, offset)
        if len(data) != length:
            raise OSError(errno.EIO, "the statistics file ends too early")
        return data

    def read(self) -> dict[str, tuple[int, ...]]:
        """All values now, by name; a statistic that is no histogram has one. Errors: EBADF when closed.

        >>> with vm.stats_fd() as stats:
        ...     set(stats.read()) == set(stats.descriptors)
        True
        """
        data = self._pread(self._data_size, self._data_offset)
        return {d.name: struct.unpack_from(f"={d.size}Q", data, d.offset) for d in self.descriptors.values()}


def _descriptor(raw: bytes) -> Descriptor:
    desc = KvmStatsDesc.from_buffer_copy(raw)
    kind = desc.flags & KVM_STATS_TYPE_MASK
    unit = (desc.flags & KVM_STATS_UNIT_MASK) >> KVM_STATS_UNIT_SHIFT
    return Descriptor(
        name=raw[ctypes.sizeof(KvmStatsDesc) :].split(b"\0", 1)[0].decode(),
        type=_TYPES[kind] if kind < len(_TYPES) else f"type-{kind}",
        unit=_UNITS[unit] if unit < len(_UNITS) else f"unit-{unit}",
        base=2 if desc.flags & KVM_STATS_BASE_MASK == KVM_STATS_BASE_POW2 else 10,
        exponent=desc.exponent,
        size=desc.size,
        offset=desc.offset,
        bucket_size=desc.bucket_size,
    )
