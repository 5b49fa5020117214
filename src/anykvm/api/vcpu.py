# SPDX-License-Identifier: GPL-2.0-only
"""The vCPU handle."""

from __future__ import annotations

import ctypes
import errno
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress

from anykvm.api.backend import Backend
from anykvm.api.decode import DECODERS, KNOWN, decode
from anykvm.api.dirty_ring import DirtyRing
from anykvm.api.exits import Exit, Interrupted
from anykvm.api.handle import Attributed, Configurable
from anykvm.api.memory import Slots
from anykvm.api.stats import Stats
from anykvm.api.x86_vcpu import X86Cpu
from anykvm.uapi.arm64 import (
    KVM_ARM_VCPU_FINALIZE,
    KVM_ARM_VCPU_INIT,
    KVM_DIRTY_LOG_PAGE_OFFSET,
    KVM_GET_VCPU_EVENTS,
    KVM_SET_VCPU_EVENTS,
    KvmVcpuEvents,
    KvmVcpuInit,
)
from anykvm.uapi.common import (
    KVM_EXIT_MEMORY_FAULT,
    KVM_GET_MP_STATE,
    KVM_GET_ONE_REG,
    KVM_GET_REG_LIST,
    KVM_GET_STATS_FD,
    KVM_RUN,
    KVM_SET_MP_STATE,
    KVM_SET_ONE_REG,
    KVM_SET_SIGNAL_MASK,
    KvmMpState,
    KvmOneReg,
    KvmRun,
    reg_size,
)

# The kernel's sigset, not the C library's.
_SIGSET_BYTES = 8


