# SPDX-License-Identifier: GPL-2.0-only
"""A vCPU: its structure, its fd, KVM_RUN.

Closing a vCPU's fd drops its reference to the VM and nothing else: the vCPU dies with the VM. Its memfd is its run
page, so mapping the fd is mapping the page.
"""

from __future__ import annotations

import ctypes
import errno
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, NoReturn

from anykvm.uapi import requests as rq
from anykvm.uapi.exits import KVM_EXIT_DIRTY_RING_FULL, KVM_EXIT_INTR
from anykvm.uapi.run import KvmRun
from anykvm.uapi.structs import KvmSignalMask

from .dirty_ring import KVM_DIRTY_LOG_PAGE_OFFSET, DirtyRing, DirtyRingFull, file_size
from .handles import KvmFile
from .ladder import Ladder
from .preempt import PreemptNotifier, arrive
from .services import PAGE_SIZE
from .stats import SIGNAL_EXITS, Stats, vcpu_stats

if TYPE_CHECKING:
    from .vm import Vm

VCPU_STRUCT_SIZE: Final = 4096
_SIGSET_SIZE: Final = 8
_KVM_RUN: Final = rq.KVM_RUN
_IMMEDIATE_EXIT: Final = KvmRun.immediate_exit.offset
_EXIT_REASON: Final = KvmRun.exit_reason.offset // 4


