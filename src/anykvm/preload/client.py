# SPDX-License-Identifier: GPL-2.0-only
"""Python's side of the preload library, in the client's process.

The library (``src/*.c``) calls ``start`` once, at the first open of /dev/kvm, and then ``open``, ``adopt``, ``closed``
and ``sweep``. For each memfd that is KVM's it has the function that serves its ioctls, which it calls on the client's
own thread.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from anykvm.arch import software
from anykvm.engine import watch
from anykvm.virt.backend import SoftwareBackend
from anykvm.virt.handles import FileTable, InheritedFile, KvmFile
from anykvm.virt.system import SystemFile

from .services import ClientServices, append_to

if TYPE_CHECKING:
    from .faults import Faults

Serve = Callable[[int, int], int]
"""What serves the ioctls of one file: request and argument to result, or OSError."""

_ONE: Final = 0
_SENT: Final = 2


class ClientFiles(FileTable):
    """The table of files, of which the library has a copy by inode."""

    __slots__ = ("_library", "wrap")

    def __init__(self, library: Any) -> None:
        super().__init__()
        self._library = library
        self.wrap: Callable[[KvmFile], Serve] = _plain

    def install(self, fd: int, file: KvmFile) -> None:
        """Make an fd ours, and known to the library; ENOMEM."""
        super().install(fd, file)
        self._tell(file)

    def replace(self, file: KvmFile, by: KvmFile) -> None:
        """Let an fd stand for something else."""
        super().replace(file, by)
        self._tell(by)

    def take(self, fd: int) -> KvmFile | None:
        """Take a file out of the table."""
        file = super().take(fd)
        if file is not None:
            self._library.forget(file.inode[1])
        return file

    def move(self, file: KvmFile, fd: int) -> None:
        """Note that the number of the file's descriptor is another now: the first one was closed."""
        if self._by_fd.get(file.fd) is file:
            del self._by_fd[file.fd]
        file.fd = fd
        self._by_fd[fd] = file

    def by_inode(self, inode: int) -> KvmFile | None:
        """Find a file by its memfd's inode number."""
        return next((file for file in self._by_inode.values() if file.inode[1] == inode), None)

    def _tell(self, file: KvmFile) -> None:
        self._library.tell(file.inode[1], self.wrap(file), isinstance(file, SystemFile))


def _plain(file: KvmFile) -> Serve:
    return file.ioctl


class _Library:
    """The preload library itself, which this process has loaded already."""

    def __init__(self, path: str) -> None:
        library = ctypes.PyDLL(path)
        self._file: Any = library.anykvm_file
        self._file.restype = ctypes.c_void_p
        self._file.argtypes = (ctypes.c_uint64, ctypes.c_void_p, ctypes.c_int)
        self._protect: Any = library.anykvm_protect
        self.internal_thread: Any = library.anykvm_internal_thread
        self.watch: int = ctypes.addressof(ctypes.c_char.in_dll(library, "anykvm_watch"))
        # Keeps alive what the library has a pointer to.
        self._serving: dict[int, Serve] = {}

    def tell(self, inode: int, serve: Serve, system: bool) -> None:
        """Let the library serve a memfd; ENOMEM."""
        if self._file(inode, id(serve), system) == id(serve):
            raise OSError(errno.ENOMEM, "no memory for a file descriptor")
        self._serving[inode] = serve

    def forget(self, inode: int) -> None:
        """Stop serving a memfd."""
        self._file(inode, None, 0)
        self._serving.pop(inode, None)

    def protect(self, fd: int, on: bool) -> None:
        """Keep the client from closing a descriptor of our own."""
        self._protect(fd, on)


