# SPDX-License-Identifier: GPL-2.0-only
"""Every constant and structure of ``anykvm.uapi`` against the kernel's own headers, and against recorded facts.

The two JSON files hold names, values, sizes and offsets only: what Linux 6.1's arm64 headers give when compiled, and
what later kernels added. With the headers and a C compiler at hand the comparison is made afresh.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import uapi_probe as probe

from anykvm.uapi import arm64, common

HERE = Path(__file__).parent
ARM64_HEADERS = ("/usr/aarch64-linux-gnu/include", "/usr/include/aarch64-linux-gnu")


def recorded(name: str) -> probe.Facts:
    facts: probe.Facts = json.loads((HERE / name).read_text())
    return facts


NEWER = recorded("newer_than_linux_6_1.json")
ARM64 = recorded("arm64_linux_6_1.json")


def arm64_headers() -> Path | None:
    """A directory that holds ``asm/kvm.h`` and ``linux/kvm.h`` for arm64."""
    for directory in (os.environ.get("ANYKVM_ARM64_HEADERS", ""), *ARM64_HEADERS):
        if directory and Path(directory, "asm/kvm.h").exists() and Path(directory, "linux/kvm.h").exists():
            return Path(directory)
    return None


def test_arm64_is_as_recorded() -> None:
    facts = probe.python_facts(arm64)
    assert {name: facts.get(name) for name in ARM64} == ARM64


def test_nothing_in_arm64_is_unchecked() -> None:
    unchecked = set(probe.python_facts(arm64)) - set(ARM64) - set(NEWER)
    assert not unchecked


def test_newer_facts_are_as_recorded() -> None:
    facts = probe.python_facts(common) | probe.python_facts(arm64)
    assert {name: facts.get(name) for name in NEWER} == NEWER


def test_common_against_the_machines_headers(tmp_path: Path) -> None:
    if not Path("/usr/include/linux/kvm.h").exists():
        pytest.skip("no <linux/kvm.h> here: install linux-libc-dev")
    c_facts = probe.c_facts(common, tmp_path)
    if c_facts is None:
        pytest.skip("no C compiler here: install gcc")
    facts = probe.python_facts(common)
    assert {name: facts[name] for name in c_facts} == c_facts
    assert len(c_facts) > 500
    if os.uname().machine == "x86_64":  # elsewhere the headers hide the capabilities x86 alone has
        assert set(facts) - set(c_facts) <= set(NEWER)


def test_arm64_against_its_headers(tmp_path: Path) -> None:
    headers = arm64_headers()
    if headers is None:
        pytest.skip("no arm64 kernel headers: install linux-libc-dev-arm64-cross, or set ANYKVM_ARM64_HEADERS")
    c_facts = probe.c_facts(arm64, tmp_path, headers)
    if c_facts is None:
        pytest.skip("no C compiler here: install gcc")
    if c_facts.get("KVM_DIRTY_LOG_PAGE_OFFSET") == 0:  # 64 from Linux 6.2 on
        del c_facts["KVM_DIRTY_LOG_PAGE_OFFSET"]
    facts = probe.python_facts(arm64)
    assert {name: facts[name] for name in c_facts} == c_facts
    assert set(ARM64) <= set(c_facts)


def test_the_probe_notices_a_wrong_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arm64, "KVM_ARM_VCPU_SVE", 5)
    facts = probe.python_facts(arm64)
    assert facts["KVM_ARM_VCPU_SVE"] != ARM64["KVM_ARM_VCPU_SVE"]


@pytest.mark.parametrize(
    ("python", "kernel"),
    [
        ("KvmIrqLevel", "kvm_irq_level"),
        ("KvmUserspaceMemoryRegion2", "kvm_userspace_memory_region2"),
        ("KvmMsi", "kvm_msi"),
    ],
)
def test_names_follow_the_kernels(python: str, kernel: str) -> None:
    assert probe.c_name(python) == kernel
    assert kernel in probe.structures(common)
