# SPDX-License-Identifier: GPL-2.0-only
"""Debian's kernel for any PC, which reads MP tables; the cloud kernel is built without. 70 MB through apt, once."""

from __future__ import annotations

import os
import subprocess
import tarfile
from pathlib import Path
from typing import IO, cast

from anykvm.guests import GuestError
from anykvm.guests.apt import Apt
from anykvm.guests.cache import cache_dir, locked, write_atomic

_METAPACKAGE = "linux-image-amd64"


def generic_kernel() -> Path:
    """The kernel's file; ``GuestError`` if it cannot be had."""
    path = cache_dir() / "kernels" / f"{_METAPACKAGE}.bzImage"
    if not path.is_file():
        with locked(cache_dir()):
            if not path.is_file():
                _fetch(path)
    return path


def _fetch(path: Path) -> None:
    apt = Apt(cache_dir(), "amd64")
    apt.update()
    versioned = next(name for name in apt.one(_METAPACKAGE).depends if name.startswith("linux-image-"))
    (archive,) = apt.download([apt.one(versioned)])
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, [_kernel_in(archive)])
    apt.discard()


def _kernel_in(archive: Path) -> bytes:
    """The kernel is among the first files, and the 400 MB of modules after it are not unpacked."""
    process = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", os.fspath(archive)], stdout=subprocess.PIPE)
    try:
        with tarfile.open(fileobj=cast(IO[bytes], process.stdout), mode="r|") as tar:
            for member in tar:
                if member.name.startswith("./boot/vmlinuz-") and (file := tar.extractfile(member)) is not None:
                    return file.read()
    finally:
        process.kill()
        process.communicate()
    raise GuestError(f"{archive.name} has no kernel in it")