class Vcpu:
    """One vCPU, as common code and the architecture share it.

    ``vcpu_id`` is userspace's number, ``vcpu_idx`` the order of creation (-1 until the vCPU has one): never mix them.
    ``arch`` is the architecture's own. ``mutex`` is held around every ioctl, KVM_RUN included. ``cpu`` is the physical
    CPU it was last loaded on (-1 before), by ``thread``; ``running`` says that it is in KVM_RUN, ``loaded`` that
    something else has it loaded now (``preempt.py``).
    """

    __slots__ = (
        "_charge",
        "_words",
        "arch",
        "arch_ladder",
        "cpu",
        "destroyed",
        "dirty_ring",
        "fd_errno",
        "hooks",
        "ladder",
        "loaded",
        "memfd",
        "mutex",
        "notifier",
        "page",
        "requests",
        "run",
        "running",
        "services",
        "signal_pending",
        "sigset",
        "stats",
        "thread",
        "vcpu_id",
        "vcpu_idx",
        "vm",
    )

    def __init__(self, vm: Vm, vcpu_id: int, ladder: Ladder) -> None:
        self.vm = vm
        self.hooks = vm.hooks
        self.services = vm.services
        self.vcpu_id = vcpu_id
        self.vcpu_idx = -1
        self.arch: Any = None
        self.ladder = ladder
        self.arch_ladder: Ladder
        self._charge = self.services.charge("vcpu", VCPU_STRUCT_SIZE)
        try:
            self.mutex = self.services.mutex("vcpu mutex")
        except OSError:
            self.services.free(self._charge)
            raise
        self.cpu = -1
        self.thread = 0
        self.loaded = False
        # Before the architecture creates anything: its hook may load the vCPU.
        self.notifier: PreemptNotifier | None = PreemptNotifier(self)
        self.requests: set[int] = set()
        self.running = False
        self.signal_pending = False
        self.sigset: int | None = None
        self.destroyed = False
        self.memfd = -1
        self.fd_errno = 0
        self.run: KvmRun
        self.page: memoryview
        """The run page as bytes, for struct.pack_into."""
        self.dirty_ring: DirtyRing | None = None
        self.stats = Stats(self.services, f"kvm-{vm.pid}/vcpu-{vcpu_id}", vcpu_stats(self.hooks.vcpu_stats))

    def free(self) -> None:
        """Give the structure back, with what is inside it."""
        self.stats.close()
        self.services.free_mutex(self.mutex)
        self.services.free(self._charge)

    # The run page.

    def alloc_run_page(self) -> None:
        """Make the memfd that is the run page. With no fd left it is anonymous, and the fd step gives the error."""
        size = self.hooks.vcpu_mmap_size
        try:
            ring_size = self.vm.dirty_ring_size
            whole = file_size(ring_size) if ring_size else size
            self.memfd = self.services.memfd(f"kvm-vcpu:{self.vcpu_id}", whole)
        except OSError as failure:
            if failure.errno not in {errno.EMFILE, errno.ENFILE}:
                raise
            self.fd_errno = failure.errno
        try:
            mapping = self.services.map(self.memfd, size, "run page")
        except OSError:
            if self.memfd >= 0:
                self.services.close_fd(self.memfd)
                self.memfd = -1
            raise
        self.run = KvmRun.from_buffer(mapping)
        self.page = memoryview(mapping).cast("B")
        self._words = self.page.cast("I")

    def free_run_page(self) -> None:
        """Give the run page back; userspace's mappings are its own, and whoever still looks at ours keeps it."""
        if self.memfd >= 0:
            self.services.close_fd(self.memfd)
            self.memfd = -1
        self.services.unmap(self.page.obj)  # type: ignore[arg-type]
        del self.run, self._words, self.page

    def alloc_dirty_ring(self) -> None:
        """Make the dirty ring, in the file that the run page is in; ENOMEM."""
        self.dirty_ring = DirtyRing(self.services, self.memfd, self.vm.dirty_ring_size)

    def free_dirty_ring(self) -> None:
        """Give the ring back."""
        ring, self.dirty_ring = self.dirty_ring, None
        if ring is not None:
            ring.free()

    @property
    def run_address(self) -> int:
        """Where our mapping of the run page is."""
        return ctypes.addressof(self.run)

    @property
    def immediate_exit(self) -> bool:
        """Whether userspace has set ``run.immediate_exit``."""
        return self.page[_IMMEDIATE_EXIT] != 0

    def set_exit_reason(self, reason: int) -> None:
        """Set ``run.exit_reason`` without going through ctypes."""
        self._words[_EXIT_REASON] = reason

    # Requests and kicks, from any thread.

    def make_request(self, request: int) -> None:
        """Ask the vCPU to do something before it next enters the guest; :meth:`kick` makes it soon."""
        self.requests.add(request)

    def check_request(self, request: int) -> bool:
        """Take a request back and tell whether it was there."""
        try:
            self.requests.remove(request)
        except KeyError:
            return False
        return True

    def kick(self) -> None:
        """Make the vCPU look at its requests if it is in the guest or asleep."""
        self.hooks.vcpu_kick(self)

    def interrupt(self) -> None:
        """Do what a signal to the thread in KVM_RUN does: it returns EINTR. A vCPU that does not run is left alone."""
        if self.running:
            self.signal_pending = True
            self.hooks.vcpu_kick(self)

    def signal_exit(self) -> None:
        """Leave KVM_RUN for a signal or for immediate_exit: raises EINTR."""
        if self.signal_pending:
            self.signal_pending = False
            self._words[_EXIT_REASON] = KVM_EXIT_INTR
        self.stats.values[SIGNAL_EXITS] += 1
        raise OSError(errno.EINTR, "KVM_RUN was interrupted")

    def finish_immediately(self) -> NoReturn:
        """Be KVM_RUN with immediate_exit set: finish what userspace was asked about, and raise EINTR."""
        self.hooks.vcpu_complete_io(self)
        self.stats.values[SIGNAL_EXITS] += 1
        raise OSError(errno.EINTR, "immediate_exit is set")

    # What every architecture has.

    def ioctl(self, request: int, arg: int) -> int:
        """Serve anything but KVM_RUN, with the mutex held."""
        if request == rq.KVM_SET_SIGNAL_MASK:
            return self._set_signal_mask(arg)
        if request == rq.KVM_GET_STATS_FD:
            return self.stats.open()
        self.loaded = True
        try:
            if self.thread != get_ident():
                arrive(self)
            return self.hooks.vcpu_ioctl(self, request, arg)
        finally:
            self.loaded = False

    def _set_signal_mask(self, arg: int) -> int:
        """KVM_SET_SIGNAL_MASK (api.rst 4.21): checked and kept; EINVAL for a set that is not 8 bytes, EFAULT.

        On its own this backend is not interrupted by signals: :meth:`interrupt` is how KVM_RUN is left.
        """
        if arg == 0:
            self.sigset = None
            return 0
        services = self.services
        length = services.read_struct(arg, KvmSignalMask).len
        if length != _SIGSET_SIZE:
            raise OSError(errno.EINVAL, f"a signal set has {_SIGSET_SIZE} bytes here, not {length}")
        mask = services.copy_from_user(arg + ctypes.sizeof(KvmSignalMask), _SIGSET_SIZE)
        self.sigset = int.from_bytes(mask, "little")
        return 0

    def __repr__(self) -> str:
        return f"<Vcpu id {self.vcpu_id} idx {self.vcpu_idx} of {self.vm!r}>"


