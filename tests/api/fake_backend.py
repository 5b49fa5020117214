# SPDX-License-Identifier: GPL-2.0-only
"""A backend that records what it is asked and answers what a test tells it to."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Callable
from typing import Any

from anykvm.uapi import common, ioctl

Answer = int | OSError | Callable[[int, int], int]


def stats_fd() -> int:
    """A statistics file without statistics: a header of zeros."""
    fd = os.memfd_create("stats", os.MFD_CLOEXEC)
    os.ftruncate(fd, 64)
    return fd


class FakeBackend:
    """Real fds (memfds), recorded ioctls.

    ``answers`` by request: a result, an error, or a function of fd and argument.
    """

    name = "fake"
    arch = "arm64"

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, bytes | int]] = []
        self.open_fds: set[int] = set()
        self.interrupted: list[int] = []
        self.answers: dict[int, Answer] = {
            common.KVM_GET_VCPU_MMAP_SIZE: 8192,
            common.KVM_CREATE_VM: lambda fd, arg: self.open(),
            common.KVM_CREATE_VCPU: lambda fd, arg: self.open(),
            common.KVM_GET_STATS_FD: lambda fd, arg: stats_fd(),
            common.KVM_CREATE_DEVICE: self.create_device,
        }

    def open(self) -> int:
        fd = os.memfd_create("fake", os.MFD_CLOEXEC)
        os.ftruncate(fd, 8192)
        self.open_fds.add(fd)
        return fd

    def create_device(self, fd: int, arg: int) -> int:
        request = common.KvmCreateDevice.from_address(arg)
        if not request.flags & common.KVM_CREATE_DEVICE_TEST:
            request.fd = self.open()
        return 0

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        if fd not in self.open_fds:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        size = ioctl.decode(request).size
        self.calls.append((fd, request, ctypes.string_at(arg, size) if size and arg else arg))
        answer = self.answers.get(request, 0)
        if isinstance(answer, OSError):
            raise answer
        return answer(fd, arg) if callable(answer) else answer

    def close(self, fd: int) -> None:
        if fd not in self.open_fds:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        self.open_fds.remove(fd)
        os.close(fd)

    def mmap(self, fd: int, length: int, offset: int = 0) -> memoryview:
        return memoryview(mmap.mmap(fd, length, offset=offset))

    def interrupt(self, fd: int) -> None:
        self.interrupted.append(fd)

    def last(self, request: int, structure: Any = None) -> Any:
        """The argument of the last call of this request, as the given structure."""
        argument = next(arg for _, seen, arg in reversed(self.calls) if seen == request)
        return argument if structure is None else structure.from_buffer_copy(argument)
