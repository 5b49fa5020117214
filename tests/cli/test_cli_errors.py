# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from vmm_fakes import make_image, write_image
from vmm_fakes_x86 import write_bzimage
from vmm_vmlinux import make_vmlinux

from anykvm.cli import check, debian, main, messages, timing

RUNNER = Path(__file__).with_name("cli_fake_run.py")
COMMAND = [sys.executable, "-c", "from anykvm.cli.start import main; main()"]


@pytest.fixture(autouse=True)
def quiet():
    yield
    messages.verbose = False


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]):
    def call_command(*arguments: str) -> tuple[int, str, str]:
        status = main.run(arguments)
        out, err = capsys.readouterr()
        return status, out, err

    return call_command


def fake(program: str, *arguments: str, **options: object) -> subprocess.CompletedProcess[bytes]:
    values: dict[str, object] = {"stdin": subprocess.DEVNULL, "capture_output": True, "timeout": 60}
    return subprocess.run([sys.executable, str(RUNNER), program, *arguments], check=False, **(values | options))  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bogus"], "no such command 'bogus'"),
        (["boot"], "missing argument 'ARCH'"),
        (["boot", "vax"], "no machine for 'vax': choose one of arm64, x86"),
        (["hackbench", "vax"], "no machine for 'vax'"),
        (["boot", "arm64", "--bogus"], "no such option"),
        (["exec", "--bogus", "true"], "no such option"),
        (["boot", "arm64", "--smp", "many"], "invalid value for '--smp'"),
        (["boot", "arm64", "--gic", "v9"], "invalid value for '--gic'"),
        (["boot", "arm64", "--backend", "magic"], "invalid value for '--backend'"),
        (["boot", "arm64", "--timeout", "0"], "invalid value for '--timeout'"),
        (["boot", "arm64", "--timeout", "nan"], "invalid value for '--timeout'"),
        (["boot", "arm64", "--timeout", "inf"], "invalid value for '--timeout'"),
        (["boot", "arm64", "--timeout", "1e300"], "invalid value for '--timeout'"),
        (["hackbench", "arm64", "--timeout", "-1"], "invalid value for '--timeout'"),
        (["boot", "arm64", "--kernel", "/none"], "kernel /none is not there: check --kernel"),
        (["boot", "arm64", "--kernel", "/"], "is a directory"),
        (["boot", "arm64", "--kernel", "KERNEL", "--initrd", "/none"], "initrd /none is not there: check --initrd"),
        (["boot", "arm64", "--kernel", "KERNEL", "--disk", "/none"], "disk /none is not there"),
        (["boot", "arm64", "--kernel", "KERNEL", "--memory", "0"], "give at least --memory"),
        (["boot", "arm64", "--kernel", "KERNEL", "--memory", "-1"], "no memory size"),
        (["boot", "arm64", "--kernel", "KERNEL", "--memory", "4M"], "give at least --memory"),
        (["boot", "arm64", "--kernel", "KERNEL", "--memory", "4000T"], "do not fit"),
        (["boot", "arm64", "--kernel", "KERNEL", "--smp", "0"], "give at least --smp 1"),
        (["boot", "arm64", "--kernel", "KERNEL", "--smp", "100000"], "give at most --smp"),
        (["boot", "arm64", "--kernel", "KERNEL", "--smp", "9", "--gic", "v2"], "use --gic v3"),
        (["boot", "arm64", "--kernel", "KERNEL", "--append", "x" * 3000], "shorten --append"),
        (["boot", "arm64", "--kernel", "TRUNCATED"], "truncated"),
        (["boot", "arm64", "--kernel", "FOREIGN"], "an x86 bzImage: boot arm64 needs"),
        (["hackbench", "arm64", "--args", "'unclosed"], "is not a list of words"),
        (["guest", "pull", "vax"], "no Debian guest for 'vax': choose one of amd64, arm64, x86"),
        (["boot", "arm64", "--entry", "auto"], "--entry is of x86 machines only"),
        (["boot", "arm64", "--firmware", "mptable"], "--firmware is of x86 machines only"),
        (["boot", "x86", "--gic", "v2"], "--gic is of arm64 machines only"),
        (["hackbench", "x86", "--gic", "v3"], "--gic is of arm64 machines only"),
        (["boot", "x86", "--entry", "uefi"], "invalid value for '--entry'"),
        (["boot", "x86", "--firmware", "bios"], "invalid value for '--firmware'"),
        (["boot", "x86", "--kernel", "BZIMAGE", "--entry", "pvh"], "no PVH entry: use --entry linux"),
        (["boot", "x86", "--kernel", "VMLINUX32", "--entry", "linux"], "a 32-bit kernel: use --entry pvh"),
        (["boot", "x86", "--kernel", "VMLINUX", "--entry", "pvh"], "no PVH entry: use --entry linux"),
        (["boot", "x86", "--kernel", "BZIMAGE", "--firmware", "mptable", "--smp", "255"], "use --firmware acpi"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path: Path, arguments: list[str], words: str) -> None:
    kernel = write_image(tmp_path)
    (tmp_path / "truncated").write_bytes(make_image(efi=True)[:-1])
    (tmp_path / "foreign").write_bytes(bytes(0x202) + b"HdrS" + bytes(9000))
    (tmp_path / "vmlinux").write_bytes(make_vmlinux(note=None))
    (tmp_path / "vmlinux32").write_bytes(make_vmlinux(bits=32, machine=3))
    places = {name.upper(): tmp_path / name for name in ("bzImage", "vmlinux", "vmlinux32")}
    write_bzimage(tmp_path)
    places |= {"KERNEL": kernel, "TRUNCATED": tmp_path / "truncated", "FOREIGN": tmp_path / "foreign"}
    done = fake("reset", *(str(places.get(word, word)) for word in arguments))
    assert done.returncode == 2
    assert done.stdout == b""
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith("anykvm: ")
    assert words in line


