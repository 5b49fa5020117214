# SPDX-License-Identifier: GPL-2.0-only
"""The report: one page that needs nothing else, says what was found, and is seen in a browser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as Xml

import lab_browser
import pytest

from anykvm.cli import main
from anykvm.lab.errors import LabError
from anykvm.lab.flows.compare import compare
from anykvm.lab.races import plan
from anykvm.lab.races import report as races
from anykvm.lab.report import gather, ladder_picture, matrix, page
from anykvm.lab.sweep import sweep

ARCHES = ["arm64", "x86"]
VOID = {"meta", "br", "link", "img", "hr", "input"}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Results as the commands write them; a sweep of one subject, orders of one scenario for each architecture."""
    where = tmp_path_factory.mktemp("results")
    swept = sweep(["x86/none"], processes=0).to_json()
    items = [item for arch in ARCHES for item in plan.items(arch, "same-id", 1)]
    rows = [row.as_json() for row in races.rows((item, plan.work(item)) for item in items)]
    made = {"sweep": swept, "flows": compare(ARCHES), "races": rows}
    for name, value in made.items():
        (where / f"{name}.json").write_text(json.dumps(value))
    return {name: where / f"{name}.json" for name in made}


@pytest.fixture(scope="module")
def found(files: dict[str, Path]) -> dict[str, Any]:
    return gather.gather(ARCHES, gather.Sources(**files))


