# SPDX-License-Identifier: GPL-2.0-only
"""From the run page to exit objects: every reason, and how long it takes."""

from __future__ import annotations

import timeit
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anykvm.api import arm64 as api_arm64
from anykvm.api import exits
from anykvm.api.decode import DECODERS, decode
from anykvm.uapi import common

REASONS = {
    name: value
    for name, value in vars(common).items()
    if name.startswith("KVM_EXIT_") and not name.startswith("KVM_EXIT_IO_")
}


def page_with(reason: int, **members: dict[str, Any]) -> tuple[memoryview, common.KvmRun]:
    page = bytearray(8192)
    run = common.KvmRun.from_buffer(page)
    run.exit_reason = reason
    for member, values in members.items():
        for name, value in values.items():
            target = getattr(run, member)
            if isinstance(value, bytes | tuple):
                getattr(target, name)[: len(value)] = value
            else:
                setattr(target, name, value)
    return memoryview(page), run


@pytest.mark.parametrize(
    ("reason", "members", "expected"),
    [
        (
            common.KVM_EXIT_MMIO,
            {"mmio": {"phys_addr": 0x1000, "len": 2, "is_write": 1, "data": b"ab"}},
            exits.MmioWrite(0x1000, b"ab"),
        ),
        (common.KVM_EXIT_EXCEPTION, {"ex": {"exception": 14, "error_code": 2}}, exits.GuestException(14, 2)),
        (common.KVM_EXIT_HLT, {}, exits.Halt()),
        (common.KVM_EXIT_SHUTDOWN, {}, exits.Shutdown()),
        (common.KVM_EXIT_INTR, {}, exits.Interrupted()),
        (common.KVM_EXIT_IRQ_WINDOW_OPEN, {}, exits.IrqWindowOpen()),
        (common.KVM_EXIT_DIRTY_RING_FULL, {}, exits.DirtyRingFull()),
        (
            common.KVM_EXIT_FAIL_ENTRY,
            {"fail_entry": {"hardware_entry_failure_reason": 1 << 40, "cpu": 3}},
            exits.FailEntry(1 << 40, 3),
        ),
        (
            common.KVM_EXIT_INTERNAL_ERROR,
            {"internal": {"suberror": 1, "ndata": 2, "data": (7, 8)}},
            exits.InternalError(1, (7, 8)),
        ),
        (
            common.KVM_EXIT_SYSTEM_EVENT,
            {"system_event": {"type": 2, "ndata": 1, "data": (1,)}},
            exits.SystemEvent(exits.SystemEventType.RESET, (1,)),
        ),
        (common.KVM_EXIT_SYSTEM_EVENT, {"system_event": {"type": 99}}, exits.SystemEvent(99)),
        (common.KVM_EXIT_ARM_NISV, {"arm_nisv": {"esr_iss": 5, "fault_ipa": 6}}, exits.ArmNisv(5, 6)),
        (common.KVM_EXIT_MEMORY_FAULT, {"memory_fault": {"flags": 8, "gpa": 1, "size": 2}}, exits.MemoryFault(8, 1, 2)),
        (common.KVM_EXIT_UNKNOWN, {"hw": {"hardware_exit_reason": 77}}, exits.Unknown(0, 77)),
        (4242, {"hw": {"hardware_exit_reason": 78}}, exits.Unknown(4242, 78)),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int | dict) else "",
)
def test_decoding(reason: int, members: dict[str, Any], expected: exits.Exit) -> None:
    page, _ = page_with(reason, **members)
    assert decode(page, reason) == expected


def test_every_known_reason_has_a_decoder() -> None:
    assert len(DECODERS) == len(REASONS) == max(REASONS.values()) + 1
    for name, reason in REASONS.items():
        page, _ = page_with(reason)
        found = decode(page, reason)
        if isinstance(found, exits.ArchExit):
            assert (found.reason, found.name, len(found.payload)) == (reason, name, 256)
        else:
            assert not isinstance(found, exits.Unknown) or reason == 0


