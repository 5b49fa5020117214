# SPDX-License-Identifier: GPL-2.0-only
"""Makes every step of a creation fail, in a VM of its own each time, and says what is left behind.

Nothing here knows what a flow forgets: the points that can fail are learnt from a creation that succeeds, and what is
left is the difference of two ledgers.
"""

from __future__ import annotations

import errno
from typing import Any

from .backend import find
from .pieces import DUPLICATE
from .rig import Rig, rig
from .trace import ACQUIRE, HOOK, UNDO, Event, Point


def learn(arch: str, flow: str, vcpu: int) -> tuple[list[Event], list[Event], list[Point]]:
    """What happens while the vcpu-th vCPU of a VM (from 0) is created, and while the VM dies; what can fail."""
    with rig(arch, find(flow)) as made:
        _others(made, vcpu)
        services = made.services
        services.watch(made.core)
        made.vm.create_vcpu(vcpu)
        events, points = list(services.events), list(services.points)
        services.watch(made.core)
    return events, list(services.events), points


def _others(made: Rig, number: int) -> None:
    for vcpu_id in range(number):
        made.vm.create_vcpu(vcpu_id)


def attempt(arch: str, flow: str, vcpu: int, point: Point | None, code: int) -> dict[str, Any]:
    """Let one creation fail, at this point with this errno or as a duplicate, and look at everything.

    ``left`` is what is held since, by kind and name; ``changed`` are counters that are not as before; ``next`` is how
    the same vcpu_id is created afterwards; ``outlives`` is what is still held when the VM has been destroyed.
    """
    others = max(vcpu, point is None)
    with rig(arch, find(flow)) as made:
        _others(made, others)
        services = made.services
        before, counters = services.ledger(), made.counters()
        services.watch(made.core, None if point is None else (point.number, code))
        failed = _create(made, vcpu if point is not None else 0)
        services.stop()
        undone = [event.name for event in services.events if event.what == UNDO]
        hooks = list(dict.fromkeys(event.name for event in services.events if event.what == HOOK))
        acquired = sum(event.what == ACQUIRE for event in services.events)
        left = _more(before, services.ledger())
        changed = {name: value - counters[name] for name, value in made.counters().items() if value != counters[name]}
        if failed == "ok":
            left, changed = {}, {}
        again = failed if failed == "ok" else _create(made, others)
    return {
        "at": DUPLICATE if point is None else point.name,
        "kind": "check" if point is None else point.kind,
        "hook": "" if point is None else point.hook,
        "asked": errno.errorcode[code],
        "got": failed,
        "undone": undone,
        "hooks": hooks,
        "acquired": acquired,
        "left": left,
        "changed": changed,
        "next": again,
        "outlives": _more({}, services.ledger()),
    }


def _create(made: Rig, vcpu_id: int) -> str:
    try:
        made.vm.create_vcpu(vcpu_id)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def _more(before: dict[tuple[str, str], int], after: dict[tuple[str, str], int]) -> dict[str, int]:
    names = before.keys() | after.keys()
    found = {key: after.get(key, 0) - before.get(key, 0) for key in names}
    return {f"{kind} {name}": number for (kind, name), number in sorted(found.items()) if number}


def sweep(item: dict[str, Any]) -> dict[str, Any]:
    """Sweep one flow of one architecture, at one vCPU: ``{"arch", "flow", "vcpu"}``."""
    arch, flow, vcpu = item["arch"], item["flow"], item["vcpu"]
    events, teardown, points = learn(arch, flow, vcpu)
    faults = [attempt(arch, flow, vcpu, point, code) for point in points for code in point.errnos]
    # The one failure that needs no fault.
    faults.append(attempt(arch, flow, vcpu, None, errno.EEXIST))
    return {
        "events": list(map(_told, events)),
        "teardown": list(map(_told, teardown)),
        "points": len(points),
        "faults": faults,
    }


def _told(event: Event) -> dict[str, Any]:
    """An event without its time, which is never the same twice."""
    return {"what": event.what, "name": event.name, "hook": event.hook, "locked": event.locked}
