# SPDX-License-Identifier: GPL-2.0-only
"""The init script, run by this machine's shell against a small picture of /proc, /sys and the programs it starts."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from anykvm.guests import GuestError, arguments, read_transcript
from anykvm.guests.init import INIT, MODES

SHELL = "/bin/sh"


class Picture:
    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("bin", "proc/sys/kernel", "run", "root", "etc/anykvm", "usr/bin"):
            (root / folder).mkdir(parents=True)
        (root / "proc/uptime").write_text("12.34 5.00\n")
        (root / "proc/sys/kernel/printk").write_text("7 4 1 7\n")
        for name in ("mount", "insmod", "poweroff", "busybox", "setsid"):
            self.program(name, f'echo "{name} $*" >> {root}/log')
        self.program("hackbench", 'echo "args: $*"; echo "Time: 0.125"')
        shutil.copy(root / "bin/hackbench", root / "usr/bin/hackbench")
        for name in ("sh", "base64"):
            (root / "bin" / name).symlink_to(shutil.which(name) or SHELL)

    def program(self, name: str, text: str) -> None:
        path = self.root / "bin" / name
        path.write_text(f"#!{SHELL}\n{text}\n")
        path.chmod(0o755)

    def device(self, bus: str, name: str, alias: str) -> None:
        folder = self.root / "sys/bus" / bus / "devices" / name
        folder.mkdir(parents=True)
        (folder / "modalias").write_text(alias + "\n")

    def run(self, line: str) -> str:
        (self.root / "proc/cmdline").write_text(f"console=ttyAMA0 {line}\n")
        script = re.sub(r"(?<![\w$}/])/(proc|sys|etc|run|root|usr/bin/hackbench|anykvm\.sh)", rf"{self.root}/\1", INIT)
        script = re.sub(r"PATH=\S+", f"PATH={self.root}/bin", script)
        done = subprocess.run([SHELL, "-c", script], capture_output=True, text=True, timeout=20, check=False)
        assert done.stderr == ""
        return done.stdout

    @property
    def log(self) -> list[str]:
        return (self.root / "log").read_text().replace(str(self.root), "").splitlines()


@pytest.fixture
def picture(tmp_path: Path) -> Picture:
    return Picture(tmp_path)


def test_the_script_is_one() -> None:
    assert INIT.startswith("#!/bin/sh\n")
    subprocess.run([SHELL, "-n", "-c", INIT], check=True, timeout=10)


def test_poweroff(picture: Picture) -> None:
    assert picture.run(arguments("poweroff")) == "anykvm-ready poweroff 12.34\nanykvm-poweroff 12.34\n"
    assert picture.log[:3] == ["mount -t proc proc /proc", "mount -t sysfs sysfs /sys", "mount -t devtmpfs dev /dev"]
    assert picture.log[-1] == "poweroff -f"
    assert (picture.root / "proc/sys/kernel/printk").read_text() == "4\n"


def test_hackbench_in_both_ways(picture: Picture) -> None:
    transcript = read_transcript(picture.run(arguments("hackbench", args=["-g2", "-l100"])))
    assert [(r.name, r.status, r.seconds) for r in transcript.results] == [
        ("hackbench-process", 0, 0.125),
        ("hackbench-thread", 0, 0.125),
    ]
    assert [r.output.splitlines()[0] for r in transcript.results] == ["args: -g2 -l100", "args: -g2 -l100 -T"]
    assert transcript.poweroff == 12.34


@pytest.mark.parametrize(
    ("option", "name"), [("-T", "thread"), ("--threads", "thread"), ("-P", "process"), ("--process", "process")]
)
def test_hackbench_in_the_way_asked_for(picture: Picture, option: str, name: str) -> None:
    (result,) = read_transcript(picture.run(arguments("hackbench", args=["-g1", option]))).results
    assert result.name == f"hackbench-{name}"
    assert result.output.startswith(f"args: -g1 {option}\n")


def test_hackbench_fails(picture: Picture) -> None:
    picture.program("hackbench", "echo no >&2; exit 9")
    transcript = read_transcript(picture.run(arguments("hackbench")))
    assert [(r.status, r.output) for r in transcript.results] == [(9, "no\n"), (9, "no\n")]


def test_an_image_without_hackbench(picture: Picture) -> None:
    (picture.root / "usr/bin/hackbench").unlink()
    transcript = read_transcript(picture.run(arguments("hackbench")))
    assert transcript.errors == ("this image has no hackbench",)
    assert transcript.poweroff == 12.34


def test_a_script_on_the_command_line(picture: Picture) -> None:
    transcript = read_transcript(picture.run(arguments("exec", script="echo 'a  b' *\nexit 42")))
    (result,) = transcript.results
    assert (result.name, result.status) == ("exec", 42)
    assert result.output.startswith("a  b ")
    assert "busybox --install -s" in picture.log


def test_a_script_in_the_image(picture: Picture) -> None:
    (picture.root / "anykvm.sh").write_text("echo from the image")
    (result,) = read_transcript(picture.run(arguments("exec"))).results
    assert (result.status, result.output) == (0, "from the image\n")


def test_exec_of_nothing(picture: Picture) -> None:
    transcript = read_transcript(picture.run(arguments("exec")))
    assert transcript.errors == ("no anykvm.cmd and no /anykvm.sh".replace("/", f"{picture.root}/"),)
    assert transcript.results == ()


def test_the_shell_can_power_off_though_there_is_no_init(picture: Picture) -> None:
    picture.program("setsid", f'read -r line < "$ENV"; echo "$line" >> {picture.root}/log')
    picture.run("quiet")
    assert "alias poweroff='poweroff -f' halt='poweroff -f' reboot='reboot -f'" in picture.log


def test_the_shell_is_what_one_gets_unasked(picture: Picture) -> None:
    assert picture.run("quiet") == "anykvm-ready shell 12.34\nanykvm-poweroff 12.34\n"
    assert picture.log[-3:] == ["busybox --install -s", "setsid cttyhack sh", "poweroff -f"]
    assert (picture.root / "proc/sys/kernel/printk").read_text() == "7 4 1 7\n"


def test_an_unknown_mode_ends(picture: Picture) -> None:
    transcript = read_transcript(picture.run("anykvm.run=dance"))
    assert "anykvm.run=dance is not one of" in transcript.errors[0]
    assert picture.log[-1] == "poweroff -f"


def _table(picture: Picture) -> None:
    (picture.root / "etc/anykvm/modules").write_text(
        "- /m/loop.ko\n"
        "of:N*T*Cvirtio,mmio /m/virtio.ko /m/virtio_mmio.ko\n"
        "virtio:d00000002v* /m/virtio.ko /m/virtio_blk.ko\n"
        "virtio:d00000004v* /m/virtio.ko /m/virtio_rng.ko\n"
    )
    picture.device("platform", "a000000.virtio_mmio", "of:NvirtioT(null)Cvirtio,mmio")
    picture.device("platform", "a000200.virtio_mmio", "of:NvirtioT(null)Cvirtio,mmio")
    picture.device("platform", "9000000.pl011", "of:Npl011T(null)Carm,pl011")
    picture.device("virtio", "virtio0", "virtio:d00000002v554D4551")


def test_modules_for_the_devices_there_are(picture: Picture) -> None:
    _table(picture)
    picture.run(arguments("exec", script="true"))
    inserted = [line.split("/")[-1] for line in picture.log if line.startswith("insmod")]
    assert inserted == ["loop.ko", "virtio.ko", "virtio_mmio.ko", "virtio_blk.ko"]


@pytest.mark.parametrize("mode", ["hackbench", "poweroff"])
def test_measured_modes_insert_only_what_was_named(picture: Picture, mode: str) -> None:
    _table(picture)
    picture.run(arguments(mode))
    assert [line for line in picture.log if line.startswith("insmod")] == ["insmod /m/loop.ko"]


def test_a_module_that_fails_is_reported(picture: Picture) -> None:
    _table(picture)
    picture.program("insmod", "exit 1")
    transcript = read_transcript(picture.run(arguments("poweroff")))
    assert transcript.errors == ("insmod /m/loop.ko: 1",)
    assert transcript.mode == "poweroff"


def test_arguments() -> None:
    assert arguments() == "anykvm.run=shell"
    assert arguments("hackbench", args=["-g2", "-l100"]) == "anykvm.run=hackbench anykvm.args=-g2,-l100"
    words = arguments("exec", script="echo ä").split()
    assert base64.b64decode(words[1].removeprefix("anykvm.cmd=")) == "echo ä".encode()
    assert all(arguments(mode) == f"anykvm.run={mode}" for mode in MODES)


@pytest.mark.parametrize("arg", ["", "a b", "a,b", 'a"b', "ä", "a\nb"])
def test_arguments_the_kernel_would_split(arg: str) -> None:
    with pytest.raises(GuestError, match="leave it out"):
        arguments("hackbench", args=[arg])


def test_too_much_for_a_command_line_and_unknown_modes() -> None:
    with pytest.raises(GuestError, match=r"do not fit the kernel command line: .*/anykvm\.sh"):
        arguments("exec", script="x" * 1500)
    with pytest.raises(GuestError, match="choose one of shell"):
        arguments("dance")