class Client:
    """The software KVM of one process."""

    def __init__(self, library: _Library, options: dict[str, str]) -> None:
        self.library = library
        arch = options.get("arch", "x86")
        self.faults: Faults | None = None
        self.services = services = self._services(library, arch, options.get("faults"))
        self.backend: SoftwareBackend = software.backend(arch, services)
        self.files = ClientFiles(library)
        self.backend.files = self.files
        self.files.wrap = self._wrapper(arch, options)

    def _services(self, library: _Library, arch: str, plan: str | None) -> ClientServices:
        if plan is None:
            return ClientServices(library.protect, library.internal_thread)
        from .faults import Faults, FaultyClientServices  # noqa: PLC0415  (only who asks for faults waits for it)

        self.faults = Faults(plan, arch)
        return FaultyClientServices(self.faults.injector, library.protect, library.internal_thread)

    def _wrapper(self, arch: str, options: dict[str, str]) -> Callable[[KvmFile], Serve]:
        where, records = options.get("trace"), options.get("trace_json")
        faults, tracer = self.faults, None
        if where is not None or records is not None:
            from .trace import Tracer  # noqa: PLC0415

            line = append_to(where, self.services) if where is not None else None
            record = append_to(records, self.services) if records is not None else None
            tracer = Tracer(arch, self.services, line, record)

        def wrap(file: KvmFile) -> Serve:
            serve: Serve = file.ioctl
            if faults is not None:
                serve = faults.wrap(serve)
            return tracer.wrap(file, serve) if tracer is not None else serve

        return wrap

    def open(self) -> int:
        """Open /dev/kvm."""
        return self.backend.open() if self.faults is None else self.faults.open(self.backend.open)

    def closed(self, file: KvmFile, descriptors: int) -> None:
        """See a descriptor closed: the last one releases the file."""
        if descriptors != _ONE:
            other = _descriptor(file)
            if other is not None:
                self.files.move(file, other)
                return
            if descriptors == _SENT:
                return  # It may come back.
        if self.files.take(file.fd) is file:
            self.services.closed_fd(file.fd)
            file.release()

    def sweep(self) -> None:
        """See whatever was closed, when many were."""
        for file in self.files.files():
            other = _descriptor(file)
            if other is None:
                self.closed(file, _ONE)
            else:
                self.files.move(file, other)


def _descriptor(file: KvmFile) -> int | None:
    """Find an open descriptor of a file's memfd."""
    for name in os.listdir("/proc/self/fd"):
        try:
            stat = os.fstat(int(name))
        except OSError:
            continue
        if (stat.st_dev, stat.st_ino) == file.inode:
            return int(name)
    return None


_clients: list[Client] = []
_inherited: list[list[KvmFile]] = []


def _before_fork() -> None:
    # The child must not destroy what it cannot: engines whose threads it does not have.
    _inherited.append([file for client in _clients for file in client.files.files()])


def _after_fork_in_parent() -> None:
    _inherited.pop()


def start(path: str) -> None:
    """Make this process's KVM, as ``anykvm exec`` said in the environment. ``path`` is the preload library's."""
    options = dict(line.split("=", 1) for line in os.environ.get("ANYKVM_EXEC", "").splitlines())
    library = _Library(path)
    watch(library.watch)
    client = Client(library, options)
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent)
    _clients.append(client)


def open() -> int:
    """Open /dev/kvm."""
    return _clients[0].open()


def adopt(fd: int) -> Serve:
    """Give what serves a memfd that the library does not know: another process's, or nothing of ours; EIO, ENOTTY."""
    name = os.readlink(f"/proc/self/fd/{fd}")
    client = _clients[0]
    if name == "/memfd:kvm (deleted)":
        file = SystemFile(client.backend)
        client.files.install(fd, file)
        return client.files.wrap(file)
    if name.startswith(("/memfd:kvm-vm", "/memfd:kvm-vcpu", "/memfd:kvm-device")):
        return InheritedFile(KvmFile()).ioctl
    raise OSError(errno.ENOTTY, f"file descriptor {fd} is not one of KVM's")


def closed(inode: int, descriptors: int) -> int:
    """See a descriptor closed whose file may have had others (``descriptors``, as files.c counts)."""
    client = _clients[0]
    file = client.files.by_inode(inode)
    if file is not None:
        client.closed(file, descriptors)
    return 0


def sweep() -> int:
    """See many descriptors closed."""
    _clients[0].sweep()
    return 0


def failed(request: int, error: BaseException, traceback: object) -> int:
    """Give the errno of an exception that is not the kernel's: a bug here, which the program must not die of."""
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    text = f"anykvm: a bug in anykvm, in request {request:#x}: {type(error).__name__}: {error}\n"
    if os.environ.get("ANYKVM_EXEC_DEBUG"):
        import traceback as printer  # noqa: PLC0415  (slow to load)

        text += "".join(printer.format_exception(error))
    try:
        os.write(2, text.encode(errors="replace"))
    except OSError:
        sys.exc_info()
    return errno.EIO
