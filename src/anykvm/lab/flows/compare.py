# SPDX-License-Identifier: GPL-2.0-only
"""Puts the flows side by side: what each does in which order, what its faults leave, and whether its vCPUs are alike.

Everything said here is read off runs. What the series fixed is what 5.5 leaves and 5.6 does not; what was found later
is what 5.6 leaves and today's does not.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any, Final

from ..errors import LabError
from ..spread import spread
from . import backend, same, sweep
from .pieces import DUPLICATE
from .trace import CHECK, HOOK, STEP, UNDO

KIND: Final = "anykvm lab flows"
VCPUS: Final = (0, 1)
"""A fault at the first vCPU of a VM, and at the second."""


def work(item: dict[str, Any]) -> dict[str, Any]:
    """One piece of the comparison: sweep a flow at a vCPU, or observe its vCPUs."""
    return sweep.sweep(item) if "vcpu" in item else same.observe(item)


def compare(
    arches: Sequence[str],
    *,
    processes: int | None = 0,
    scheduler: str | None = None,
    resume: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Run every flow of these architectures, sweep it, and compare; LabError for an architecture the lab has not."""
    known = backend.architectures()
    for arch in arches:
        if arch not in known:
            raise LabError(f"the lab has no older hooks for {arch!r}: choose one of {', '.join(known)}")
    items: list[dict[str, Any]] = []
    for arch in arches:
        for flow in backend.FLOWS:
            items.append({"arch": arch, "flow": flow.name})
            items += [{"arch": arch, "flow": flow.name, "vcpu": vcpu} for vcpu in VCPUS]
    found = {
        (done.item["arch"], done.item["flow"], done.item.get("vcpu")): done.result
        for done in spread(work, items, processes=processes, scheduler=scheduler, resume=resume, progress="flows")
    }
    return {"kind": KIND, "architectures": {arch: _architecture(arch, found) for arch in arches}}


def _architecture(arch: str, found: dict[tuple[str, str, int | None], Any]) -> dict[str, Any]:
    flows = [_flow(flow, [found[arch, flow.name, vcpu] for vcpu in VCPUS]) for flow in backend.FLOWS]
    seen = {flow.name: found[arch, flow.name, None] for flow in backend.FLOWS}
    leaked = {flow["name"]: {thing for leak in flow["leaks"] for thing in leak["left"]} for flow in flows}
    return {
        "flows": flows,
        "same": {
            "compared": len(seen["today"]),
            "guest": seen["today"]["guest: exits"],
            "differences": {name: same.differences(seen["today"], one) for name, one in seen.items()},
        },
        "fixed_by_the_series": sorted(leaked["5.5"] - leaked["5.6"]),
        "found_later": sorted(leaked["5.6"] - leaked["today"]),
        "leaks_today": sorted(leaked["today"]),
    }


def _flow(flow: backend.Flow, swept: list[dict[str, Any]]) -> dict[str, Any]:
    events = swept[0]["events"]
    faults = [fault | {"vcpu": vcpu} for vcpu, one in zip(VCPUS, swept, strict=True) for fault in one["faults"]]
    return {
        "name": flow.name,
        "title": flow.title,
        "create_hooks": _hooks(events),
        "destroy_hooks": _destroy_hooks(events, swept[0]["teardown"], faults),
        "steps": [one for one in events if one["what"] in (STEP, CHECK, HOOK)],
        "teardown": _of_the_vcpu(swept[0]["teardown"]),
        "order": _order(events, faults) | {"destroying is creating backwards": _mirror(events, swept[0]["teardown"])},
        "points": sum(one["points"] for one in swept),
        "faults": len(faults),
        "wrong": [fault for fault in faults if _wrong(fault)],
        "leaks": _leaks(faults),
    }


