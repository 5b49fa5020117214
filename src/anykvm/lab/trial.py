# SPDX-License-Identifier: GPL-2.0-only
"""One trial: a whole history with one fault plan, judged at every operation.

After each failure: the errno is the kernel's, the ledger and the VM's counters and ids are what they were, the vCPUs
there are still run a guest to its end, and the same operation with the same id succeeds next. At the end everything
is closed and nothing is left: no entry in the ledger, no file descriptor.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import time
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from anykvm.testing import Ledger, Plan, Point, open_fds, software
from anykvm.testing.ledger import Held, difference

from . import errnos
from .errors import LabError
from .history import SUBJECTS, Life, Op, Subject

TRIES = 4
"""How often an operation is tried: once, and again after each fault of a pair and what both may have left."""


@dataclass
class Verdict:
    """What came of a trial. A finding is one line; ``failed`` are the operations that failed, ``fired`` the faults."""

    subject: str
    plan: str
    findings: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    fired: list[str] = field(default_factory=list)
    later: list[str] = field(default_factory=list)
    """Points that were passed after a fault in the same call, as plans: where a second fault can follow the first."""

    def to_json(self) -> dict[str, Any]:
        """Give it as JSON has it."""
        return vars(self)


class Trial:
    """See the module."""

    def __init__(self, subject: Subject, plan: Plan) -> None:
        self._subject = subject
        self._verdict = Verdict(subject.name, str(plan))
        self._backend = software(subject.arch, plan)
        self._injector = self._backend.injector
        self._injector.recording = True
        self._ledger = Ledger(self._backend.services)
        self._life = subject.life(self._backend)
        self.points: list[Point] = []

    def run(self) -> Verdict:
        """Live the history."""
        fds, maps = open_fds(), _mapped()
        try:
            for op in self._subject.ops:
                if not self._do(op):
                    break
            else:
                self._guests("at the end")
        except (OSError, AssertionError, RuntimeError, KeyError, LookupError) as failure:
            self._find(f"the history ended with {type(failure).__name__}: {failure}")
        self._end(fds, maps)
        self.points = list(self._injector.points)
        self._verdict.fired = [str(point.fault) for point in self._injector.fired]
        self._later()
        return self._verdict

    def _find(self, text: str) -> None:
        self._verdict.findings.append(" ".join(text.split()))

    def _do(self, op: Op) -> bool:
        """Do one operation, again after each fault; False if the history cannot go on."""
        for _ in range(TRIES):
            held, inside = self._ledger.held(), self._life.inside()
            fired = len(self._injector.fired)
            try:
                op.do(self._life)
            except OSError as failure:
                self._verdict.failed.append(op.name)
                points = self._injector.fired[fired:]
                if not points:
                    if op.keeps and failure.errno == errno.EEXIST and op.name in self._verdict.failed[:-1]:
                        return False
                    self._find(f"{op.name} failed by itself: {failure}")
                    return False
                self._judge(op, points, failure, held=held, inside=inside)
                continue
            if len(self._injector.fired) > fired:
                self._find(f"{op.name} succeeded, though {self._injector.fired[-1].fault} happened in it")
            if op.creates is not None:
                self._visible(op.creates)
            return True
        self._find(f"{op.name} still fails after {TRIES} tries")
        return False

    def _judge(self, op: Op, points: list[Point], failure: OSError, *, held: Held, inside: dict[str, Any]) -> None:
        codes = {point.fault.code for point in points if point.fault is not None}
        complaints = [
            errnos.wrong(point.request, point.at, point.fault.code, failure.errno or 0)
            for point in points
            if point.fault is not None
        ]
        # Of two faults in one call the kernel gives the one that it met first or last: either will do.
        if all(complaints) or (failure.errno or 0) not in codes:
            self._find(f"{op.name} gave {errno.errorcode.get(failure.errno or 0, '?')}: {complaints[0]}")
        changed = difference(held, self._ledger.held())
        now = self._life.inside()
        if not op.keeps:
            if changed:
                self._find(f"{op.name} failed and leaked: {changed}")
            for key, value in inside.items():
                if now.get(key) != value:
                    self._find(f"{op.name} failed and changed {key} from {value} to {now.get(key)}")
        if now.get("locked"):
            self._find(f"{op.name} failed and left {', '.join(now['locked'])} locked")
        if self._subject.early:
            self._guests(f"after {op.name} failed")

    def _visible(self, vcpu_id: int) -> None:
        inside = self._life.inside()
        array = inside["vcpu_array"]
        if [index for _, index in array] != list(range(inside["online_vcpus"])):
            self._find(f"the vCPU array is {array} with {inside['online_vcpus']} vCPUs online")
        if array[-1][0] != vcpu_id or inside["created_vcpus"] != inside["online_vcpus"]:
            self._find(f"after creating vCPU {vcpu_id}: {inside}")

    def _guests(self, when: str) -> None:
        for vcpu in self._life.vcpus:
            wrong = self._life.guest.run(self._life.vm, vcpu)
            if wrong:
                self._find(f"{when} {wrong}")

    def _end(self, fds: frozenset[int], maps: int) -> None:
        try:
            self._life.close()
            self._backend.close_all()
        except (OSError, AssertionError, RuntimeError, LookupError) as failure:
            self._find(f"the end raised {type(failure).__name__}: {failure}")
        left = difference({}, self._ledger.held())
        if left:
            self._find(f"after everything was closed there is still {left}")
        if open_fds() != fds or _mapped() != maps:
            gc.collect()
        if links := _left_open(fds):
            self._find(f"{len(links)} file descriptors are still open: {', '.join(links)}")
        if (more := _mapped() - maps) > 0:
            self._find(f"{more} mappings of KVM's files are still there")
        self._backend.services.close()
        try:
            self._life.memory.close()
        except OSError as failure:
            self._find(f"the guest's memory is still in use: {failure}")

    def _later(self) -> None:
        """Find the points after the first fault in its call."""
        if not self._injector.fired:
            return
        first = self._injector.fired[0]
        seen = False
        for point in self.points:
            if point is first:
                seen = True
            elif seen and (point.request, point.call) == (first.request, first.call):
                self._verdict.later.extend(map(str, point.faults()))


def _mapped() -> int:
    """How many mappings of KVM's files this process has."""
    with open("/proc/self/maps") as maps:
        return maps.read().count("memfd:kvm")


