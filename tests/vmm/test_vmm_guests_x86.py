# SPDX-License-Identifier: GPL-2.0-only
"""Debian on the x86 machine, by the command: boot, shell, reboot, panic, disk, hackbench."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import time
from pathlib import Path

import lz4.block
import pytest
from vmm_generic_kernel import generic_kernel

from anykvm.api import architectures
from anykvm.cli.debian import initramfs
from anykvm.guests import Guest, GuestError, installed, pull

pytestmark = [
    pytest.mark.guest,
    pytest.mark.timeout(240),
    pytest.mark.skipif("x86" not in architectures(), reason="the software backend has no x86"),
]
COMMAND = [sys.executable, "-c", "from anykvm.cli.start import main; main()"]


@pytest.fixture(scope="module")
def guest() -> Guest:
    try:
        return installed("amd64") or pull("amd64")
    except GuestError as error:
        pytest.skip(f"no Debian guest here: {error}")


def anykvm(*arguments: str, script: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command; `script` is what is typed, through a pipe."""
    source = {"input": script} if script is not None else {"stdin": subprocess.DEVNULL}
    return subprocess.run(
        [*COMMAND, *arguments, "--backend", "software", "--timeout", "120"],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        **source,  # type: ignore[call-overload]
    )


@pytest.mark.parametrize("vcpus", [1, 2])
def test_debian_boots_and_powers_off(guest: Guest, vcpus: int) -> None:
    done = anykvm("boot", "x86", "--smp", str(vcpus), "--append", "anykvm.run=poweroff")
    assert done.returncode == 0, done.stderr
    assert "anykvm-ready poweroff" in done.stdout
    assert f"Brought up 1 node, {vcpus} CPU" in done.stdout
    assert done.stderr == ""
    for complaint in ("WARNING:", "BUG:", "Oops", "rcu_sched", "Call Trace", "ACPI Error", "ACPI BIOS"):
        assert complaint not in done.stdout


@pytest.mark.parametrize("entry", ["pvh", "linux"])
def test_debians_vmlinux_boots_by_either_entry(guest: Guest, tmp_path: Path, entry: str) -> None:
    kernel = tmp_path / "vmlinux"
    kernel.write_bytes(vmlinux_of(guest.kernel.read_bytes()))
    initrd = initramfs(guest)
    arguments = ("--kernel", str(kernel), "--initrd", str(initrd), "--entry", entry)
    done = anykvm("boot", "x86", *arguments, "--append", "anykvm.run=poweroff")
    assert done.returncode == 0, done.stderr
    assert "anykvm-ready poweroff" in done.stdout
    assert done.stderr == ""


def test_a_kernel_finds_the_machine_by_mp_tables(guest: Guest) -> None:
    try:
        kernel = generic_kernel()
    except GuestError as error:
        pytest.skip(f"no kernel that reads MP tables here: {error}")
    # The modules in the image are another kernel's. A machine without ACPI does not power off, but it resets.
    arguments = ("--kernel", str(kernel), "--initrd", str(initramfs(guest)), "--firmware", "mptable", "--smp", "2")
    done = anykvm("boot", "x86", *arguments, "--no-reboot", script="cat /proc/interrupts; reboot -f\n")
    assert done.returncode == 0, done.stderr
    assert "MPTABLE: Product ID: ANYKVM PC" in done.stdout
    assert "Brought up 1 node, 2 CPUs" in done.stdout
    assert re.search(r"IO-APIC +4-edge +ttyS0", done.stdout)
    assert done.stderr == "anykvm: the guest rebooted (--no-reboot)\n"
    for complaint in ("WARNING:", "BUG:", "Oops", "rcu_sched", "Call Trace"):
        assert complaint not in done.stdout


def vmlinux_of(image: bytes) -> bytes:
    """The ELF kernel in a bzImage that is packed with LZ4: blocks after their sizes, each 8 MiB unpacked."""
    start = (image[0x1F1] + 1) * 512
    offset, size = struct.unpack_from("<II", image, 0x248)
    data = image[start + offset : start + offset + size - 4]  # the last four bytes are its size when unpacked
    if data[:4] != b"\x02\x21\x4c\x18":
        pytest.skip("this kernel is packed otherwise")
    found, at = b"", 4
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        found += lz4.block.decompress(data[at + 4 : at + 4 + length], uncompressed_size=8 << 20)
        at += 4 + length
    return found


