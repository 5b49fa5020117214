# SPDX-License-Identifier: GPL-2.0-only
"""The seam: what answers the KVM ABI, and how one is chosen by name.

A backend takes ioctls as the kernel does: a file descriptor, a request number, and an argument that is a plain
number or the address of a structure in this process. ``software`` is anykvm's own KVM, ``host`` the machine's
``/dev/kvm``.
"""

from __future__ import annotations

import importlib
from typing import Final, Protocol, cast

BACKENDS: Final = ("auto", "software", "host")


class Backend(Protocol):
    """Answers the KVM ABI."""

    name: str
    """``"software"`` or ``"host"``."""
    arch: str
    """The architecture of its guests, as ``"arm64"``."""

    def open(self) -> int:
        """Open the system fd, as ``open("/dev/kvm")`` does; OSError with its errno."""

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        """Make one request; OSError with the kernel's errno. Never restarted on EINTR."""

    def close(self, fd: int) -> None:
        """Close one of the backend's fds; OSError EBADF if it is not open."""

    def mmap(self, fd: int, length: int, offset: int = 0) -> memoryview:
        """Map ``length`` bytes of a vCPU fd, shared and writable: from 0 the run page, or its dirty ring.

        It stays mapped as long as there is a view of it.
        """

    def interrupt(self, fd: int) -> None:
        """Make a KVM_RUN in progress on this vCPU fd return EINTR, as a signal to its thread does; from any thread."""


class UnsupportedArchitecture(ValueError):
    """No backend runs guests of the architecture asked for; the message says which there are."""


class BackendUnavailable(RuntimeError):
    """The backend asked for is not usable on this machine; the message says why, in one line."""


def architectures() -> tuple[str, ...]:
    """The architectures the software backend runs, in alphabetical order."""
    import importlib.util  # noqa: PLC0415  (slow to load, and seldom needed)
    import pkgutil  # noqa: PLC0415

    spec = importlib.util.find_spec("anykvm.arch")
    if spec is None or spec.submodule_search_locations is None:
        return ()
    found = pkgutil.iter_modules(list(spec.submodule_search_locations))
    return tuple(sorted(module.name for module in found if module.ispkg))


def resolve(name: str, arch: str) -> Backend:
    """Give the backend called ``name`` for guests of ``arch``.

    ``auto`` is the machine's own /dev/kvm where it can be opened, runs such guests and the CPU virtualises them, else
    software.
    Errors: ValueError for an unknown name, :class:`UnsupportedArchitecture`, :class:`BackendUnavailable`.
    """
    if name not in BACKENDS:
        raise ValueError(f"no backend {name!r}: there are {', '.join(BACKENDS)}")
    if name == "host":
        return _host(arch)
    if name == "auto":
        try:
            backend = _host(arch)
        except (BackendUnavailable, UnsupportedArchitecture):
            pass  # software it is
        else:
            if importlib.import_module("anykvm.host").virtualises():
                return backend
    return _software(arch)


def _host(arch: str) -> Backend:
    # By name: this package is written over the ABI and does not know who answers it.
    host = importlib.import_module("anykvm.host")
    if host.host_arch() != arch:
        raise UnsupportedArchitecture(f"this machine's /dev/kvm runs {host.host_arch()} guests, not {arch}")
    reason = host.probe()
    if reason is not None:
        raise BackendUnavailable(reason)
    return cast(Backend, host.HostBackend())


def _software(arch: str) -> Backend:
    known = architectures()
    if arch not in known:
        raise UnsupportedArchitecture(f"no architecture {arch!r}: there is {', '.join(known) or 'none'}")
    try:
        software = importlib.import_module("anykvm.arch.software")
    except ImportError as error:
        raise BackendUnavailable(f"the software backend is not built: {error}") from error
    return cast(Backend, software.backend(arch))
