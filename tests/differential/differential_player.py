# SPDX-License-Identifier: GPL-2.0-only
"""A sequence of requests as data, and what plays it on a backend.

A sequence is a list of operations, each a list that JSON can hold, so that it can be recorded, shrunk, printed and
played again:

    ["ioctl", HANDLE, REQUEST, ARGUMENT]    one request; what the kernel wrote into the structure is part of the outcome
    ["make", NAME, HANDLE, REQUEST, ARG]    the same; the file descriptor that it returns is called NAME from here on
    ["modify", HANDLE, GET, SET, PATHS]     read a structure, change these fields, write it back
    ["run", VCPU, REPLY]                    KVM_RUN; REPLY (hex, or null) answers the read of the exit before
    ["page", VCPU, FIELD, VALUE]            write a field of the run page
    ["load", OFFSET, HEX], ["peek", OFFSET, LENGTH], ["zero"]     the megabyte of memory "@ram"
    ["vectors"]                             real mode's interrupt table in it, and a handler
    ["close", NAME], ["dup", NEW, OLD], ["map", NAME, LENGTH]
    ["eventfd", NAME], ["signal", NAME], ["count", NAME]
    ["nofile", SPARE]                       leave so many file descriptors (null: as before)
    ["fork", OPERATIONS]                    play them in a child; the outcome is the list of theirs

HANDLE is a name ("sys" is /dev/kvm). REQUEST is a name of ``anykvm.uapi`` or a number. ARGUMENT is a number, an address
("@ram+4096", "@readonly", "@hole", "@null"), or a structure: ["KvmRegs", {"rip": 4096}, tail...], where a tail is
another structure that follows in memory. A field is a path ("cs.base", "entries.0.gsi"); its value is a number, an
address, or "@name" for the number of a file descriptor.

An outcome is the name of an errno, a number, or [number, what was read back]. Names that are not open give "unbound".
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from differential_guests import HANDLER, HANDLER_CODE, VECTORS
from differential_masks import mask

from anykvm.uapi import arm64, common, exits, x86
from anykvm.uapi.ioctl import IOC_READ, decode
from anykvm.uapi.run import KvmRun

Operation = list[Any]
Outcome = Any

RAM = 1 << 20
PAGE = 4096
RUN_SECONDS = 0.15
"""A guest that runs for longer is interrupted: the outcome is EINTR."""

EXITS = {value: name for name, value in vars(exits).items() if name.startswith("KVM_EXIT_") and name.count("_") < 5}
EXITS |= {exits.KVM_EXIT_IO: "KVM_EXIT_IO", exits.KVM_EXIT_X86_RDMSR: "KVM_EXIT_X86_RDMSR"}
EXITS |= {exits.KVM_EXIT_INTERNAL_ERROR: "KVM_EXIT_INTERNAL_ERROR", exits.KVM_EXIT_MMIO: "KVM_EXIT_MMIO"}
# Requests that return a file descriptor.
MAKE = {common.KVM_CREATE_VM, common.KVM_CREATE_VCPU, common.KVM_GET_STATS_FD}
# Requests that write although their number does not say so.
WRITE_ANYWAY = {common.KVM_CREATE_DEVICE}
# Requests whose number says that userspace reads, and which only take.
TAKE_ONLY = {common.KVM_SET_IRQCHIP, x86.KVM_SET_PIT}


def number(name: str | int) -> int:
    """A request by its name."""
    if isinstance(name, int):
        return name
    return int(next(getattr(module, name) for module in (common, x86, arm64) if hasattr(module, name)))


def structure(name: str) -> type[ctypes.Structure]:
    found = next(getattr(module, name) for module in (common, x86, arm64) if hasattr(module, name))
    assert issubclass(found, ctypes.Structure)
    return found


def assign(target: Any, path: str, value: Any) -> None:
    """Set a field by its path; bytes as hex, an address or a number as they are."""
    *parents, last = path.split(".")
    for step in parents:
        target = target[int(step)] if step.isdigit() else getattr(target, step)
    if isinstance(value, str):
        data = bytes.fromhex(value)
        into = target[int(last)] if last.isdigit() else getattr(target, last)
        ctypes.memmove(ctypes.addressof(into), data, len(data))
    elif last.isdigit():
        target[int(last)] = value
    else:
        setattr(target, last, value)


def fields(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The fields of a structure that are not zero, by path; an array of numbers as hex without its zeros at the end."""
    if isinstance(value, ctypes.Structure | ctypes.Union):
        if isinstance(value, x86.KvmLapicState):
            # One register of 32 bits in each 16 bytes.
            words = (ctypes.c_uint32 * 256).from_buffer(value)
            yield from ((f"regs.{4 * index:x}", word) for index, word in enumerate(words) if word)
            return
        for name, *_ in type(value)._fields_:
            yield from fields(getattr(value, name), f"{path}.{name}" if path else name)
    elif isinstance(value, ctypes.Array):
        if issubclass(value._type_, ctypes.Structure | ctypes.Union | ctypes.Array):
            for index, one in enumerate(value):
                yield from fields(one, f"{path}.{index}")
        elif text := bytes(value).rstrip(b"\0").hex():
            yield path, text
    elif value:
        yield path, value


