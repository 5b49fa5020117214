# SPDX-License-Identifier: GPL-2.0-only
"""Fetches a Debian guest into the cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path

from .apt import Apt
from .cache import Progress, cache_dir, locked, remove_leftovers, staged
from .closure import Closure, inside
from .errors import GuestError, cache_errors, no_space
from .guest import File, Guest, guests_dir, installed, write_manifest
from .machines import Machine, machine

HACKBENCH = "usr/bin/hackbench"
BUSYBOX = "bin/busybox"
_SPACE = 300 << 20
"""Bytes, at the peak of a pull: apt's lists, packages, and these unpacked. Better said now than after the download."""
_PROGRAM_PACKAGES = ("busybox-static", "rt-tests")


def pull(arch: str, *, refresh: bool = False, progress: Progress | None = None) -> Guest:
    """The guest of `arch`: the one in the cache, or the newest from Debian if there is none or `refresh` is asked for.

    Stages of `progress`: ``lists`` (percent), ``download`` (bytes), ``unpack`` (packages), ``waiting for another
    anykvm``.
    An interrupted pull leaves the cache as it was, and the next one goes on with the packages that were complete.
    """
    kind = machine(arch)
    found = None if refresh else installed(arch)
    if found is not None:
        return found
    with locked(cache_dir(), progress):
        # Whoever held the lock may have fetched just this.
        found = None if refresh else installed(arch)
        return found if found is not None else _fetch(kind, progress)


def _fetch(kind: Machine, progress: Progress | None) -> Guest:
    base = guests_dir()
    before = installed(kind.arch)
    with cache_errors(base):
        (base / kind.arch).mkdir(parents=True, exist_ok=True)
        remove_leftovers(base / kind.arch)
        if shutil.disk_usage(base).free < _SPACE:
            raise no_space(cache_dir())
    apt = Apt(cache_dir(), kind.debian)
    apt.update(progress)
    kernel = apt.one(_versioned(kind.kernel, apt.one(kind.kernel).depends))
    packages = [kernel, *(apt.one(name) for name in _PROGRAM_PACKAGES)]
    archives = apt.download(packages, progress)
    stamp = hashlib.sha256("".join(package.sha256 for package in packages).encode()).hexdigest()[:12]
    release = kernel.name.removeprefix("linux-image-").removesuffix("-unsigned")
    final = base / kind.arch / f"{release}-{stamp}"
    with staged(final) as temporary:
        tree = temporary / "tree"
        for number, archive in enumerate(archives):
            if progress is not None:
                progress("unpack", number, len(archives))
            apt.unpack(archive, tree)
        with cache_errors(base):
            closure = Closure(apt, tree, kind.triplet, packages)
            files = closure.resolve([BUSYBOX, HACKBENCH], progress)
            relative = _arrange(kind, temporary, tree, release, files)
        if progress is not None:
            progress("unpack", len(archives), len(archives))
    with cache_errors(base):
        guest = _describe(kind, final, release, relative, {p.name: p.version for p in closure.packages.values()})
        write_manifest(guest)
    apt.discard()
    _remove_others(base / kind.arch, {final, before.directory if before else final})
    return guest


def _versioned(metapackage: str, depends: tuple[str, ...]) -> str:
    for name in depends:
        if re.match(r"linux-image-\d", name):
            return name
    raise GuestError(f"{metapackage} depends on no kernel: run apt-get update, and this again")


def _arrange(kind: Machine, folder: Path, tree: Path, release: str, files: dict[str, Path]) -> list[str]:
    """Moves what a guest needs out of the unpacked packages, and removes the rest."""
    boot = {name: inside(tree, f"boot/{name}-{release}") for name in ("vmlinuz", "config")}
    for name, path in boot.items():
        if path is None:
            raise GuestError(f"the kernel package has no /boot/{name}-{release}: this Debian release is not known here")
        path.rename(folder / name)
    _check_kernel(kind, folder / "vmlinuz")
    for guest_path, file in files.items():
        target = folder / "root" / guest_path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target)
    source = next(
        (path for path in (tree / "lib/modules", tree / "usr/lib/modules") if (path / release).is_dir()), None
    )
    if source is None:
        raise GuestError(f"the kernel package has no modules for {release}: this Debian release is not known here")
    (source / release / "kernel").rename(folder / "modules")
    shutil.rmtree(tree)
    return sorted(files)


def _check_kernel(kind: Machine, path: Path) -> None:
    with path.open("rb") as stream:
        head = stream.read(4096)
    if not any(head[offset : offset + len(magic)] == magic for offset, magic in kind.magic):
        raise GuestError(f"{kind.kernel} holds no {kind.arch} kernel in a known format: boot your own with --kernel")


def _describe(kind: Machine, folder: Path, release: str, programs: list[str], packages: dict[str, str]) -> Guest:
    described = {}
    for name in programs:
        path = folder / "root" / name
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        described[name] = File(path, path.stat().st_size, digest)
    modules = {}
    for where, _, names in os.walk(folder / "modules"):
        for name in names:
            if match := re.match(r"(.+)\.ko(\.xz|\.gz|\.zst)?$", name):
                modules[match[1].replace("-", "_")] = Path(where) / name
    return Guest(
        arch=kind.arch,
        release=release,
        kernel=folder / "vmlinuz",
        config=folder / "config",
        directory=folder,
        console=kind.console,
        programs=described,
        modules=modules,
        packages=packages,
    )


def _remove_others(folder: Path, keep: set[Path]) -> None:
    """Removes older guests but the one before this, which a program may be about to boot."""
    for path in folder.iterdir():
        if path.is_dir() and path not in keep:
            shutil.rmtree(path, ignore_errors=True)
