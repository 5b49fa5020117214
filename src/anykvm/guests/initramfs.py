# SPDX-License-Identifier: GPL-2.0-only
"""Builds the initial RAM file system of a guest: busybox, the init script, hackbench, kernel modules, extra files."""

from __future__ import annotations

import gzip
import hashlib
import json
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .cache import cache_dir, write_atomic
from .cpio import Archive
from .elf import ModuleInfo, module_bytes, module_info
from .errors import GuestError, cache_errors
from .guest import Guest
from .init import APPLETS, INIT, MODULE_TABLE
from .machines import machine

_FORMAT = 1  # of what this file makes of the same input
_FOLDERS = ("dev", "proc", "sys", "run", "tmp", "root", "mnt", "sbin", "usr/sbin", "etc")
_NOT_APPLETS = ("busybox",)


@dataclass(frozen=True)
class Extra:
    """A file to add to an image, at `path` in the guest."""

    path: str
    content: bytes | Path
    mode: int = 0o755


def build_initramfs(
    guest: Guest, *, extra: Iterable[Extra] = (), modules: Sequence[str] = (), compress: bool = False
) -> Path:
    """The initramfs of `guest` with the `extra` files and kernel `modules` (by name, with what they depend on).

    Modules named here are inserted at every start; those every image has, only if the guest finds their device. The
    image is kept in the cache under a hash of all that is in it. Uncompressed by default: the guest unpacks it on an
    emulated CPU.
    """
    extras = list(extra)
    with cache_errors(cache_dir()):
        contents = [_content(item) for item in extras]
        key = hashlib.sha256(
            json.dumps(
                [
                    _FORMAT,
                    compress,
                    INIT,
                    guest.arch,
                    str(guest.directory.name),
                    sorted((name, file.sha256) for name, file in guest.programs.items()),
                    sorted(modules),
                    [
                        (item.path, item.mode, hashlib.sha256(data).hexdigest())
                        for item, data in zip(extras, contents, strict=True)
                    ],
                ]
            ).encode()
        ).hexdigest()[:24]
        image = cache_dir() / "images" / f"{guest.arch}-{key}.cpio{'.gz' if compress else ''}"
        if image.is_file():
            return image
        archive = _archive(guest, modules)
        for item, data in zip(extras, contents, strict=True):
            try:
                archive.file(item.path, data, stat.S_IMODE(item.mode))
            except ValueError as error:
                raise GuestError(f"extra file {error}") from error
    data = archive.tobytes()
    write_atomic(image, [gzip.compress(data, 6, mtime=0) if compress else data])
    return image


def _content(item: Extra) -> bytes:
    if isinstance(item.content, bytes):
        return item.content
    try:
        return item.content.read_bytes()
    except OSError as error:
        raise GuestError(f"extra file {item.content} cannot be read ({error.strerror})") from error


def _archive(guest: Guest, modules: Sequence[str]) -> Archive:
    archive = Archive()
    for folder in _FOLDERS:
        archive.directory(folder)
    archive.directory("tmp", 0o1777)
    # The kernel opens /dev/console for init before anything is mounted on /dev.
    archive.character_device("dev/console", 5, 1, 0o600)
    archive.character_device("dev/null", 1, 3, 0o666)
    for path, file in guest.programs.items():
        archive.file(path, file.path.read_bytes(), 0o755)
    for applet in APPLETS:
        if applet not in _NOT_APPLETS:
            archive.symlink(f"bin/{applet}", "busybox")
    archive.file("init", INIT.encode(), 0o755)
    _add_modules(archive, guest, modules)
    return archive


def _add_modules(archive: Archive, guest: Guest, named: Sequence[str]) -> None:
    infos: dict[str, ModuleInfo] = {}
    always = [name.replace("-", "_") for name in named]
    by_device = [name for name in machine(guest.arch).modules if name not in always and name in guest.modules]
    table: list[str] = []
    for name in [*always, *by_device]:
        order = _order(archive, guest, name, infos, ())
        paths = " ".join(f"/lib/modules/{module}.ko" for module in order)
        if name in always:
            table.append(f"- {paths}")
        else:
            # The shell reads words: no pattern with a space could be told from paths. None of virtio's has one.
            table += [f"{alias} {paths}" for alias in infos[name].aliases if " " not in alias]
    if table:
        archive.file(MODULE_TABLE, ("\n".join(table) + "\n").encode())


def _order(
    archive: Archive, guest: Guest, name: str, infos: dict[str, ModuleInfo], above: tuple[str, ...]
) -> list[str]:
    """The modules to insert for `name`, dependencies first; adds their files to the archive."""
    if name in above:
        raise GuestError(f"kernel modules depend on each other in a circle: {' '.join((*above, name))}")
    path = guest.modules.get(name)
    if path is None:
        raise GuestError(
            f"kernel {guest.release} has no module {name}: it may be built in (see {guest.config}); leave it out"
        )
    if name not in infos:
        data = module_bytes(path)
        infos[name] = module_info(data)
        archive.file(f"lib/modules/{name}.ko", data)
    order = [
        module for depend in infos[name].depends for module in _order(archive, guest, depend, infos, (*above, name))
    ]
    return list(dict.fromkeys([*order, name]))
