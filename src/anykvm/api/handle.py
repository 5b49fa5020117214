# SPDX-License-Identifier: GPL-2.0-only
"""What all handles share: a file descriptor of a backend, closed once, refused afterwards."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from contextlib import suppress
from types import TracebackType
from typing import Self

from anykvm.api.backend import Backend
from anykvm.uapi.common import (
    KVM_CHECK_EXTENSION,
    KVM_ENABLE_CAP,
    KVM_GET_DEVICE_ATTR,
    KVM_HAS_DEVICE_ATTR,
    KVM_SET_DEVICE_ATTR,
    KvmDeviceAttr,
    KvmEnableCap,
)


class Handle:
    """One file descriptor of the KVM ABI.

    A context manager; :meth:`close` may be called again; every use after it is OSError EBADF.
    """

    def __init__(self, backend: Backend, fd: int) -> None:
        self._backend = backend
        self._fd = fd

    @property
    def fd(self) -> int:
        """The file descriptor.

        Errors: EBADF when closed.

        >>> vm.fd >= 0
        True
        """
        if self._fd < 0:
            raise OSError(errno.EBADF, f"this {type(self).__name__} is closed")
        return self._fd

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` has been called.

        >>> vm.closed
        False
        """
        return self._fd < 0

    def close(self) -> None:
        """Close the file descriptor; a second call does nothing.

        What the kernel keeps beyond that it keeps here too: a VM lives until its vCPUs and devices are closed as
        well.

        >>> vm.close()
        >>> vm.close()
        >>> vm.closed
        True
        """
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                self._close_fd(fd)
            finally:
                self._release()

    def _close_fd(self, fd: int) -> None:
        self._backend.close(fd)

    def _release(self) -> None:
        """Drop what goes with the fd, once it is closed."""

    def ioctl(self, request: int, arg: int | ctypes.Structure | ctypes.Array[ctypes.c_char] = 0) -> int:
        """Make any request: what this API has no method for.

        ``arg`` is a number, an address, or a ctypes structure or buffer, whose address is passed. Returns what the
        kernel returns. Errors: EBADF when closed, and whatever the request gives (Documentation/virt/kvm/api.rst, 4).

        >>> from anykvm.uapi.common import KVM_GET_API_VERSION
        >>> kvm.ioctl(KVM_GET_API_VERSION)
        12
        """
        if self._fd < 0:
            raise OSError(errno.EBADF, f"this {type(self).__name__} is closed")
        if isinstance(arg, int):
            return self._backend.ioctl(self._fd, request, arg)
        return self._backend.ioctl(self._fd, request, ctypes.addressof(arg))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        # As a file object: what is dropped is closed. At interpreter shutdown the process takes care of it.
        if getattr(self, "_fd", -1) >= 0 and not sys.is_finalizing():
            with suppress(OSError):  # nobody is left to tell
                self.close()

    def __repr__(self) -> str:
        state = "closed" if self._fd < 0 else f"fd {self._fd}"
        return f"<{type(self).__name__} {state}>"


class Capable(Handle):
    """A handle that can be asked for capabilities."""

    def check_extension(self, cap: int) -> int:
        """Ask for a capability (api.rst 4.4): 0 is no, 1 or a larger number says yes and how much.

        On a VM the answer is that VM's. ``cap`` is one of KVM_CAP_*. Errors: EBADF.

        >>> from anykvm.uapi.common import KVM_CAP_USER_MEMORY
        >>> kvm.check_extension(KVM_CAP_USER_MEMORY)
        1
        """
        return self.ioctl(KVM_CHECK_EXTENSION, cap)


