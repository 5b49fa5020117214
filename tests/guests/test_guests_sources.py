# SPDX-License-Identifier: GPL-2.0-only
from __future__ import annotations

from pathlib import Path

import pytest

from anykvm.guests.errors import GuestError
from anykvm.guests.sources import codename, machine_sources, parse_list, parse_stanzas, render, select


def test_one_line_sources() -> None:
    text = """
# comment
deb http://a.invalid/debian bookworm main contrib  # trailing
deb-src http://a.invalid/debian bookworm main
deb [arch=amd64,i386 signed-by=/k.gpg trusted=yes] http://b.invalid/debian bookworm-updates main
deb broken
"""
    first, second = parse_list(text)
    assert first == {
        "Types": "deb",
        "URIs": "http://a.invalid/debian",
        "Suites": "bookworm",
        "Components": "main contrib",
    }
    assert second["Architectures"] == "amd64 i386"
    assert second["Signed-By"] == "/k.gpg"
    assert second["Trusted"] == "yes"


def test_stanzas_with_a_key_inside_and_comments() -> None:
    text = """Types: deb
# where
URIs: http://a.invalid/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc

Types: deb
URIs: http://b.invalid
Suites: x
"""
    first, second = parse_stanzas(text)
    assert first["Signed-By"] == "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc"
    assert second["URIs"] == "http://b.invalid"
    assert render([first]).count("BEGIN PGP") == 1
    assert "\n .\n" in render([first])


def test_only_the_releases_own_suites() -> None:
    chosen = select(
        parse_list(
            "deb http://a.invalid/debian bookworm main\n"
            "deb http://a.invalid/debian bookworm-backports main\n"
            "deb http://s.invalid/debian-security bookworm-security main non-free\n"
            "deb http://docker.invalid/debian bookworm stable\n"
            "deb http://pg.invalid bookworm-pgdg main\n"
        ),
        "bookworm",
    )
    assert [stanza["URIs"] for stanza in chosen] == ["http://a.invalid/debian", "http://s.invalid/debian-security"]


def test_suites_of_one_stanza_are_filtered() -> None:
    (stanza,) = select(parse_stanzas("URIs: u\nSuites: bookworm bookworm-backports\nComponents: main\n"), "bookworm")
    assert stanza["Suites"] == "bookworm"


def test_a_machine_on_stable_keeps_what_it_has() -> None:
    (stanza,) = select(parse_list("deb http://a.invalid stable main\n"), "bookworm")
    assert stanza["Suites"] == "stable"


@pytest.mark.parametrize("extra", ["Enabled: no", "enabled: false", "Types: deb-src"])
def test_disabled_and_source_stanzas_are_left_out(extra: str) -> None:
    text = f"URIs: u\nSuites: bookworm\nComponents: main\n{extra}\n"
    assert select(parse_stanzas(text), "bookworm") == []


def test_pinned_architectures_are_dropped() -> None:
    text = render(parse_list("deb [arch=amd64 lang=de signed-by=/k.gpg] http://a.invalid bookworm main contrib\n"))
    assert "amd64" not in text
    assert "Languages" not in text
    assert "Signed-By: /k.gpg" in text
    assert "Components: main\n" in text


def test_all_files_of_a_machine(tmp_path: Path) -> None:
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text("deb http://a.invalid bookworm main\n")
    (parts / "s.sources").write_text(
        "Types: deb\nURIs: http://s.invalid\nSuites: bookworm-security\nComponents: main\n"
    )
    (parts / "old.list.disabled").write_text("deb http://no.invalid bookworm main\n")
    text = machine_sources(tmp_path / "sources.list", parts, "bookworm")
    assert "http://a.invalid" in text and "http://s.invalid" in text and "no.invalid" not in text


def test_no_source_at_all(tmp_path: Path) -> None:
    with pytest.raises(GuestError, match="no Debian archive here: add one"):
        machine_sources(tmp_path / "none", tmp_path / "nothing", "bookworm")


def test_unreadable_sources(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_bytes(b"\xff\xfe")
    (tmp_path / "a.list").write_bytes(b"\xff\xfe")
    with pytest.raises(GuestError, match="cannot be read"):
        machine_sources(tmp_path / "sources.list", tmp_path, "bookworm")


@pytest.mark.parametrize(
    ("text", "name"), [("VERSION_CODENAME=trixie\n", "trixie"), ('VERSION_CODENAME="sid"\n', "sid"), ("ID=x\n", "")]
)
def test_codename(tmp_path: Path, text: str, name: str) -> None:
    (tmp_path / "os-release").write_text(text)
    assert codename(tmp_path / "os-release") == name
    assert codename(tmp_path / "gone") == ""