def test_reads_are_answered() -> None:
    page, run = page_with(common.KVM_EXIT_MMIO, mmio={"phys_addr": 8, "len": 4})
    read = decode(page, common.KVM_EXIT_MMIO)
    assert isinstance(read, exits.MmioRead)
    read.reply(b"\x01\x02\x03\x04")
    assert bytes(run.mmio.data)[:4] == b"\x01\x02\x03\x04"
    read.reply(-1)
    assert bytes(run.mmio.data) == b"\xff\xff\xff\xff\0\0\0\0"
    with pytest.raises(ValueError, match="the guest reads 4 bytes, not 3"):
        read.reply(b"abc")


def test_ports() -> None:
    page, _ = page_with(
        common.KVM_EXIT_IO, io={"direction": 1, "size": 2, "port": 0x3F8, "count": 2, "data_offset": 4096}
    )
    page[4096:4100] = b"abcd"
    assert decode(page, common.KVM_EXIT_IO) == exits.PioOut(0x3F8, 2, b"abcd")
    page, _ = page_with(common.KVM_EXIT_IO, io={"direction": 0, "size": 1, "port": 5, "count": 3, "data_offset": 4096})
    read = decode(page, common.KVM_EXIT_IO)
    assert isinstance(read, exits.PioIn)
    assert (read.port, read.size, read.count) == (5, 1, 3)
    read.reply(b"xyz")
    assert bytes(page[4096:4099]) == b"xyz"
    read.reply(7)
    assert bytes(page[4096:4099]) == b"\x07\x07\x07"
    with pytest.raises(ValueError, match="the guest reads 3 bytes, not 2"):
        read.reply(b"xy")


def test_hypercall() -> None:
    page, run = page_with(common.KVM_EXIT_HYPERCALL, hypercall={"nr": 12, "args": (1, 2, 3, 4, 5, 6), "flags": 1})
    call = decode(page, common.KVM_EXIT_HYPERCALL)
    assert isinstance(call, exits.Hypercall)
    assert (call.nr, call.args, call.flags) == (12, (1, 2, 3, 4, 5, 6), 1)
    call.reply(-1)
    assert run.hypercall.ret == (1 << 64) - 1


def test_debug_exit_of_arm64() -> None:
    page, run = page_with(common.KVM_EXIT_DEBUG)
    run.debug.arch[0], run.debug.arch[1] = 0xF200_0000, 0x1234
    debug = decode(page, common.KVM_EXIT_DEBUG)
    assert isinstance(debug, exits.Debug)
    assert (api_arm64.debug_exit(debug).hsr, api_arm64.debug_exit(debug).far) == (0xF200_0000, 0x1234)


def test_exits_match_by_position_and_print_well() -> None:
    match exits.MmioWrite(0x900_0000, b"A"):
        case exits.MmioWrite(address, data):
            assert (address, data) == (0x900_0000, b"A")
    match exits.SystemEvent(exits.SystemEventType.SHUTDOWN):
        case exits.SystemEvent(exits.SystemEventType.SHUTDOWN):
            pass
        case other:
            pytest.fail(f"{other}")
    page = memoryview(bytearray(64))
    assert repr(exits.MmioRead(16, 4, _page=page)) == "MmioRead(address=0x10, size=4)"
    assert repr(exits.PioOut(0x3F8, 1, b"x")) == "PioOut(port=0x3f8, size=1, data=b'x')"
    assert repr(exits.PioIn(0x60, 1, 1, _page=page, _offset=0)) == "PioIn(port=0x60, size=1, count=1)"
    assert repr(exits.ArmNisv(16, 32)) == "ArmNisv(esr_iss=0x10, fault_ipa=0x20)"
    assert repr(exits.MemoryFault(0, 16, 32)) == "MemoryFault(flags=0x0, gpa=0x10, size=0x20)"


@given(st.integers(0, (1 << 32) - 1), st.binary(min_size=256, max_size=256))
def test_any_run_page_decodes(reason: int, payload: bytes) -> None:
    page = memoryview(bytearray(8192))
    page[32:288] = payload
    assert decode(page, reason) is not None
    assert decode(page, reason % (len(DECODERS) + 2)) is not None


def test_decoding_is_fast() -> None:
    page, _ = page_with(common.KVM_EXIT_MMIO, mmio={"phys_addr": 8, "len": 4, "is_write": 1})
    rounds = 2000
    best = min(timeit.repeat(lambda: decode(page, common.KVM_EXIT_MMIO), number=rounds, repeat=20)) / rounds
    assert best < 3e-6  # 1 µs is the aim; a shared machine gets some room
