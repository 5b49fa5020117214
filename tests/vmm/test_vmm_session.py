# SPDX-License-Identifier: GPL-2.0-only
"""Sessions: resets, panics, time limits, and the console on pipes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from vmm_fakes import FakeBackend, Guest, Program, config

from anykvm.api import Kvm
from anykvm.vmm.machine import Machine
from anykvm.vmm.outcome import Kind, Outcome
from anykvm.vmm.session import Session

pytestmark = pytest.mark.usefixtures("nothing_leaks")


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backends: list[FakeBackend] = []

    def make(program: Callable[[Guest, int], Program], **options: object) -> Session:
        def kvm(_: Machine) -> Kvm:
            backends.append(FakeBackend(program))
            return Kvm(backends[-1])

        monkeypatch.setattr(Machine, "_kvm", kvm)
        made = Session(config(tmp_path), **options)  # type: ignore[arg-type]
        made.output = bytearray()  # type: ignore[attr-defined]
        if made.tap is None:
            made.tap = made.output.extend  # type: ignore[attr-defined]
        return made

    make.backends = backends  # type: ignore[attr-defined]
    return make


def test_a_session_hears_all_of_the_console(session) -> None:
    text = b"line of text\r\n" * 200

    def program(guest: Guest, _: int) -> Program:
        yield from guest.print(text)
        yield from guest.power_off()

    made = session(program)
    assert made.run() == Outcome(Kind.POWER_OFF)
    assert made.output == text
    assert made.first_instruction is not None
    assert made.reports[0].exits["mmio-write"] == len(text)


def test_a_reset_builds_the_machine_again(session) -> None:
    def program(guest: Guest, _: int) -> Program:
        yield from guest.print(b"boot\n")
        if len(session.backends) < 3:
            yield from guest.reset()
        yield from guest.power_off()

    said: list[str] = []
    made = session(program, say=said.append)
    assert made.run().kind is Kind.POWER_OFF
    assert made.output == b"boot\n" * 3
    assert len(said) == 2


def test_without_reboots_a_reset_is_the_end(session) -> None:
    outcome = session(lambda guest, _: guest.reset(), reboot=False).run()
    assert (outcome.kind, outcome.exit_status) == (Kind.RESET, 0)
    assert len(session.backends) == 1


def test_a_guest_that_only_resets_is_given_up(session) -> None:
    outcome = session(lambda guest, _: guest.reset()).run()
    assert (outcome.kind, outcome.exit_status) == (Kind.CRASH, 3)
    assert "giving up" in outcome.message


PANIC = b"[ 1.0] Kernel panic - not syncing: Attempted to kill init!\r\n"


def test_a_panic_that_resets_is_a_panic_and_not_a_reboot(session) -> None:
    def program(guest: Guest, _: int) -> Program:
        yield from guest.print(PANIC)
        yield from guest.reset()

    outcome = session(program).run()
    assert (outcome.kind, outcome.exit_status) == (Kind.PANIC, 3)
    assert outcome.message == "the guest's kernel panicked: Attempted to kill init!"
    assert len(session.backends) == 1


def test_a_panic_that_hangs_is_a_panic(session) -> None:
    def program(guest: Guest, _: int) -> Program:
        yield from guest.print(PANIC + b"[ 1.1] ---[ end Kernel panic - not syncing: Attempted ]---\r\n")
        yield from guest.forever()

    began = time.monotonic()
    outcome = session(program, timeout=20).run()
    assert outcome.kind is Kind.PANIC
    assert time.monotonic() - began < 10


def test_a_time_limit_of_years(session) -> None:
    def program(guest: Guest, vcpu_id: int) -> Program:
        yield from guest.power_off()

    assert session(program, timeout=1e9).run().kind is Kind.POWER_OFF


def test_a_time_limit(session) -> None:
    outcome = session(lambda guest, _: guest.forever(), timeout=0.2).run()
    assert (outcome.kind, outcome.exit_status) == (Kind.TIMEOUT, 124)


def test_an_internal_error_keeps_its_traceback(session) -> None:
    def program(guest: Guest, _: int) -> Program:
        yield ("raise", RuntimeError("a bug"))

    made = session(program)
    assert made.run().exit_status == 4
    assert isinstance(made.error, RuntimeError)


def pipe_session(session, program, **options: object):
    source, typed = os.pipe()
    shown, sink = os.pipe()
    return session(program, source=source, sink=sink, **options), (source, typed, shown, sink)


def close_all(*fds: int) -> None:
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


def echo(guest: Guest, _: int) -> Program:
    yield from guest.listen()
    while (key := (yield from guest.key())) != 0x04:
        yield from guest.print(bytes((key,)))
    yield from guest.print(b"eof\n")
    yield from guest.power_off()


def test_pipes_and_the_end_of_input(session) -> None:
    made, fds = pipe_session(session, echo)
    os.write(fds[1], b"from a pipe\n")
    os.close(fds[1])
    assert made.run().kind is Kind.POWER_OFF
    assert os.read(fds[2], 1000) == b"from a pipe\neof\n"
    close_all(*fds)


def test_a_closed_input_is_no_input(session) -> None:
    made, fds = pipe_session(session, lambda guest, _: guest.power_off())
    os.close(fds[0])
    assert made.run().kind is Kind.POWER_OFF
    close_all(*fds)


def test_nobody_reads_the_output(session) -> None:
    def program(guest: Guest, _: int) -> Program:
        while True:
            yield from guest.print(b"flood\n")

    made, fds = pipe_session(session, program)
    os.close(fds[2])
    outcome = made.run()
    assert (outcome.kind, outcome.exit_status) == (Kind.HANGUP, 1)
    close_all(*fds)


def test_a_reader_that_goes_away_is_noticed_in_silence(session) -> None:
    made, fds = pipe_session(session, lambda guest, _: guest.forever(), timeout=10)
    threading.Timer(0.2, os.close, (fds[2],)).start()
    assert made.run().kind is Kind.HANGUP
    close_all(*fds)


def test_a_slow_reader_gets_all_of_a_flood_and_holds_the_guest(session) -> None:
    text = b"0123456789abcde\n" * 20_000

    def program(guest: Guest, _: int) -> Program:
        yield from guest.print(text)
        yield from guest.power_off()

    made, fds = pipe_session(session, program)
    got = bytearray()

    def reader() -> None:
        time.sleep(0.3)  # the pipe and the UART are full by then
        while data := os.read(fds[2], 50_000):
            got.extend(data)

    thread = threading.Thread(target=reader)
    thread.start()
    assert made.run().kind is Kind.POWER_OFF
    os.close(fds[3])
    thread.join()
    assert got == text
    close_all(*fds)


def test_a_time_limit_holds_though_nobody_reads(session) -> None:
    def program(guest: Guest, _: int) -> Program:
        while True:
            yield from guest.print(b"flood\n")

    made, fds = pipe_session(session, program, timeout=0.5)
    began = time.monotonic()
    assert made.run().kind is Kind.TIMEOUT
    assert time.monotonic() - began < 5
    close_all(*fds)


def test_output_to_a_full_device_is_one_line(session) -> None:
    def program(guest: Guest, _: int) -> Program:
        yield from guest.print(b"x")
        yield from guest.forever()

    full = os.open("/dev/full", os.O_WRONLY)
    outcome = session(program, sink=full, timeout=10).run()
    os.close(full)
    assert (outcome.kind, outcome.exit_status) == (Kind.HANGUP, 1)
    assert "No space left" in outcome.message
