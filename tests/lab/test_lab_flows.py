# SPDX-License-Identifier: GPL-2.0-only
"""Three flows over the same steps: the same vCPU from each, and each one's leaks found by itself."""

from __future__ import annotations

import errno
import json
import re
from pathlib import Path
from typing import Any

import pytest

from anykvm.api import Kvm
from anykvm.arch.x86.hooks import X86Hooks
from anykvm.arch.x86.vcpu import X86Vcpu
from anykvm.cli import main
from anykvm.lab.errors import LabError
from anykvm.lab.flows import arm64, backend, x86
from anykvm.lab.flows.compare import compare
from anykvm.lab.flows.rig import rig
from anykvm.virt.ladder import BuildStep, Ladder

ARCHES = ["arm64", "x86"]
FLOWS = ["5.5", "5.6", "today"]


@pytest.fixture(scope="module")
def compared() -> dict[str, Any]:
    found: dict[str, Any] = compare(ARCHES)["architectures"]
    return found


def flow_of(compared: dict[str, Any], arch: str, name: str) -> dict[str, Any]:
    return next(flow for flow in compared[arch]["flows"] if flow["name"] == name)


def names(flow: dict[str, Any], what: str = "step") -> list[str]:
    return [one["name"] for one in flow["steps"] if one["what"] == what]


def test_every_architecture_in_the_tree_has_its_older_hooks() -> None:
    from anykvm.api import architectures

    assert backend.architectures() == list(architectures()) == ARCHES


@pytest.mark.parametrize("arch", ARCHES)
def test_every_flow_gives_the_same_vcpu(compared: dict[str, Any], arch: str) -> None:
    same = compared[arch]["same"]
    assert same["compared"] > 200
    assert len(same["guest"]) == 3
    assert same["differences"] == {flow: [] for flow in FLOWS}


@pytest.mark.parametrize("arch", ARCHES)
def test_three_hooks_create_and_three_destroy_before_the_series_one_and_one_after(
    compared: dict[str, Any], arch: str
) -> None:
    old = flow_of(compared, arch, "5.5")
    assert old["create_hooks"] == ["create", "init", "setup"]
    assert sorted(old["destroy_hooks"]) == ["destroy", "free", "uninit"]
    for name in ("5.6", "today"):
        new = flow_of(compared, arch, name)
        assert (new["create_hooks"], new["destroy_hooks"]) == (["create"], ["destroy"])


@pytest.mark.parametrize("arch", ARCHES)
def test_the_flows_build_the_same_steps(compared: dict[str, Any], arch: str) -> None:
    built = {flow["name"]: sorted(set(names(flow)) - {"preempt notifier"}) for flow in compared[arch]["flows"]}
    assert built["5.5"] == built["5.6"] == built["today"]
    assert len({tuple(names(flow)) for flow in compared[arch]["flows"]}) == 3, "in another order each"


def test_the_leak_that_the_series_fixed_on_x86_is_found(compared: dict[str, Any]) -> None:
    found = compared["x86"]
    assert found["fixed_by_the_series"] == ["memory wbinvd mask"]
    assert (found["found_later"], found["leaks_today"]) == ([], [])
    (leak,) = flow_of(compared, "x86", "5.5")["leaks"]
    assert leak["left"] == ["memory wbinvd mask"]
    assert leak["outlives"]
    # Whatever fails after init: the vendor's part, no fd, a duplicate id.
    assert leak["at"] == ["kvm-vcpu", "cpu", "vcpu fd", "duplicate id"]


def test_what_was_found_on_arm64_in_2024_is_found_in_both_older_flows(compared: dict[str, Any]) -> None:
    found = compared["arm64"]
    assert found["fixed_by_the_series"] == found["leaks_today"] == []
    assert found["found_later"] == ["devices on the MMIO bus", "memory vgic vcpu"]
    for name in ("5.5", "5.6"):
        (leak,) = flow_of(compared, "arm64", name)["leaks"]
        assert leak["at"] == ["kvm-vcpu", "vcpu fd", "duplicate id"]


@pytest.mark.parametrize(("arch", "flow"), [("x86", "5.6"), ("x86", "today"), ("arm64", "today")])
def test_a_flow_that_leaks_nothing_gives_the_errno_and_the_id_back(
    compared: dict[str, Any], arch: str, flow: str
) -> None:
    found = flow_of(compared, arch, flow)
    assert found["faults"] > found["points"] > 20
    assert found["wrong"] == found["leaks"] == []


@pytest.mark.parametrize("arch", ARCHES)
def test_where_the_flows_differ(compared: dict[str, Any], arch: str) -> None:
    old, new, today = (flow_of(compared, arch, name)["order"] for name in FLOWS)
    assert [order["the vCPU is allocated"] for order in (old, new, today)] == [
        "by the architecture",
        "by common code",
        "by common code",
    ]
    assert [order["refusals before anything is allocated"] for order in (old, new, today)] == [
        "in create, after counting",
        "in precreate, after counting, without the VM's lock",
        "in precreate, before counting, with the VM's lock",
    ]
    assert [order["fd and array"] for order in (old, new, today)] == ["fd first", "fd first", "array first"]
    assert old["preempt notifier"] == "after create, so create cannot load"
    assert new["preempt notifier"] == "before create"
    assert new["debugfs"] != today["debugfs"]
    assert today["destroying is creating backwards"] == "yes"
    if arch == "x86":
        assert old["destroying is creating backwards"] == "no: mce banks goes before wbinvd mask"
    for order in (old, new, today):
        assert int(order["acquired before a duplicate id is noticed"]) > 8, "a full build is spent on it"


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("flow", FLOWS)
def test_every_flow_refuses_what_todays_refuses(arch: str, flow: str) -> None:
    with rig(arch, backend.find(flow)) as made:
        vm = made.vm
        before, counters = made.services.ledger(), made.counters()
        made.core.max_vcpus = 0
        for vcpu_id, limit in ((1 << 40, 8), (made.core.hooks.max_vcpu_ids, 8), (0, 0)):
            made.core.max_vcpus = limit
            with pytest.raises(OSError) as refusal:
                vm.create_vcpu(vcpu_id)
            assert refusal.value.errno == errno.EINVAL
        assert (made.services.ledger(), made.counters()) == (before, counters)
        made.core.max_vcpus = 8
        with vm.create_vcpu(3):
            pass
        with pytest.raises(FileExistsError):
            vm.create_vcpu(3)


