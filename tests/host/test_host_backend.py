# SPDX-License-Identifier: GPL-2.0-only
"""The host backend: refusals that need no KVM, then the machine's own /dev/kvm where it has one."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner

from anykvm.api import GuestMemory, Interrupted, Kvm, Vm
from anykvm.cli import options
from anykvm.cli.check import check
from anykvm.host import HostBackend, backend, host_arch, probe, virtualises
from anykvm.uapi import common

pytestmark = pytest.mark.timeout(20)


def test_probe_says_what_is_wrong(tmp_path: Path) -> None:
    assert "is not there" in (probe(str(tmp_path / "kvm")) or "")
    assert probe("/dev/null") == "/dev/null is not KVM"
    assert "cannot be opened: Is a directory" in (probe(str(tmp_path)) or "")
    assert "\n" not in (probe(str(tmp_path / "kvm")) or "")


def test_probe_says_who_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    assert "join the group that owns it" in (probe() or "")


def test_probe_wants_version_12(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anykvm.host.backend._libc_ioctl", lambda *args: 13)
    assert probe("/dev/null") == "/dev/null speaks version 13 of the KVM API, not 12"


def test_open_refuses_as_the_kernel_does(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        HostBackend(str(tmp_path / "kvm")).open()


@pytest.mark.parametrize("request_number", [common.KVM_GET_API_VERSION, common.KVM_RUN])
def test_errors_are_the_kernels(request_number: int) -> None:
    backend = HostBackend("/dev/null")
    with pytest.raises(OSError) as caught:
        backend.ioctl(-1, request_number)
    assert caught.value.errno == errno.EBADF
    fd = backend.open()
    with pytest.raises(OSError) as caught:
        backend.ioctl(fd, request_number)
    assert caught.value.errno == errno.ENOTTY
    backend.close(fd)
    with pytest.raises(OSError) as caught:
        backend.close(fd)
    assert caught.value.errno == errno.EBADF
    backend.interrupt(fd)  # nothing runs: nothing to do


def test_mapping_what_is_no_vcpu(tmp_path: Path) -> None:
    backend = HostBackend("/dev/null")
    with pytest.raises(OSError) as caught:
        backend.mmap(-1, 4096)
    assert caught.value.errno == errno.EBADF
    fd = backend.open()
    with pytest.raises(OSError) as caught:
        backend.mmap(fd, 4096)
    assert caught.value.errno == errno.ENODEV
    backend.close(fd)


def test_host_arch_is_one_of_ours() -> None:
    assert host_arch() == {"aarch64": "arm64", "x86_64": "x86"}.get(os.uname().machine, os.uname().machine)


def test_probe_says_why_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = str(tmp_path / "kvm")
    marker = tmp_path / "container"
    monkeypatch.setattr("anykvm.host.backend._CONTAINERS", (str(marker),))
    monkeypatch.setattr("anykvm.host.backend.virtualises", lambda: True)
    assert "its module is not loaded (modprobe" in (probe(absent) or "")
    monkeypatch.setattr("anykvm.host.backend.virtualises", lambda: False)
    assert "the CPU has no VMX or SVM" in (probe(absent) or "")
    marker.touch()
    assert "this container was not given it" in (probe(absent) or "")


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EACCES, "join the group that owns it"),
        (errno.EPERM, "this container's device policy"),
        (errno.ENODEV, "has no driver behind it"),
        (errno.ENXIO, "has no driver behind it"),
        (errno.EMFILE, "cannot be opened: Too many open files"),
    ],
)
def test_probe_says_why_it_does_not_open(monkeypatch: pytest.MonkeyPatch, number: int, words: str) -> None:
    def refuse(*args: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    reason = probe() or ""
    assert words in reason
    assert "\n" not in reason


@pytest.mark.parametrize(("machine", "name"), [("s390x", "s390"), ("riscv64", "riscv"), ("new", "new")])
def test_check_on_another_machine(monkeypatch: pytest.MonkeyPatch, machine: str, name: str) -> None:
    monkeypatch.setattr("anykvm.host.backend.os.uname", lambda: SimpleNamespace(machine=machine))
    assert host_arch() == name
    assert virtualises()
    found = CliRunner().invoke(check, ["--json"])
    assert found.exception is None or isinstance(found.exception, SystemExit)
    offers = json.loads(found.stdout)
    assert [(offer["backend"], offer["arch"]) for offer in offers][-1] == ("host", name)


@pytest.mark.parametrize("machine", ["ppc64le", "mips64"])
def test_where_requests_have_other_numbers(monkeypatch: pytest.MonkeyPatch, machine: str) -> None:
    monkeypatch.setattr("anykvm.host.backend.os.uname", lambda: SimpleNamespace(machine=machine))
    assert "number their requests in another way" in (probe() or "")
    offer = json.loads(CliRunner().invoke(check, ["--json"]).stdout)[-1]
    assert not offer["usable"]


def test_linux_on_a_kvm_that_emulates(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("anykvm.host.virtualises", lambda: False)
    monkeypatch.setattr("anykvm.host.probe", lambda: None)
    monkeypatch.setattr("anykvm.host.host_arch", lambda: "x86")
    with pytest.raises(click.UsageError, match=r"cannot boot Debian: no VMX or SVM here.*--backend software"):
        options.check_backend("host", "x86", debian=True)
    with pytest.raises(click.UsageError, match=r"no VMX or SVM here.*--backend software, or --force"):
        options.check_backend("host", "x86", debian=False)
    options.check_backend("host", "x86", debian=False, force=True)
    assert capsys.readouterr().err.startswith("anykvm: /dev/kvm: no VMX or SVM here")
    options.check_backend("software", "x86", debian=True)
    options.check_backend("host", "arm64", debian=True)


# From here on: the real thing, gently.


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    reason = probe()
    if reason is not None:
        pytest.skip(reason)
    with Kvm("host", arch=host_arch()) as kvm:
        yield kvm


@pytest.fixture
def vm(kvm: Kvm) -> Iterator[Vm]:
    with kvm.create_vm() as vm:
        yield vm


@pytest.mark.kvm
def test_system(kvm: Kvm) -> None:
    assert kvm.api_version() == common.KVM_API_VERSION
    assert kvm.vcpu_mmap_size() >= 4096
    assert kvm.check_extension(common.KVM_CAP_USER_MEMORY) == 1
    assert kvm.check_extension(0x7FFF) == 0
    with pytest.raises(OSError) as caught:
        kvm.ioctl(0xAEFF)
    assert caught.value.errno == errno.EINVAL


@pytest.mark.kvm
def test_a_vcpu_and_its_run_page(vm: Vm) -> None:
    with vm.create_vcpu(0) as vcpu:
        page = vcpu.run_page
        assert page.exit_reason == 0
        vcpu.immediate_exit = True
        assert page.immediate_exit == 1
        assert vcpu.run() == Interrupted()
        assert vcpu.immediate_exit
        assert os.readlink(f"/proc/self/fd/{vcpu.fd}") == "anon_inode:kvm-vcpu:0"


@pytest.mark.kvm
def test_vcpu_ids(kvm: Kvm, vm: Vm) -> None:
    with vm.create_vcpu(3):
        pass
    with pytest.raises(OSError) as caught:
        vm.create_vcpu(3)  # closing does not free the id
    assert caught.value.errno == errno.EEXIST
    for vcpu_id in (kvm.check_extension(common.KVM_CAP_MAX_VCPU_ID), -1, 1 << 31):
        with pytest.raises(OSError) as caught:
            vm.create_vcpu(vcpu_id)
        assert caught.value.errno == errno.EINVAL


@pytest.mark.kvm
def test_no_fd_left_and_then_the_same_id(vm: Vm) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
    try:
        with pytest.raises(OSError) as caught:
            vm.create_vcpu(0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert caught.value.errno == errno.EMFILE
    with vm.create_vcpu(0) as vcpu:
        assert vcpu.vcpu_id == 0


@pytest.mark.kvm
def test_memory_slots(vm: Vm) -> None:
    with GuestMemory(1 << 16) as memory:
        vm.set_user_memory_region(0, 0x10000, memory)
        with pytest.raises(OSError) as caught:
            vm.set_user_memory_region(1, 0x10000, memory)
        assert caught.value.errno == errno.EEXIST
        vm.set_user_memory_region(0, 0, None)
        with pytest.raises(OSError) as caught:
            vm.set_user_memory_region(0, 1, memory)
        assert caught.value.errno == errno.EINVAL
        vm.set_user_memory_region(0, 0, memory, flags=common.KVM_MEM_LOG_DIRTY_PAGES)
        assert vm.get_dirty_log(0) == bytes(8)
        vm.set_user_memory_region(0, 0, None)


@pytest.mark.kvm
def test_statistics(vm: Vm) -> None:
    if not vm.check_extension(common.KVM_CAP_BINARY_STATS_FD):
        pytest.skip("this kernel has no binary statistics")
    with vm.create_vcpu(5) as vcpu, vcpu.stats_fd() as stats:
        assert stats.id == f"kvm-{os.getpid()}/vcpu-5"
        values = stats.read()
        assert values["exits"] == (0,) if "exits" in values else values
        assert all(len(values[name]) == d.size for name, d in stats.descriptors.items())


@pytest.mark.kvm
def test_unknown_device(vm: Vm) -> None:
    with pytest.raises(OSError) as caught:
        vm.create_device(0xFFFF)
    assert caught.value.errno == errno.ENODEV


@pytest.mark.kvm
def test_a_kick_before_the_run(vm: Vm) -> None:
    with vm.create_vcpu(0) as vcpu:
        vcpu.kick()
        assert vcpu.run() == Interrupted()
        assert not vcpu.immediate_exit


@pytest.mark.kvm
@pytest.mark.skipif(host_arch() != "x86", reason="needs a vCPU that waits for its INIT: x86 with an in-kernel APIC")
def test_a_kick_from_another_thread(vm: Vm) -> None:
    vm.create_irqchip()
    with vm.create_vcpu(0), vm.create_vcpu(1) as vcpu:
        # A secondary CPU sleeps in the kernel until it is sent INIT, which nobody does.
        results: list[object] = []
        thread = threading.Thread(target=lambda: results.append(vcpu.run()), daemon=True)
        thread.start()
        time.sleep(0.1)
        assert not results
        vcpu.kick()
        thread.join(timeout=5)
        assert results == [Interrupted()]


@pytest.mark.kvm
@pytest.mark.skipif(host_arch() != "x86", reason="needs a vCPU that waits for its INIT: x86 with an in-kernel APIC")
def test_a_signal_is_an_exit_and_nothing_is_restarted(vm: Vm) -> None:
    vm.create_irqchip()
    seen: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda number, frame: seen.append(number))
    try:
        with vm.create_vcpu(0), vm.create_vcpu(1) as vcpu:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            assert vcpu.run() == Interrupted()
            assert seen == [signal.SIGALRM]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_whether_the_cpu_virtualises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr("anykvm.host.backend.host_arch", lambda: "x86")
    for flags, answer in (("fpu vmx sse", True), ("fpu svm", True), ("fpu sse", False)):
        cpuinfo.write_text(f"processor : 0\nflags : {flags}\n")
        assert virtualises(str(cpuinfo)) is answer
    assert virtualises(str(tmp_path / "absent"))
    monkeypatch.setattr("anykvm.host.backend.host_arch", lambda: "arm64")
    cpuinfo.write_text("Features : fp\n")
    assert virtualises(str(cpuinfo))


def test_a_forked_child_has_a_thread_id_of_its_own() -> None:
    assert backend._this.native_id == threading.get_native_id()
    child = os.fork()
    if child == 0:
        os._exit(0 if backend._this.native_id == os.getpid() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
