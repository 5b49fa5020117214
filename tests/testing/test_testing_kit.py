# SPDX-License-Identifier: GPL-2.0-only
"""Backends that fail as planned, the ledger, and the pytest plugin in a pytest of its own."""

from __future__ import annotations

import doctest
import errno
import importlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from anykvm.api import Interrupted, Kvm, resolve
from anykvm.testing import FaultyBackend, FaultyServices, Injector, Ledger, Plan, open_fds, software
from anykvm.testing.backend import requests
from anykvm.virt.services import Charge, Services

ROOT = Path(__file__).resolve().parents[2]


def code_of(function: object, *args: object) -> str:
    try:
        function(*args)  # type: ignore[operator]
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "0"


@pytest.mark.anykvm_faults("KVM_CREATE_VCPU#3=ENOMEM")
@pytest.mark.parametrize("anykvm_arch", ["arm64", "x86"])
def test_the_third_creation_fails_and_nothing_else(anykvm_backend: FaultyBackend, anykvm_ledger: Ledger) -> None:
    with Kvm(anykvm_backend) as kvm, kvm.create_vm() as vm, vm.create_vcpu(0), vm.create_vcpu(1):
        with anykvm_ledger.unchanged():
            assert code_of(vm.create_vcpu, 2) == "ENOMEM"
        with vm.create_vcpu(2) as third:
            assert third.vcpu_id == 2
            assert anykvm_ledger.count("fd", "kvm-vcpu:2") == 1


def test_from_the_third_on_every_one() -> None:
    backend = software("arm64", "KVM_CREATE_VCPU#3+")
    with Kvm(backend) as kvm, kvm.create_vm() as vm:
        codes = [code_of(vm.create_vcpu, vcpu_id) for vcpu_id in (0, 1, 2, 2, 3)]
    assert codes == ["0", "0", "ENOMEM", "ENOMEM", "ENOMEM"]


def test_inside_a_call_a_name_a_number_an_errno() -> None:
    backend = software("x86")
    with Kvm(backend) as kvm, kvm.create_vm() as vm:
        vm.create_irqchip()
        plans = (
            ("KVM_CREATE_VCPU/memory:lapic", "ENOMEM"),
            ("KVM_CREATE_VCPU/fd=ENFILE", "ENFILE"),
            ("memory#3", "ENOMEM"),
            ("step:arch*mce banks=EIO", "EIO"),
            ("KVM_CREATE_VCPU#2/memory", "0"),
            ("mmap", "ENOMEM"),
            ("acquire#500", "0"),
        )
        for vcpu_id, (plan, wanted) in enumerate(plans):
            backend.plan(plan)
            assert code_of(vm.create_vcpu, vcpu_id) == wanted, plan
            assert len(backend.injector.fired) == (wanted != "0")


def test_a_run_is_interrupted_as_by_a_signal() -> None:
    backend = software("x86", "KVM_RUN#1")
    with Kvm(backend) as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        assert vcpu.run() == Interrupted()


def test_threads_count_together_and_calls_belong_to_their_thread() -> None:
    backend = software("x86", "KVM_CREATE_VCPU#5=EIO")
    codes: list[str] = []
    with Kvm(backend) as kvm, kvm.create_vm() as vm:
        vms = [vm, *(kvm.create_vm() for _ in range(3))]

        def work(number: int) -> None:
            codes.extend(code_of(vms[number].create_vcpu, vcpu_id) for vcpu_id in range(8))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        for one in vms:
            one.close()
    assert sorted(codes) == ["0"] * 31 + ["EIO"]
    backend.close_all()
    Ledger(backend.services).assert_empty()


def test_around_any_backend() -> None:
    """Whole requests fail on a backend that knows nothing of plans, the machine's own among them."""
    plain = resolve("software", "arm64")
    backend = FaultyBackend(plain)
    backend.plan("KVM_CREATE_VM#2=EMFILE")
    with Kvm(backend) as kvm, kvm.create_vm():
        assert code_of(kvm.create_vm) == "EMFILE"


def test_over_services_of_another_kind() -> None:
    """What runs in another program's process has services of its own, which can be made to fail too."""

    class Named(Services):
        def __init__(self, prefix: str) -> None:
            super().__init__()
            self.prefix = prefix

        def charge(self, name: str, size: int = 0) -> Charge:
            return super().charge(self.prefix + name, size)

    class FaultyNamed(FaultyServices, Named):
        pass

    services = FaultyNamed(Injector(Plan.parse("memory#2")), "my ")
    held = services.charge("own")
    assert services.ledger() == {("memory", "my own"): 1}
    assert code_of(services.charge, "other") == "ENOMEM"
    services.free(held)
    services.close()


def test_requests_have_their_kernel_names() -> None:
    names = requests("x86")
    assert names[0xAE41] == "KVM_CREATE_VCPU" and names[0xAE80] == "KVM_RUN"
    assert names[0xAE60] == "KVM_CREATE_IRQCHIP" and "KVM_SET_LAPIC" in names.values()
    assert "KVM_ARM_VCPU_INIT" in requests("arm64").values()
    assert requests("none") == requests("also-none")


def test_the_ledger_says_what_is_left() -> None:
    backend = software("x86")
    ledger = Ledger(backend.services)
    kvm = Kvm(backend)
    with pytest.raises(AssertionError, match=r"KVM still holds \+1 fd kvm"):
        ledger.assert_empty()
    with pytest.raises(AssertionError, match=r"\+1 fd kvm-vm"), ledger.unchanged():
        vm = kvm.create_vm()
    vm.close()
    kvm.close()
    ledger.assert_empty()


def test_open_fds() -> None:
    before = open_fds()
    fd = os.eventfd(0)
    assert open_fds() - before == {fd}
    os.close(fd)
    assert open_fds() == before


@pytest.mark.parametrize("name", ["backend", "ledger"])
def test_the_examples_in_the_docstrings(name: str) -> None:
    module = importlib.import_module(f"anykvm.testing.{name}")
    done = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert done.attempted and not done.failed


def test_the_examples_in_the_document(tmp_path: Path) -> None:
    """docs/testing.md, as a user would have it: files in an empty directory, and pytest."""
    text = (ROOT / "docs" / "testing.md").read_text()
    programs = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert len(programs) >= 2
    for name, body in programs:
        (tmp_path / name).write_text(body)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\b[5-9] passed", done.stdout), done.stdout


def test_a_leak_fails_the_test_that_made_it(tmp_path: Path) -> None:
    (tmp_path / "test_leak.py").write_text(
        "def test_leak(anykvm_backend):\n    anykvm_backend.services.charge('forgotten')\n"
        "def test_arch(anykvm_arch):\n    assert anykvm_arch == 'x86'\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--anykvm-arch", "x86", "test_leak.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "2 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert "KVM still holds +1 memory forgotten" in done.stdout