@pytest.fixture(scope="module")
def written(found: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    page.write(path, found)
    return path


class Elements(HTMLParser):
    """Every element with its attributes; complains of one that is not closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_page_needs_nothing_else(written: Path) -> None:
    text = written.read_text()
    elements = Elements(text)
    assert elements.all("script") == elements.all("link") == elements.all("img") == []
    assert re.findall(r"(?:https?:)?//[\w.]+", text.replace("http://www.w3.org/2000/svg", "")) == []
    assert "url(" not in text
    assert "@import" not in text


def test_pictures_have_text_and_everything_is_reached_by_keyboard(written: Path) -> None:
    elements = Elements(written.read_text())
    pictures = elements.all("svg")
    assert len(pictures) == 4, "a ladder and the flows, for each architecture"
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    for one in pictures:
        assert one["role"] == "img"
        assert set(one["aria-labelledby"].split()) <= set(ids)
    scrolling = [one for one in elements.all("div") if "scroll" in one.get("class", "").split()]
    assert len(scrolling) >= 4
    assert all(one["tabindex"] == "0" and one["aria-label"] for one in scrolling)
    targets = [one["href"] for one in elements.all("a")]
    assert targets
    assert {target.removeprefix("#") for target in targets} <= set(ids)
    assert [one["lang"] for one in elements.all("html")] == ["en"]


def test_the_page_says_what_was_found(written: Path, found: dict[str, Any]) -> None:
    words = " ".join(" ".join(Elements(written.read_text()).words).split())
    assert f"{found['sweep']['faults']} faults injected" in words
    assert "nothing left behind, no wrong errno" in words
    assert "Fixed by the series: memory wbinvd mask." in words
    assert "Found later, and left by 5.6 too: devices on the MMIO bus, memory vgic vcpu." in words
    assert "create 0: EEXIST; create 0 too: ok" in words
    assert "x86/none all green" in words
    assert "two KVM_CREATE_VCPU of one id" in words


@pytest.mark.parametrize("arch", ARCHES)
def test_the_ladder_is_the_one_of_a_vcpu_that_was_made(found: dict[str, Any], arch: str) -> None:
    today = found["flows"][arch]["flows"][-1]
    drawn = Xml.fromstring(ladder_picture.picture(arch, today))
    boxes = [one for one in drawn.iter("{http://www.w3.org/2000/svg}rect")]
    steps = [one.get("data-step") for one in boxes]
    assert steps[:3] == ["created_vcpus", "vcpu struct", "run page"]
    assert steps[-3:] == ["fd", "online", "postcreate"]
    assert "debugfs" not in steps
    heights = [float(one.get("y", "")) for one in boxes]
    assert heights == sorted(heights, reverse=True), "going up"
    undone = [one for one in drawn.iter("{http://www.w3.org/2000/svg}path") if one.get("class") == "rail down"]
    # The rail and its arrow; all but what closing the fd takes back, and postcreate, which takes nothing back.
    assert len(undone) == 2 + len(steps) - 3


def test_the_matrix_has_a_cell_for_every_fault_of_the_first_and_the_last_vcpu(found: dict[str, Any]) -> None:
    (one,) = matrix.matrices(found["sweep"])
    assert one.faults == len(found["sweep"]["plans"]["x86/none"]) == found["sweep"]["faults"]
    assert one.errnos == ["ENOMEM", "EMFILE", "ENFILE"]
    assert one.bad == 0
    fd = next(row for row in one.rows if row.kind == "fd")
    assert sorted(fd.cells) == sorted((errno, which) for errno in one.errnos for which in ("first", "Nth"))
    assert len(one.rows) > 15


def test_a_finding_is_red_and_its_text_cannot_break_the_page(found: dict[str, Any]) -> None:
    plan_text = next(text for text in found["sweep"]["plans"]["x86/none"] if text.startswith("KVM_CREATE_VCPU#1/"))
    finding = {"subject": "x86/none", "plan": plan_text, "finding": 'left <script>alert("x")</script> & more'}
    broken = json.loads(json.dumps(found))
    broken["sweep"]["findings"] = [finding]
    broken["races"][0]["failing"] = 1
    broken["races"][0]["failures"] = [{"schedule": "A1", "why": "<b>lost</b>", "replay": "x86/same-id:A1"}]
    broken["flows"]["x86"]["leaks_today"] = ["memory <thing>"]
    broken["flows"]["x86"]["flows"][-1]["steps"][0]["name"] = "</svg><script>"
    elements = Elements(page.page(broken))
    assert elements.all("script") == []
    assert len([one for one in elements.all("td") if "ko" in one.get("class", "").split()]) == 1
    words = "".join(elements.words)
    assert 'left <script>alert("x")</script> & more' in words
    assert "<b>lost</b>" in words
    assert "memory <thing>" in words
    assert page.bad(broken)
    assert not page.bad(found)


def test_the_time_of_each_step_is_measured(found: dict[str, Any]) -> None:
    for one in found["timeline"]:
        names = [step["name"] for step in one["steps"]]
        assert {"vcpu struct", "run page", "create", "online"} <= set(names)
        assert names[-1] == "map the run page"
        assert all(step["us"] > 0 for step in one["steps"])
        total = sum(step["us"] for step in one["steps"])
        # A sum of medians and a median of sums: alike, and on a busy machine not the same.
        assert one["watched_us"] / 5 < total < one["watched_us"] * 2
        assert 5 < one["plain_us"] < 100_000


def test_json_and_table(files: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    given = [word for name, path in files.items() for word in (f"--{name}", str(path))]
    assert main.run(["lab", "report", *given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {
        "kind",
        "architectures",
        "flows",
        "sweep",
        "races",
        "timeline",
    }
    assert main.run(["lab", "report", *given]) == 0
    out = capsys.readouterr().out
    assert "fixed by the series: memory wbinvd mask" in out
    assert "one vCPU of arm64" in out


def test_the_flows_have_a_page_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "flows.html"
    assert main.run(["lab", "flows", "x86", "-o", str(path)]) == 0
    elements = Elements(path.read_text())
    assert len(elements.all("svg")) == 2
    assert "fault matrix" not in path.read_text()


@pytest.mark.parametrize(
    ("option", "text", "words"),
    [
        ("sweep", None, "No such file or directory"),
        ("sweep", "nonsense", "is not JSON: write it with anykvm lab sweep --json"),
        ("sweep", "{}", "is not what anykvm lab sweep --json writes"),
        ("flows", "[]", "is not what anykvm lab flows --json writes"),
        ("races", "{}", "is not what anykvm lab races --json writes"),
    ],
)
def test_results_that_cannot_be_read_are_one_line(
    files: dict[str, Path], tmp_path: Path, option: str, text: str | None, words: str
) -> None:
    path = tmp_path / "results.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(LabError, match=re.escape(words)):
        gather.gather(["x86"], gather.Sources(**files | {option: path}))


def test_a_page_that_cannot_be_written_is_one_line(found: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(LabError, match="No such file or directory: give --output another place"):
        page.write(tmp_path / "none" / "page.html", found)


def test_an_architecture_that_is_not_there_is_one_line() -> None:
    with pytest.raises(LabError, match="no report on 'vax': choose one of arm64, x86"):
        gather.gather(["vax"])


# In a browser.

browser = pytest.mark.skipif(lab_browser.CHROMIUM is None, reason="no chromium here")
PROBE = """
<script>
const widths = [document.documentElement.scrollWidth, window.innerWidth];
const small = [...document.querySelectorAll("svg text")].filter(
  (text) => !text.closest(".scroll") && text.getBoundingClientRect().height < 9).length;
const outside = [...document.querySelectorAll("svg text")].filter((text) => {
  const box = text.getBoundingClientRect(), around = text.ownerSVGElement.getBoundingClientRect();
  return box.left < around.left - 1 || box.right > around.right + 1 || box.bottom > around.bottom + 1;
}).length;
document.body.dataset.probe = [...widths, small, outside, document.querySelectorAll("svg").length].join(" ");
</script>
"""


@browser
@pytest.mark.parametrize("width", [500, 1200])
def test_it_fits_a_phone_and_a_screen(written: Path, tmp_path: Path, width: int) -> None:
    """Nothing is wider than the page but what scrolls by itself, no text is tiny or outside its picture."""
    copy = tmp_path / "probe.html"
    copy.write_text(written.read_text().replace("</body>", f"{PROBE}</body>"))
    (probe,) = re.findall(r'data-probe="([^"]*)"', lab_browser.dom(copy, width))
    needed, window, small, outside, pictures = map(int, probe.split())
    assert window == width
    assert needed <= window
    assert (small, outside, pictures) == (0, 0, 4)


@browser
def test_it_is_seen_light_and_dark(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "seen.html"
    copy.write_text(written.read_text())
    seen = {dark: lab_browser.screenshot(copy, 500, 700, dark=dark) for dark in (False, True)}
    for dark, rows in seen.items():
        corner = rows[3][9:12]
        assert (max(corner) < 60) == dark
        assert (min(corner) > 200) == (not dark)
        colours = {row[x : x + 3] for row in rows[::4] for x in range(0, len(row), 12)}
        assert len(colours) > 40, "text and pictures, not an empty page"