def subject_of(name: str) -> Subject:
    """Find a subject by name; LabError."""
    try:
        return SUBJECTS[name]
    except KeyError:
        raise LabError(f"there is no subject {name!r}: there are {', '.join(SUBJECTS)}") from None


@cache
def warm(arch: str) -> None:
    """Have what a whole process has once (the engine's pipe for signals) before anything is counted."""
    Trial(SUBJECTS[f"{arch}/none"], Plan()).run()


def learn(name: str) -> tuple[list[Point], Verdict]:
    """Live a subject's history without faults; every point that was passed, and what was wrong even so."""
    subject = subject_of(name)
    warm(subject.arch)
    trial = Trial(subject, Plan())
    verdict = trial.run()
    return trial.points, verdict


def judge(item: list[str]) -> dict[str, Any]:
    """Run one trial: a subject's name and a plan. This is the work that is spread."""
    name, plan = item
    subject = subject_of(name)
    warm(subject.arch)
    return Trial(subject, Plan.parse(plan)).run().to_json()


def life_of(trial: Trial) -> Life:
    """Give a trial's life, for tests."""
    return trial._life


def _left_open(fds: frozenset[int]) -> list[str]:
    """What is open beside `fds`, and stays so: a cluster's worker reads /proc in a thread of its own, now and then."""
    for _ in range(20):
        if not (links := _names(open_fds() - fds)):
            break
        time.sleep(0.005)
    return links


def _names(fds: frozenset[int]) -> list[str]:
    """What file descriptors are open on; one that another thread has closed since is not there."""
    names = []
    for fd in fds:
        with contextlib.suppress(FileNotFoundError):
            names.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(names)