class VcpuFile(KvmFile):
    """A vCPU fd; it holds a reference to its VM.

    An ioctl in progress, or waiting for the mutex, keeps the reference after close, as fdget keeps a file: the last
    to leave drops it. The two lists count without a lock, list.append and list.pop being atomic.
    """

    __slots__ = ("_entered", "_reference", "closed", "vcpu")
    kind = "vcpu"

    def __init__(self, vcpu: Vcpu) -> None:
        super().__init__()
        self.vcpu = vcpu
        self.closed = False
        self._entered: list[None] = []
        # The reference to the VM: whoever pops it drops it.
        self._reference = [vcpu.vm]

    def ioctl(self, request: int, arg: int) -> int:
        """Serve one ioctl with the vCPU's mutex held; it waits for the one in progress.

        KVM_RUN: EINVAL for an argument, EINTR for immediate_exit, else what the architecture says.
        """
        vcpu = self.vcpu
        self._entered.append(None)
        try:
            # Either close() sees us in the list, or we see that it has closed.
            if self.closed:
                raise OSError(errno.EBADF, f"the fd of vCPU {vcpu.vcpu_id} is closed")
            with vcpu.mutex:
                if vcpu.vm.refuses:
                    raise vcpu.vm.refusal()
                if request != _KVM_RUN:
                    return vcpu.ioctl(request & 0xFFFFFFFF, arg & 0xFFFFFFFFFFFFFFFF)
                # KVM_RUN is served here: a call less on the way of every exit.
                if arg:
                    raise OSError(errno.EINVAL, "KVM_RUN takes no argument")
                vcpu.signal_pending = False
                # First say that we run, then look: who sets immediate_exit and then interrupts us is seen here or
                # there.
                vcpu.running = True
                try:
                    if vcpu.thread != get_ident():
                        arrive(vcpu)
                    if vcpu.page[_IMMEDIATE_EXIT]:
                        vcpu.finish_immediately()
                    return vcpu.hooks.vcpu_run(vcpu)
                except DirtyRingFull:
                    vcpu.set_exit_reason(KVM_EXIT_DIRTY_RING_FULL)
                    return 0
                finally:
                    vcpu.running = False
        finally:
            self._entered.pop()
            if self.closed:
                self._left()

    def map(self, length: int, offset: int = 0) -> memoryview:
        """Give ``length`` bytes of the run page, or of the dirty ring at its offset, to userspace; EINVAL, EBADF.

        It is the mapping the core has itself, which lasts as long as anyone holds a view of it.
        """
        self._entered.append(None)
        try:
            if self.closed:
                raise OSError(errno.EBADF, f"the fd of vCPU {self.vcpu.vcpu_id} is closed")
            ring = self.vcpu.dirty_ring
            page = self.vcpu.page
            if offset == KVM_DIRTY_LOG_PAGE_OFFSET * PAGE_SIZE and ring is not None:
                page, offset = ring.view, 0
            if offset or not 0 < length <= len(page):
                raise OSError(errno.EINVAL, f"{length} bytes of a vCPU cannot be mapped at {offset:#x}")
            return page[:length]
        finally:
            self._entered.pop()
            if self.closed:
                self._left()

    def _left(self) -> None:
        if not self._entered:
            self._drop()

    def release(self) -> None:
        """Drop the VM reference, unless an ioctl is in progress, which then does it."""
        self.closed = True
        self._left()

    def _drop(self) -> None:
        try:
            vm = self._reference.pop()
        except IndexError:
            return
        self.vcpu.ladder.drop("fd")
        self.vcpu.ladder.drop("VM reference")
        vm.put()
