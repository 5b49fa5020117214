# SPDX-License-Identifier: GPL-2.0-only
"""A backend with one VM under a scheduler: what the tasks of a scenario share, and what is looked at around them."""

from __future__ import annotations

import ctypes
import errno
import mmap
from collections.abc import Callable
from ctypes import sizeof
from functools import cache
from typing import Any, Final

from anykvm.arch import interface
from anykvm.uapi import requests as rq
from anykvm.uapi.run import KvmRun
from anykvm.uapi.structs import KvmEnableCap, KvmUserspaceMemoryRegion
from anykvm.virt.backend import SoftwareBackend
from anykvm.virt.hooks import ArchHooks
from anykvm.virt.vcpu import Vcpu, VcpuFile
from anykvm.virt.vm import Vm, VmFile

from . import invariants
from .scheduler import Scheduler
from .services import FDS, FILES, NEWEST_FD, ScheduledFiles, ScheduledServices
from .track import Recorder

OK = "ok"
_TOLD: Final = "told"
_REQUEST: Final = 9
_IMMEDIATE_EXIT: Final = KvmRun.immediate_exit.offset


def _named(refusal: OSError) -> str:
    """The name of an errno."""
    return errno.errorcode[refusal.errno or 0]


@cache
def _hooks(arch: str) -> ArchHooks:
    return interface.hooks(arch)


class ScheduledBackend(SoftwareBackend):
    """The software backend, its table of fds under a scheduler."""

    def __init__(self, arch: str, scheduler: Scheduler) -> None:
        self.scheduled = ScheduledServices(scheduler)
        super().__init__(invariants.watched(_hooks(arch), scheduler), self.scheduled)
        self.files = ScheduledFiles(scheduler)
        self._by_fd = self.files.by_fd
        self._scheduler = scheduler

    def _look_up(self) -> None:
        recorder = self._scheduler.recorder
        if recorder is not None:
            recorder.read(FILES)
            recorder.read(FDS)

    def ioctl(self, fd: int, request: int, arg: int = 0) -> int:
        """As the backend does."""
        self._look_up()
        return super().ioctl(fd, request, arg)

    def mmap(self, fd: int, length: int, offset: int = 0) -> memoryview:
        """As the backend does."""
        self._look_up()
        return super().mmap(fd, length, offset)


class GuestPage(mmap.mmap):
    """A page of guest memory, with this program at ``offset``; made once, since its address is what counts."""

    address: int

    @classmethod
    def holding(cls, program: bytes, offset: int = 0) -> GuestPage:
        """Make it."""
        page = cls(-1, mmap.PAGESIZE)
        page[offset : offset + len(program)] = program
        page.address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        return page