class Configurable(Handle):
    """A handle on which capabilities can be enabled."""

    def enable_cap(self, cap: int, *args: int, flags: int = 0) -> int:
        """Enable a capability that is off by default (api.rst 4.37), with up to four 64-bit arguments.

        Errors: EINVAL for one that cannot be enabled here or arguments it does not take, EBADF; ValueError for more
        than four arguments.

        >>> vm.enable_cap(0xFFFF)
        Traceback (most recent call last):
        OSError: [Errno 22] ...
        """
        if len(args) > 4:
            raise ValueError(f"a capability takes at most 4 arguments, not {len(args)}")
        request = KvmEnableCap(cap=cap, flags=flags)
        request.args[: len(args)] = args
        return self.ioctl(KVM_ENABLE_CAP, request)


class Attributed(Handle):
    """A handle with device attributes: a device, and where the architecture has some, a VM or a vCPU."""

    def set_attr(self, group: int, attr: int, value: int | bytes | None = None, *, size: int = 8) -> None:
        """Set an attribute (api.rst 4.80; the groups are in Documentation/virt/kvm/devices/).

        ``value``: a number of ``size`` bytes (most groups take 8, some 4), the bytes themselves, or None where the
        attribute takes no value. Errors: ENXIO for an attribute the device does not have, EINVAL, EBUSY, EEXIST,
        ENODEV as the device says, EBADF; OverflowError for a number that does not fit.

        >>> from anykvm.uapi import arm64, common
        >>> gic = vm.create_device(common.KVM_DEV_TYPE_ARM_VGIC_V2)
        >>> gic.set_attr(arm64.KVM_DEV_ARM_VGIC_GRP_ADDR, arm64.KVM_VGIC_V2_ADDR_TYPE_DIST, 0x08000000)
        >>> gic.set_attr(arm64.KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, 64, size=4)
        """
        if value is None:
            self.ioctl(KVM_SET_DEVICE_ATTR, KvmDeviceAttr(group=group, attr=attr))
            return
        data = value.to_bytes(size, sys.byteorder) if isinstance(value, int) else value
        buffer = ctypes.create_string_buffer(data, len(data))
        self.ioctl(KVM_SET_DEVICE_ATTR, KvmDeviceAttr(group=group, attr=attr, addr=ctypes.addressof(buffer)))

    def get_attr(self, group: int, attr: int, *, size: int = 8, value: int = 0) -> int:
        """Get an attribute of ``size`` bytes as a number (api.rst 4.80).

        ``value`` is what the buffer holds beforehand, for the few attributes that take an input there. Errors: as
        :meth:`set_attr`.

        >>> from anykvm.uapi import arm64, common
        >>> gic = vm.create_device(common.KVM_DEV_TYPE_ARM_VGIC_V2)
        >>> gic.set_attr(arm64.KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, 96, size=4)
        >>> gic.get_attr(arm64.KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, size=4)
        96
        """
        buffer = ctypes.create_string_buffer(value.to_bytes(size, sys.byteorder), size)
        self.ioctl(KVM_GET_DEVICE_ATTR, KvmDeviceAttr(group=group, attr=attr, addr=ctypes.addressof(buffer)))
        return int.from_bytes(buffer.raw, sys.byteorder)

    def has_attr(self, group: int, attr: int) -> bool:
        """Tell whether an attribute exists (api.rst 4.81). Errors: EBADF; ENXIO is the answer no.

        >>> from anykvm.uapi import arm64, common
        >>> gic = vm.create_device(common.KVM_DEV_TYPE_ARM_VGIC_V2)
        >>> gic.has_attr(arm64.KVM_DEV_ARM_VGIC_GRP_CTRL, arm64.KVM_DEV_ARM_VGIC_CTRL_INIT)
        True
        >>> gic.has_attr(0xFFFF, 0)
        False
        """
        try:
            self.ioctl(KVM_HAS_DEVICE_ATTR, KvmDeviceAttr(group=group, attr=attr))
        except OSError as error:
            if error.errno == errno.ENXIO:
                return False
            raise
        return True


def page_size() -> int:
    """The host's page size in bytes: the unit of memory slots and dirty bitmaps."""
    return os.sysconf("SC_PAGE_SIZE")
