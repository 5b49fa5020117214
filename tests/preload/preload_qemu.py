# SPDX-License-Identifier: GPL-2.0-only
"""A QEMU under exec that a test talks to: its guest's console as lines, its monitor's commands."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from preload_run import EXEC

from anykvm.guests import Guest, pull

PROGRAM = "qemu-system-x86_64"
WORDS = "console=ttyS0 panic=-1 nokaslr mitigations=off quiet"
_FEATURES = "relaxed vapic time vpindex runtime synic stimer stimer-direct reset crash frequencies reenlightenment"
HYPERV = ",hv-".join(["host,kvm=off", *_FEATURES.split(), "tlbflush", "ipi", "spinlocks=0x1fff", "enforce-cpuid"])
"""The CPU of a guest that is to take the machine for Hyper-V."""


def guest_or_skip() -> Guest:
    """Debian's guest; skips where there is no QEMU to run it."""
    if shutil.which(PROGRAM) is None:
        pytest.skip("no QEMU here")
    return pull("amd64")


def command(guest: Guest, initrd: Path, machine: str, vcpus: int, *more: str, accel: str = "kvm") -> list[str]:
    words = [*EXEC, "--", PROGRAM, "-nodefaults", "-no-reboot", "-display", "none", "-accel", accel, "-m", "256"]
    words += ["-M", machine, "-smp", str(vcpus), "-kernel", str(guest.kernel), "-initrd", str(initrd)]
    return [*words, *more]


class Monitor:
    """A running QEMU; `words` must not have a console or a monitor: they are here."""

    def __init__(self, words: list[str], folder: Path) -> None:
        path = folder / "monitor"
        path.unlink(missing_ok=True)
        words = [*words, "-serial", "stdio", "-monitor", f"unix:{path},server=on,wait=off"]
        self.lines: list[str] = []
        self._text: list[str] = []
        self._came = threading.Condition()
        self._path = path
        self._socket: socket.socket | None = None
        self.process = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        if self._socket is not None:
            self._socket.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                with self._came:
                    self.lines.append(line.rstrip())
                    self._text.append(line)
                    self._came.notify_all()

    def console(self) -> str:
        """All that came of the console, when QEMU has ended; without what QEMU said itself."""
        return "".join(line for line in self._text if not line.startswith(PROGRAM))

    def wait(self, line: str, *, after: int = 0, timeout: float = 100) -> int:
        """Wait for a line of the console, from the one numbered `after` on; its number."""
        until = time.monotonic() + timeout
        with self._came:
            while line not in self.lines[after:]:
                left = until - time.monotonic()
                assert left > 0 and self._reader.is_alive(), f"no {line!r}: {self.lines[-20:]}"
                self._came.wait(min(left, 1))
            return self.lines.index(line, after)

    def tell(self, what: str, timeout: float = 60) -> str:
        """Give the monitor a command; what it answers."""
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(timeout)
            self._socket.connect(str(self._path))
            self._answer()
        self._socket.sendall(f"{what}\n".encode())
        # The first line is the command itself, as a terminal would echo it.
        return self._answer().partition("\r\n")[2].strip()

    def _answer(self) -> str:
        assert self._socket is not None
        answer = b""
        while not answer.endswith(b"(qemu) "):
            some = self._socket.recv(4096)
            assert some, f"QEMU has gone: {self.lines[-20:]}"
            answer += some
        return answer.removesuffix(b"(qemu) ").decode()

    def ended(self, timeout: float = 60) -> int:
        """Wait for the end of QEMU; its exit status."""
        status = self.process.wait(timeout)
        self._reader.join()
        return status


@contextmanager
def disk(path: Path) -> Iterator[str]:
    """Make a disk that can hold snapshots; the option for it."""
    image = shutil.which("qemu-img")
    if image is None:
        pytest.skip("no qemu-img here")
    subprocess.run([image, "create", "-q", "-f", "qcow2", str(path), "64M"], check=True, timeout=30)
    yield f"file={path},if=virtio,format=qcow2"
    with suppress(FileNotFoundError):
        path.unlink()
