# SPDX-License-Identifier: GPL-2.0-only
"""Pictures as SVG elements of a page, from the standard library's XML: what a name contains cannot break one.

Colours come from the page's style sheet by class, so that a picture follows light and dark.
"""

from __future__ import annotations

from xml.etree import ElementTree as Xml


class Picture:
    """One picture of ``width`` by ``height`` units, with a title and a text that says the same."""

    def __init__(self, width: float, height: float, title: str, alternative: str, name: str) -> None:
        self.root = Xml.Element(
            "svg",
            {
                "xmlns": "http://www.w3.org/2000/svg",
                "viewBox": f"0 0 {_number(width)} {_number(height)}",
                "width": _number(width),
                "height": _number(height),
                "role": "img",
                "aria-labelledby": f"{name}-title {name}-text",
            },
        )
        Xml.SubElement(self.root, "title", {"id": f"{name}-title"}).text = title
        Xml.SubElement(self.root, "desc", {"id": f"{name}-text"}).text = alternative

    def add(self, tag: str, kind: str, **attributes: float | str) -> Xml.Element:
        """Add an element of a class; ``_`` in an attribute's name is ``-``."""
        values = {key.replace("_", "-"): _number(value) for key, value in attributes.items()}
        return Xml.SubElement(self.root, tag, {"class": kind} | values)

    def box(self, kind: str, x: float, y: float, width: float, height: float) -> Xml.Element:
        """Add a rectangle with round corners."""
        return self.add("rect", kind, x=x, y=y, width=width, height=height, rx=5)

    def text(self, kind: str, x: float, y: float, words: str, anchor: str = "start") -> None:
        """Add a line of text; ``y`` is where it stands."""
        self.add("text", kind, x=x, y=y, text_anchor=anchor).text = words

    def line(self, kind: str, path: str) -> None:
        """Add a path that is not filled."""
        self.add("path", kind, d=path, fill="none")

    def markup(self) -> str:
        """Give it as text."""
        return Xml.tostring(self.root, encoding="unicode")


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.1f}".removesuffix(".0")
