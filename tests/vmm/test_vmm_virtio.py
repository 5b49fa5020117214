# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vmm_fakes import FakeMemory
from vmm_rings import AVAIL, DESC, USED, Driver

from anykvm.vmm import blk, virtio
from anykvm.vmm.blk import Disk
from anykvm.vmm.errors import VmmError
from anykvm.vmm.rng import Entropy
from anykvm.vmm.virtio import Transport

SECTORS = 64


class Rig:
    """A transport with a device, and a driver that goes by the book."""

    def __init__(self, device: virtio.VirtioDevice) -> None:
        self.driver = Driver()
        self.levels: list[bool] = []
        self.transport = Transport(device, self.driver.memory, self.levels.append)

    def read(self, offset: int) -> int:
        return self.transport.read(offset, 4)

    def write(self, offset: int, value: int) -> None:
        self.transport.write(offset, 4, value)

    def start(self) -> None:
        self.write(0x70, 0)
        self.write(0x70, virtio.STATUS_ACKNOWLEDGE | virtio.STATUS_DRIVER)
        for half in (0, 1):
            self.write(0x14, half)
            features = self.read(0x10)
            self.write(0x24, half)
            self.write(0x20, features)
        self.write(0x70, self.read(0x70) | virtio.STATUS_FEATURES_OK)
        assert self.read(0x70) & virtio.STATUS_FEATURES_OK
        self.write(0x30, 0)
        self.write(0x38, self.driver.size)
        for low, address in ((0x80, DESC), (0x90, AVAIL), (0xA0, USED)):
            self.write(low, address & 0xFFFFFFFF)
            self.write(low + 4, address >> 32)
        self.write(0x44, 1)
        self.write(0x70, self.read(0x70) | virtio.STATUS_DRIVER_OK)

    def request(self, buffers: list[tuple[bytes, bool]]) -> tuple[int, int]:
        """Make a request; (head, bytes written)."""
        head = self.driver.offer(buffers)
        self.write(virtio.QUEUE_NOTIFY, 0)
        (done,) = self.driver.collect()
        assert done[0] == head
        return done


@pytest.fixture
def disk_file(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(b"".join(bytes([n]) * 512 for n in range(SECTORS)))
    return path


@pytest.fixture
def rig(disk_file: Path):
    made = Rig(Disk(disk_file))
    made.start()
    yield made
    made.transport.close()


def command(kind: int, sector: int = 0) -> tuple[bytes, bool]:
    return struct.pack("<IIQ", kind, 0, sector), False


def status_of(rig: Rig, head: int, position: int) -> int:
    return rig.driver.buffer(head, position)[0]


def test_the_transport_says_what_it_is(rig: Rig) -> None:
    assert rig.read(0x00) == 0x74726976
    assert rig.read(0x04) == 2
    assert rig.read(0x08) == 2
    assert rig.read(0x34) == blk.QUEUE_SIZE
    assert rig.read(0xFC) == 0
    assert rig.transport.read(0x100, 8) == SECTORS
    assert rig.transport.read(0x100 + 20, 4) == 512
    assert rig.transport.read(0x100 + 4000, 4) == 0


def test_features_that_were_not_offered_are_not_ok(disk_file: Path) -> None:
    rig = Rig(Disk(disk_file))
    rig.write(0x24, 0)
    rig.write(0x20, 1 << 30)
    rig.write(0x24, 1)
    rig.write(0x20, 1)
    rig.write(0x70, virtio.STATUS_FEATURES_OK | 3)
    assert not rig.read(0x70) & virtio.STATUS_FEATURES_OK
    rig.write(0x70, 0)
    rig.write(0x70, virtio.STATUS_FEATURES_OK | 3)  # without VIRTIO_F_VERSION_1
    assert not rig.read(0x70) & virtio.STATUS_FEATURES_OK
    rig.transport.close()


def test_reads_and_writes(rig: Rig, disk_file: Path) -> None:
    head, written = rig.request([command(blk.T_IN, 3), (bytes(1024), True), (b"\xff", True)])
    assert written == 1025
    assert status_of(rig, head, 2) == blk.S_OK
    assert rig.driver.buffer(head, 1) == b"\x03" * 512 + b"\x04" * 512
    assert rig.levels[-1] and rig.read(0x60) == virtio.INTERRUPT_USED
    rig.write(0x64, virtio.INTERRUPT_USED)
    assert not rig.levels[-1]

    head, written = rig.request([command(blk.T_OUT, 5), (b"w" * 512, False), (b"\xff", True)])
    assert (written, status_of(rig, head, 2)) == (1, blk.S_OK)
    head, _ = rig.request([command(blk.T_FLUSH), (b"\xff", True)])
    assert status_of(rig, head, 1) == blk.S_OK
    data = disk_file.read_bytes()
    assert data[5 * 512 : 6 * 512] == b"w" * 512
    assert data[6 * 512] == 6
    assert len(data) == SECTORS * 512


def test_header_data_and_status_may_share_and_split_buffers(rig: Rig) -> None:
    header = command(blk.T_IN, 1)[0]
    head, written = rig.request([(header[:5], False), (header[5:], False), (bytes(512 + 1), True)])
    assert written == 513
    assert rig.driver.buffer(head, 2) == b"\x01" * 512 + b"\0"


def test_the_serial_number_is_the_file_s_name(rig: Rig) -> None:
    head, written = rig.request([command(blk.T_GET_ID), (b"\xee" * 20, True), (b"\xff", True)])
    assert written == 21
    assert rig.driver.buffer(head, 1) == b"disk".ljust(20, b"\0")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        ([command(blk.T_IN, SECTORS), (bytes(512), True)], blk.S_IOERR),
        ([command(blk.T_IN, SECTORS - 1), (bytes(1024), True)], blk.S_IOERR),
        ([command(blk.T_IN, (1 << 64) - 1), (bytes(512), True)], blk.S_IOERR),
        ([command(blk.T_IN, 0), (bytes(100), True)], blk.S_IOERR),
        ([command(blk.T_OUT, SECTORS), (bytes(512), False)], blk.S_IOERR),
        ([command(99)], blk.S_UNSUPP),
    ],
)
def test_impossible_requests_are_errors_to_the_guest(rig: Rig, request_, status: int) -> None:
    head, _ = rig.request([*request_, (b"\xff", True)])
    assert status_of(rig, head, len(request_)) == status


