# SPDX-License-Identifier: GPL-2.0-only
"""The host backend: every request goes to the kernel as it is."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import threading
from typing import Final

from anykvm.uapi.common import KVM_API_VERSION, KVM_GET_API_VERSION, KVM_RUN

DEV_KVM: Final = "/dev/kvm"

# What KVM_RUN is interrupted with: a real-time signal few programs use; its handler does nothing.
KICK_SIGNAL: Final[int] = signal.SIGRTMIN + 6

_ARCHITECTURES: Final = {
    "aarch64": "arm64",
    "x86_64": "x86",
    "ppc64le": "powerpc",
    "ppc64": "powerpc",
    "mips64": "mips",
    "s390x": "s390",
    "riscv64": "riscv",
    "loongarch64": "loongarch",
    "armv7l": "arm",
}
# Their ioctl numbers have other bits than the rest's (asm/ioctl.h), which anykvm.uapi does not know.
_OTHER_NUMBERS: Final = ("powerpc", "mips")
_CONTAINERS: Final = ("/.dockerenv", "/run/.containerenv", "/run/systemd/container")

_libc: Final = ctypes.CDLL(None, use_errno=True)
_libc_ioctl: Final = _libc.ioctl
_libc_ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
_libc_ioctl.restype = ctypes.c_int
_libc.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
_libc.signal.restype = ctypes.c_void_p


class _Thread(threading.local):
    """The calling thread's id in the kernel, asked for once: it is a system call, and every exit's way."""

    def __init__(self) -> None:
        self.native_id = threading.get_native_id()


_this = _Thread()


def _forget() -> None:
    global _this  # noqa: PLW0603  (a forked child's one thread has another id)
    _this = _Thread()


os.register_at_fork(after_in_child=_forget)


def host_arch() -> str:
    """The architecture whose guests this machine's /dev/kvm runs, by anykvm's names."""
    machine = os.uname().machine
    return _ARCHITECTURES.get(machine, machine)


def virtualises(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether the CPU runs guests itself.

    An x86 KVM without VMX or SVM (kvm_pvm) takes guests through the kernel's instruction emulator: the ABI is there,
    and an ordinary kernel is too much for it.
    """
    if host_arch() != "x86":
        return True
    try:
        with open(cpuinfo, encoding="ascii", errors="replace") as file:
            flags = next((line.split() for line in file if line.startswith("flags")), [])
    except OSError:
        return True
    return "vmx" in flags or "svm" in flags


EMULATES: Final = "no VMX or SVM here: its guests are emulated by the kernel, which is too little for Linux"
"""What to say of a /dev/kvm where :func:`virtualises` is false."""


def _absent() -> str:
    """Why there may be no /dev/kvm, the likeliest reason first."""
    if any(map(os.path.exists, _CONTAINERS)):
        return "this container was not given it (docker run --device /dev/kvm)"
    if not virtualises():
        return "the CPU has no VMX or SVM, or the firmware, or the machine this one runs on, keeps it off"
    return "this kernel has no KVM, or its module is not loaded (modprobe kvm_intel or kvm_amd on x86)"


def probe(path: str = DEV_KVM) -> str | None:
    """Say in one line why the machine's KVM is not available, or None when it is."""
    if host_arch() in _OTHER_NUMBERS:
        return f"{host_arch()} hosts number their requests in another way, which anykvm does not know"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return f"{path} is not there: {_absent()}"
    except PermissionError as error:
        if error.errno == errno.EPERM:
            return f"{path} may not be opened: this container's device policy does not allow it"
        return f"{path} may not be opened: join the group that owns it (usually kvm), or ask for access"
    except OSError as error:
        if error.errno in (errno.ENODEV, errno.ENXIO):
            return f"{path} has no driver behind it ({error.strerror}): load the CPU's KVM module"
        return f"{path} cannot be opened: {error.strerror}"
    try:
        version = _libc_ioctl(fd, KVM_GET_API_VERSION, 0)
    finally:
        os.close(fd)
    if version < 0:
        return f"{path} is not KVM"
    if version != KVM_API_VERSION:
        return f"{path} speaks version {version} of the KVM API, not {KVM_API_VERSION}"
    return None


class HostBackend:
    """The machine's /dev/kvm. File descriptors are the kernel's own, addresses go through unchanged."""

    name = "host"

    def __init__(self, path: str = DEV_KVM) -> None:
        self.arch = host_arch()
        self._path = path
        self._running: dict[int, int] = {}
        self._kick_lock = threading.Lock()
        self._handler_installed = False

    def open(self) -> int:
        """Open /dev/kvm. Errors: as open(2)."""
        return os.open(self._path, os.O_RDWR | os.O_CLOEXEC)

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        """Make one request of the kernel, once: EINTR is the caller's to handle.

        Other threads run meanwhile. Errors: the kernel's.
        """
        result: int
        if request == KVM_RUN:
            self._running[fd] = _this.native_id
            result = _libc_ioctl(fd, KVM_RUN, arg)
            del self._running[fd]
        else:
            result = _libc_ioctl(fd, request, arg)
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def close(self, fd: int) -> None:
        """Close an fd. Errors: EBADF."""
        os.close(fd)

    def mmap(self, fd: int, length: int, offset: int = 0) -> memoryview:
        """Map a vCPU's run page and what follows it, or from ``offset`` on.

        Errors: ENODEV for another kind of fd, EINVAL, EBADF.
        """
        if fd < 0:  # Python would give anonymous memory
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return memoryview(
            mmap.mmap(fd, length, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)
        )

    def interrupt(self, fd: int) -> None:
        """Interrupt the KVM_RUN in progress on a vCPU fd, if one is, by a signal to its thread.

        The caller has set ``immediate_exit``, so a run that is about to begin returns at once as well.
        """
        thread = self._running.get(fd)
        if thread is None:
            return
        self._install_handler()
        # A thread id, not a pthread: the thread may have ended meanwhile.
        if _libc.tgkill(os.getpid(), thread, KICK_SIGNAL) < 0 and ctypes.get_errno() != errno.ESRCH:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def _install_handler(self) -> None:
        """Give the signal a C function that does nothing; Python's own handlers can be set on the main thread only."""
        with self._kick_lock:
            if not self._handler_installed:
                _libc.signal(KICK_SIGNAL, ctypes.cast(_libc.getpid, ctypes.c_void_p))
                self._handler_installed = True