def test_hackbench_refuses_a_machine_before_it_speaks_of_booting_it(call, monkeypatch, tmp_path: Path) -> None:
    guest = SimpleNamespace(kernel=write_image(tmp_path), console="ttyAMA0", release="6.1")
    monkeypatch.setattr(debian, "guest", lambda arch: guest)
    monkeypatch.setattr(debian, "initramfs", lambda guest: None)
    status, _, err = call("hackbench", "arm64", "--smp", "0")
    assert (status, err) == (2, "anykvm: a machine with 0 vCPUs cannot run: give at least --smp 1\n")


def test_v_shows_where_an_error_comes_from(call) -> None:
    status, _, err = call("boot", "arm64", "-v", "--kernel", "/none")
    assert status == 2
    assert "Traceback" in err
    assert err.splitlines()[-1] == "anykvm: kernel /none is not there: check --kernel"


def test_help_names_the_commands_and_the_escape_key(call) -> None:
    status, out, _ = call("--help")
    assert status == 0
    for name in ("check", "boot", "hackbench", "guest"):
        assert name in out
    status, out, _ = call("boot", "--help")
    assert status == 0
    assert "Ctrl-A x" in out
    assert "Exit status" in out


def test_without_arguments_it_says_how_it_is_used(call) -> None:
    status, _, err = call()
    assert status == 2
    assert "Usage: anykvm" in err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (OSError(28, "No space left on device", "/cache/x"), 1, "anykvm: /cache/x: No space left on device"),
        (OSError(5, "Input/output error"), 1, "anykvm: Input/output error"),
        (MemoryError(), 1, "anykvm: this host has no memory left"),
        (KeyboardInterrupt(), 130, "anykvm: interrupted"),
        (RuntimeError("two\nlines"), 4, "anykvm: RuntimeError: two lines (a bug in anykvm; -v shows where)"),
    ],
)
def test_any_error_becomes_one_line(call, monkeypatch, error: BaseException, status: int, line: str) -> None:
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(check.check, "callback", fail)
    got, out, err = call("check")
    assert (got, out) == (status, "")
    assert err.startswith(line)
    assert err.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unwinds_what_is_going_on(call, monkeypatch, number: signal.Signals) -> None:
    undone = []

    def killed(**_: object) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(10)
        finally:
            undone.append(number)

    monkeypatch.setattr(check.check, "callback", killed)
    assert call("check") == (128 + number, "", f"anykvm: ended by {number.name}\n")
    assert undone == [number]
    assert signal.getsignal(number) is signal.SIG_DFL


