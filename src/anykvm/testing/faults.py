# SPDX-License-Identifier: GPL-2.0-only
"""Fault plans: what shall fail, where, with which errno. Only text and data: nothing of KVM is imported here.

A plan is a list of faults, as text separated by commas::

    KVM_CREATE_VCPU#3=ENOMEM            the 3rd KVM_CREATE_VCPU
    KVM_CREATE_VCPU#3+=ENOMEM           the 3rd and every one after it
    KVM_RUN#5-7=EINTR                   the 5th to the 7th
    acquire#12=ENOMEM                   the 12th thing KVM acquires, whatever it is
    fd#2=EMFILE                         the 2nd file descriptor
    memory:lapic=ENOMEM                 the memory of the first local APIC
    step:vcpu*run page                  a step of a ladder; without an errno, the one that is usual there
    KVM_CREATE_VCPU#2/memory#1=ENOMEM   in the 2nd KVM_CREATE_VCPU, the first memory

A name may have ``*``, ``?`` and ``[...]``. ``anykvm lab sweep -v`` prints the plan of every point there is.
"""

from __future__ import annotations

import errno as errnos
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from fnmatch import fnmatchcase
from typing import Any, Final

KINDS: Final = ("acquire", "memory", "lock", "thread", "timer", "fd", "map", "machine", "cpu", "publish", "step")
"""Where a fault can be inside a call. ``acquire`` is any of those between it and ``publish``."""
_ACQUIRED: Final = frozenset(KINDS[1:-2])
_NAMED: Final = r"KVM_[A-Z0-9_]+|open|mmap"
_COUNT: Final = r"(?:#(?P<nth>\d+)(?:(?P<more>\+)|-(?P<last>\d+))?)?"
_ERRNO: Final = r"(?:=(?P<errno>E[A-Z0-9]+))?"
_CALL: Final = re.compile(rf"(?P<name>{_NAMED}){_COUNT}{_ERRNO}")
_POINT: Final = re.compile(
    rf"(?:(?P<request>{_NAMED})(?:#(?P<call>\d+))?/)?(?P<at>[a-z]+)(?::(?P<name>[^#=,]+))?{_COUNT}{_ERRNO}"
)
_USUAL: Final = {"fd": "EMFILE", "thread": "EAGAIN", "KVM_RUN": "EINTR", "open": "EMFILE"}
_MOST: Final = 1_000_000_000


class PlanError(ValueError):
    """A plan that cannot be read; the message says why, in one line."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault.

    ``at`` is ``"call"`` (a request fails before it does anything; ``name`` is its name) or one of :data:`KINDS`.
    It happens at the ``nth`` point that matches, counted from 1, and at every further one up to the ``last``; 0 is
    without end. With ``request`` only points inside this request match, and with ``call`` only inside its call-th call.
    """

    at: str = "acquire"
    name: str = "*"
    nth: int = 1
    last: int = 1
    errno: str = "ENOMEM"
    request: str = ""
    call: int = 0

    def __post_init__(self) -> None:
        if self.at != "call" and self.at not in KINDS:
            raise PlanError(
                f"there is nothing called {self.at!r} to fail: give a request (KVM_...), {', '.join(KINDS)}"
            )
        if not isinstance(getattr(errnos, self.errno, None), int):
            raise PlanError(f"there is no errno {self.errno!r}: give one like ENOMEM or EMFILE")
        if not 1 <= self.nth <= _MOST or (self.last and not self.nth <= self.last <= _MOST) or self.call < 0:
            raise PlanError("points and calls are counted from 1, and a range goes up: #3, #3+, #3-5")
        if not self.name or re.search(r"[#=,\n]", self.name):
            raise PlanError(f"{self.name!r} cannot be a name: it has one of # = ,")

    @property
    def code(self) -> int:
        """The errno's number."""
        number: int = getattr(errnos, self.errno)
        return number

    def matches(self, at: str, name: str, request: str, call: int) -> bool:
        """Whether a point is one of those that this fault counts."""
        if self.at != at and not (self.at == "acquire" and at in _ACQUIRED):
            return False
        if (self.request and self.request != request) or (self.call and self.call != call):
            return False
        return self.name in ("*", name) or fnmatchcase(name, self.name)

    def hits(self, count: int) -> bool:
        """Whether the fault happens at the count-th point that matches."""
        return self.nth <= count and (self.last == 0 or count <= self.last)

    def __str__(self) -> str:
        count = "" if (self.nth, self.last) == (1, 1) else f"#{self.nth}"
        if self.last != self.nth:
            count = f"#{self.nth}-{self.last}" if self.last else f"#{self.nth}+"
        if self.at == "call":
            return f"{self.name}{count}={self.errno}"
        where = f"{self.request}#{self.call}/" if self.call else f"{self.request}/" if self.request else ""
        name = "" if self.name == "*" else f":{self.name}"
        return f"{where}{self.at}{name}{count}={self.errno}"


