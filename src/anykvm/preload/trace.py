# SPDX-License-Identifier: GPL-2.0-only
"""``anykvm exec --trace``: each request as it was made and answered, a line in strace's manner or an object in JSON.

Names and structures are those of :mod:`anykvm.uapi`.
"""

from __future__ import annotations

import ctypes
import errno
import importlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Final

from anykvm.uapi import caps, exits, ioctl
from anykvm.uapi import requests as rq
from anykvm.uapi.run import KvmRun
from anykvm.virt.handles import KvmFile
from anykvm.virt.services import Services
from anykvm.virt.vcpu import VcpuFile

Serve = Callable[[int, int], int]

_SHOWN: Final = 8
"""How many elements of an array are shown."""
_RUN_DATA: Final = {
    "KVM_EXIT_IO": "io",
    "KVM_EXIT_MMIO": "mmio",
    "KVM_EXIT_HYPERCALL": "hypercall",
    "KVM_EXIT_SYSTEM_EVENT": "system_event",
    "KVM_EXIT_FAIL_ENTRY": "fail_entry",
    "KVM_EXIT_INTERNAL_ERROR": "internal",
    "KVM_EXIT_UNKNOWN": "hw",
}


def _names(module: Any, prefix: str) -> dict[int, str]:
    found: dict[int, str] = {}
    for name, value in vars(module).items():
        if name.startswith(prefix) and isinstance(value, int):
            found.setdefault(value, name)
    return found


def request_names(arch: str) -> dict[int, str]:
    """Name the requests of an architecture's KVM, by number."""
    found: dict[int, str] = {}
    for module in (rq, importlib.import_module(f"anykvm.uapi.{arch}")):
        for value, name in _names(module, "KVM_").items():
            if value > 0xFFF and value >> 8 & 0xFF == ioctl.KVMIO and value <= 0xFFFFFFFF:
                found.setdefault(value, name)
    return found


def plain(value: Any) -> Any:
    """Make of a ctypes value what JSON can hold; arrays are cut after a few elements."""
    if isinstance(value, ctypes.Structure | ctypes.Union):
        fields: Iterable[Any] = value._fields_
        return {name: plain(getattr(value, name)) for name, *_ in fields if not name.startswith(("pad", "reserved"))}
    if isinstance(value, bytes):
        return value[:_SHOWN].hex() + ("..." if len(value) > _SHOWN else "")
    if isinstance(value, ctypes.Array):
        shown = [plain(one) for one in value[:_SHOWN]]
        return [*shown, "..."] if len(value) > _SHOWN else shown
    if isinstance(value, ctypes._SimpleCData):
        return plain(value.value)
    return value


def text(value: Any) -> str:
    """Write what :func:`plain` gives as strace would."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}={text(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(text, value)) + "]"
    if isinstance(value, int):
        return str(value) if -10 < value < 10 else hex(value)
    return str(value)


class Tracer:
    """Where the requests go. ``line`` and ``record`` write text and JSON; either may be None."""

    def __init__(
        self,
        arch: str,
        services: Services,
        line: Callable[[str], None] | None,
        record: Callable[[str], None] | None,
    ) -> None:
        self._services = services
        self._line = line
        self._record = record
        self._requests = request_names(arch)
        self._caps = _names(caps, "KVM_CAP_")
        self._exits = _names(exits, "KVM_EXIT_")

    def wrap(self, file: KvmFile, serve: Serve) -> Serve:
        """Give what serves the same file and tells of it."""

        def traced(request: int, argument: int) -> int:
            number = request & 0xFFFFFFFF
            given = self._argument(number, argument, ioctl.IOC_WRITE)
            began = time.perf_counter_ns()
            result, error = -1, 0
            try:
                result = serve(request, argument)
                return result
            except OSError as failure:
                error = failure.errno or errno.EIO
                raise
            finally:
                taken = time.perf_counter_ns() - began
                self._tell(file, number, argument, given=given, result=result, error=error, taken=taken)

        return traced

    def _argument(self, request: int, argument: int, direction: int) -> Any:
        kind = ioctl.ARGUMENTS.get(request)
        if kind is None or not ioctl.decode(request).direction & direction or not argument:
            return None
        try:
            raw = self._services.copy_from_user(argument, ctypes.sizeof(kind))
        except OSError:
            return None
        return plain(kind.from_buffer_copy(raw))

    def _value(self, request: int, argument: int) -> Any:
        if request == rq.KVM_CHECK_EXTENSION:
            return self._caps.get(argument, argument)
        return argument

    def _tell(
        self, file: KvmFile, request: int, argument: int, *, given: Any, result: int, error: int, taken: int
    ) -> None:
        name = self._requests.get(request, f"_IOC({request:#x})")
        got = None if error else self._argument(request, argument, ioctl.IOC_READ)
        if isinstance(given, dict) and request == rq.KVM_ENABLE_CAP:
            given["cap"] = self._caps.get(given["cap"], given["cap"])
        left = self._exit(file) if request == rq.KVM_RUN and error in (0, errno.EINTR) else None
        if self._line is not None:
            shown = text(given) if given is not None else text(self._value(request, argument))
            if got is not None and got != given:
                shown = f"{shown} => {text(got)}" if given is not None else text(got)
            end = f"-1 {errno.errorcode.get(error, error)} ({os.strerror(error)})" if error else str(result)
            if left is not None:
                end += f" {text(left)}"
            who = f"[{os.getpid()}:{threading.get_native_id()}]"
            self._line(f"{who} ioctl({file.fd}<{file.kind}>, {name}, {shown}) = {end} <{taken / 1e9:.6f}>\n")
        if self._record is not None:
            entry = {
                "time": time.time(),
                "pid": os.getpid(),
                "tid": threading.get_native_id(),
                "fd": file.fd,
                "file": file.kind,
                "request": name,
                "argument": self._value(request, argument) if given is None and got is None else given,
                "result": result,
                "seconds": taken / 1e9,
            }
            if error:
                entry["errno"] = errno.errorcode.get(error, error)
            if got is not None:
                entry["returned"] = got
            if left is not None:
                entry["exit"] = left
            self._record(json.dumps(entry) + "\n")

    def _exit(self, file: KvmFile) -> Any:
        if not isinstance(file, VcpuFile):
            return None
        run: KvmRun = file.vcpu.run
        name = self._exits.get(run.exit_reason, run.exit_reason)
        found: dict[str, Any] = {"exit_reason": name}
        field = _RUN_DATA.get(str(name))
        if field is not None and hasattr(run, field):
            found[field] = plain(getattr(run, field))
        return found