@pytest.mark.parametrize("flow", FLOWS)
def test_every_flow_refuses_once_the_gic_is_initialised(flow: str) -> None:
    with rig("arm64", backend.find(flow)) as made:
        first = made.vm.create_vcpu(0)
        made.initialise(first)
        made.run(first)
        counters = made.counters()
        with pytest.raises(OSError) as refusal:
            made.vm.create_vcpu(1)
        assert refusal.value.errno == errno.EBUSY
        assert made.counters() == counters


def test_a_leak_that_nobody_wrote_down_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(x86.Old, "uninit", lambda self: self.built.undo("lapic", "pio page", "run page words"))
    monkeypatch.setattr(x86.New, "dismantle", lambda self: self.built.undo(*reversed(self.built.names[1:])))
    found = compare(["x86"])["architectures"]["x86"]
    assert found["fixed_by_the_series"] == ["memory mce banks", "memory wbinvd mask"]
    assert found["found_later"] == ["memory x86 vcpu"]


def test_a_leak_in_the_core_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(X86Hooks, "vcpu_destroy", lambda self, vcpu: vcpu.arch_ladder.unwind(1))
    assert main.run(["lab", "flows", "x86"]) == 1
    assert "left today: memory x86 vcpu" in capsys.readouterr().out


def test_vcpus_that_differ_fail_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    create = arm64.New.create

    def other(self: arm64.New) -> None:
        create(self)
        self.vcpu.arch.mpidr ^= 1

    monkeypatch.setattr(arm64.New, "create", other)
    assert main.run(["lab", "flows", "arm64"]) == 1
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "differ" in line and "vCPUs" in line]
    assert line.startswith("vCPUs of 5.6 differ from today's in guest: RAM")


def test_a_new_step_of_an_architecture_is_built_and_swept_in_every_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = X86Vcpu.build_steps

    def build(self: X86Vcpu, ladder: Ladder) -> None:
        services = self.vcpu.services
        ladder.acquire("novelty", services.charge, services.free, "novelty", 64)

    monkeypatch.setattr(X86Vcpu, "build_steps", lambda self: (*steps(self), BuildStep("novelty", build)))
    found = compare(["x86"])["architectures"]["x86"]
    assert found["fixed_by_the_series"] == ["memory wbinvd mask"]
    for flow in found["flows"]:
        assert "novelty" in names(flow)
        assert "novelty" in [one["name"] for one in flow["teardown"] if one["what"] == "undo"]


def test_results_are_the_same_in_other_processes(compared: dict[str, Any]) -> None:
    assert compare(["x86"], processes=2)["architectures"]["x86"] == compared["x86"]


def test_an_architecture_that_is_not_there_is_one_line() -> None:
    with pytest.raises(LabError, match="no older hooks for 'vax': choose one of arm64, x86"):
        compare(["vax"])


def test_the_command_shows_them_side_by_side(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    assert main.run(["lab", "flows"]) == 0
    out = capsys.readouterr().out
    assert "fixed by the series: memory wbinvd mask" in out
    assert "found later, and left by 5.6 too: devices on the MMIO bus, memory vgic vcpu" in out
    assert "creates: create, init, setup" in out
    assert main.run(["lab", "flows", "x86", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["architectures"].keys() == {"x86"}


def in_columns(lines: list[str]) -> list[list[str]]:
    """What a table of three columns has in each, without numbers, which change with every step that is added."""
    rows = [re.sub(r"\d+ ", "", line).split("│") for line in lines if line.count("│") == 2]
    return [[row[number].strip() for row in rows if row[number].strip()] for number in range(3)]


def test_the_readme_shows_what_the_command_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each column is in the command's, in its order; the command's may have steps that came later."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    section = readme.partition("## The lab\n")[2].partition("\n## ")[0]
    monkeypatch.setenv("COLUMNS", "100")
    assert main.run(["lab", "flows", "x86"]) == 0
    out = capsys.readouterr().out
    for shown, printed in zip(in_columns(section.splitlines()), in_columns(out.splitlines()), strict=True):
        assert len(shown) > 20
        rest = iter(printed)
        assert [one for one in shown if one not in rest] == []
    assert "fixed by the series: memory wbinvd mask" in section
    assert "fixed by the series: memory wbinvd mask" in out


def test_the_core_stays_free_of_the_older_flows() -> None:
    """A plain VM is made by the core alone: no hook is traced, nothing of the lab is on its ladder."""
    with Kvm("software", arch="x86") as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        core: Any = kvm.backend
        ladder = core.files.by_fd[vcpu.fd].vcpu.ladder
        assert "debugfs" not in ladder.steps
        assert type(ladder) is Ladder