class World:
    """One VM, its backend, and what userspace knows of them.

    Userspace is careless here: it uses the number of a vCPU's fd before it was told it, and closes what others use.
    """

    def __init__(self, arch: str, edges: set[tuple[str, str]] | None = None, recorder: Recorder | None = None) -> None:
        self.arch = arch
        self.scheduler = Scheduler(self.check, edges)
        self.scheduler.recorder = recorder
        self.backend = ScheduledBackend(arch, self.scheduler)
        self.services = self.backend.scheduled
        self.kvm = self.backend.open()
        self.before = self.services.ledger()
        self.fd: int = self.backend.ioctl(self.kvm, rq.KVM_CREATE_VM, 0)
        file = self.backend.files.by_fd[self.fd]
        assert isinstance(file, VmFile)
        self.vm: Vm = file.vm
        self._fds: dict[int, int] = {}
        self.keep: list[Any] = []

    @property
    def dead(self) -> bool:
        """Whether the VM has been destroyed."""
        return not self.vm.ladder

    def check(self) -> str | None:
        """What is wrong now."""
        return invariants.check_vm(self.vm)

    @property
    def fds(self) -> dict[int, int]:
        """The vCPU fds userspace was told, by id; a scenario may keep others there."""
        if self.scheduler.recorder is not None:
            self.scheduler.recorder.read(_TOLD)
        return self._fds

    def tell(self, number: int, fd: int) -> None:
        """Userspace learns of an fd."""
        if self.scheduler.recorder is not None:
            self.scheduler.recorder.write(_TOLD)
        self._fds[number] = fd

    # Userspace's side. Each tells "ok" or the name of the errno.

    def try_ioctl(self, fd: int, request: int, argument: Any = 0) -> str:
        """Make an ioctl; a structure is passed by its address."""
        if not isinstance(argument, int):
            self.keep.append(argument)
            argument = ctypes.addressof(argument)
        try:
            self.backend.ioctl(fd, request, argument)
        except OSError as refusal:
            return _named(refusal)
        return OK

    def value_of(self, fd: int, request: int, argument: Any) -> int:
        """Make an ioctl with a structure, and give what it returns; -1 for a refusal."""
        self.keep.append(argument)
        try:
            return self.backend.ioctl(fd, request, ctypes.addressof(argument))
        except OSError:
            return -1

    def create_vcpu(self, vcpu_id: int) -> str:
        """KVM_CREATE_VCPU."""
        try:
            fd = self.backend.ioctl(self.fd, rq.KVM_CREATE_VCPU, vcpu_id)
        except OSError as refusal:
            return _named(refusal)
        self.tell(vcpu_id, fd)
        return OK

    def enable_cap(self, cap: int, value: int) -> str:
        """KVM_ENABLE_CAP on the VM."""
        request = KvmEnableCap(cap=cap)
        request.args[0] = value
        return self.try_ioctl(self.fd, rq.KVM_ENABLE_CAP, request)

    def guess(self) -> int:
        """The number of the newest vCPU's fd, as a program that has been told nothing would guess it."""
        if self.scheduler.recorder is not None:
            self.scheduler.recorder.read(NEWEST_FD)
        return self.services.newest_vcpu_fd

    def close(self, fd: int) -> str:
        """Close an fd."""
        try:
            self.backend.close(fd)
        except OSError as refusal:
            return _named(refusal)
        return OK

    def run_briefly(self, fd: int) -> str:
        """KVM_RUN on a vCPU's fd with immediate_exit set, which answers EINTR before any guest runs."""
        try:
            self.backend.mmap(fd, 4096)[_IMMEDIATE_EXIT] = 1
        except OSError as refusal:
            return _named(refusal)
        return self.try_ioctl(fd, rq.KVM_RUN)

    def run_guest(self, vcpu_id: int) -> str:
        """KVM_RUN on a vCPU userspace was told of; tells the exit reason's number, or the errno."""
        fd = self.fds[vcpu_id]
        answer = self.try_ioctl(fd, rq.KVM_RUN)
        if answer != OK:
            return answer
        return f"exit {KvmRun.from_buffer_copy(self.backend.mmap(fd, sizeof(KvmRun))).exit_reason}"

    def set_slot(self, base: int, page: GuestPage, flags: int) -> str:
        """KVM_SET_USER_MEMORY_REGION of slot 0: one page."""
        region = KvmUserspaceMemoryRegion(0, flags, base, len(page), page.address)
        return self.try_ioctl(self.fd, rq.KVM_SET_USER_MEMORY_REGION, region)

    # The kernel's side.

    def refuse_first_task(self, code: int, *names: str) -> None:
        """Refuse task A what has one of these names, with this errno; the other tasks get it."""

        def refuse(kind: str, name: str) -> int:
            current = self.scheduler.current
            return code if current is not None and current.number == 0 and name in names else 0

        self.services.refuse = refuse

    def kick_all(self) -> str:
        """What kernel code does that wants something of every vCPU."""
        self.vm.make_all_request(_REQUEST)
        return OK

    def pause(self, what: str) -> None:
        """A point of the scenario's own."""
        self.scheduler.point(("pause", what))

    def vcpu(self, vcpu_id: int) -> Vcpu:
        """A vCPU userspace was told of."""
        file = self.backend.files.by_fd[self.fds[vcpu_id]]
        assert isinstance(file, VcpuFile)
        return file.vcpu

    def run(self, bodies: list[Callable[[], Any]], prefix: bytes) -> None:
        """Run tasks by a schedule, then close everything; ``scheduler.failure`` says what was wrong."""
        scheduler = self.scheduler
        scheduler.run(bodies, prefix)
        if scheduler.failure is None:
            for task in scheduler.tasks:
                if task.error is not None:
                    scheduler.fail(f"{task.name}: {type(task.error).__name__}: {task.error}")
        if scheduler.failure is not None or scheduler.given_up:
            self.abandon()

    def finish(self) -> None:
        """Look at what the tasks left, end the VM, look again."""
        scheduler = self.scheduler
        try:
            if not self.dead:
                complaint = invariants.check_vm(self.vm) or invariants.check_idle(self.vm)
                if complaint is not None:
                    scheduler.fail(complaint)
            for file in reversed(self.backend.files.files()):
                if file.fd != self.kvm:
                    self.backend.close(file.fd)
            if not self.dead:
                scheduler.fail("every fd is closed, and the VM has not been destroyed")
            held = self.services.ledger()
            if held != self.before:
                left = {name: count for name, count in held.items() if count != self.before.get(name, 0)}
                gone = [name for name in self.before if name not in held]
                scheduler.fail(f"held at the end: {_told(left)}" if left else f"given back twice: {gone}")
            self.backend.close(self.kvm)
        except Exception as error:
            scheduler.fail(f"the end of the VM: {type(error).__name__}: {error}")
        if scheduler.failure is not None:
            self.abandon()

    def abandon(self) -> None:
        """Give back to the host what a failed run holds, whatever state the VM is in."""
        self.scheduler.aborting = True
        for file in self.backend.files.files():
            try:
                self.backend.close(file.fd)
            except Exception:
                # The VM is broken: that is what was found.
                continue
        self.services.abandon()


def _told(left: dict[tuple[str, str], int]) -> str:
    return ", ".join(f"{count} x {name}" for (_, name), count in sorted(left.items()))
