# SPDX-License-Identifier: GPL-2.0-only
"""Programs with the shared libraries they need, out of packages: only those packages are fetched that have one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from .apt import Apt, Package
from .cache import Progress
from .elf import linkage
from .errors import GuestError

GLIBC = frozenset(
    f"lib{name}.so.{version}"
    for name, version in (("c", 6), ("m", 6), ("pthread", 0), ("dl", 2), ("rt", 1), ("util", 1), ("resolv", 2))
)
"""The C library's own names; whoever runs a program beside a C library of its own leaves them out, with ``ld-*``."""


def inside(root: Path, path: str) -> Path | None:
    """The file at `path` of the tree `root`, through links that stay inside; ``None`` if there is none."""
    base = root.resolve()
    plain = base / path.lstrip("/")
    if plain.is_symlink() and str(plain.readlink()).startswith("/"):
        plain = base / str(plain.readlink()).lstrip("/")
    resolved = plain.resolve()
    return resolved if resolved.is_relative_to(base) and resolved.is_file() else None


class Closure:
    """The libraries of programs in `root`, where packages get unpacked as they turn out to be needed."""

    def __init__(
        self, apt: Apt, root: Path, triplet: str, packages: Iterable[Package], *, skip: frozenset[str] = frozenset()
    ):
        self._apt = apt
        self._root = root
        self._skip = skip
        self._folders = [f"{usr}lib{sub}" for usr in ("", "usr/") for sub in (f"/{triplet}", "", "64")]
        self.packages = {package.name: package for package in packages}

    def resolve(self, programs: Iterable[str], progress: Progress | None = None) -> dict[str, Path]:
        """`programs` and what they need: path in the guest (without leading slash) → file in the tree."""
        wanted = list(programs)
        while True:
            files, missing = self._walk(wanted)
            if not missing:
                return files
            self._fetch_for(sorted(missing), progress)

    def _walk(self, programs: list[str]) -> tuple[dict[str, Path], set[str]]:
        files: dict[str, Path] = {}
        missing: set[str] = set()
        queue = []
        for path in programs:
            found = inside(self._root, path) or inside(self._root, f"usr/{path}")
            if found is None:
                raise GuestError(
                    f"/{path} is not in packages {', '.join(self.packages)}: this Debian release is not known here"
                )
            queue.append((path.lstrip("/"), found))
        linkers: set[str] = set()
        names: set[str] = set()
        while queue:
            path, file = queue.pop()
            files[path] = file
            link = linkage(file)
            if link.interpreter and not self._skip:
                linkers.add(Path(link.interpreter).name)
                interpreter = link.interpreter.lstrip("/")
                target = inside(self._root, interpreter) or inside(self._root, f"usr/{interpreter}")
                if target is None:
                    missing.add(Path(interpreter).name)
                else:
                    files[interpreter] = target
            for name in link.needed:
                # Libraries name the dynamic linker too, which is there already, under the path the program gave it.
                if name in names or name in self._skip or name in linkers or (self._skip and name.startswith("ld-")):
                    continue
                names.add(name)
                where = next(
                    (f"{folder}/{name}" for folder in self._folders if inside(self._root, f"{folder}/{name}")), None
                )
                if where is None:
                    missing.add(name)
                else:
                    library = inside(self._root, where)
                    assert library is not None
                    queue.append((where, library))
        return files, missing

    def _fetch_for(self, missing: list[str], progress: Progress | None) -> None:
        candidates = {name for package in self.packages.values() for name in package.depends} - self.packages.keys()
        ranked = sorted(candidates, key=lambda name: (-max(_likeness(name, library) for library in missing), name))
        # In order of likeness; names that are alternatives of others, or virtual, may not exist.
        package = next((found[0] for name in ranked if (found := self._apt.show([name]))), None)
        if package is None:
            raise GuestError(f"no package has {', '.join(missing)}: run this again when the archive is consistent")
        (archive,) = self._apt.download([package], progress)
        self._apt.unpack(archive, self._root)
        self.packages[package.name] = package


def _likeness(package: str, library: str) -> float:
    """How much `package` looks like the home of `library`: libNAME.so.V is in libNAMEV (Debian policy, 8.1)."""
    if library.startswith("ld-") or library in GLIBC:
        return 2.0 if package == "libc6" else 0.0
    match = re.match(r"(.*?)\.so\.?(.*)$", library)
    stem, version = (match[1], match[2]) if match else (library, "")
    squeezed = re.sub(r"[^a-z0-9+]", "", f"{stem}{version}".lower())
    score = difflib.SequenceMatcher(None, re.sub(r"[^a-z0-9+]", "", package), squeezed).ratio()
    return score + (0.2 if "lib" in package else 0.0)
