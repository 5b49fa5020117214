# SPDX-License-Identifier: GPL-2.0-only
"""A fetched guest: where its parts are. Reading this needs neither apt nor network, only the manifest in the cache."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .cache import cache_dir, write_atomic
from .errors import GuestError
from .machines import MACHINES, machine

FORMAT = 1
"""Of the manifest; a cache of another format counts as empty."""


@dataclass(frozen=True)
class File:
    """One file of a guest: its place, size in bytes and SHA-256."""

    path: Path
    size: int
    sha256: str


@dataclass(frozen=True)
class Guest:
    """A Debian kernel and the programs that go with it, in the cache."""

    arch: str
    """anykvm's name of the architecture."""
    release: str
    """The kernel's release, as ``uname -r`` prints it."""
    kernel: Path
    """The kernel file as Debian packages it: arm64 a raw Image or compressed, amd64 a bzImage."""
    config: Path
    """The configuration the kernel was built with."""
    directory: Path
    """The folder all of this is in."""
    console: str
    """The usual console device, for ``console=`` on the kernel command line."""
    programs: Mapping[str, File] = field(hash=False)
    """Busybox, hackbench and its libraries: path in the guest, without leading slash → file."""
    modules: Mapping[str, Path] = field(hash=False)
    """Kernel modules: name, with underscores → file."""
    packages: Mapping[str, str] = field(hash=False)
    """Debian package → version."""


def guests_dir() -> Path:
    """The folder of all guests, in the cache."""
    return cache_dir() / "guests"


def manifest_path(arch: str) -> Path:
    """The manifest of `arch`'s guest."""
    return guests_dir() / f"{arch}.json"


def write_manifest(guest: Guest) -> None:
    """Makes `guest` the one that ``installed`` finds. Paths are relative, so that a cache can be moved."""

    def relative(path: Path) -> str:
        return str(path.relative_to(guests_dir()))

    content = {
        "format": FORMAT,
        "arch": guest.arch,
        "release": guest.release,
        "directory": relative(guest.directory),
        "kernel": relative(guest.kernel),
        "config": relative(guest.config),
        "programs": {
            name: {"path": relative(file.path), "size": file.size, "sha256": file.sha256}
            for name, file in sorted(guest.programs.items())
        },
        "modules": {name: relative(path) for name, path in sorted(guest.modules.items())},
        "packages": dict(sorted(guest.packages.items())),
        "kernel_size": guest.kernel.stat().st_size,
    }
    write_atomic(manifest_path(guest.arch), [json.dumps(content, indent=1).encode()])


def installed(arch: str) -> Guest | None:
    """The guest of `arch` in the cache; ``None`` if there is none, or if files of it are gone or cut short."""
    console = machine(arch).console
    base = guests_dir()
    try:
        content: dict[str, Any] = json.loads(manifest_path(arch).read_bytes())
        if content["format"] != FORMAT or content["arch"] != arch:
            return None
        guest = Guest(
            arch=arch,
            release=content["release"],
            kernel=base / content["kernel"],
            config=base / content["config"],
            directory=base / content["directory"],
            console=console,
            programs={
                name: File(base / item["path"], item["size"], item["sha256"])
                for name, item in content["programs"].items()
            },
            modules={name: base / path for name, path in content["modules"].items()},
            packages=content["packages"],
        )
        expected = [
            (guest.kernel, content["kernel_size"]),
            *((file.path, file.size) for file in guest.programs.values()),
        ]
        whole = all(path.stat().st_size == size for path, size in expected)
    except PermissionError as error:
        raise GuestError(
            f"the cache {base} cannot be read ({error.strerror}): set ANYKVM_CACHE to one that can"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Not there, or not written by this program: either way the next pull writes it.
        return None
    return guest if whole else None


def list_guests() -> list[Guest]:
    """The guests in the cache, by architecture."""
    return [guest for arch in sorted(MACHINES) if (guest := installed(arch)) is not None]
