# SPDX-License-Identifier: GPL-2.0-only
"""QEMU, unmodified, with -accel kvm under exec: Debian boots, works and ends."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from preload_qemu import HYPERV, WORDS, command, guest_or_skip
from preload_run import EXEC

from anykvm.guests import Guest, build_initramfs
from anykvm.guests.init import arguments

pytestmark = [pytest.mark.guest, pytest.mark.timeout(280)]


@pytest.fixture(scope="module")
def guest() -> Guest:
    return guest_or_skip()


@pytest.mark.parametrize(("machine", "vcpus"), [("microvm,isa-serial=on", 2), ("pc", 1)])
def test_debian_runs_hackbench_and_powers_off(guest: Guest, tmp_path: Path, machine: str, vcpus: int) -> None:
    what = arguments("hackbench", args=["-g", "1", "-l", "10"])
    words = command(guest, build_initramfs(guest), machine, vcpus, "-serial", "stdio", "-append", f"{WORDS} {what}")
    words.insert(len(EXEC), f"--trace-file={tmp_path / 'trace'}")
    done = subprocess.run(words, capture_output=True, text=True, timeout=250, stdin=subprocess.DEVNULL)
    assert "anykvm-end hackbench-thread 0" in done.stdout, done.stdout[-2000:] + done.stderr
    assert "Power down" in done.stdout and done.returncode == 0
    assert "Call Trace" not in done.stdout
    # SeaBIOS goes to system management mode and moves SMBASE; microvm's firmware has none.
    assert ("KVM_SMI" in (tmp_path / "trace").read_text()) == (machine == "pc")


def test_debian_takes_it_for_hyperv(guest: Guest, tmp_path: Path) -> None:
    script = (
        "cat /sys/devices/system/clocksource/clocksource0/current_clocksource; dmesg | grep Hyper-V;"
        "grep HVS /proc/interrupts; poweroff -f"
    )
    words = command(guest, build_initramfs(guest), "pc", 2, "-serial", "stdio", "-cpu", HYPERV)
    words += ["-append", f"{WORDS} {arguments('exec', script=script)}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=250, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    for said in (
        "hyperv_clocksource_tsc_page",
        "Hypervisor detected: Microsoft Hyper-V",
        "Using hypercall for remote TLB flush",
        "Using IPI hypercalls",
        "Using enlightened APIC",
    ):
        assert said in done.stdout
    ticks = next(line for line in done.stdout.splitlines() if line.strip().startswith("HVS:"))
    assert all(int(count) > 10 for count in ticks.split()[1:3]), ticks
    assert "Call Trace" not in done.stdout


@pytest.mark.parametrize(
    ("machine", "vcpus", "accel", "cpu"),
    [
        ("q35", 2, "kvm,dirty-ring-size=4096", "host"),
        ("pc", 1, "kvm,kernel-irqchip=split", "max"),
        ("pc", 1, "kvm,kernel-irqchip=off", "qemu64"),
    ],
)
def test_other_machines_and_interrupt_controllers(guest: Guest, machine: str, vcpus: int, accel: str, cpu: str) -> None:
    words = command(guest, build_initramfs(guest), machine, vcpus, "-serial", "stdio", "-cpu", cpu, accel=accel)
    words += ["-append", f"{WORDS} {arguments('exec', script='cat /proc/interrupts; poweroff -f')}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=250, stdin=subprocess.DEVNULL)
    assert "Power down" in done.stdout and done.returncode == 0, done.stdout[-2000:] + done.stderr
    assert "Call Trace" not in done.stdout
    [timer] = [line.split() for line in done.stdout.splitlines() if line.strip().startswith("LOC:")]
    assert all(int(count) > 0 for count in timer[1 : vcpus + 1])


def test_virtio_block_and_net(guest: Guest, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(b"from the host".ljust(1 << 20, b"\0"))
    script = (
        "head -c 13 /dev/vda; echo; echo from the guest | dd of=/dev/vda bs=512 seek=1 2>/dev/null; sync;"
        "ifconfig eth0 10.0.2.15 up; nc 10.0.2.100 80 </dev/null; cat /proc/interrupts; poweroff -f"
    )
    words = command(guest, build_initramfs(guest, modules=["virtio_net"]), "pc", 2, "-serial", "stdio")
    words += ["-drive", f"file={disk},if=virtio,format=raw", "-device", "virtio-net-pci,netdev=n"]
    words += ["-netdev", "user,id=n,restrict=on,guestfwd=tcp:10.0.2.100:80-cmd:echo through the net"]
    words += ["-append", f"{WORDS} {arguments('exec', script=script)}"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=250, stdin=subprocess.DEVNULL)
    assert "from the host" in done.stdout, done.stdout[-2000:] + done.stderr
    assert disk.read_bytes()[512:].startswith(b"from the guest\n")
    assert "through the net" in done.stdout
    assert done.returncode == 0
