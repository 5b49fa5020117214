# SPDX-License-Identifier: GPL-2.0-only
"""Binary statistics: the file KVM_GET_STATS_FD gives (api.rst 4.133).

The values are a list that is counted up in place, until somebody wants to see them: the first KVM_GET_STATS_FD moves
them into a memfd, as 64-bit words, and maps it, so that every statistics fd reads the live values.
"""

from __future__ import annotations

from collections.abc import Iterator
from ctypes import sizeof
from functools import cache
from typing import Final, Protocol

from anykvm.uapi import constants as c
from anykvm.uapi.structs import KvmStatsDesc, KvmStatsHeader

from .mapping import Mapping
from .services import Services

NAME_SIZE: Final = 48

_COUNT: Final = c.KVM_STATS_TYPE_CUMULATIVE | c.KVM_STATS_UNIT_NONE | c.KVM_STATS_BASE_POW10
_NANOSECONDS: Final = c.KVM_STATS_TYPE_CUMULATIVE | c.KVM_STATS_UNIT_SECONDS | c.KVM_STATS_BASE_POW10
_BOOLEAN: Final = c.KVM_STATS_TYPE_INSTANT | c.KVM_STATS_UNIT_BOOLEAN | c.KVM_STATS_BASE_POW10
_INSTANT: Final = c.KVM_STATS_TYPE_INSTANT | c.KVM_STATS_UNIT_NONE | c.KVM_STATS_BASE_POW10

_Descriptor = tuple[str, int, int]
"""A name, flags, exponent."""

VM_STATS: Final[tuple[_Descriptor, ...]] = (
    ("irq_injections", _COUNT, 0),
    ("msi_injections", _COUNT, 0),
    ("memslot_changes", _COUNT, 0),
    ("vcpus", _INSTANT, 0),
)
IRQ_INJECTIONS: Final = 0
MSI_INJECTIONS: Final = 1
MEMSLOT_CHANGES: Final = 2
VCPUS: Final = 3

VCPU_STATS: Final[tuple[_Descriptor, ...]] = (
    ("exits", _COUNT, 0),
    ("mmio_exit_user", _COUNT, 0),
    ("mmio_exit_kernel", _COUNT, 0),
    ("signal_exits", _COUNT, 0),
    ("wfi_exit_stat", _COUNT, 0),
    ("hvc_exit_stat", _COUNT, 0),
    ("halt_wakeup", _COUNT, 0),
    ("halt_wait_ns", _NANOSECONDS, -9),
    ("blocking", _BOOLEAN, 0),
    ("irq_injections", _COUNT, 0),
)
EXITS: Final = 0
MMIO_EXIT_USER: Final = 1
MMIO_EXIT_KERNEL: Final = 2
SIGNAL_EXITS: Final = 3
WFI_EXIT: Final = 4
HVC_EXIT: Final = 5
HALT_WAKEUP: Final = 6
HALT_WAIT_NS: Final = 7
BLOCKING: Final = 8
VCPU_IRQ_INJECTIONS: Final = 9
FIRST_ARCH_STAT: Final = len(VCPU_STATS)


@cache
def vcpu_stats(names: tuple[str, ...]) -> tuple[_Descriptor, ...]:
    """Describe a vCPU's statistics: common ones, then the architecture's own cumulative counters."""
    return VCPU_STATS + tuple((name, _COUNT, 0) for name in names)


class Words(Protocol):
    """64-bit words: a list, or memory seen as such."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[int]: ...

    def __getitem__(self, index: int, /) -> int: ...

    def __setitem__(self, index: int, value: int, /) -> None: ...


class Stats:
    """The statistics of one VM or vCPU. ``values[EXITS] += 1`` counts; do not keep ``values``: it may move."""

    __slots__ = ("_descriptors", "_fd", "_id", "_mapping", "_services", "values")

    def __init__(self, services: Services, identity: str, descriptors: tuple[_Descriptor, ...]) -> None:
        self._services = services
        self._id = identity
        self._descriptors = descriptors
        self._fd = -1
        self.values: Words = [0] * len(descriptors)
        self._mapping: Mapping | None = None

    def _image(self) -> bytearray:
        """Header, id string and descriptors, up to the data block."""
        count = len(self._descriptors)
        id_offset = sizeof(KvmStatsHeader)
        desc_offset = id_offset + NAME_SIZE
        desc_size = sizeof(KvmStatsDesc) + NAME_SIZE
        image = bytearray(desc_offset + desc_size * count)
        header = KvmStatsHeader(0, NAME_SIZE, count, id_offset, desc_offset, len(image))
        image[:id_offset] = bytes(header)
        identity = self._id.encode()[: NAME_SIZE - 1]
        image[id_offset : id_offset + len(identity)] = identity
        for index, (name, flags, exponent) in enumerate(self._descriptors):
            start = desc_offset + desc_size * index
            head = bytes(KvmStatsDesc(flags, exponent, 1, 8 * index, 0)) + name.encode()[: NAME_SIZE - 1]
            image[start : start + len(head)] = head
        return image

    def _share(self) -> int:
        """Move the values into a memfd of their own, and open it as :meth:`open` does; EMFILE, ENFILE, ENOMEM."""
        services = self._services
        image = self._image()
        size = len(image) + 8 * len(self.values)
        name = self._id.replace("/", "-") + "-stats"
        with services.ladder("stats") as ladder:
            fd = ladder.acquire("fd", services.memfd, services.close_fd, name, size)
            mapped = ladder.acquire("map", services.map, services.unmap, fd, size, "stats")
            again = services.reopen(fd, "stats fd")
        view = memoryview(mapped).cast("B")
        view[: len(image)] = image
        values = view[len(image) :].cast("Q")
        for index, value in enumerate(self.values):
            values[index] = value
        self.values = values
        self._mapping = mapped
        self._fd = fd
        return again

    def open(self) -> int:
        """KVM_GET_STATS_FD: a read-only fd with a position of its own; EMFILE, ENFILE, ENOMEM."""
        again = self._services.reopen(self._fd, "stats fd") if self._fd >= 0 else self._share()
        self._services.forget_fd(again)
        return again

    def close(self) -> None:
        """Give the memfd back; fds that userspace holds keep the last values."""
        if self._mapping is not None:
            self._services.unmap(self._mapping)
            self._mapping = None
            self._services.close_fd(self._fd)
            self._fd = -1

    def as_dict(self) -> dict[str, int]:
        """Give the values by name."""
        return {name: value for (name, _, _), value in zip(self._descriptors, self.values, strict=True)}