def test_a_shell_script_through_a_pipe(guest: Guest) -> None:
    script = "nproc\nuname -m\ndate +%s\ncat /sys/firmware/acpi/tables/APIC | wc -c\necho $((6 * 7))-done\n"
    done = anykvm("boot", "x86", "--append", "quiet", script=script)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.replace("\r", "").splitlines()
    assert "1" in lines
    assert "x86_64" in lines
    assert "80" in lines
    assert "42-done" in lines
    assert any(line.isdigit() and abs(int(line) - time.time()) < 300 for line in lines)
    assert any(line.startswith("anykvm-poweroff") for line in lines)


def test_a_reboot_is_real(guest: Guest, tmp_path: Path) -> None:
    # The kernel command line is the same again: what differs is the disk.
    script = "head -c 5 /dev/vda | grep -q again && poweroff -f; printf again > /dev/vda; sync; reboot -f\n"
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    done = anykvm("boot", "x86", "--disk", str(disk), "--append", "quiet", script=script * 2)
    assert disk.read_bytes()[:5] == b"again"
    assert done.stdout.count("anykvm-ready") == 2, done.stdout
    assert "the guest reset: starting it again" in done.stderr
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("how", ["reboot=t", "reboot=k", "reboot=a"])
def test_every_way_to_reset_is_a_reset(guest: Guest, how: str) -> None:
    # A triple fault, the keyboard controller, ACPI's reset register.
    done = anykvm("boot", "x86", "--no-reboot", "--append", f"quiet {how}", script="reboot -f\n")
    assert done.returncode == 0, done.stderr
    by = " by a triple fault" if how == "reboot=t" else ""
    assert done.stderr == f"anykvm: the guest rebooted{by} (--no-reboot)\n"


@pytest.mark.parametrize("how", ["panic=-1", "panic=0"])
def test_a_panic_is_told_in_one_line(guest: Guest, how: str) -> None:
    done = anykvm("boot", "x86", "--kernel", str(guest.kernel), "--append", how)
    assert done.returncode == 3
    (line,) = done.stderr.splitlines()
    assert line.startswith("anykvm: the guest's kernel panicked: VFS: Unable to mount root fs")


def test_a_disk_is_read_and_written(guest: Guest, tmp_path: Path) -> None:
    disk, other = tmp_path / "disk", tmp_path / "other"
    disk.write_bytes(b"from the host".ljust(1 << 20, b"\0"))
    other.write_bytes(b"only to read".ljust(1 << 20, b"\0"))
    script = (
        "head -c 13 /dev/vda; echo; head -c 12 /dev/vdb; echo\n"
        "printf 'from the guest' | dd of=/dev/vda bs=512 seek=8 conv=fsync 2>/dev/null; cat /sys/block/vdb/ro\n"
        "printf x > /dev/vdb || echo read-only-indeed; sync; cat /sys/class/misc/hw_random/rng_current\n"
    )
    done = anykvm("boot", "x86", "--disk", str(disk), "--disk", f"{other},ro", "--append", "quiet", script=script)
    assert done.returncode == 0, done.stderr
    assert "from the host" in done.stdout
    assert "only to read" in done.stdout
    assert "read-only-indeed" in done.stdout
    assert "virtio_rng.0" in done.stdout
    assert disk.read_bytes()[4096 : 4096 + 14] == b"from the guest"
    assert other.read_bytes() == b"only to read".ljust(1 << 20, b"\0")


def test_memory_above_four_gigabytes(guest: Guest) -> None:
    done = anykvm("boot", "x86", "--memory", "4G", "--append", "quiet", script="grep MemTotal /proc/meminfo\n")
    if "more than this host has" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    (total,) = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("MemTotal:")]
    assert 3_800_000 < int(total) < 4 << 20


def test_hackbench_tells_times_and_what_the_vcpus_did(guest: Guest) -> None:
    done = anykvm("hackbench", "x86", "--smp", "2", "--args", "-g 1 -l 10", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["arch"] == "x86"
    assert [item["name"] for item in result["results"]] == ["hackbench-process", "hackbench-thread"]
    assert all(item["status"] == 0 and item["seconds"] > 0 for item in result["results"])
    assert [vcpu["vcpu_id"] for vcpu in result["vcpus"]] == [0, 1]
    assert (result["outcome"], result["status"]) == ("power-off", 0)
