# SPDX-License-Identifier: GPL-2.0-only
"""Work on a cluster of this machine: the results are those of this process."""

from __future__ import annotations

import os
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import lab_works
import pytest

from anykvm.lab import remote
from anykvm.lab.errors import LabError
from anykvm.lab.flows.compare import compare
from anykvm.lab.races import plan
from anykvm.lab.spread import spread
from anykvm.lab.sweep import sweep

distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with (
        pytest.MonkeyPatch.context() as patch,
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50, host="127.0.0.1"
        ) as running,
    ):
        patch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
        yield running


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_cluster_gives_what_this_process_gives(cluster: Any) -> None:
    items = [{"arch": arch, "vcpus": number} for arch in ("arm64", "x86") for number in range(1, 9)]
    here = list(spread(lab_works.registers, items, processes=0))
    assert len({done.result["registers"] for done in here}) > 2
    assert list(spread(lab_works.registers, items, scheduler=cluster.scheduler_address)) == here
    assert list(spread(lab_works.registers, items, processes=2)) == here


def test_the_flows_on_a_cluster_are_the_flows_here(cluster: Any) -> None:
    assert compare(["x86"], scheduler=cluster.scheduler_address) == compare(["x86"])


def test_a_sweep_on_a_cluster_is_the_sweep_here(cluster: Any) -> None:
    there = sweep(["x86/none"], scheduler=cluster.scheduler_address).to_json()
    # In a process of its own: Dask opens files of this one, which the sweep would take for leaks.
    assert there == sweep(["x86/none"], processes=1).to_json()
    assert there["trials"] > 100


def test_orders_on_a_cluster_are_the_orders_here(cluster: Any) -> None:
    items = [item for name in ("same-id", "vm-close") for item in plan.items("x86", name, 1)]
    # In a process of its own: a file that Dask opens here may get the number of one that an order has closed.
    here = list(spread(plan.work, items, processes=1))
    assert list(spread(plan.work, items, scheduler=cluster.scheduler_address)) == here
    assert sum(done.result["interleavings"] for done in here) > 200


def test_more_items_than_the_scheduler_is_given_at_once(cluster: Any) -> None:
    made = [done.result["square"] for done in spread(lab_works.square, range(100), scheduler=cluster.scheduler_address)]
    assert made == [n * n for n in range(100)]


def test_the_workers_of_the_cluster_work(cluster: Any) -> None:
    pids = {done.result for done in spread(lab_works.whose, range(20), scheduler=cluster.scheduler_address)}
    assert os.getpid() not in pids


def test_work_that_raises_there_is_one_line_here(cluster: Any) -> None:
    with pytest.raises(LabError) as failure:
        list(spread(lab_works.fails, [3], scheduler=cluster.scheduler_address))
    assert str(failure.value) == "lab_works:fails failed on 3: ZeroDivisionError: integer division or modulo by zero"
    assert "return 1 // (item - THREE)" in failure.value.detail


def test_work_that_kills_its_process_is_one_line_and_the_cluster_lives(cluster: Any) -> None:
    with pytest.raises(LabError) as failure:
        list(spread(lab_works.dies, [1, 3], scheduler=cluster.scheduler_address))
    assert str(failure.value) == "a worker was killed by SIGSEGV on item 1, 3"
    assert [done.result for done in spread(lab_works.dies, [1, 2], scheduler=cluster.scheduler_address)] == [1, 2]


def test_a_worker_with_another_version_is_refused(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "fingerprint", lambda name: "another")
    with pytest.raises(LabError, match="a worker has another version of anykvm"):
        list(spread(lab_works.square, [1], scheduler=cluster.scheduler_address))


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:{port}", "nonsense://x"])
def test_no_scheduler_is_one_line(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_CONNECT", 1)
    with pytest.raises(LabError, match="no scheduler answers at"):
        list(spread(lab_works.square, [1], scheduler=address.format(port=unused_port())))


def test_a_scheduler_that_goes_is_one_line() -> None:
    short_lived = distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=":0", silence_logs=50, host="127.0.0.1"
    )
    with short_lived:
        threading.Timer(1, short_lived.close).start()
        with pytest.raises(LabError, match="has gone: start it again, and this run with the same --resume"):
            list(spread(lab_works.uneven, [0.3] * 30, scheduler=short_lived.scheduler_address))


def test_without_dask_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(LabError, match=r"pip install 'anykvm\[distributed\]'"):
        list(spread(lab_works.square, [1], scheduler="tcp://127.0.0.1:1"))
