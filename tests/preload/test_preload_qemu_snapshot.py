# SPDX-License-Identifier: GPL-2.0-only
"""QEMU under exec keeps a running guest and takes it up again: savevm and loadvm, and migration to a file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from preload_qemu import HYPERV, WORDS, Monitor, command, disk, guest_or_skip

from anykvm.guests import Guest, build_initramfs
from anykvm.guests.init import arguments

pytestmark = [pytest.mark.guest, pytest.mark.timeout(280)]

LAST = 25
SCRIPT = f"""
i=0
echo 0 | dd of=/dev/vda bs=512 conv=fsync 2>/dev/null
while [ $i -lt {LAST} ]; do
    echo 3 >/proc/sys/vm/drop_caches
    [ "$(head -n 1 /dev/vda)" = $i ] || echo BAD disk $i
    i=$((i+1)); k=$((i%5))
    seq $i $((i+5000)) >/file$k; md5sum /file$k >/sum$k
    echo $i | dd of=/dev/vda bs=512 conv=fsync 2>/dev/null
    cat /sum* | md5sum -c | grep -v OK
    usleep 30000
    echo count $i
done
poweroff -f
"""
"""Counts in memory and on the disk, and reads all of it again in each round: what comes back wrong shows at once."""


@pytest.fixture(scope="module")
def guest() -> Guest:
    return guest_or_skip()


def words(guest: Guest, vcpus: int, drive: str, accel: str = "kvm") -> list[str]:
    line = f"{WORDS} {arguments('exec', script=SCRIPT)}"
    return [*command(guest, build_initramfs(guest), "pc", vcpus, "-append", line, accel=accel), "-drive", drive]


def well(qemu: Monitor) -> None:
    """The guest counted to the end without a complaint, and powered off."""
    assert qemu.ended() == 0
    bad = [line for line in qemu.lines if "BAD" in line or "FAILED" in line or "Call Trace" in line or "stall" in line]
    assert not bad, bad
    assert any("Power down" in line for line in qemu.lines), qemu.lines[-20:]


def counted(lines: list[str]) -> list[int]:
    return [int(found[1]) for line in lines if (found := re.fullmatch(r"count (\d+)", line))]


def test_savevm_and_loadvm(guest: Guest, tmp_path: Path) -> None:
    with disk(tmp_path / "disk") as drive, Monitor(words(guest, 2, drive), tmp_path) as qemu:
        qemu.wait("count 5")
        assert qemu.tell("savevm one") == ""
        qemu.wait("count 12")
        for _ in range(2):
            begin = len(qemu.lines)
            assert qemu.tell("loadvm one") == ""
            qemu.wait("count 12", after=begin)
            # A line that was half out, or of the time before the command, may be first.
            again = counted(qemu.lines[begin:])
            assert again[-1] - again[again.index(min(again))] + 1 == len(again) - again.index(min(again))
            assert min(again) < 10
        qemu.wait(f"count {LAST}", after=begin)
        well(qemu)


@pytest.mark.parametrize(
    ("cpu", "vcpus", "accel"),
    [
        pytest.param(HYPERV, 1, "kvm", id="hyperv"),
        pytest.param("host", 2, "kvm,dirty-ring-size=4096,kernel-irqchip=split", id="rings"),
    ],
)
def test_migration_to_a_file(guest: Guest, tmp_path: Path, cpu: str, vcpus: int, accel: str) -> None:
    """By the dirty log, and by the rings."""
    state = tmp_path / "state"
    with disk(tmp_path / "disk") as drive:
        line = [*words(guest, vcpus, drive, accel), "-cpu", cpu]
        with Monitor(line, tmp_path) as qemu:
            qemu.wait("count 5")
            # Slow enough that the guest writes to pages which are out already: the dirty log brings them again.
            assert qemu.tell("migrate_set_parameter max-bandwidth 100M") == ""
            assert qemu.tell(f'migrate "exec:cat > {state}"') == ""
            told = qemu.tell("info migrate")
            assert "Migration status: completed" in told
            rounds = re.search(r"dirty sync count: (\d+)", told)
            assert rounds is not None and int(rounds[1]) > 2, told
            assert "paused (postmigrate)" in qemu.tell("info status")
        before = qemu.console()
        assert counted(before.splitlines())[-1] < LAST
        with Monitor([*line, "-incoming", f"exec:cat {state}"], tmp_path) as qemu:
            qemu.wait(f"count {LAST}")
            well(qemu)
            # A line may have begun in the one and ended in the other.
            assert counted((before + qemu.console()).splitlines()) == list(range(1, LAST + 1))