def is_open(fd: int) -> bool:
    """Whether a number is an open file descriptor's."""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


class Unbound(Exception):
    """An operation on a name that is not open."""


class Names(dict[str, int]):
    """File descriptors by name."""

    def __missing__(self, name: str) -> int:
        raise Unbound(name)

    def pop(self, name: str) -> int:  # type: ignore[override]
        fd = self[name]
        del self[name]
        return fd


class Player:
    """Plays sequences on one backend, each from a clean start."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        # What may differ is x86's: elsewhere nothing is compared with hardware yet.
        self.mask = mask if backend.arch == "x86" else lambda operation, outcome: outcome
        self.limit = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.ram = mmap.mmap(-1, RAM)
        self.view = (ctypes.c_uint8 * RAM).from_buffer(self.ram)
        self.kept = mmap.mmap(-1, PAGE, prot=mmap.PROT_READ)
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long)
        libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        # A page between two others, taken away: nothing else comes there while the tests run in one thread.
        hole = libc.mmap(None, 3 * PAGE, 0, flags, -1, 0)
        self.libc = libc
        self.symbols = {
            "ram": ctypes.addressof(self.view),
            "readonly": libc.mmap(None, PAGE, mmap.PROT_READ, flags, -1, 0),
            "hole": hole + PAGE,
            "null": 0,
        }
        self.names = Names()
        self.plain: set[str] = set()
        self.pages: dict[str, memoryview] = {}

    def play(self, sequence: list[Operation]) -> list[Outcome]:
        """The outcome of each operation; nothing is left open afterwards."""
        try:
            self.do_zero()
            self.names = Names(sys=self.backend.open())
            self.run_size = self.backend.ioctl(self.names["sys"], common.KVM_GET_VCPU_MMAP_SIZE)
            return [self.one(operation) for operation in sequence]
        finally:
            self.do_nofile(None)
            for page in self.pages.values():
                page.release()
            self.pages.clear()
            for name in list(self.names):
                with suppress(OSError):
                    self.do_close(name)
            self.plain.clear()

    def one(self, operation: Operation) -> Outcome:
        kind, *rest = operation
        try:
            return self.mask(operation, getattr(self, f"do_{kind}")(*rest))
        except Unbound:
            return "unbound"
        except OSError as error:
            return self.mask(operation, errno.errorcode.get(error.errno or 0, str(error.errno)))

    # Arguments.

    def value(self, value: Any) -> Any:
        """A field's value: an address, or a file descriptor's number, in place of its name."""
        if not isinstance(value, str) or not value.startswith("@"):
            return value
        name, _, offset = value[1:].partition("+")
        base = self.symbols[name] if name in self.symbols else self.names[name]
        return base + int(offset or 0)

    def build(self, name: str, values: dict[str, Any], *tails: Any) -> tuple[Any, ctypes.Structure]:
        """The bytes of a structure and what follows it, and the structure in them."""
        parts = [structure(tail[0]) for tail in tails]
        size = ctypes.sizeof(structure(name))
        buffer = ctypes.create_string_buffer(size + sum(map(ctypes.sizeof, parts)) + 64)
        head = structure(name).from_buffer(buffer)
        for path, value in values.items():
            assign(head, path, self.value(value))
        for part, (_, sets) in zip(parts, tails, strict=True):
            follows = part.from_buffer(buffer, size)
            size += ctypes.sizeof(part)
            for path, value in sets.items():
                assign(follows, path, self.value(value))
        return buffer, head

    # Requests.

    def do_ioctl(self, handle: str, request: str | int, argument: Any = 0) -> Outcome:
        fd = self.names[handle]
        code = number(request)
        if not isinstance(argument, list):
            result = self.backend.ioctl(fd, code, self.value(argument))
            if code in MAKE:
                self.backend.close(result)
                return "fd"
            return result
        buffer, head = self.build(*argument)
        result = self.backend.ioctl(fd, code, ctypes.addressof(buffer))
        if (not decode(code).direction & IOC_READ or code in TAKE_ONLY) and code not in WRITE_ANYWAY:
            return result
        found = dict(fields(head))
        at = ctypes.sizeof(head)
        for index, (name, _) in enumerate(argument[2:]):
            follows = structure(name).from_buffer(buffer, at)
            at += ctypes.sizeof(follows)
            found |= {f"{index}.{path}": value for path, value in fields(follows)}
        return [result, found]

    def do_make(self, name: str, handle: str, request: str | int, argument: Any = 0) -> Outcome:
        if name in self.names:
            self.do_close(name)
        if number(request) == common.KVM_CREATE_DEVICE:
            buffer, head = self.build(*argument)
            self.backend.ioctl(self.names[handle], number(request), ctypes.addressof(buffer))
            self.names[name] = head.fd
        else:
            self.names[name] = self.backend.ioctl(self.names[handle], number(request), self.value(argument))
        return "fd"

    def do_modify(self, handle: str, get: str, put: str, paths: dict[str, Any]) -> Outcome:
        fd = self.names[handle]
        name = {"KVM_GET_IRQCHIP": "KvmIrqchip"}.get(get) or "".join(
            ["Kvm", *(part.capitalize() for part in get.removeprefix("KVM_GET_").split("_"))]
        )
        name = {"KvmLapic": "KvmLapicState", "KvmPit2": "KvmPitState2", "KvmClock": "KvmClockData"}.get(name, name)
        buffer, head = self.build(name, {path: value for path, value in paths.items() if path == "chip_id"})
        self.backend.ioctl(fd, number(get), ctypes.addressof(buffer))
        for path, value in paths.items():
            assign(head, path, self.value(value))
        return self.backend.ioctl(fd, number(put), ctypes.addressof(buffer))

    # Running.

    def page_of(self, vcpu: str) -> memoryview:
        fd = self.names[vcpu]
        if vcpu not in self.pages:
            self.pages[vcpu] = self.backend.mmap(fd, self.run_size)
        return self.pages[vcpu]

    def do_page(self, vcpu: str, path: str, value: Any) -> Outcome:
        assign(KvmRun.from_buffer(self.page_of(vcpu)), path, value)
        return 0

    def do_run(self, vcpu: str, reply: str | None = None) -> Outcome:
        page = self.page_of(vcpu)
        run = KvmRun.from_buffer(page)
        if reply is not None:
            data = bytes.fromhex(reply)
            if run.exit_reason == exits.KVM_EXIT_IO:
                page[run.io.data_offset : run.io.data_offset + len(data)] = data
            elif run.exit_reason == exits.KVM_EXIT_MMIO:
                run.mmio.data[:] = data[:8].ljust(8, b"\0")
            else:
                msr = x86.RunMsr.from_buffer(run, KvmRun.hw.offset)
                msr.error, msr.data = data[0], int.from_bytes(data[1:], "little")
        fd = self.names[vcpu]
        timer = threading.Timer(RUN_SECONDS, self.backend.interrupt, (fd,))
        timer.start()
        try:
            result = self.backend.ioctl(fd, common.KVM_RUN, 0)
        finally:
            timer.cancel()
            timer.join()
        return [result, self.exit(page, run)]

    def exit(self, page: memoryview, run: Any) -> dict[str, Any]:
        """What the run page says about an exit."""
        reason = run.exit_reason
        found: dict[str, Any] = {"exit": EXITS.get(reason, reason)}
        if reason == exits.KVM_EXIT_IO:
            io = run.io
            found |= {"direction": io.direction, "size": io.size, "port": io.port, "count": io.count}
            if io.direction == exits.KVM_EXIT_IO_OUT:
                found["data"] = bytes(page[io.data_offset : io.data_offset + io.size * io.count]).hex()
        elif reason == exits.KVM_EXIT_MMIO:
            mmio = run.mmio
            found |= {"address": mmio.phys_addr, "length": mmio.len, "write": mmio.is_write}
            if mmio.is_write:
                found["data"] = bytes(mmio.data[: mmio.len]).hex()
        elif reason in (exits.KVM_EXIT_X86_RDMSR, exits.KVM_EXIT_X86_WRMSR):
            msr = x86.RunMsr.from_buffer(run, KvmRun.hw.offset)
            found |= {"reason": msr.reason, "index": msr.index}
            if reason == exits.KVM_EXIT_X86_WRMSR:
                found["data"] = msr.data
        elif reason == exits.KVM_EXIT_INTERNAL_ERROR:
            found["suberror"] = run.internal.suberror
        found |= {"if": run.if_flag, "ready": run.ready_for_interrupt_injection, "cr8": run.cr8}
        return found

    # Memory, file descriptors, processes.

    def do_zero(self) -> Outcome:
        ctypes.memset(self.view, 0, RAM)
        return 0

    def do_load(self, offset: int, data: str) -> Outcome:
        self.ram[offset : offset + len(data) // 2] = bytes.fromhex(data)
        return 0

    def do_vectors(self) -> Outcome:
        self.do_load(0, VECTORS)
        return self.do_load(HANDLER, HANDLER_CODE)

    def do_peek(self, offset: int, length: int) -> Outcome:
        return self.ram[offset : offset + length].hex()

    def do_close(self, name: str) -> Outcome:
        if name in self.pages:
            self.pages.pop(name).release()
        fd = self.names.pop(name)
        if name in self.plain:
            self.plain.discard(name)
            os.close(fd)
        else:
            self.backend.close(fd)
        return 0

    def do_dup(self, new: str, old: str) -> Outcome:
        fd = os.dup(self.names[old])
        if new in self.names:
            self.do_close(new)
        if old in self.plain:
            self.plain.add(new)
        self.names[new] = fd
        return "fd"

    def do_map(self, name: str, length: int) -> Outcome:
        self.backend.mmap(self.names[name], length).release()
        return 0

    def do_eventfd(self, name: str) -> Outcome:
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        if name in self.names:
            self.do_close(name)
        self.names[name] = fd
        self.plain.add(name)
        return "fd"

    def do_signal(self, name: str) -> Outcome:
        os.eventfd_write(self.names[name], 1)
        return 0

    def do_count(self, name: str) -> Outcome:
        return os.eventfd_read(self.names[name])

    def do_nofile(self, spare: int | None) -> Outcome:
        limit = self.limit[0]
        if spare is not None:
            free = (fd for fd in range(limit) if not is_open(fd))
            limit = next(fd for index, fd in enumerate(free) if index >= spare)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, self.limit[1]))
        return 0

    def do_fork(self, operations: list[Operation]) -> Outcome:
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            status = 1
            try:
                os.close(reading)
                outcomes = [self.one(operation) for operation in operations]
                os.write(writing, json.dumps(outcomes).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            text = pipe.read()
        _, status = os.waitpid(child, 0)
        return json.loads(text) if status == 0 else f"the child ended with {status}"


@contextmanager
def playing(backend: Any) -> Iterator[Player]:
    """A player on a backend that is closed afterwards, if it can be."""
    yield Player(backend)
    close = getattr(backend, "close_all", None)
    if close is not None:
        close()
