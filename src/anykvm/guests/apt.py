# SPDX-License-Identifier: GPL-2.0-only
"""Packages of any architecture through the machine's own apt, as any user and without a trace in the machine's state.

apt gets state, cache and dpkg status of its own, in anykvm's cache, and the guest's architecture as its only one. Its
keys, proxies, preferences and everything else in /etc/apt stay in force; its hooks do not, as they are about the
machine's own packages.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import sources
from .cache import Progress, write_atomic
from .errors import GuestError, cache_errors, no_space, tail
from .programs import run

_HOOKS = (
    "APT::Update::Pre-Invoke",
    "APT::Update::Post-Invoke",
    "APT::Update::Post-Invoke-Success",
    "DPkg::Pre-Invoke",
    "DPkg::Post-Invoke",
    "DPkg::Pre-Install-Pkgs",
)
_NOTHING = 64 << 10  # bytes
_FULL = re.compile(r"No space left on device|enough free space|Disk quota exceeded|No space left", re.IGNORECASE)


@dataclass(frozen=True)
class Package:
    """One version of a package as apt's lists describe it. `size` in bytes."""

    name: str
    version: str
    architecture: str
    size: int
    sha256: str
    depends: tuple[str, ...]

    @property
    def filename(self) -> str:
        """The name apt-get download gives it."""
        return f"{self.name}_{self.version.replace(':', '%3a')}_{self.architecture}.deb"