def _of_the_vcpu(teardown: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What becomes of the vCPU when its VM dies: all before the VM's own step "vcpus" is taken back."""
    names = [one["name"] if one["what"] == UNDO and not one["hook"] else "" for one in teardown]
    return teardown[: names.index("vcpus")]


_BESIDE: Final = ("precreate", "postcreate")


def _hooks(events: Iterable[dict[str, Any]]) -> list[str]:
    """The architecture's hooks that create, in the order in which they begin; those beside them are not counted."""
    return list(dict.fromkeys(one["name"] for one in events if one["what"] == HOOK and one["name"] not in _BESIDE))


def _destroy_hooks(events: list[Any], teardown: list[Any], faults: list[Any]) -> list[str]:
    creating = _hooks(events)
    called = [name for fault in faults for name in fault["hooks"]]
    return [name for name in dict.fromkeys([*called, *_hooks(teardown)]) if name not in (*creating, *_BESIDE)]


def _order(events: list[dict[str, Any]], faults: list[dict[str, Any]]) -> dict[str, str]:
    """What differs between the flows, in words, each from where events stand."""
    place = {(one["what"], one["name"]): number for number, one in reversed(list(enumerate(events)))}
    at = {name: number for (what, name), number in reversed(place.items()) if what in (STEP, CHECK)}
    struct = events[at["vcpu struct"]]
    duplicate = next(fault for fault in faults if fault["at"] == DUPLICATE)
    told = {
        "the vCPU is allocated": "by the architecture" if struct["hook"] else "by common code",
        "refusals before anything is allocated": _precreate(events, place, at),
        "acquired before a duplicate id is noticed": str(duplicate["acquired"]),
        "fd and array": "fd first" if at["fd"] < at["vcpu_array"] else "array first",
        "debugfs": "before the vCPU can be found" if at["debugfs"] < at["online"] else "after the vCPU is online",
    }
    notifier = at.get("preempt notifier")
    if notifier is not None:
        first = place[HOOK, "create"]
        told["preempt notifier"] = "before create" if notifier < first else "after create, so create cannot load"
    return told


def _mirror(events: list[dict[str, Any]], teardown: list[dict[str, Any]]) -> str:
    """Whether what is taken back is taken back in the reverse of the order in which it was built."""
    # The stand-in for debugfs is nobody's rung.
    undone = [one["name"] for one in _of_the_vcpu(teardown) if one["what"] == UNDO and one["name"] != "debugfs"]
    built = [one["name"] for one in reversed(events) if one["what"] == STEP and one["name"] in undone]
    for expected, found in zip(built, undone, strict=False):
        if expected != found:
            return f"no: {found} goes before {expected}"
    return "yes"


def _precreate(events: list[dict[str, Any]], place: dict[tuple[str, str], int], at: dict[str, int]) -> str:
    hook = place.get((HOOK, "precreate"))
    if hook is None:
        return "in create, after counting"
    when = "before" if hook < at["created_vcpus"] else "after"
    return f"in precreate, {when} counting, {'with' if events[hook]['locked'] else 'without'} the VM's lock"


def _wrong(fault: dict[str, Any]) -> bool:
    """Whether a failure is not as it should be; a flow may ignore a fault (debugfs), and then nothing failed."""
    if fault["got"] == "ok":
        return bool(fault["outlives"])
    return bool(
        fault["left"]
        or fault["changed"]
        or fault["outlives"]
        or fault["next"] != "ok"
        or fault["got"] != fault["asked"]
    )


def _leaks(faults: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The failures that leave something, put together by what they leave."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for fault in faults:
        left = (*fault["left"], *fault["changed"])
        if left:
            groups.setdefault(left, []).append(fault)
    return [
        {
            "left": list(left),
            "faults": len(group),
            "at": list(dict.fromkeys(_place(fault) for fault in group)),
            "outlives": any(fault["outlives"] for fault in group),
        }
        for left, group in groups.items()
    ]


def _place(fault: dict[str, Any]) -> str:
    # The run page's memfd has the vCPU's number in its name.
    return str(fault["at"]).partition(":")[0]
