# SPDX-License-Identifier: GPL-2.0-only
"""The three flows side by side: each step a box in the hook that does it, and a line to where it is in the next."""

from __future__ import annotations

from typing import Any, Final

from .svg import Picture

_COLUMN: Final = 236
_GAP: Final = 84
_ROW: Final = 25
_TOP: Final = 66
_INDENT: Final = 13


class _Placed:
    """A step where it is drawn; ``key`` is its name and which of several of that name it is."""

    def __init__(self, step: dict[str, Any], row: int, key: tuple[str, int]) -> None:
        self.name: str = step["name"]
        self.is_hook = step["what"] == "hook"
        self.is_check = step["what"] == "check"
        self.hook: str = step["hook"]
        self.locked: bool = step["locked"]
        self.depth = self.hook.count("/") + 1 if self.hook else 0
        self.row = row
        self.key = key


def _column(flow: dict[str, Any]) -> list[_Placed]:
    seen: dict[str, int] = {}
    placed = []
    for row, step in enumerate(flow["steps"]):
        seen[step["name"]] = seen.get(step["name"], 0) + 1
        placed.append(_Placed(step, row, (step["name"], seen[step["name"]])))
    return placed


def leaked_names(flow: dict[str, Any]) -> set[str]:
    """The names of what a flow's failures leave, without its kind."""
    return {left.partition(" ")[2] for leak in flow["leaks"] for left in leak["left"]}


def picture(arch: str, flows: list[dict[str, Any]]) -> str:
    """Draw the flows of an architecture."""
    columns = [_column(flow) for flow in flows]
    height = _TOP + _ROW * max(map(len, columns)) + 12
    width = len(flows) * _COLUMN + (len(flows) - 1) * _GAP + 4
    said = " ".join(f"Linux {flow['name']}: {', '.join(step['name'] for step in flow['steps'])}." for flow in flows)
    drawn = Picture(width, height, f"Three flows of creation on {arch}", said, f"flows-{arch}")
    for number in range(len(columns) - 1):
        _lines(drawn, columns[number], columns[number + 1], number)
    for number, (flow, placed) in enumerate(zip(flows, columns, strict=True)):
        x = 2 + number * (_COLUMN + _GAP)
        name = "today" if flow["name"] == "today" else f"Linux {flow['name']}"
        drawn.text("flow-name", x, 22, name)
        hooks = f"{_counted(flow['create_hooks'], 'create')}, {_counted(flow['destroy_hooks'], 'destroy')}"
        drawn.text("flow-hooks", x, 43, hooks)
        for one in placed:
            _box(drawn, one, x, leaked_names(flow))
    return drawn.markup()


def _counted(hooks: list[str], verb: str) -> str:
    return f"1 hook {verb}s" if len(hooks) == 1 else f"{len(hooks)} hooks {verb}"


def _y(one: _Placed) -> float:
    return _TOP + one.row * _ROW


def _lines(drawn: Picture, left: list[_Placed], right: list[_Placed], number: int) -> None:
    x = 2 + number * (_COLUMN + _GAP) + _COLUMN
    there = {one.key: one for one in right}
    for one in left:
        other = there.get(one.key)
        if other is None or one.is_hook != other.is_hook:
            continue
        y, to = _y(one) + _ROW / 2 - 1, _y(other) + _ROW / 2 - 1
        kind = "link moved" if one.hook != other.hook else "link"
        drawn.line(kind, f"M{x + 2} {y:.1f} C{x + _GAP / 2} {y:.1f} {x + _GAP / 2} {to:.1f} {x + _GAP - 2} {to:.1f}")


def _box(drawn: Picture, one: _Placed, x: float, leaked: set[str]) -> None:
    y = _y(one)
    inset = one.depth * _INDENT
    hook = one.hook.rpartition("/")[2]
    if one.is_hook:
        kind = f"hook {one.name}"
    elif one.is_check:
        kind = "check"
    elif one.name in leaked:
        kind = "leaked"
    else:
        kind = f"in-{hook}" if hook else "in-common"
    drawn.box(f"flow-step {kind}", x + inset, y + 1, _COLUMN - inset, _ROW - 4)
    words = f"{one.name}()" if one.is_hook else one.name
    drawn.text("hook-name" if one.is_hook else "step", x + inset + 9, y + 16, words)
    mark = "leaks" if one.name in leaked and not one.is_hook else "locked" if one.locked else ""
    if mark:
        drawn.text("mark", x + _COLUMN - 8, y + 16, mark, "end")
