# SPDX-License-Identifier: GPL-2.0-only
"""The part of Debian's kernel source that the kernel's own KVM tests need, unpacked in the cache."""

from __future__ import annotations

import lzma
import shutil
import tarfile
from pathlib import Path
from typing import Final

from .apt import Apt
from .cache import Progress, cache_dir, locked, remove_leftovers, staged
from .errors import GuestError, cache_errors, no_space

PACKAGE: Final = "linux-source-6.1"
_NEEDED: Final = (
    "Makefile",
    "Kbuild",
    "scripts/",
    "include/",
    "usr/",
    "arch/x86/",
    "arch/arm64/",
    "tools/arch/",
    "tools/build/",
    "tools/include/",
    "tools/lib/",
    "tools/scripts/",
    "tools/testing/selftests/kvm/",
    "tools/testing/selftests/rseq/",
    "tools/testing/selftests/kselftest",
    "tools/testing/selftests/lib.mk",
)
_SPACE: Final = 400 << 20
"""Bytes, at the peak: the package, what is in it, and the part that stays."""


def kernel_source(progress: Progress | None = None) -> Path:
    """Give the folder with the source, fetched through the machine's apt if it is not in the cache; ``GuestError``."""
    folder = cache_dir() / "source" / PACKAGE
    if folder.is_dir():
        return folder
    with locked(cache_dir(), progress):
        if not folder.is_dir():
            _fetch(folder, progress)
    return folder


def _fetch(folder: Path, progress: Progress | None) -> None:
    with cache_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent)
        if shutil.disk_usage(folder.parent).free < _SPACE:
            raise no_space(cache_dir())
    apt = Apt(cache_dir(), "amd64")
    apt.update(progress)
    (archive,) = apt.download([apt.one(PACKAGE)], progress)
    with staged(folder) as temporary:
        package = temporary / "package"
        apt.unpack(archive, package)
        try:
            with cache_errors(folder.parent), tarfile.open(package / f"usr/src/{PACKAGE}.tar.xz") as tar:
                _extract(tar, temporary)
        except (tarfile.TarError, lzma.LZMAError, EOFError, KeyError) as error:
            # tarfile says on a line each what it is not.
            why = str(error).partition("\n")[0].rstrip(":")
            raise GuestError(f"{PACKAGE} is damaged ({why}): remove {archive} and run this again") from error
        shutil.rmtree(package)
    apt.discard()


def _extract(tar: tarfile.TarFile, into: Path) -> None:
    for member in tar:
        _, _, name = member.name.partition("/")
        if name.startswith(_NEEDED):
            member.name = name
            tar.extract(member, into, filter="tar")
