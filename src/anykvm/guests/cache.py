# SPDX-License-Identifier: GPL-2.0-only
"""The cache outside the repository: where it is, one writer at a time, and nothing half written under a final name."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import GuestError, cache_errors

Progress = Callable[[str, int, int], None]
"""``progress(stage, done, total)``: bytes, or steps; a `total` of 0 means that nobody knows."""

WAITING = "waiting for another anykvm"
_TEMPORARY = ".tmp-"


def cache_dir() -> Path:
    """$ANYKVM_CACHE, or anykvm below $XDG_CACHE_HOME, or ~/.cache/anykvm. It need not exist yet."""
    if own := os.environ.get("ANYKVM_CACHE"):
        return Path(own).expanduser().absolute()
    shared = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG base directory specification: a relative path there is invalid and to be ignored.
    if shared.startswith("/"):
        return Path(shared) / "anykvm"
    try:
        return Path.home() / ".cache" / "anykvm"
    except RuntimeError as error:
        raise GuestError("no home directory is known: set ANYKVM_CACHE to a directory for fetched guests") from error


@contextmanager
def locked(root: Path, progress: Progress | None = None) -> Iterator[None]:
    """Makes `root` and holds it against other processes. The kernel lets go of the lock however this process ends."""
    with cache_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        with cache_errors(root):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if progress is not None:
                    progress(WAITING, 0, 0)
                else:
                    print(f"{WAITING}...", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def write_atomic(path: Path, chunks: Iterable[bytes]) -> None:
    """Writes `path` so that it is either whole or not there, also after a crash of the machine."""
    import tempfile  # noqa: PLC0415  (slow to load, and not needed to read)

    with cache_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                for chunk in chunks:
                    stream.write(chunk)
                stream.flush()
                os.fchmod(stream.fileno(), 0o644)
                os.fsync(stream.fileno())
            os.rename(name, path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """A temporary folder beside `final` that becomes `final` if the block ends well, and vanishes if it does not."""
    import shutil  # noqa: PLC0415
    import tempfile  # noqa: PLC0415

    with cache_errors(final.parent):
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=final.parent))
    try:
        yield temporary
        with cache_errors(final.parent):
            sync_tree(temporary)
            temporary.chmod(0o755)
            if final.exists():
                shutil.rmtree(final)
            os.rename(temporary, final)
            sync_directory(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Removes what interrupted runs left in `folder`; only while the cache is locked."""
    import shutil  # noqa: PLC0415

    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def sync_tree(root: Path) -> None:
    """Brings every file and folder below `root` to the disk."""
    for folder, _, files in os.walk(root):
        for name in files:
            path = os.path.join(folder, name)
            if not os.path.islink(path):
                _sync(path)
        sync_directory(Path(folder))


def sync_directory(path: Path) -> None:
    """Brings the names in a folder to the disk."""
    _sync(path)


def _sync(path: str | Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
