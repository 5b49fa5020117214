# SPDX-License-Identifier: GPL-2.0-only
"""The Debian archives this machine uses, from its own apt configuration, for an architecture it may not have.

The files are those of sources.list(5): one line per source, or stanzas (deb822). What comes out is stanzas without
restrictions on architectures, of the Debian archive alone: other people's archives rarely have other architectures, and
never the kernel.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from pathlib import Path

from .errors import GuestError

Stanza = dict[str, str]

_DROPPED = {"types", "enabled", "architectures", "languages", "targets"}
# Names of the one-line options that are not simply the stanza's field in lower case.
_OPTIONS = {"arch": "Architectures", "lang": "Languages", "target": "Targets"}


def parse_list(text: str) -> list[Stanza]:
    """Sources in one-line style. Lines that are none are left out, as are sources of source packages."""
    stanzas = []
    for raw in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[([^\]]*)\]\s*)?(\S.*)$", raw.split("#", 1)[0])
        if match is None:
            continue
        words = match[2].split()
        if len(words) < 2:
            continue
        stanza = {"Types": "deb", "URIs": words[0], "Suites": words[1], "Components": " ".join(words[2:])}
        for option in shlex.split(match[1] or ""):
            key, _, value = option.partition("=")
            name = key.rstrip("+-").lower()
            stanza[_OPTIONS.get(name, name.title())] = value.replace(",", " ") if name in _OPTIONS else value
        stanzas.append(stanza)
    return stanzas


def parse_stanzas(text: str) -> list[Stanza]:
    """Sources in deb822 style; continuation lines (a key inside Signed-By) keep their form."""
    stanzas: list[Stanza] = []
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for block in re.split(r"\n[ \t]*\n", lines):
        stanza: Stanza = {}
        name = None
        for line in block.splitlines():
            if line[:1] in (" ", "\t") and name is not None:
                stanza[name] += "\n" + line
            elif ":" in line:
                key, _, value = line.partition(":")
                name = key.strip()
                stanza[name] = value.strip()
        if stanza:
            stanzas.append(stanza)
    return stanzas


def _field(stanza: Stanza, name: str, otherwise: str = "") -> str:
    return next((value for key, value in stanza.items() if key.lower() == name), otherwise)


def select(stanzas: Iterable[Stanza], codename: str) -> list[Stanza]:
    """Those of the Debian release `codename`: itself, its updates and its security archive, with component main.

    If there are none (a machine on "stable" or "testing"), all that have a component main.
    """
    usable = [
        stanza
        for stanza in stanzas
        if "deb" in _field(stanza, "types", "deb").split()
        and _field(stanza, "enabled", "yes").lower() not in ("no", "false", "0", "off", "without", "disable")
        and "main" in _field(stanza, "components").split()
    ]
    suites = {codename, f"{codename}-updates", f"{codename}-security", f"{codename}/updates"}
    chosen: list[Stanza] = []
    for stanza in usable:
        own = [suite for suite in _field(stanza, "suites").split() if suite.rstrip("/") in suites]
        if own:
            chosen.append({**{k: v for k, v in stanza.items() if k.lower() != "suites"}, "Suites": " ".join(own)})
    return chosen if codename and chosen else usable


def render(stanzas: Iterable[Stanza]) -> str:
    """Stanzas as a .sources file, for every architecture."""
    blocks = []
    for stanza in stanzas:
        fields = {key: value for key, value in stanza.items() if key.lower() not in _DROPPED | {"components"}}
        lines = ["Types: deb", "Components: main", *(f"{key}: {value}" for key, value in fields.items() if value)]
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def codename(os_release: Path = Path("/etc/os-release")) -> str:
    """The name of this machine's release, or an empty string."""
    try:
        text = os_release.read_text()
    except OSError:
        return ""
    match = re.search(r'^VERSION_CODENAME="?([a-z]+)"?$', text, re.MULTILINE)
    return match[1] if match else ""


def machine_sources(source_list: Path, source_parts: Path, release: str) -> str:
    """The .sources file for `release` made of the machine's list and folder of lists."""
    stanzas: list[Stanza] = []
    try:
        files = [source_list, *sorted(source_parts.iterdir())] if source_parts.is_dir() else [source_list]
        for path in files:
            if not path.is_file():
                continue
            if path.suffix == ".sources":
                stanzas += parse_stanzas(path.read_text())
            elif path.suffix == ".list":
                stanzas += parse_list(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise GuestError(f"apt's sources cannot be read ({error}): let this user read {source_parts}") from error
    chosen = select(stanzas, release)
    if not chosen:
        raise GuestError(f"apt has no Debian archive here: add one with component main to {source_list}")
    return render(chosen)