@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EDQUOT"])
def test_a_failing_host_file_system_is_an_error_to_the_guest(rig: Rig, monkeypatch, error: str) -> None:
    def fail(*_: object) -> int:
        raise OSError(getattr(__import__("errno"), error), error)

    for name in ("preadv", "pwritev", "fdatasync"):
        monkeypatch.setattr(os, name, fail)
    for request in ([command(blk.T_IN), (bytes(512), True)], [command(blk.T_OUT), (bytes(512), False)]):
        head, _ = rig.request([*request, (b"\xff", True)])
        assert status_of(rig, head, 2) == blk.S_IOERR
    head, _ = rig.request([command(blk.T_FLUSH), (b"\xff", True)])
    assert status_of(rig, head, 1) == blk.S_IOERR


def test_a_file_that_became_shorter_reads_as_zero(rig: Rig, disk_file: Path) -> None:
    os.truncate(disk_file, 512)
    head, _ = rig.request([command(blk.T_IN, 1), (b"\xee" * 512, True), (b"\xff", True)])
    assert status_of(rig, head, 2) == blk.S_OK
    assert rig.driver.buffer(head, 1) == bytes(512)


def test_a_read_only_disk_says_so_and_refuses_writes(disk_file: Path) -> None:
    before = disk_file.read_bytes()
    disk_file.chmod(0o444)
    rig = Rig(Disk(disk_file, read_only=True))
    assert rig.read(0x10) & blk.F_RO
    rig.start()
    head, _ = rig.request([command(blk.T_OUT), (b"w" * 512, False), (b"\xff", True)])
    assert status_of(rig, head, 2) == blk.S_IOERR
    head, _ = rig.request([command(blk.T_FLUSH), (b"\xff", True)])
    assert status_of(rig, head, 1) == blk.S_OK
    rig.transport.close()
    assert disk_file.read_bytes() == before


@pytest.mark.parametrize("buffers", [[(b"short", False), (b"\xff", True)], [command(blk.T_IN)]])
def test_a_request_without_header_or_status_breaks_the_device_until_reset(rig: Rig, buffers) -> None:
    rig.driver.offer(buffers)
    rig.write(virtio.QUEUE_NOTIFY, 0)
    assert rig.read(0x70) & virtio.STATUS_NEEDS_RESET
    assert rig.read(0x60) & virtio.INTERRUPT_CONFIG
    assert rig.levels[-1]
    assert rig.driver.collect() == []
    rig.write(0x70, 0)
    assert (rig.read(0x70), rig.read(0x60), rig.levels[-1]) == (0, 0, False)
    rig.driver = Driver(rig.driver.memory)
    rig.driver.poke(AVAIL, bytes(64))
    rig.driver.poke(USED, bytes(128))
    rig.start()
    head, _ = rig.request([command(blk.T_IN, 2), (bytes(512), True), (b"\xff", True)])
    assert status_of(rig, head, 2) == blk.S_OK


