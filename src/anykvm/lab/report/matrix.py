# SPDX-License-Identifier: GPL-2.0-only
"""The fault matrix: which point of KVM_CREATE_VCPU, which errno, the first or a later vCPU, and how it ended."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from anykvm.testing import Fault, Plan

ERRNOS: Final = ("ENOMEM", "EMFILE", "ENFILE", "EAGAIN")
_REQUEST: Final = "KVM_CREATE_VCPU"
# A vCPU's memfd has the vCPU's number in its name.
_NUMBERED: Final = re.compile(r":\d+$")


@dataclass
class Row:
    """One point: ``cells`` are (errno, which vCPU) to the findings there, none being good."""

    kind: str
    name: str
    cells: dict[tuple[str, str], list[str]] = field(default_factory=dict)


@dataclass
class Matrix:
    """The points of one subject ("x86/irqchip")."""

    subject: str
    errnos: list[str]
    rows: list[Row]
    elsewhere: int
    """Faults in other requests than KVM_CREATE_VCPU, and in vCPUs between the first and the last."""
    bad: int

    @property
    def faults(self) -> int:
        """How many there are in all."""
        return sum(len(row.cells) for row in self.rows) + self.elsewhere


def matrices(sweep: dict[str, Any]) -> list[Matrix]:
    """Put a sweep's single faults into a matrix for each of its subjects."""
    found = []
    for subject, plans in sweep["plans"].items():
        findings: dict[str, list[str]] = {}
        for one in sweep["findings"]:
            if one["subject"] == subject:
                findings.setdefault(one["plan"], []).append(one["finding"])
        found.append(_matrix(subject, [(text, fault) for text in plans for fault in Plan.parse(text)], findings))
    return found


def _matrix(subject: str, faults: Iterable[tuple[str, Fault]], findings: dict[str, list[str]]) -> Matrix:
    faults = list(faults)
    last = max((fault.call for _, fault in faults if fault.request == _REQUEST), default=1)
    which = {1: "first", last: "Nth"}
    rows: dict[tuple[str, str, int], Row] = {}
    elsewhere = 0
    for text, fault in faults:
        if fault.request != _REQUEST or fault.call not in which:
            elsewhere += 1
            continue
        name = _NUMBERED.sub("", fault.name)
        row = rows.setdefault((fault.at, name, fault.nth), Row(fault.at, name))
        row.cells[fault.errno, which[fault.call]] = findings.get(text, [])
    seen = {errno for row in rows.values() for errno, _ in row.cells}
    errnos = [errno for errno in ERRNOS if errno in seen] + sorted(seen - set(ERRNOS))
    return Matrix(subject, errnos, list(rows.values()), elsewhere, sum(map(len, findings.values())))
