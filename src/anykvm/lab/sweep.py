# SPDX-License-Identifier: GPL-2.0-only
"""The fault sweep: learn every point of a history, then make each fail, alone and in pairs.

Nothing here lists the points: whatever a history passes is swept, so a step that is added tomorrow is swept tomorrow.

A pair is two faults in one history. Which pairs there are:

* *again*: an operation fails at one point, is tried again, and fails at another;
* *other*: the first vCPU's creation fails at one point, a later vCPU's at another;
* *same*: two points of one call, where the first failure does not end the call (a file descriptor that is missing is
  told late) or unwinding passes further points.
"""

from __future__ import annotations

import errno
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from anykvm.testing import Fault, Plan, Point

from . import refusals, trial
from .errors import LabError
from .history import SUBJECTS, VCPU_IDS
from .spread import spread

_CREATE: Final = "KVM_CREATE_VCPU"
_AGAIN: Final = ("KVM_CREATE_VM", "KVM_CREATE_IRQCHIP", "KVM_ENABLE_CAP", _CREATE)
"""Requests whose second try is made to fail too."""
_JUDGE: Final = "anykvm.lab.trial:judge"


@dataclass
class Swept:
    """What a sweep found. ``findings`` are (subject, plan, what)."""

    points: int = 0
    faults: int = 0
    pairs: int = 0
    refusals: int = 0
    trials: int = 0
    findings: list[tuple[str, str, str]] = field(default_factory=list)
    by_subject: dict[str, dict[str, int]] = field(default_factory=dict)
    fired: dict[str, list[str]] = field(default_factory=dict)
    """By subject: the plans of every single fault."""

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return {
            "points": self.points,
            "faults": self.faults,
            "pairs": self.pairs,
            "refusals": self.refusals,
            "trials": self.trials,
            "subjects": self.by_subject,
            "plans": self.fired,
            "findings": [{"subject": s, "plan": plan, "finding": what} for s, plan, what in self.findings],
        }


def subjects_of(names: Iterable[str]) -> list[str]:
    """Find the subjects of architectures ("arm64") and of names ("arm64/gicv3"), all of them for none; LabError."""
    wanted = list(names)
    found = [s for s in SUBJECTS if not wanted or any(name in (s, SUBJECTS[s].arch) for name in wanted)]
    for name in wanted:
        if not any(name in (s, SUBJECTS[s].arch) for s in SUBJECTS):
            arches = sorted({subject.arch for subject in SUBJECTS.values()})
            raise LabError(f"nothing to sweep is called {name!r}: there are {', '.join([*arches, *SUBJECTS])}")
    return found


def singles(points: Iterable[Point]) -> list[Fault]:
    """Every fault that one point can be made to have."""
    return [fault for point in points for fault in point.faults()]


def pairs(faults: Iterable[Fault]) -> list[Plan]:
    """Pairs of faults in two calls: *again* and *other*. The second comes at the call number that the retries make."""
    by_call: dict[tuple[str, int], list[Fault]] = {}
    for fault in faults:
        by_call.setdefault((fault.request, fault.call), []).append(fault)
    last = len(VCPU_IDS)
    found = []
    for (request, call), listed in by_call.items():
        if request not in _AGAIN or (request == _CREATE and call not in (1, last)):
            continue
        # The retry is the next call; one errno of each point is enough for the second fault.
        again = [replace(fault, call=call + 1) for fault in _one_errno(listed)]
        found += [Plan((one, two)) for one in _one_errno(listed) for two in again]
    first, later = by_call.get((_CREATE, 1), []), by_call.get((_CREATE, last), [])
    # After the first fault there has been one call more.
    other = [replace(fault, call=last + 1) for fault in _one_errno(later)]
    found += [Plan((one, two)) for one in _one_errno(first) for two in other]
    return found


def _one_errno(faults: Iterable[Fault]) -> list[Fault]:
    """One fault for each point, of the file descriptors two: a missing one is told late, missing memory at once."""
    seen: set[tuple[str, str, int, str, int, bool]] = set()
    kept = []
    for fault in faults:
        key = (fault.at, fault.name, fault.nth, fault.request, fault.call, fault.code == errno.ENOMEM)
        if key not in seen:
            seen.add(key)
            kept.append(fault)
    return kept


def sweep(
    names: Iterable[str] = (),
    *,
    with_pairs: bool = False,
    processes: int | None = 0,
    scheduler: str | None = None,
    resume: Path | None = None,
    progress: str | None = None,
) -> Swept:
    """Sweep; see the module. The last four are :func:`.spread.spread`'s."""
    swept = Swept()
    items: list[list[str]] = []
    for name in subjects_of(names):
        points, verdict = trial.learn(name)
        swept.findings += [(name, "", what) for what in verdict.findings]
        faults = singles(points)
        for fault in faults:
            if fault.request == "close":
                swept.findings.append((name, str(fault), "closing passes a point that can fail"))
        swept.points += sum(1 for point in points if point.errnos)
        swept.faults += len(faults)
        swept.fired[name] = [str(fault) for fault in faults]
        swept.by_subject[name] = {
            "points": sum(1 for point in points if point.errnos),
            "vCPU points": sum(1 for p in points if p.errnos and (p.request, p.call) == (_CREATE, len(VCPU_IDS))),
            "faults": len(faults),
            "pairs": 0,
        }
        items += [[name, str(fault)] for fault in faults]
        if with_pairs:
            found = [str(plan) for plan in pairs(faults)]
            items += [[name, plan] for plan in found]
            swept.by_subject[name]["pairs"] = len(found)
    for arch in sorted({SUBJECTS[name].arch for name in swept.by_subject}):
        for case in refusals.CASES[arch]:
            swept.refusals += 1
            swept.findings += [(arch, "", what) for what in refusals.judge(arch, case)]
    same: list[list[str]] = []
    for done in _judged(items, processes, scheduler, resume, progress):
        _take(swept, done)
        # A fault that does not end its call can be followed by another in it.
        if with_pairs and len(done["fired"]) == 1 and "," not in done["plan"]:
            same += [[done["subject"], f"{done['plan']}, {later}"] for later in done["later"]]
    for name, _ in same:
        swept.by_subject[name]["pairs"] += 1
    for done in _judged(same, processes, scheduler, None, progress):
        _take(swept, done)
    swept.pairs = sum(subject["pairs"] for subject in swept.by_subject.values())
    return swept


def _judged(
    items: list[list[str]], processes: int | None, scheduler: str | None, resume: Path | None, progress: str | None
) -> Generator[dict[str, Any], None, None]:
    work = spread(_JUDGE, items, processes=processes, scheduler=scheduler, resume=resume, progress=progress)
    for done in work:
        yield done.result


def _take(swept: Swept, done: dict[str, Any]) -> None:
    swept.trials += 1
    wanted = len(Plan.parse(done["plan"]))
    findings = list(done["findings"])
    if len(done["fired"]) < wanted and not findings:
        # A pair whose second point is only there when the first did not fail is no pair.
        if wanted == 1:
            findings.append("the point was passed when learning, and not again")
        else:
            subject = swept.by_subject[done["subject"]]
            subject["pairs that cannot be"] = subject.get("pairs that cannot be", 0) + 1
    swept.findings += [(done["subject"], done["plan"], what) for what in findings]


def replay(subject: str, plan: str) -> Swept:
    """Run one trial again, in this process; LabError."""
    swept = Swept(by_subject={subject: {}})
    _take(swept, trial.judge([subject, plan]))
    swept.faults = len(Plan.parse(plan))
    return swept