def test_nothing_is_served_before_driver_ok(disk_file: Path) -> None:
    rig = Rig(Disk(disk_file))
    rig.driver.offer([command(blk.T_IN), (bytes(512), True), (b"\xff", True)])
    rig.write(virtio.QUEUE_NOTIFY, 0)
    rig.write(0x44, 1)  # before FEATURES_OK
    assert rig.read(0x44) == 0
    assert rig.driver.collect() == []
    rig.transport.close()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda folder: folder / "none", "is not there"),
        (lambda folder: folder, "cannot be opened"),
        (lambda folder: Path("/dev/null"), "neither a file nor a block device"),
        (lambda folder: Path("a\0b"), "cannot be opened"),
        (lambda folder: Path("/proc/self/mem"), "has no size"),
        (lambda folder: _empty(folder), "no whole sector"),
    ],
)
def test_unusable_disks_are_refused_in_one_line(tmp_path: Path, make, words: str) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(VmmError, match=words) as refused:
        Disk(make(tmp_path))
    assert "\n" not in str(refused.value)
    assert len(os.listdir("/proc/self/fd")) == before


def _empty(folder: Path) -> Path:
    (folder / "empty").touch()
    return folder / "empty"


def test_entropy_fills_what_it_is_given() -> None:
    rig = Rig(Entropy())
    rig.start()
    head, written = rig.request([(bytes(64), True), (bytes(64), True)])
    assert written == 128
    assert rig.driver.buffer(head, 0) != bytes(64) != rig.driver.buffer(head, 1)
    head, written = rig.request([(b"for the device to read", False)])
    assert written == 0


def test_entropy_is_bounded() -> None:
    rig = Rig(Entropy())
    rig.driver = Driver(FakeMemory(1 << 20))
    rig.transport = Transport(Entropy(), rig.driver.memory, rig.levels.append)
    rig.start()
    assert rig.request([(bytes(200_000), True)])[1] == 1 << 16


@settings(max_examples=150, deadline=None)
@given(
    accesses=st.lists(
        st.tuples(
            st.booleans(),
            st.one_of(
                st.sampled_from((0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0xA0)),
                st.integers(0, 0x1000),
            ),
            st.one_of(st.integers(0, 15), st.sampled_from((DESC, AVAIL, USED, 0xFFFFFFFF))),
            st.sampled_from((1, 2, 4, 4, 4, 8)),
        ),
        max_size=60,
    ),
    rings=st.binary(min_size=64, max_size=512),
)
def test_no_driver_can_break_the_transport(accesses: list[tuple[bool, int, int, int]], rings: bytes) -> None:
    rig = Rig(Entropy())
    for base in (DESC, AVAIL, USED):
        rig.driver.poke(base, rings)
    rig.start()
    for is_write, offset, value, size in accesses:
        if is_write:
            rig.transport.write(offset, size, value)
        else:
            assert 0 <= rig.transport.read(offset, size) < 1 << 64
    rig.transport.close()
    rig.driver.memory.data.append(0)  # BufferError while a view of guest memory is held


@settings(max_examples=100, deadline=None)
@given(table=st.binary(min_size=128, max_size=128), heads=st.binary(min_size=16, max_size=16), count=st.integers(0, 8))
def test_no_ring_can_break_a_disk(tmp_path_factory, table: bytes, heads: bytes, count: int) -> None:
    path = tmp_path_factory.getbasetemp() / "hostile-disk"
    path.write_bytes(bytes(4096))
    rig = Rig(Disk(path))
    rig.start()
    # Addresses are moved into memory, so that some chains are whole.
    descriptors = [list(struct.unpack_from("<QIHH", table, 16 * n)) for n in range(8)]
    for n, (address, length, flags, following) in enumerate(descriptors):
        rig.driver.descriptor(n, 0x4000_4000 + address % 0x8000, length % 600, flags & 3, following % 9)
    rig.driver.poke(AVAIL + 4, bytes(byte % 9 if n % 2 == 0 else 0 for n, byte in enumerate(heads)))
    rig.driver.avail_index = count
    rig.driver.publish()
    rig.write(virtio.QUEUE_NOTIFY, 0)
    assert len(rig.driver.collect()) <= count
    rig.transport.close()
    assert path.stat().st_size == 4096
