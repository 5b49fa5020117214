# SPDX-License-Identifier: GPL-2.0-only
"""A writer of initramfs archives: cpio's "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst).

The archive depends on its entries alone: they are sorted, times and owners are 0, inode numbers count up. Folders that
lead to an entry are added by themselves.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from dataclasses import dataclass

_BLOCK = 512
_TRAILER = "TRAILER!!!"
_MAX_SIZE = 0xFFFF_FFFF


@dataclass(frozen=True)
class Entry:
    """One archive member: type and permission bits in `mode`, `data` of a file or a link's target, `rdev` of a node."""

    mode: int
    data: bytes = b""
    rdev: tuple[int, int] = (0, 0)


class Archive:
    """Entries by path, and the archive they make."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Adds a folder."""
        self._add(path, Entry(stat.S_IFDIR | mode))

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Adds a file with `data` as its content."""
        self._add(path, Entry(stat.S_IFREG | mode, data))

    def symlink(self, path: str, target: str) -> None:
        """Adds a symbolic link to `target`."""
        self._add(path, Entry(stat.S_IFLNK | 0o777, target.encode()))

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Adds a character device node."""
        self._add(path, Entry(stat.S_IFCHR | mode, rdev=(major, minor)))

    def _add(self, path: str, entry: Entry) -> None:
        parts = path.strip("/").split("/")
        if any(part in ("", ".", "..") for part in parts) or "\0" in path:
            raise ValueError(f"not a path inside an archive: {path!r}")
        if len(entry.data) > _MAX_SIZE:
            raise ValueError(f"{path}: {len(entry.data)} bytes, newc holds at most {_MAX_SIZE}")
        for depth in range(1, len(parts)):
            parent = self._entries.setdefault("/".join(parts[:depth]), Entry(stat.S_IFDIR | 0o755))
            if not stat.S_ISDIR(parent.mode):
                raise ValueError(f"{path}: {'/'.join(parts[:depth])} is not a folder")
        name = "/".join(parts)
        before = self._entries.get(name)
        if before is not None and stat.S_ISDIR(before.mode) != stat.S_ISDIR(entry.mode):
            raise ValueError(f"{path}: already there, and one of the two is a folder")
        self._entries[name] = entry

    def chunks(self) -> Iterator[bytes]:
        """The archive piece by piece, padded to whole blocks of 512 bytes."""
        length = 0
        # Sorted by path, so that a folder precedes what is in it.
        for inode, (path, entry) in enumerate(sorted(self._entries.items()), start=1):
            member = _member(path, entry, inode)
            length += len(member)
            yield member
        trailer = _member(_TRAILER, Entry(0), 0)
        length += len(trailer)
        yield trailer + bytes(-length % _BLOCK)

    def tobytes(self) -> bytes:
        """The whole archive."""
        return b"".join(self.chunks())


def _member(path: str, entry: Entry, inode: int) -> bytes:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    major, minor = entry.rdev
    #        ino    mode        uid gid nlink mtime size            dev   rdev          namesize  check
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name
    return head + bytes(-len(head) % 4) + entry.data + bytes(-len(entry.data) % 4)
