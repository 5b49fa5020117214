# SPDX-License-Identifier: GPL-2.0-only
"""The software backend: the KVM ABI, answered here.

The seam is ``ioctl(fd, request, arg)`` and the mapped run page, as with the kernel. fds are real ones; requests and
arguments are the numbers that a C program passes; errors are OSError with the kernel's errno.
"""

from __future__ import annotations

import errno
import os
import weakref

from .handles import FileTable, InheritedFile
from .hooks import ArchHooks
from .services import Services
from .system import SystemFile
from .vcpu import VcpuFile

_backends: weakref.WeakSet[SoftwareBackend] = weakref.WeakSet()


class SoftwareBackend:
    """KVM for one architecture. Threads may use it as they use the kernel's."""

    name = "software"

    def __init__(self, hooks: ArchHooks, services: Services | None = None) -> None:
        self.hooks = hooks
        self.arch = hooks.name
        self.services = services if services is not None else Services()
        self.files = FileTable()
        self._by_fd = self.files.by_fd
        _backends.add(self)

    def open(self) -> int:
        """Open /dev/kvm: a system fd; EMFILE, ENFILE, ENOMEM."""
        fd = self.services.memfd("kvm", 0)
        self.files.install(fd, SystemFile(self))
        return fd

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        """Do what ioctl(2) does; OSError with the kernel's errno.

        EBADF for an fd that is closed, ENOTTY for one that is not KVM's.
        """
        file = self._by_fd.get(fd)
        if file is None:
            file = self.files.find(fd)
        return file.ioctl(request, arg)

    def mmap(self, fd: int, length: int, offset: int = 0) -> memoryview:
        """Map a vCPU's run page, shared, or at ``offset`` KVM_DIRTY_LOG_PAGE_OFFSET pages its dirty ring.

        ``length`` in bytes, at most KVM_GET_VCPU_MMAP_SIZE, or the ring's size; EBADF, EINVAL, ENODEV. In a forked
        child the page of a parent's vCPU can be mapped: it is shared with it.
        """
        file = self._by_fd.get(fd) or self.files.find(fd)
        if isinstance(file, InheritedFile) and file.kind == VcpuFile.kind and not offset:
            return file.map(length)
        if not isinstance(file, VcpuFile):
            raise OSError(errno.ENODEV, f"a {file.kind} fd cannot be mapped here")
        return file.map(length, offset)

    def interrupt(self, fd: int) -> None:
        """Do what a signal to the thread in KVM_RUN on this vCPU fd does: KVM_RUN returns EINTR.

        It is lost on a vCPU that is not in KVM_RUN, like a signal: set ``immediate_exit`` first to close that gap.
        """
        file = self._by_fd.get(fd) or self.files.find(fd)
        if not isinstance(file, VcpuFile):
            raise OSError(errno.EINVAL, f"a {file.kind} fd does not run")
        file.vcpu.interrupt()

    def close(self, fd: int) -> None:
        """Close an fd of ours; EBADF if it is not. What it refers to lives on while anything else refers to it."""
        if self.files.is_one_of_several(fd):
            self.services.close_fd(fd)
            return
        file = self.files.take(fd)
        if file is None:
            raise OSError(errno.EBADF, f"{fd} is not an open file descriptor of KVM's")
        self.services.close_fd(fd)
        file.release()

    def close_all(self) -> None:
        """Close every fd; a vCPU that runs in another thread is interrupted, and its VM dies when it has returned."""
        files = self.files.files()
        for file in files:
            if isinstance(file, VcpuFile):
                file.vcpu.interrupt()
        for file in files:
            if self.files.take(file.fd) is file:
                self.services.close_fd(file.fd)
                file.release()

    def after_fork(self) -> None:
        """Let go, in a forked child, of what is the parent's: its VMs answer EIO, new ones can be made."""
        for file in self.files.files():
            if not isinstance(file, SystemFile):
                self.files.replace(file, InheritedFile(file))
        self.services.after_fork()

    def __enter__(self) -> SoftwareBackend:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_all()


def _after_fork_in_child() -> None:
    for backend in list(_backends):
        backend.after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