def test_a_guest_error_is_one_line(call, monkeypatch, tmp_path: Path) -> None:
    from anykvm.guests import GuestError

    def fail(**_: object) -> None:
        raise GuestError("apt is not there: install it")

    monkeypatch.setattr(check.check, "callback", fail)
    assert call("check") == (1, "", "anykvm: apt is not there: install it\n")


def test_an_empty_cache_lists_no_guests(call, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ANYKVM_CACHE", str(tmp_path))
    status, out, _ = call("guest", "list")
    assert status == 0
    assert "anykvm guest pull" in out
    assert call("guest", "list", "--json")[1] == "[]\n"


def test_check_tells_of_every_backend(call) -> None:
    status, out, _ = call("check", "--json")
    offers = json.loads(out)
    assert {offer["backend"] for offer in offers} == {"software", "host"}
    assert all(offer["usable"] or offer["reason"] for offer in offers)
    assert status == (0 if any(offer["usable"] for offer in offers) else 1)
    text = call("check")[1]
    assert len(text.splitlines()) == len(offers)


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    shown, sink = os.pipe()
    os.close(shown)
    done = subprocess.run([*COMMAND, "boot", "--help"], stdout=sink, stderr=subprocess.PIPE, check=False, timeout=60)
    os.close(sink)
    assert done.returncode == 1
    assert done.stderr == b""


@pytest.mark.parametrize("ignored", [False, True])
def test_ctrl_c_while_modules_are_imported_is_no_traceback(tmp_path: Path, ignored: bool) -> None:
    (tmp_path / "click.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nraise SystemExit(7)\n")
    done = subprocess.run(
        COMMAND,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL),
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == (7 if ignored else -signal.SIGINT)
    assert done.stderr == b""


@pytest.mark.parametrize(
    ("program", "options", "status", "words"),
    [
        ("panic", [], 3, "the guest's kernel panicked: no init found"),
        ("reset", ["--no-reboot"], 0, "the guest rebooted"),
        ("reset", [], 3, "giving up"),
        ("bug", [], 4, "RuntimeError: a bug"),
        ("echo", ["--timeout", "0.3"], 124, "--timeout"),
        ("flood", ["--timeout", "0.3"], 124, "--timeout"),
    ],
)
def test_every_end_has_its_status_and_line(
    tmp_path: Path, program: str, options: list[str], status: int, words: str
) -> None:
    done = fake(program, "boot", "arm64", "--kernel", str(write_image(tmp_path)), *options)
    assert done.returncode == status, done.stderr
    assert words in done.stderr.decode().splitlines()[-1]
    assert b"Traceback" not in done.stderr


def test_json_says_how_it_ended(tmp_path: Path) -> None:
    done = fake("panic", "boot", "arm64", "--kernel", str(write_image(tmp_path)), "--json")
    assert json.loads(done.stderr)["outcome"] == "panic"


def test_piped_input_and_its_end(tmp_path: Path) -> None:
    done = fake("echo", "boot", "arm64", "--kernel", str(write_image(tmp_path)), stdin=None, input=b"hi\n\nQ")
    assert done.returncode == 0
    assert done.stdout == b"listening\r\n<68><69><0a><0a>"


def test_closed_standard_files(tmp_path: Path) -> None:
    words = [
        sys.executable,
        str(RUNNER),
        "reset",
        "boot",
        "arm64",
        "--no-reboot",
        "--kernel",
        str(write_image(tmp_path)),
    ]
    line = f"exec {shlex.join(words)} <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", line], check=False, timeout=60).returncode == 0


def test_the_process_start_is_a_moment_ago() -> None:
    assert 0 < time.monotonic() - timing.process_start() < 3600
    code = "import time; from anykvm.cli import timing; print(time.monotonic() - timing.process_start())"
    age = float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60).stdout)
    assert 0 < age < 10


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from anykvm.cli.main import run; run(['--help']); print(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60, text=True)
    loaded = set(done.stderr.split())
    assert not loaded & {"rich", "fdt", "elftools", "anykvm.api", "anykvm.guests", "anykvm.engine", "ctypes"}