class Vcpu(Configurable, Attributed, X86Cpu):
    """A virtual CPU. Made by :meth:`Vm.create_vcpu`; run it on one thread, kick it from any.

    Closing the handle unmaps the run page; the vCPU itself goes with its VM.

    >>> vm.create_vcpu(7).vcpu_id
    7
    """

    def __init__(self, backend: Backend, fd: int, vcpu_id: int, mmap_size: int, slots: Slots) -> None:
        self._map = backend.mmap(fd, mmap_size)
        super().__init__(backend, fd)
        self.vcpu_id = vcpu_id
        self._slots = slots.retain()
        self._page = memoryview(self._map)
        self._words = self._page.cast("I")
        self._answer = backend.ioctl
        self._kicked = False
        self._running = False
        self._released = False
        self._release_lock = threading.Lock()

    def close(self) -> None:
        """Close the file descriptor and unmap the run page; a second call does nothing.

        A run in progress on another thread is kicked; the guest's memory stays until that has returned.

        >>> vcpu.close()
        >>> vcpu.closed
        True
        """
        if self._fd >= 0 and self._running:
            self.kick()
        super().close()

    def _release(self) -> None:
        # Run first says that it runs and then takes the fd, close the other way round: one of them sees the other.
        if not self._running:
            self._release_once()

    def _release_once(self) -> None:
        with self._release_lock:
            if self._released:
                return
            self._released = True
        self._words.release()
        self._page.release()
        # Where run_page is still held, the pages go with it.
        with suppress(BufferError):
            self._map.release()
        self._slots.release()

    @property
    def run_page(self) -> KvmRun:
        """The mapped run page as a structure (api.rst 5).

        Errors: EBADF when closed; a view taken before stays readable.

        >>> vcpu.run_page.exit_reason
        0
        """
        self.fd  # noqa: B018  (EBADF when closed)
        return KvmRun.from_buffer(self._map)

    def mapped_page(self, number: int) -> memoryview:
        """Page ``number`` of the vCPU's mapping, 4096 bytes: 0 is the run page. Errors: EBADF; ValueError beyond it.

        >>> from anykvm.uapi.common import KVM_CAP_COALESCED_MMIO
        >>> len(vcpu.mapped_page(vm.check_extension(KVM_CAP_COALESCED_MMIO)))
        4096
        """
        self.fd  # noqa: B018
        if not 0 <= number < len(self._page) // 4096:
            raise ValueError(f"a vCPU's mapping has {len(self._page) // 4096} pages, no page {number}")
        return memoryview(self._map).cast("B")[4096 * number : 4096 * (number + 1)]

    def dirty_ring(self, size: int) -> DirtyRing:
        """Map the vCPU's dirty ring (api.rst 8.29); ``size`` is what :meth:`Vm.enable_dirty_ring` was given.

        Errors: EINVAL where there is none, EBADF.

        >>> vm.create_vcpu(7).dirty_ring(4096)
        Traceback (most recent call last):
        OSError: [Errno 22] ...
        """
        return DirtyRing(self._backend.mmap(self.fd, size, KVM_DIRTY_LOG_PAGE_OFFSET * 4096))

    @property
    def immediate_exit(self) -> bool:
        """Whether KVM_RUN returns at once with EINTR (api.rst 5); it stays as set. Errors: EBADF.

        >>> vcpu.immediate_exit = True
        >>> vcpu.run()
        Interrupted()
        """
        self.fd  # noqa: B018
        return self._page[1] != 0

    @immediate_exit.setter
    def immediate_exit(self, value: bool) -> None:
        self.fd  # noqa: B018
        self._page[1] = bool(value)

    def run(self) -> Exit:
        """Run the guest until something needs userspace (api.rst 4.10); returns why, made for ``match``.

        EINTR is the exit :class:`Interrupted`, and EFAULT with a reason the exit :class:`MemoryFault`. Errors:
        ENOEXEC before :meth:`init` (arm64), ENOSYS, EPERM, EFAULT, EIO as the architecture says, EBADF.

        >>> from anykvm.uapi.arm64 import REG_PC
        >>> memory.write(0, bytes.fromhex("0120a1d2 20088052 20000039"))  # strb of 'A' to 0x0900_0000
        >>> vm.set_user_memory_region(0, 0x4000_0000, memory)
        >>> vcpu.set_one_reg(REG_PC, 0x4000_0000)
        >>> vcpu.run()
        MmioWrite(address=0x9000000, data=b'A')
        """
        self._running = True
        try:
            self._answer(self._fd, KVM_RUN, 0)
            reason = self._words[2]
            # As decode(), without a call: this is every exit's way.
            return DECODERS[reason](self._page) if reason < KNOWN else decode(self._page, reason)
        except OSError as error:
            return self._failed(error)
        finally:
            self._running = False
            if self._fd < 0:
                self._release_once()

    def _failed(self, error: OSError) -> Exit:
        self.fd  # noqa: B018
        if error.errno == errno.EINTR:
            if self._kicked:
                self._kicked = False
                self._page[1] = 0
            return Interrupted()
        if error.errno == errno.EFAULT and self._words[2] == KVM_EXIT_MEMORY_FAULT:
            return decode(self._page, self._words[2])
        raise error

    def kick(self) -> None:
        """Make the run in progress, or else the next one, return :class:`Interrupted`; from any thread.

        A kick is never lost; two may become one, and one that comes as the run ends may interrupt the next as well.
        Errors: EBADF.

        >>> vcpu.kick()
        >>> vcpu.run()
        Interrupted()
        """
        fd = self.fd
        self._kicked = True
        self._page[1] = 1
        self._backend.interrupt(fd)

    def init(self, target: int | KvmVcpuInit, features: Iterable[int] = ()) -> None:
        """Choose the CPU and its features, and reset it (arm64; api.rst 4.82); before anything else.

        ``target`` is :meth:`Vm.preferred_target`'s answer or a number; ``features`` are bit numbers, KVM_ARM_VCPU_*,
        added to it. Errors: EINVAL for a target or feature there is not, or another than before, EBADF.

        >>> from anykvm.uapi.arm64 import KVM_ARM_VCPU_POWER_OFF, KVM_ARM_VCPU_PSCI_0_2
        >>> secondary = vm.create_vcpu(1)
        >>> secondary.init(vm.preferred_target(), [KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_POWER_OFF])
        """
        init = KvmVcpuInit(target=target) if isinstance(target, int) else KvmVcpuInit.from_buffer_copy(target)
        for feature in features:
            init.features[feature // 32] |= 1 << feature % 32
        self.ioctl(KVM_ARM_VCPU_INIT, init)

    def finalize(self, feature: int) -> None:
        """End the configuration of a feature that needs it: KVM_ARM_VCPU_SVE (arm64; api.rst 4.119).

        Errors: EPERM when done already, EINVAL for a feature that needs none or was not asked for, EBADF.

        >>> vcpu.finalize(31)
        Traceback (most recent call last):
        OSError: [Errno 22] ...
        """
        value = ctypes.create_string_buffer(feature.to_bytes(4, sys.byteorder), 4)
        self.ioctl(KVM_ARM_VCPU_FINALIZE, value)

    def get_one_reg(self, id: int) -> int:
        """Read a register (api.rst 4.69); its size, 1 to 256 bytes, is in the id.

        Errors: ENOENT for a register there is not, EINVAL, EPERM, ENOEXEC before :meth:`init` (arm64), EBADF.

        >>> from anykvm.uapi.arm64 import REG_PC
        >>> vcpu.get_one_reg(REG_PC)
        0
        """
        size = reg_size(id)
        value = ctypes.create_string_buffer(size)
        self.ioctl(KVM_GET_ONE_REG, KvmOneReg(id=id, addr=ctypes.addressof(value)))
        return int.from_bytes(value.raw, sys.byteorder)

    def set_one_reg(self, id: int, value: int) -> None:
        """Write a register (api.rst 4.68).

        Errors: as :meth:`get_one_reg`, EINVAL for a value it cannot take; OverflowError for one that does not fit or
        is negative.

        >>> from anykvm.uapi.arm64 import x_reg
        >>> vcpu.set_one_reg(x_reg(3), 42)
        >>> vcpu.get_one_reg(x_reg(3))
        42
        """
        size = reg_size(id)
        buffer = ctypes.create_string_buffer(value.to_bytes(size, sys.byteorder), size)
        self.ioctl(KVM_SET_ONE_REG, KvmOneReg(id=id, addr=ctypes.addressof(buffer)))

    def reg_list(self) -> list[int]:
        """The ids of all registers there are (api.rst 4.84). Errors: ENOEXEC before :meth:`init` (arm64), EBADF.

        >>> from anykvm.uapi.arm64 import REG_PC
        >>> REG_PC in vcpu.reg_list()
        True
        """
        count = 0
        while True:
            buffer = (ctypes.c_uint64 * (count + 1))(count)
            try:
                self.ioctl(KVM_GET_REG_LIST, ctypes.addressof(buffer))
            except OSError as error:
                # The kernel says how many there are; that may grow between two calls.
                if error.errno != errno.E2BIG or buffer[0] <= count:
                    raise
                count = buffer[0]
                continue
            return list(buffer[1 : buffer[0] + 1])

    @property
    def mp_state(self) -> int:
        """Whether the vCPU runs, halts or is off: one of KVM_MP_STATE_* (api.rst 4.38, 4.39).

        Errors: EINVAL for a state the architecture does not have, EBADF.

        >>> from anykvm.uapi.common import KVM_MP_STATE_RUNNABLE, KVM_MP_STATE_STOPPED
        >>> vcpu.mp_state == KVM_MP_STATE_RUNNABLE
        True
        >>> vcpu.mp_state = KVM_MP_STATE_STOPPED
        >>> vcpu.mp_state == KVM_MP_STATE_STOPPED
        True
        """
        state = KvmMpState()
        self.ioctl(KVM_GET_MP_STATE, state)
        return int(state.mp_state)

    @mp_state.setter
    def mp_state(self, value: int) -> None:
        self.ioctl(KVM_SET_MP_STATE, KvmMpState(mp_state=value))

    @property
    def events(self) -> KvmVcpuEvents:
        """The exceptions pending for the guest; assign to inject (arm64; api.rst 4.31, 4.32).

        Errors: EINVAL for what cannot be injected, EBADF.

        >>> vcpu.events.exception.serror_pending
        0
        """
        events = KvmVcpuEvents()
        self.ioctl(KVM_GET_VCPU_EVENTS, events)
        return events

    @events.setter
    def events(self, value: KvmVcpuEvents) -> None:
        self.ioctl(KVM_SET_VCPU_EVENTS, value)

    def set_signal_mask(self, signals: Iterable[int] | None) -> None:
        """Block these signals while the vCPU runs, instead of the thread's own mask (api.rst 4.21); None ends that.

        A signal that gets through makes :meth:`run` return :class:`Interrupted`. Errors: EINVAL, EBADF; ValueError
        for a signal number outside 1 to 64.

        >>> import signal
        >>> vcpu.set_signal_mask([signal.SIGUSR1])
        >>> vcpu.set_signal_mask(None)
        """
        if signals is None:
            self.ioctl(KVM_SET_SIGNAL_MASK, 0)
            return
        mask = 0
        for number in signals:
            if not 1 <= number <= 8 * _SIGSET_BYTES:
                raise ValueError(f"signals are 1 to {8 * _SIGSET_BYTES}, there is no {number}")
            mask |= 1 << number - 1
        data = _SIGSET_BYTES.to_bytes(4, sys.byteorder) + mask.to_bytes(_SIGSET_BYTES, sys.byteorder)
        self.ioctl(KVM_SET_SIGNAL_MASK, ctypes.create_string_buffer(data, len(data)))

    def stats_fd(self) -> Stats:
        """Open the vCPU's binary statistics (api.rst 4.133). Errors: EMFILE, ENOMEM, EBADF.

        >>> with vcpu.stats_fd() as stats:
        ...     stats.id.endswith("/vcpu-0")
        True
        """
        return Stats(self._backend, self.ioctl(KVM_GET_STATS_FD))
