# SPDX-License-Identifier: GPL-2.0-only
"""Binary statistics, read from files made by hand."""

from __future__ import annotations

import errno
import os
import struct

import pytest
from fake_backend import FakeBackend

from anykvm.api import Vcpu, Vm
from anykvm.uapi import common

NAME_SIZE = 48


def stats_file(truncate: int | None = None) -> int:
    """Two statistics: a counter and a histogram of three buckets, data in 4 words."""
    descriptors = [
        (common.KVM_STATS_TYPE_CUMULATIVE, 0, 1, 0, 0, b"exits"),
        (
            common.KVM_STATS_TYPE_LINEAR_HIST | common.KVM_STATS_UNIT_SECONDS | common.KVM_STATS_BASE_POW10,
            -9,
            3,
            8,
            100,
            b"halt_wait_ns",
        ),
    ]
    head = struct.pack("=6I", 0, NAME_SIZE, len(descriptors), 24, 24 + NAME_SIZE, 24 + NAME_SIZE + 2 * (16 + NAME_SIZE))
    body = b"kvm-42/vcpu-0".ljust(NAME_SIZE, b"\0")
    for flags, exponent, size, offset, bucket, name in descriptors:
        body += struct.pack("=IhHII", flags, exponent, size, offset, bucket) + name.ljust(NAME_SIZE, b"\0")
    data = struct.pack("=4Q", 17, 1, 2, 3)
    fd = os.memfd_create("stats")
    os.write(fd, (head + body + data)[:truncate])
    return fd


@pytest.mark.parametrize("kind", ["vm", "vcpu"])
def test_statistics(fake: FakeBackend, vm: Vm, vcpu: Vcpu, kind: str) -> None:
    fd = stats_file()
    fake.answers[common.KVM_GET_STATS_FD] = fd
    handle: Vm | Vcpu = vm if kind == "vm" else vcpu
    with handle.stats_fd() as stats:
        assert stats.id == "kvm-42/vcpu-0"
        assert list(stats.descriptors) == ["exits", "halt_wait_ns"]
        histogram = stats.descriptors["halt_wait_ns"]
        assert (histogram.type, histogram.unit, histogram.base, histogram.exponent) == (
            "linear-histogram",
            "seconds",
            10,
            -9,
        )
        assert (histogram.size, histogram.bucket_size) == (3, 100)
        assert stats.read() == {"exits": (17,), "halt_wait_ns": (1, 2, 3)}
        os.pwrite(fd, struct.pack("=Q", 18), os.fstat(fd).st_size - 32)
        assert stats.read()["exits"] == (18,)
    with pytest.raises(OSError) as caught:
        stats.read()
    assert caught.value.errno == errno.EBADF
    with pytest.raises(OSError):
        os.fstat(fd)


@pytest.mark.parametrize("length", [0, 10, 30, 100])
def test_a_truncated_file_is_refused_and_closed(fake: FakeBackend, vm: Vm, length: int) -> None:
    fd = stats_file(truncate=length)
    fake.answers[common.KVM_GET_STATS_FD] = fd
    with pytest.raises(OSError) as caught:
        vm.stats_fd()
    assert caught.value.errno == errno.EIO
    with pytest.raises(OSError):
        os.fstat(fd)