class Apt:
    """apt for one Debian architecture, its state below `root`, anykvm's cache. Hold the cache's lock to use it."""

    def __init__(self, root: Path, architecture: str) -> None:
        self.architecture = architecture
        self.root = root / "apt" / architecture
        self.debs = self.root / "debs"
        self._config = self.root / "apt.conf"
        self._updated = False

    def _prepare(self) -> None:
        with cache_errors(self.root):
            for folder in ("lists/partial", "archives/partial", "sources", "preferences", "debs"):
                (self.root / folder).mkdir(parents=True, exist_ok=True)
        release = sources.codename()
        paths = self._run(
            ["apt-config", "shell", "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d"],
            configured=False,
        )
        found = dict(re.findall(r"^(LIST|PARTS)='(.*)'$", paths, re.MULTILINE))
        text = sources.machine_sources(
            Path(found.get("LIST", "/etc/apt/sources.list")),
            Path(found.get("PARTS", "/etc/apt/sources.list.d")),
            release,
        )
        write_atomic(self.root / "sources" / "debian.sources", [text.encode()])
        write_atomic(self.root / "status", [])
        write_atomic(self._config, [self._configuration().encode()])

    def _configuration(self) -> str:
        root = str(self.root)
        if '"' in root or "\n" in root:
            raise GuestError(f"apt cannot use a cache at {root!r}: set ANYKVM_CACHE to a path without quotes")
        settings = {
            "APT::Architecture": self.architecture,
            # apt started by root would hand files to user _apt, who cannot enter a private cache.
            "APT::Sandbox::User": "root",
            "APT::Update::Error-Mode": "any",
            "APT::Get::List-Cleanup": "true",
            "Acquire::Languages": "none",
            "Acquire::Retries": "2",
            "Dir::State": root,
            "Dir::State::lists": f"{root}/lists",
            "Dir::State::status": f"{root}/status",
            "Dir::State::extended_states": f"{root}/extended_states",
            "Dir::Cache": root,
            "Dir::Cache::archives": f"{root}/archives",
            "Dir::Cache::pkgcache": f"{root}/pkgcache.bin",
            "Dir::Cache::srcpkgcache": f"{root}/srcpkgcache.bin",
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": f"{root}/sources",
            "Dir::Log": root,
        }
        lines = [f'{key} "{value}";' for key, value in settings.items()]
        lines += ["#clear APT::Architectures;", f'APT::Architectures {{ "{self.architecture}"; }};']
        lines += [f"#clear {hook};" for hook in _HOOKS]
        # Descriptions, icons and the like that machines with a desktop add to what apt-get update fetches.
        lines += ["#clear Acquire::IndexTargets::deb-src;"]
        lines += [f'Acquire::IndexTargets::deb::{kind}::DefaultEnabled "false";' for kind in ("Contents-deb", "CNF")]
        return "\n".join(lines) + "\n"

    def update(self, progress: Progress | None = None) -> None:
        """Brings the lists of packages up to date, once in the life of this object."""
        if self._updated:
            return
        self._prepare()
        report: Callable[[float], None] | None = None
        if progress is not None:
            call = progress
            call("lists", 0, 100)
            report = lambda percent: call("lists", int(percent), 100)  # noqa: E731
        self._run(
            ["apt-get", "update", "-q"], status=report, hint="is the network there, and does apt-get update work?"
        )
        if progress is not None:
            progress("lists", 100, 100)
        self._updated = True

    def show(self, names: Iterable[str]) -> list[Package]:
        """The candidate versions of those of `names` that exist."""
        wanted = list(dict.fromkeys(names))
        if not wanted:
            return []
        text = self._run(["apt-cache", "show", "--no-all-versions", *wanted], unknown_is_empty=True)
        found = {}
        for stanza in sources.parse_stanzas(text):
            if {"Package", "Version", "SHA256", "Size"} <= stanza.keys():
                found[stanza["Package"]] = Package(
                    stanza["Package"],
                    stanza["Version"],
                    stanza.get("Architecture", self.architecture),
                    int(stanza["Size"]),
                    stanza["SHA256"],
                    _depends(f"{stanza.get('Pre-Depends', '')},{stanza.get('Depends', '')}"),
                )
        return [found[name] for name in wanted if name in found]

    def one(self, name: str) -> Package:
        """The candidate version of `name`; ``GuestError`` if the archive has none."""
        packages = self.show([name])
        if not packages:
            raise GuestError(
                f"package {name} for {self.architecture} is in none of apt's archives: "
                "check that apt's sources are Debian's with component main"
            )
        return packages[0]

    def download(self, packages: Sequence[Package], progress: Progress | None = None) -> list[Path]:
        """The files of `packages`, each checked against its SHA-256. Those that an earlier run fetched are kept."""
        missing = [package for package in packages if not self._valid(package)]
        total = sum(package.size for package in packages)
        have = total - sum(package.size for package in missing)
        if missing:
            for package in missing:
                with cache_errors(self.debs):
                    (self.debs / package.filename).unlink(missing_ok=True)
            report: Callable[[float], None] | None = None
            if progress is not None:
                call = progress
                call("download", have, total)
                report = lambda percent: call("download", have + int((total - have) * percent / 100), total)  # noqa: E731
            command = ["apt-get", "download", "-q", *(f"{package.name}={package.version}" for package in missing)]
            self._run(command, cwd=self.debs, status=report, hint="is the network there, and does apt-get update work?")
        for package in missing:
            if not self._valid(package):
                raise GuestError(
                    f"{package.filename} came damaged or not at all: run this again, and look at the proxy"
                )
        if progress is not None:
            progress("download", total, total)
        return [self.debs / package.filename for package in packages]

    def unpack(self, archive: Path, into: Path) -> None:
        """Unpacks a package's files below `into`, as this user; none of its scripts is run."""
        self._run(["dpkg-deb", "-x", str(archive), str(into)], configured=False)

    def discard(self) -> None:
        """Removes downloaded packages; what they held is unpacked."""
        shutil.rmtree(self.debs, ignore_errors=True)

    def _valid(self, package: Package) -> bool:
        path = self.debs / package.filename
        try:
            with path.open("rb") as stream:
                return hashlib.file_digest(stream, "sha256").hexdigest() == package.sha256
        except FileNotFoundError:
            return False
        except OSError as error:
            raise GuestError(f"{path} cannot be read ({error.strerror}): remove it") from error

    def _run(
        self,
        command: list[str],
        *,
        configured: bool = True,
        cwd: Path | None = None,
        status: Callable[[float], None] | None = None,
        hint: str = "",
        unknown_is_empty: bool = False,
    ) -> str:
        if configured:
            command = [command[0], "-c", str(self._config), *command[1:]]
            if status is not None:
                command += ["-o", "APT::Status-Fd=1"]
        done = run(command, cwd=cwd, line=None if status is None else _percent(status), full=self._full)
        if done.status == 0:
            return done.output
        if unknown_is_empty and ("No packages found" in done.errors or "Unable to locate package" in done.errors):
            return done.output
        if _FULL.search(done.errors) or self._full():
            raise no_space(self.root)
        said = tail(done.errors) or f"exit status {done.status}, without a word"
        raise GuestError(f"{command[0]} {_verb(command)} failed: {said}" + (f" ({hint})" if hint else ""))

    def _full(self) -> bool:
        """Whether the cache's file system is so full that nothing can go on there."""
        try:
            return shutil.disk_usage(self.root).free < _NOTHING
        except OSError:
            return False


def _percent(status: Callable[[float], None]) -> Callable[[str], bool]:
    """Takes the lines of APT::Status-Fd out of the output: "dlstatus:NUMBER:PERCENT:WORDS"."""

    def take(line: str) -> bool:
        if not line.startswith("dlstatus:"):
            return False
        with suppress(ValueError, IndexError):
            status(float(line.split(":")[2]))
        return True

    return take


def _verb(command: list[str]) -> str:
    return next((word for word in command[1:] if word in ("update", "show", "download", "shell", "-x")), "")


def _depends(text: str) -> tuple[str, ...]:
    names = (
        re.match(r"[a-z0-9][a-z0-9+.-]+", choice.strip()) for part in text.split(",") for choice in part.split("|")
    )
    return tuple(dict.fromkeys(match[0] for match in names if match))
