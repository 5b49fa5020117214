# SPDX-License-Identifier: GPL-2.0-only
"""Builds the initial RAM file system of a guest: busybox, the init script, hackbench, kernel modules, extra files."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .cache import cache_dir, write_atomic
from .errors import GuestError, cache_errors
from .guest import Guest
from .init import INIT

_FORMAT = 1  # of what this package makes of the same input


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
        from .contents import guest_archive  # noqa: PLC0415  (slow to load, and not needed for an image in the cache)

        archive = guest_archive(guest, modules)
        for item, data in zip(extras, contents, strict=True):
            try:
                archive.file(item.path, data, stat.S_IMODE(item.mode))
            except ValueError as error:
                raise GuestError(f"extra file {error}") from error
    data = archive.tobytes()
    if compress:
        import gzip  # noqa: PLC0415

        data = gzip.compress(data, 6, mtime=0)
    write_atomic(image, [data])
    return image


def _content(item: Extra) -> bytes:
    if isinstance(item.content, bytes):
        return item.content
    try:
        return item.content.read_bytes()
    except OSError as error:
        raise GuestError(f"extra file {item.content} cannot be read ({error.strerror})") from error
