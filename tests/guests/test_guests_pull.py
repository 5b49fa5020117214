# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from guests_fakes import KERNEL, RELEASE, FakeDebian, module, tiny_elf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from anykvm.guests import GuestError, cache_dir, installed, list_guests, programs, pull
from anykvm.guests.guest import manifest_path


def one_line(error: pytest.ExceptionInfo[GuestError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def temporaries(cache: Path) -> list[Path]:
    return list(cache.rglob(".tmp-*"))


def test_a_pull_and_what_it_leaves(debian: FakeDebian, cache: Path) -> None:
    stages: list[tuple[str, int, int]] = []
    guest = pull("arm64", progress=lambda *now: stages.append(now))
    assert (guest.arch, guest.release, guest.console) == ("arm64", RELEASE, "ttyAMA0")
    assert guest.kernel.read_bytes() == KERNEL
    assert guest.config.read_text() == "CONFIG_SMP=y\n"
    assert set(guest.programs) == {
        "bin/busybox",
        "usr/bin/hackbench",
        "usr/lib/aarch64-linux-gnu/libnuma.so.1",
        "lib/aarch64-linux-gnu/libc.so.6",
        "lib/ld-linux-aarch64.so.1",
    }
    assert all(file.path.stat().st_size == file.size and not file.path.is_symlink() for file in guest.programs.values())
    assert {"virtio_mmio", "virtio_rng", "loop"} <= set(guest.modules)
    assert set(guest.packages) == {f"linux-image-{RELEASE}", "busybox-static", "rt-tests", "libc6", "libnuma1"}
    assert guest.packages["libc6"] == "1:6.1.1-1"
    assert {stage for stage, _, _ in stages} == {"lists", "download", "unpack"}
    assert all(0 <= done <= total for _, done, total in stages)
    assert temporaries(cache) == []
    assert not (cache / "apt/arm64/debs").exists()
    assert not (guest.directory / "tree").exists()


def test_apt_gets_a_state_of_its_own(debian: FakeDebian, cache: Path) -> None:
    (debian.home / "etc/sources.list").write_text("deb [arch=amd64] http://archive.invalid/debian bookworm main\n")
    pull("arm64")
    config = (cache / "apt/arm64/apt.conf").read_text()
    assert 'APT::Architecture "arm64";' in config
    assert f'Dir::State::status "{cache}/apt/arm64/status";' in config
    assert 'APT::Sandbox::User "root";' in config
    assert "#clear APT::Update::Post-Invoke;" in config
    assert "arch" not in (cache / "apt/arm64/sources/debian.sources").read_text().replace("archive", "").lower()
    assert all(
        f"-c {cache}/apt/arm64/apt.conf" in line for line in debian.log if line.startswith(("apt-get", "apt-cache"))
    )


def test_warm_needs_no_program_and_no_time(debian: FakeDebian, monkeypatch: pytest.MonkeyPatch) -> None:
    guest = pull("arm64")
    calls = len(debian.log)
    monkeypatch.setenv("PATH", "/nonexistent")
    best = min(_seconds(lambda: installed("arm64")) for _ in range(5))
    assert best < 0.02
    assert installed("arm64") == guest == pull("arm64")
    assert list_guests() == [guest]
    assert len(debian.log) == calls


def _seconds(call: object) -> float:
    start = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - start


def test_a_cache_can_be_moved(debian: FakeDebian, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pull("arm64")
    moved = cache.with_name("moved")
    cache.rename(moved)
    assert installed("arm64") is None
    monkeypatch.setenv("ANYKVM_CACHE", str(moved))
    guest = installed("arm64")
    assert guest is not None and guest.kernel.is_relative_to(moved)


def test_refresh_takes_the_newer_and_keeps_the_last(debian: FakeDebian) -> None:
    first = pull("arm64")
    for n in (1, 2):
        debian.add("busybox-static", {"bin/busybox": tiny_elf(needed=()) + bytes(n)}, version=f"2-{n}")
        assert pull("arm64").packages["busybox-static"] != f"2-{n}"
        newer = pull("arm64", refresh=True)
        assert newer.packages["busybox-static"] == f"2-{n}"
        assert newer.kernel.exists()
        assert first.kernel.exists() == (n == 1)


def test_refresh_of_the_same_versions(debian: FakeDebian) -> None:
    assert pull("arm64") == pull("arm64", refresh=True)


@pytest.mark.parametrize("program", ["apt-get", "apt-cache", "apt-config", "dpkg-deb"])
def test_a_program_is_missing(debian: FakeDebian, program: str) -> None:
    (debian.bin / program).unlink()
    with pytest.raises(GuestError, match=f"{program} is not on PATH.*install it") as error:
        pull("arm64")
    one_line(error)
    assert installed("arm64") is None


def test_a_program_cannot_be_started(debian: FakeDebian) -> None:
    (debian.bin / "apt-get").write_text("#!/nonexistent/interpreter\n")
    with pytest.raises(GuestError, match="apt-get cannot be started") as error:
        pull("arm64")
    one_line(error)


@pytest.mark.parametrize("what", ["update", "download", "show", "dpkg-deb", "apt-config"])
def test_a_program_fails(debian: FakeDebian, cache: Path, what: str) -> None:
    debian.fail(what, "W: noise\nE: Could not resolve 'archive.invalid'\nE: http://me:secret@proxy.invalid/ said 407\n")
    with pytest.raises(GuestError, match=r"failed: E: Could not resolve 'archive.invalid'; E: http://proxy") as error:
        pull("arm64")
    assert "secret" not in one_line(error)
    assert temporaries(cache) == []
    debian.fail()
    assert pull("arm64").release == RELEASE


def test_a_failure_without_words_and_one_with_too_many(debian: FakeDebian) -> None:
    debian.fail("update", "", 7)
    with pytest.raises(GuestError, match="exit status 7, without a word"):
        pull("arm64")
    debian.fail("update", "E: " + "x" * 5000)
    with pytest.raises(GuestError) as error:
        pull("arm64")
    assert len(one_line(error)) < 500


@pytest.mark.parametrize("what", ["update", "download", "dpkg-deb"])
@pytest.mark.parametrize(
    "words",
    [
        "E: Write error - write (28: No space left on device)",
        "E: You don't have enough free space in /x/archives/.",
        "dpkg-deb: error: cannot write: Disk quota exceeded",
    ],
)
def test_programs_that_find_no_space(debian: FakeDebian, what: str, words: str) -> None:
    debian.fail(what, words)
    with pytest.raises(GuestError, match=r"no space left in the cache .*: free about 300 MB") as error:
        pull("arm64")
    one_line(error)


def disk(monkeypatch: pytest.MonkeyPatch, *free: int) -> None:
    """Makes the free space what `free` says, call by call, and the last one for ever."""
    numbers = list(free)

    def usage(_: object) -> SimpleNamespace:
        return SimpleNamespace(free=numbers.pop(0) if len(numbers) > 1 else numbers[0])

    monkeypatch.setattr(shutil, "disk_usage", usage)


def test_too_little_space_is_said_before_anything_is_fetched(
    debian: FakeDebian, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk(monkeypatch, 100 << 20)
    with pytest.raises(GuestError, match="no space left in the cache") as error:
        pull("arm64")
    one_line(error)
    assert debian.log == []


def test_apt_hangs_on_a_full_file_system(debian: FakeDebian, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_GRACE", 0.2)
    disk(monkeypatch, 1 << 40, 0)
    debian.fail("update", sleep=60)
    start = time.monotonic()
    with pytest.raises(GuestError, match="no space left in the cache"):
        pull("arm64")
    assert time.monotonic() - start < 20


def test_apt_hangs_for_no_reason(debian: FakeDebian, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "_SILENCE", 0.2)
    debian.fail("update", sleep=60)
    with pytest.raises(GuestError, match="apt-get hangs: look at the network") as error:
        pull("arm64")
    one_line(error)


def test_output_of_programs(debian: FakeDebian) -> None:
    tool = debian.bin / "tool"
    tool.write_text("#!/bin/sh\necho one; echo drop; echo bad >&2; printf 'ä\\377 end'; exit 3\n")
    tool.chmod(0o755)
    seen: list[str] = []

    def line(text: str) -> bool:
        seen.append(text)
        return text == "drop"

    done = programs.run(["tool"], line=line)
    assert (done.status, done.output, done.errors) == (3, "one\nä\ufffd end\n", "bad\n")
    assert sorted(seen) == ["bad", "drop", "one", "ä\ufffd end"]


@pytest.mark.parametrize("name", ["linux-image-cloud-arm64", f"linux-image-{RELEASE}", "busybox-static", "rt-tests"])
def test_a_package_is_not_there(debian: FakeDebian, name: str) -> None:
    debian.remove(name)
    with pytest.raises(GuestError, match=f"package {name} for arm64 is in none of apt's archives: check") as error:
        pull("arm64")
    one_line(error)


def test_a_library_is_nowhere(debian: FakeDebian, cache: Path) -> None:
    debian.remove("libnuma1")
    with pytest.raises(GuestError, match=r"no package has .*libnuma\.so\.1"):
        pull("arm64")
    assert temporaries(cache) == []


def test_a_metapackage_without_kernel(debian: FakeDebian) -> None:
    debian.add("linux-image-cloud-arm64", {}, depends="linux-base")
    with pytest.raises(GuestError, match="depends on no kernel"):
        pull("arm64")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"boot/vmlinuz": KERNEL}, "no /boot/vmlinuz-"),
        ({f"boot/vmlinuz-{RELEASE}": KERNEL}, "no /boot/config-"),
        ({f"boot/vmlinuz-{RELEASE}": b"MZ", f"boot/config-{RELEASE}": b""}, "no arm64 kernel in a known format"),
        ({f"boot/vmlinuz-{RELEASE}": KERNEL, f"boot/config-{RELEASE}": b""}, "no modules for"),
    ],
)
def test_kernel_packages_of_another_shape(debian: FakeDebian, cache: Path, files: dict[str, bytes], words: str) -> None:
    debian.add(f"linux-image-{RELEASE}", {"usr/share/doc/x": b"", **files})  # type: ignore[dict-item]
    with pytest.raises(GuestError, match=words) as error:
        pull("arm64")
    one_line(error)
    assert temporaries(cache) == []


def test_an_unsigned_kernel_has_the_same_release(debian: FakeDebian) -> None:
    deb = {
        f"boot/vmlinuz-{RELEASE}": KERNEL,
        f"boot/config-{RELEASE}": b"",
        f"usr/lib/modules/{RELEASE}/kernel/virtio.ko": module(),
    }
    debian.add(f"linux-image-{RELEASE}-unsigned", deb)  # type: ignore[arg-type]
    debian.add("linux-image-cloud-arm64", {}, depends=f"linux-image-{RELEASE}-unsigned (= 6.1.1-1)")
    guest = pull("arm64")
    assert guest.release == RELEASE
    assert set(guest.modules) == {"virtio"}


def test_a_program_that_is_no_elf_file(debian: FakeDebian) -> None:
    debian.add("busybox-static", {"bin/busybox": b"#!/bin/sh\n"})
    with pytest.raises(GuestError, match="not an ELF file"):
        pull("arm64")


def test_links_out_of_a_package_are_not_followed(debian: FakeDebian, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(tiny_elf())
    debian.add("busybox-static", {"bin/busybox": "../../../../../../../outside"})
    with pytest.raises(GuestError):
        pull("arm64")


def test_damaged_downloads_are_refused_and_fetched_again(debian: FakeDebian) -> None:
    deb = debian.home / "debs/rt-tests"
    good = deb.read_bytes()
    deb.write_bytes(good[:-1] + b"x")
    with pytest.raises(GuestError, match=r"rt-tests_.* came damaged or not at all"):
        pull("arm64")
    deb.write_bytes(good)
    assert pull("arm64").release == RELEASE


def test_an_interrupted_pull_goes_on_where_it_was(debian: FakeDebian, cache: Path) -> None:
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "unpack":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull("arm64", progress=interrupt)
    assert installed("arm64") is None
    assert temporaries(cache) == []
    fetched = [line for line in debian.log if " download " in line]
    assert len(fetched) == 1
    pull("arm64")
    again = [line for line in debian.log if " download " in line][1:]
    assert again and all("linux-image" not in line and "rt-tests" not in line for line in again)


def test_a_killed_pull_leaves_nothing_in_the_way(debian: FakeDebian, cache: Path) -> None:
    debian.fail("dpkg-deb", sleep=30)
    process = subprocess.Popen(
        [sys.executable, "-c", "from anykvm.guests import pull; pull('arm64')"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        start_new_session=True,
    )
    deadline = time.monotonic() + 20
    while not any(line.startswith("dpkg-deb") for line in debian.log) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, 9)
    process.wait(10)
    assert installed("arm64") is None
    assert len(temporaries(cache)) == 1
    debian.fail()
    assert pull("arm64").release == RELEASE
    assert temporaries(cache) == []


def test_one_at_a_time_with_a_word_about_it(
    debian: FakeDebian, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.mkdir()
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        stages: list[str] = []
        done: list[object] = []
        threads = [
            threading.Thread(target=lambda: done.append(pull("arm64", progress=lambda s, *_: stages.append(s)))),
            threading.Thread(target=lambda: done.append(pull("arm64"))),
        ]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        assert (stages, done) == (["waiting for another anykvm"], [])
        assert "waiting for another anykvm..." in capsys.readouterr().err
        fcntl.flock(lock, fcntl.LOCK_UN)
        for thread in threads:
            thread.join(20)
    assert len(done) == 2 and done[0] == done[1]
    assert sum(" update " in line for line in debian.log) == 1


def test_an_unknown_architecture_names_the_known() -> None:
    for call in (pull, installed):
        with pytest.raises(GuestError, match="no Debian guest for 'vax': choose one of amd64, arm64"):
            call("vax")


def test_files_that_went_away_or_were_cut(debian: FakeDebian) -> None:
    guest = pull("arm64")
    file = guest.programs["usr/bin/hackbench"].path
    file.write_bytes(file.read_bytes()[:-1])
    assert installed("arm64") is None
    assert pull("arm64") == guest
    guest.kernel.unlink()
    assert installed("arm64") is None
    assert list_guests() == []


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(
    st.binary(max_size=30)
    | st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(st.text(), inner)).map(
        lambda value: json.dumps(value).encode()
    )
    | st.sampled_from([b'{"format": 1}', b'{"format": 1, "arch": "arm64", "programs": []}'])
)
def test_any_manifest_is_read_without_harm(cache: Path, content: bytes) -> None:
    manifest_path("arm64").parent.mkdir(parents=True, exist_ok=True)
    manifest_path("arm64").write_bytes(content)
    assert installed("arm64") is None


def test_a_cache_path_apt_cannot_take(debian: FakeDebian, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYKVM_CACHE", str(tmp_path / 'a"b'))
    with pytest.raises(GuestError, match="set ANYKVM_CACHE to a path without quotes"):
        pull("arm64")


def test_a_cache_below_a_file(debian: FakeDebian, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ANYKVM_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(GuestError, match="set ANYKVM_CACHE to another") as error:
        pull("arm64")
    one_line(error)


@pytest.mark.guest
@pytest.mark.parametrize("arch", ["arm64", "amd64"])
def test_debian_itself(arch: str) -> None:
    guest = pull(arch)
    assert guest.release.endswith(f"cloud-{arch}")
    assert guest.kernel.stat().st_size > 5_000_000
    assert {"bin/busybox", "usr/bin/hackbench"} <= set(guest.programs)
    assert any(name.endswith("/libc.so.6") for name in guest.programs)
    assert guest.kernel.is_relative_to(cache_dir())
    assert {"virtio_blk", "virtio_mmio"} <= set(guest.modules)
