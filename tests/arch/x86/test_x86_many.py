# SPDX-License-Identifier: GPL-2.0-only
"""As many vCPUs as a VM can have, on the software backend: the limit, and what each costs before it has run."""

from __future__ import annotations

import errno
import gc
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from anykvm.api import Kvm

MANY = 1024


@pytest.fixture(autouse=True)
def descriptors() -> Iterator[None]:
    """A file descriptor for each, and some."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MANY + 256
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"at most {hard} file descriptors here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    gc.collect()
    gc.disable()  # a full collection in one of the measured parts is most of it
    yield
    gc.enable()
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def resident() -> int:
    """Bytes of this process in memory."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Rss:")) * 1024


@pytest.mark.skipif(sys.gettrace() is not None, reason="a tracer keeps memory of its own")
@pytest.mark.parametrize("irqchip", [False, True], ids=["no irqchip", "irqchip"])
def test_a_vm_has_1024_vcpus_of_little_memory_in_linear_time(irqchip: bool) -> None:
    with ExitStack() as stack:
        vm = stack.enter_context(stack.enter_context(Kvm("software", arch="x86")).create_vm())
        if irqchip:
            vm.create_irqchip()
        before, times = resident(), [time.thread_time()]
        for vcpu_id in range(MANY):
            stack.enter_context(vm.create_vcpu(vcpu_id))
            if (vcpu_id + 1) % (MANY // 8) == 0:
                times.append(time.thread_time())
        each = (resident() - before) / MANY
        with pytest.raises(OSError) as error:
            vm.create_vcpu(MANY)
        assert error.value.errno == errno.EINVAL
    assert each <= 64 * 1024
    # CPU time of this thread; where each costs what there are already, the last eighth takes 15 times the first.
    assert times[8] - times[7] < 5 * (times[1] - times[0]) + 0.02
