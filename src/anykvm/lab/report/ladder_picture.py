# SPDX-License-Identifier: GPL-2.0-only
"""The ladder of an architecture: steps going up on the left, what takes them back coming down on the right."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from .svg import Picture

_WIDTH: Final = 380
_RUNG: Final = 27
_RAIL: Final = 30
_TOP: Final = 52
_BOTTOM: Final = 34


def picture(arch: str, flow: dict[str, Any]) -> str:
    """Draw today's ladder of an architecture from what one creation and one destruction did."""
    told = [one for one in flow["steps"] if one["what"] == "step" or one["name"] == "postcreate"]
    # The core has no debugfs, for which the lab's flows have a stand-in; the notifier is a part of the structure.
    steps = [one for one in told if one["name"] not in ("debugfs", "preempt notifier")]
    undone = Counter(one["name"] for one in flow["teardown"] if one["what"] == "undo")
    height = _TOP + _RUNG * len(steps) + _BOTTOM
    said = "; ".join(f"{number}. {one['name']}" for number, one in enumerate(steps, 1))
    drawn = Picture(
        _WIDTH, height, f"The ladder of {arch}", f"Steps going up: {said}. Undo comes down in reverse.", arch
    )
    bottom = height - _BOTTOM
    for x, kind, up in ((_RAIL, "rail up", True), (_WIDTH - _RAIL, "rail down", False)):
        drawn.line(kind, f"M{x} {bottom + 8} V{_TOP - 22}")
        tip, back = (_TOP - 26, _TOP - 16) if up else (bottom + 12, bottom + 2)
        drawn.line(kind, f"M{x - 6} {back} L{x} {tip} L{x + 6} {back}")
    drawn.text("caption up", _RAIL, height - 6, "create", "middle")
    drawn.text("caption down", _WIDTH - _RAIL, _TOP - 32, "destroy", "middle")
    for number, one in enumerate(steps):
        y = bottom - _RUNG * (number + 1)
        inside = one["hook"].startswith("create")
        kind = "rung arch" if inside else "rung common"
        box = drawn.box(kind, _RAIL + 14, y + 2, _WIDTH - 2 * _RAIL - 28, _RUNG - 5)
        box.set("data-step", one["name"])
        drawn.line("rail up", f"M{_RAIL} {y + _RUNG / 2} H{_RAIL + 14}")
        drawn.text("number", _RAIL + 24, y + 17, str(number + 1))
        drawn.text("step", _RAIL + 48, y + 17, one["name"])
        if one["what"] == "hook":
            mark = "cannot fail"
        elif undone[one["name"]] > 0:
            undone[one["name"]] -= 1
            drawn.line("rail down", f"M{_WIDTH - _RAIL - 14} {y + _RUNG / 2} H{_WIDTH - _RAIL}")
            mark = ""
        else:
            # The fd and the reference it holds go when userspace closes it.
            mark = "goes with close()" if one["name"] in ("fd", "VM reference") else ""
        if mark or one["locked"]:
            drawn.text("mark", _WIDTH - _RAIL - 22, y + 17, mark or "under the VM's lock", "end")
    return drawn.markup()
