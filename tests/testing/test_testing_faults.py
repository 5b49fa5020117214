# SPDX-License-Identifier: GPL-2.0-only
"""Fault plans as text and as JSON, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anykvm.testing import Fault, Plan, PlanError, plan_of
from anykvm.testing.faults import KINDS

names = st.text(st.sampled_from("abcXYZ 0123:*?-_."), min_size=1).filter(lambda text: text == text.strip())
counts = st.integers(1, 1000)
lasts = st.sampled_from(["same", "more", "end"])


@st.composite
def faults(draw: st.DrawFn) -> Fault:
    nth = draw(counts)
    last = {"same": nth, "more": nth + draw(counts), "end": 0}[draw(lasts)]
    code = draw(st.sampled_from(["ENOMEM", "EMFILE", "EIO", "EAGAIN"]))
    if draw(st.booleans()):
        return Fault("call", draw(st.sampled_from(["KVM_CREATE_VCPU", "open", "mmap"])), nth, last, code)
    request = draw(st.sampled_from(["", "KVM_CREATE_VM", "KVM_ENABLE_CAP"]))
    call = draw(st.integers(0, 9)) if request else 0
    return Fault(draw(st.sampled_from(KINDS)), draw(names), nth, last, code, request, call)


@given(st.lists(faults()))
def test_text_and_json_say_the_same(listed: list[Fault]) -> None:
    plan = Plan(tuple(listed))
    assert Plan.parse(str(plan)) == plan
    assert Plan.from_json(json.loads(json.dumps(plan.to_json()))) == plan
    assert Plan.parse(json.dumps(plan.to_json())) == plan


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("KVM_CREATE_VCPU#3=ENOMEM", Fault("call", "KVM_CREATE_VCPU", 3, 3, "ENOMEM")),
        ("KVM_CREATE_VCPU#3+", Fault("call", "KVM_CREATE_VCPU", 3, 0, "ENOMEM")),
        ("KVM_RUN#5-7", Fault("call", "KVM_RUN", 5, 7, "EINTR")),
        ("acquire#12", Fault("acquire", "*", 12, 12, "ENOMEM")),
        ("fd", Fault("fd", "*", 1, 1, "EMFILE")),
        ("thread", Fault("thread", "*", 1, 1, "EAGAIN")),
        (" memory:mce banks = ENOMEM ".replace(" = ", "="), Fault("memory", "mce banks")),
        ("step:vcpu: run page", Fault("step", "vcpu: run page")),
        ("KVM_CREATE_VCPU#2/memory#4", Fault("memory", "*", 4, 4, "ENOMEM", "KVM_CREATE_VCPU", 2)),
        ("KVM_CREATE_VCPU/fd=ENFILE", Fault("fd", "*", 1, 1, "ENFILE", "KVM_CREATE_VCPU")),
    ],
)
def test_how_a_fault_is_written(text: str, fault: Fault) -> None:
    assert Plan.parse(text).faults == (fault,)


def test_several_faults() -> None:
    assert len(Plan.parse("fd#2, KVM_RUN\nacquire#5,,")) == 3
    assert Plan.parse("") == Plan() == plan_of([])
    assert plan_of("fd#2") + plan_of(Fault("fd", nth=9, last=9)) == Plan.parse("fd#2=EMFILE, fd#9=ENOMEM")
    assert Plan.parse('{"at": "fd", "nth": 3}').faults == (Fault("fd", "*", 3, 3, "ENOMEM"),)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("KVM_CREATE_VCPU=EWHAT", "no errno"),
        ("fd#0", "counted from 1"),
        ("fd#5-3", "a range goes up"),
        ("gizmo#2", "nothing called 'gizmo'"),
        ("fd#two", "not a fault"),
        ("KVM_CREATE_VCPU 3", "not a fault"),
        ("[{]", "no JSON"),
        ('[{"at": "fd", "colour": 3}]', "no 'colour'"),
        ('[{"at": "fd", "nth": true}]', "nth of a fault is a int"),
        ('[{"at": "fd", "nth": "3"}]', "nth of a fault is a int"),
        ("[3]", "a list of faults"),
        ('[{"at": "fd", "name": "a=b"}]', "cannot be a name"),
        ("fd#99999999999999999999", "counted from 1"),
    ],
)
def test_what_cannot_be_read_says_why_in_one_line(text: str, says: str) -> None:
    with pytest.raises(PlanError) as failure:
        Plan.parse(text)
    assert says in str(failure.value) and "\n" not in str(failure.value)


def test_a_plan_loads_nothing_of_kvm() -> None:
    script = (
        "import sys; import anykvm.testing as t, anykvm.testing.plugin; t.Plan.parse('fd#2');"
        "print([m for m in sys.modules if m.startswith('anykvm.') and not m.startswith('anykvm.testing')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"
