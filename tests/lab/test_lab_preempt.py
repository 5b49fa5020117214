# SPDX-License-Identifier: GPL-2.0-only
"""A create hook that loads the vCPU is legal in today's flow and in 5.6's, and a bug in 5.5's: why setup existed."""

from __future__ import annotations

from typing import Any

import pytest

from anykvm.api import Kvm
from anykvm.lab.flows import backend, x86


def _create(flow: str) -> Any:
    made = backend.FlowBackend("x86", backend.find(flow))
    with Kvm(made) as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        return made.files.by_fd[vcpu.fd].vcpu.arch.wbinvd_mask[0]


@pytest.mark.parametrize("flow", ["5.5", "5.6", "today"])
def test_every_flow_has_the_vcpu_loaded_for_its_reset(flow: str) -> None:
    assert _create(flow) != 0


def test_the_reset_in_create_instead_of_setup_is_caught_in_the_old_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(x86.Old, "late", ())
    with pytest.raises(AssertionError, match="preempt_notifier_init"):
        _create("5.5")
