# SPDX-License-Identifier: GPL-2.0-only
"""The system fd: what an open /dev/kvm answers."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from anykvm.uapi import requests as rq

from .extensions import check_extension
from .handles import KvmFile
from .vm import create_vm

if TYPE_CHECKING:
    from .backend import SoftwareBackend


class SystemFile(KvmFile):
    """A system fd."""

    __slots__ = ("_backend",)
    kind = "system"

    def __init__(self, backend: SoftwareBackend) -> None:
        super().__init__()
        self._backend = backend

    def ioctl(self, request: int, arg: int) -> int:
        """Serve one ioctl; EINVAL for an unknown one, and for an argument where none belongs."""
        backend = self._backend
        hooks = backend.hooks
        request &= 0xFFFFFFFF
        arg &= 0xFFFFFFFFFFFFFFFF
        if request == rq.KVM_CHECK_EXTENSION:
            return check_extension(hooks, None, arg)
        if request == rq.KVM_CREATE_VM:
            return create_vm(hooks, backend.services, backend.files, arg)
        if request in (rq.KVM_GET_API_VERSION, rq.KVM_GET_VCPU_MMAP_SIZE):
            if arg:
                raise OSError(errno.EINVAL, "this request takes no argument")
            return rq.KVM_API_VERSION if request == rq.KVM_GET_API_VERSION else hooks.vcpu_mmap_size
        return hooks.dev_ioctl(request, arg)