def _fault(text: str) -> Fault:
    found = _CALL.fullmatch(text)
    given: dict[str, str | None]
    if found is not None:
        given = found.groupdict() | {"at": "call"}
        usual = _USUAL.get(str(given["name"]), "ENOMEM")
    else:
        found = _POINT.fullmatch(text)
        if found is None:
            raise PlanError(f"{text!r} is not a fault: write one like KVM_CREATE_VCPU#3=ENOMEM or fd#2=EMFILE")
        given = found.groupdict()
        usual = _USUAL.get(str(given["at"]), "ENOMEM")
    nth = int(given["nth"] or 1)
    last = 0 if given["more"] else int(given["last"] or nth)
    return Fault(
        at=str(given["at"]),
        name=(given["name"] or "*").strip(),
        nth=nth,
        last=last,
        errno=given["errno"] or usual,
        request=given.get("request") or "",
        call=int(given.get("call") or 0),
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """Faults that belong together; they are independent of each other, each counts for itself."""

    faults: tuple[Fault, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Plan:
        """Read the text form, or the JSON one; PlanError."""
        text = text.strip()
        if text.startswith(("[", "{")):
            try:
                return cls.from_json(json.loads(text))
            except json.JSONDecodeError as error:
                raise PlanError(f"the plan is no JSON: {error}") from None
        parts = [part.strip() for part in re.split(r"[,\n]", text)]
        return cls(tuple(_fault(part) for part in parts if part))

    @classmethod
    def from_json(cls, value: Any) -> Plan:
        """Read what :meth:`to_json` gives; PlanError."""
        if isinstance(value, dict):
            value = [value]
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise PlanError("a plan in JSON is a list of faults, each an object")
        kinds = {field.name: int if field.type == "int" else str for field in fields(Fault)}
        for item in value:
            for key, member in item.items():
                if key not in kinds:
                    raise PlanError(f"a fault has no {key!r}: it has {', '.join(kinds)}")
                if type(member) is not kinds[key]:
                    raise PlanError(f"{key} of a fault is a {kinds[key].__name__}, not {member!r}")
        # One that says only where it begins is one fault, as in the text.
        return cls(tuple(Fault(**({"last": item.get("nth", 1)} | item)) for item in value))

    def to_json(self) -> list[dict[str, str | int]]:
        """Give the plan as JSON has it."""
        return [asdict(fault) for fault in self.faults]

    def __add__(self, other: Plan) -> Plan:
        return Plan(self.faults + other.faults)

    def __iter__(self) -> Iterator[Fault]:
        return iter(self.faults)

    def __len__(self) -> int:
        return len(self.faults)

    def __str__(self) -> str:
        return ", ".join(map(str, self.faults))


def plan_of(value: Plan | Fault | str | Iterable[Fault]) -> Plan:
    """Make a plan of whatever says one; PlanError."""
    if isinstance(value, Plan):
        return value
    if isinstance(value, str):
        return Plan.parse(value)
    if isinstance(value, Fault):
        return Plan((value,))
    return Plan(tuple(value))
