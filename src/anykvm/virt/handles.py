# SPDX-License-Identifier: GPL-2.0-only
"""Which file descriptor is which object.

Every fd is a real one: a memfd, so that dup, poll, fork and mmap are the host's. It is recognised by its number,
which is fast, or else by the memfd behind it (st_dev, st_ino), which finds duplicates.
"""

from __future__ import annotations

import errno
import mmap
import os


class KvmFile:
    """What an fd of ours stands for (struct file and its file_operations)."""

    __slots__ = ("fd", "inode")
    kind: str = "file"

    def __init__(self) -> None:
        self.fd = -1
        self.inode: tuple[int, int] = (0, 0)

    def ioctl(self, request: int, arg: int) -> int:
        """Serve an ioctl; OSError with the kernel's errno."""
        raise NotImplementedError

    def release(self) -> None:
        """See the last fd closed."""


class InheritedFile(KvmFile):
    """In a forked child, an fd of an object that lives in the parent: ioctls are EIO, closing touches nothing."""

    __slots__ = ("kind",)

    def __init__(self, file: KvmFile) -> None:
        super().__init__()
        self.kind = file.kind
        self.fd = file.fd
        self.inode = file.inode

    def ioctl(self, request: int, arg: int) -> int:
        """Refuse: the VM belongs to another process's memory."""
        raise OSError(errno.EIO, "this VM belongs to the process that forked this one")

    def map(self, length: int) -> memoryview:
        """Map the memfd: a vCPU's run page; EINVAL, ENOMEM."""
        if not 0 < length <= os.fstat(self.fd).st_size:
            raise OSError(errno.EINVAL, f"{length} bytes of a vCPU cannot be mapped")
        return memoryview(mmap.mmap(self.fd, length))

    def release(self) -> None:
        """Leave the parent's object alone."""


class FileTable:
    """The fds of one backend."""

    __slots__ = ("_by_fd", "_by_inode", "_duplicates")

    def __init__(self) -> None:
        self._by_fd: dict[int, KvmFile] = {}
        self._by_inode: dict[tuple[int, int], KvmFile] = {}
        # The duplicates that were used, by inode. Userspace may have closed one since: look before believing it.
        self._duplicates: dict[tuple[int, int], list[int]] = {}

    @property
    def by_fd(self) -> dict[int, KvmFile]:
        """The table by fd number, for the hot path; read only."""
        return self._by_fd

    def files(self) -> list[KvmFile]:
        """Give every open file."""
        return list(self._by_inode.values())

    def install(self, fd: int, file: KvmFile) -> None:
        """Make an fd ours. An entry left by an fd that userspace closed behind our back is released first."""
        stat = os.fstat(fd)
        stale = self._by_fd.get(fd)
        if stale is not None:
            self.take(fd)
            stale.release()
        file.fd = fd
        file.inode = (stat.st_dev, stat.st_ino)
        self._by_inode[file.inode] = file
        self._by_fd[fd] = file

    def replace(self, file: KvmFile, by: KvmFile) -> None:
        """Let an fd stand for something else."""
        self._by_fd[file.fd] = by
        self._by_inode[file.inode] = by

    def find(self, fd: int) -> KvmFile:
        """Find an fd that is not in the table by its number; EBADF if it is closed, ENOTTY if it is not ours."""
        try:
            stat = os.fstat(fd)
        except (OSError, OverflowError, TypeError):
            raise OSError(errno.EBADF, f"{fd} is not an open file descriptor") from None
        inode = (stat.st_dev, stat.st_ino)
        file = self._by_inode.get(inode)
        if file is None:
            raise OSError(errno.ENOTTY, f"file descriptor {fd} is not one of KVM's")
        # It may have been installed since whoever asks looked for its number: then it is no duplicate.
        if file.fd != fd and fd not in self._duplicates.setdefault(inode, []):
            self._duplicates[inode].append(fd)
        return file

    def is_one_of_several(self, fd: int) -> bool:
        """Whether what this fd stands for stays open when the fd is closed, since a duplicate of it was used.

        A duplicate takes the fd's place then. One that was never used is not known: nothing tells of dup(2).
        """
        file = self._by_fd.get(fd)
        if file is None:
            try:
                file = self.find(fd)
            except OSError:
                return False
            # Unless it was installed while we looked.
            if file.fd != fd:
                self._duplicates[file.inode].remove(fd)
                return True
        others = self._duplicates.pop(file.inode, None)
        alive = [other for other in others or () if self._stands_for(other, file)]
        if not alive:
            return False
        del self._by_fd[fd]
        file.fd = alive.pop(0)
        self._by_fd[file.fd] = file
        if alive:
            self._duplicates[file.inode] = alive
        return True

    @staticmethod
    def _stands_for(fd: int, file: KvmFile) -> bool:
        try:
            stat = os.fstat(fd)
        except OSError:
            return False
        return (stat.st_dev, stat.st_ino) == file.inode

    def take(self, fd: int) -> KvmFile | None:
        """Take a file out of the table: whoever gets it (one caller only) releases it."""
        file = self._by_fd.pop(fd, None)
        if file is not None:
            self._by_inode.pop(file.inode, None)
        return file
