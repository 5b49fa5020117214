# SPDX-License-Identifier: GPL-2.0-only
"""The fixture ``anykvm_exec``: programs under exec, what they did, and that nothing of them is left."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from anykvm.testing import CannotRun, Programs, Ran, TookTooLong

HEAD = "import os, sys, time, fcntl\nkvm = os.open('/dev/kvm', os.O_RDWR)\n"


@pytest.fixture
def run(anykvm_exec: Programs) -> Callable[..., Ran]:
    """Run lines of a Python that has never heard of anykvm."""
    if platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip("exec has no guests for this machine's programs")
    return lambda text, *words, **more: anykvm_exec(sys.executable, "-c", HEAD + text, *words, **more)


def gone(pid: int) -> bool:
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
            # One that nobody waits for is dead all the same.
            if ") Z" in Path(f"/proc/{pid}/stat").read_text():
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


def test_status_output_and_input(run: Callable[..., Ran]) -> None:
    text = "print(fcntl.ioctl(kvm, 0xAE00), sys.stdin.read(), sys.argv[1]); print('bad', file=sys.stderr); sys.exit(3)"
    ran = run(text, "word", input="given")
    assert (ran.status, ran.stdout, ran.stderr) == (3, "12 given word\n", "bad\n")
    assert 0 < ran.seconds < 60
    with pytest.raises(ValueError, match="trace=True"):
        ran.requests("KVM_CREATE_VM")
    assert run("os.abort()").status == -6


def test_the_trace(run: Callable[..., Ran]) -> None:
    text = "vm = fcntl.ioctl(kvm, 0xAE01)\ntry: fcntl.ioctl(vm, 0xAE41, 1 << 30)\nexcept OSError: pass"
    ran = run(text, trace=True)
    assert ran.status == 0, ran.stderr
    assert [one.name for one in ran.trace] == ["KVM_CREATE_VM", "KVM_CREATE_VCPU"]
    [made] = ran.requests("KVM_CREATE_VCPU")
    assert (made.file, made.argument, made.result, made.errno) == ("vm", 1 << 30, -1, "EINVAL")
    assert made.seconds > 0 and made.exit is None and made.returned is None


@pytest.mark.anykvm_faults("KVM_CREATE_VM#2=ENOMEM")
def test_faults_of_the_marker_and_of_the_call(run: Callable[..., Ran]) -> None:
    twice = "fcntl.ioctl(kvm, 0xAE01)\ntry: fcntl.ioctl(kvm, 0xAE01)\nexcept OSError as error: sys.exit(error.errno)"
    assert [run(twice).status for _ in range(2)] == [12, 12]
    assert run(twice, faults="KVM_CREATE_VM#2=EMFILE").status == 24
    assert run(twice, faults="").status == 0


@pytest.mark.anykvm_arch("arm64")
def test_the_architecture(run: Callable[..., Ran]) -> None:
    """A VM of arm64 gives its preferred target, of x86 it has none."""
    text = "vm = fcntl.ioctl(kvm, 0xAE01)\ntry: fcntl.ioctl(vm, 0x8020AEAF, bytearray(32))\nexcept OSError: sys.exit(9)"
    assert run(text).status == 0
    assert run(text, arch="x86").status == 9


def test_one_that_takes_too_long_is_killed(run: Callable[..., Ran]) -> None:
    text = "fcntl.ioctl(kvm, 0xAE01); print(os.getpid(), flush=True); time.sleep(60)"
    with pytest.raises(TookTooLong, match=r"did not end in 3 s; the last request that ended: KVM_CREATE_VM") as late:
        run(text, timeout=3, trace=True)
    assert late.value.ran.status == -9
    assert gone(int(late.value.ran.stdout))


def test_what_a_program_leaves_behind_is_killed(run: Callable[..., Ran]) -> None:
    """Also a process with a session of its own, which holds the program's standard output."""
    text = (
        "child = os.fork()\n"
        "if child == 0:\n    os.setsid()\n    if os.fork(): os._exit(0)\n    print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
        "os.waitpid(child, 0); time.sleep(0.3)"
    )
    began = time.monotonic()
    ran = run(text)
    assert ran.status == 0 and time.monotonic() - began < 50
    assert gone(int(ran.stdout))


@pytest.mark.parametrize(
    ("program", "more", "message"),
    [
        ("/no/such/program", {}, "/no/such/program: not found"),
        ("/bin/true", {"arch": "z80"}, "there is no architecture 'z80'"),
        ("/bin/true", {"faults": "nonsense="}, "'nonsense=' is not a fault"),
    ],
)
def test_what_cannot_be_run_says_so(anykvm_exec: Programs, program: str, more: dict[str, str], message: str) -> None:
    with pytest.raises(CannotRun, match=message):
        anykvm_exec(program, **more)  # type: ignore[arg-type]


def test_a_program_that_fails_is_not_one_that_cannot_run(anykvm_exec: Programs, tmp_path: Path) -> None:
    ran = anykvm_exec("/bin/sh", "-c", "pwd; echo $WORD; exit 127", cwd=tmp_path, env={"WORD": "here", "PATH": "/bin"})
    assert (ran.status, ran.stdout) == (127, f"{tmp_path}\nhere\n")
