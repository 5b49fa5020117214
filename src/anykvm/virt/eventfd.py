# SPDX-License-Identifier: GPL-2.0-only
"""irqfd: an eventfd that raises an interrupt (api.rst 4.75). ioeventfd: a guest write that signals one (4.59).

We hold a duplicate of userspace's eventfd. So closing it does not take an irqfd away, as it does in the kernel: the
VM's end does, or KVM_IRQFD_FLAG_DEASSIGN.
"""

from __future__ import annotations

import errno
import select
import threading
from typing import TYPE_CHECKING, Any, Final

from anykvm.uapi import constants as c
from anykvm.uapi.structs import KvmIoeventfd, KvmIrqfd

from .bus import IoBus
from .irq import IRQ_SOURCE_RESAMPLE
from .ladder import Ladder
from .services import EventFd, Mutex

if TYPE_CHECKING:
    from .vm import Vm

_IRQFD_FLAGS: Final = c.KVM_IRQFD_FLAG_DEASSIGN | c.KVM_IRQFD_FLAG_RESAMPLE
_NATURAL_SIZES: Final = frozenset({0, 1, 2, 4, 8})
_ADDRESS_SPACE: Final = 1 << 64


class Irqfd:
    """One irqfd. A resampling one keeps its line high until the guest ends the interrupt."""

    __slots__ = ("event", "gsi", "ladder", "resample", "vm")

    def __init__(self, vm: Vm, gsi: int, event: EventFd, resample: EventFd | None, ladder: Ladder) -> None:
        self.vm = vm
        self.gsi = gsi
        self.event = event
        self.resample = resample
        self.ladder = ladder

    def inject(self) -> None:
        """Raise the interrupt: as an edge, or until it is acknowledged."""
        if self.resample is not None:
            self.vm.irq.set_irq(self.gsi, 1, IRQ_SOURCE_RESAMPLE)
        else:
            self.vm.irq.set_irq(self.gsi, 1)
            self.vm.irq.set_irq(self.gsi, 0)

    def acked(self) -> None:
        """Tell userspace that the line has been lowered; it raises it again if its device still wants to."""
        if self.resample is not None:
            self.resample.signal()


class Irqfds:
    """The irqfds of a VM and the thread that listens to them, which starts with the first one."""

    def __init__(self, vm: Vm, lock: Mutex) -> None:
        self._vm = vm
        self._lock = lock
        self._items: dict[int, Irqfd] = {}
        self._epoll: select.epoll | None = None
        self._wake: EventFd | None = None
        self._thread: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._items)

    def assign(self, fd: int, gsi: int, resamplefd: int | None) -> None:
        """Make an irqfd; EAGAIN before the irqchip is ready, EINVAL without one, EBADF, EINVAL, EBUSY, EMFILE."""
        vm = self._vm
        if not vm.hooks.intc_initialized(vm):
            raise OSError(errno.EAGAIN, "the in-kernel interrupt controller is not initialised yet")
        if not vm.hooks.irqfd_allowed(vm, resamplefd is not None):
            raise OSError(errno.EINVAL, "such an irqfd needs an in-kernel interrupt controller")
        services = vm.services
        with services.ladder("irqfd") as ladder, self._lock:
            ladder.acquire("irqfd", services.charge, services.free, "irqfd", 256)
            event = ladder.acquire("eventfd", services.eventfd_get, services.eventfd_put, fd, "irqfd")
            resample = None
            if resamplefd is not None:
                resample = ladder.acquire(
                    "resamplefd", services.eventfd_get, services.eventfd_put, resamplefd, "irqfd resample"
                )
            if any(item.event.id == event.id for item in self._items.values()):
                raise OSError(errno.EBUSY, f"eventfd {fd} is an irqfd already")
            item = Irqfd(vm, gsi, event, resample, ladder)
            if resample is not None:
                ladder.push("line", vm.irq.set_irq, gsi, 0, IRQ_SOURCE_RESAMPLE)
                vm.irq.register_ack_notifier(gsi, item.acked)
                ladder.push("resampler", vm.irq.unregister_ack_notifier, gsi, item.acked)
            epoll = self._listen()
            services.publish("irqfd")
            self._items[event.fd] = item
            ladder.push("item", self._items.pop, event.fd)
            # Edge-triggered: an eventfd that is readable already reports once.
            epoll.register(event.fd, select.EPOLLIN | select.EPOLLET)
            ladder.push("epoll", epoll.unregister, event.fd)

    def _listen(self) -> select.epoll:
        """Start listening if nobody does; EMFILE, EAGAIN; called with the lock held."""
        if self._epoll is not None:
            return self._epoll
        services = self._vm.services
        with services.ladder("irqfds") as ladder:
            epoll = ladder.acquire("epoll", services.epoll, services.close_epoll, "irqfd epoll")
            wake = ladder.acquire("wake", services.eventfd, services.eventfd_put, "irqfd wake")
            epoll.register(wake.fd, select.EPOLLIN)
            self._thread = services.thread("irqfd", lambda: self._run(epoll, wake.fd))
        self._epoll, self._wake = epoll, wake
        return epoll

    def _run(self, epoll: select.epoll, wake: int) -> None:
        while True:
            for fd, _ in epoll.poll():
                if fd == wake:
                    return
                # With the lock held, so that nothing is injected once deassign has returned.
                with self._lock:
                    item = self._items.get(fd)
                    if item is not None and item.event.drain():
                        item.inject()

    def deassign(self, fd: int, gsi: int) -> None:
        """Take back the irqfds of an eventfd and a GSI, of which there may be none; EBADF, EINVAL."""
        number = self._vm.services.eventfd_id(fd)
        with self._lock:
            for item in list(self._items.values()):
                if item.event.id == number and item.gsi == gsi:
                    item.ladder.unwind()

    def release(self) -> None:
        """Take back every irqfd and end the thread, when the VM's fd is closed."""
        with self._lock:
            for item in list(self._items.values()):
                item.ladder.unwind()
            epoll, wake, thread = self._epoll, self._wake, self._thread
            self._epoll = self._wake = self._thread = None
        if epoll is not None and wake is not None and thread is not None:
            wake.signal()
            thread.join()
            self._vm.services.eventfd_put(wake)
            self._vm.services.close_epoll(epoll)


def irqfd(vm: Vm, arg: int) -> int:
    """KVM_IRQFD."""
    args = vm.services.read_struct(arg, KvmIrqfd)
    if args.flags & ~_IRQFD_FLAGS:
        raise OSError(errno.EINVAL, f"unknown irqfd flags {args.flags:#x}")
    if args.flags & c.KVM_IRQFD_FLAG_DEASSIGN:
        vm.irqfds.deassign(args.fd, args.gsi)
    else:
        vm.irqfds.assign(args.fd, args.gsi, args.resamplefd if args.flags & c.KVM_IRQFD_FLAG_RESAMPLE else None)
    return 0


class Ioeventfd:
    """A device on the I/O bus that signals an eventfd; ``datamatch`` None matches any value."""

    __slots__ = ("addr", "bus", "datamatch", "event", "ladder", "size")

    def __init__(
        self, bus: IoBus, addr: int, size: int, datamatch: int | None, event: EventFd, *, ladder: Ladder
    ) -> None:
        self.bus = bus
        self.addr = addr
        self.size = size
        self.datamatch = datamatch
        self.event = event
        self.ladder = ladder

    def read(self, vcpu: Any, addr: int, size: int) -> int | None:
        """Leave reads to userspace."""
        return None

    def write(self, vcpu: Any, addr: int, size: int, value: int) -> bool:
        """Signal the eventfd if the value matches."""
        if self.datamatch is not None and value != self.datamatch:
            return False
        self.event.signal()
        return True

    def collides(self, bus: IoBus, addr: int, size: int, datamatch: int | None) -> bool:
        """Tell whether a write could match both this one and another."""
        if self.bus is not bus or self.addr != addr:
            return False
        if self.size == 0 or size == 0:
            return True
        return self.size == size and (self.datamatch is None or datamatch is None or self.datamatch == datamatch)


class Ioeventfds:
    """The ioeventfds of a VM; changed with ``vm.slots_lock`` held."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._items: list[Ioeventfd] = []

    def __len__(self) -> int:
        return len(self._items)

    def assign(self, bus: IoBus, addr: int, size: int, datamatch: int | None, fd: int) -> None:
        """Make an ioeventfd; EBADF, EINVAL, EMFILE, EEXIST for one that collides, ENOSPC."""
        services = self._vm.services
        with services.ladder("ioeventfd") as ladder:
            event = ladder.acquire("eventfd", services.eventfd_get, services.eventfd_put, fd, "ioeventfd")
            ladder.acquire("ioeventfd", services.charge, services.free, "ioeventfd", 128)
            if any(item.collides(bus, addr, size, datamatch) for item in self._items):
                raise OSError(errno.EEXIST, f"an ioeventfd at {addr:#x} matches the same writes already")
            item = Ioeventfd(bus, addr, size, datamatch, event, ladder=ladder)
            bus.register_point(addr, size, item)
            ladder.push("bus", bus.unregister, item)
            self._items.append(item)
            ladder.push("item", self._items.remove, item)

    def deassign(self, bus: IoBus, addr: int, size: int, datamatch: int | None, fd: int) -> None:
        """Take an ioeventfd back; EBADF, EINVAL, ENOENT."""
        number = self._vm.services.eventfd_id(fd)
        for item in self._items:
            if (item.bus, item.addr, item.size, item.datamatch, item.event.id) == (bus, addr, size, datamatch, number):
                item.ladder.unwind()
                return
        raise OSError(errno.ENOENT, f"there is no such ioeventfd at {addr:#x}")

    def release(self) -> None:
        """Take back every ioeventfd, when the VM dies."""
        for item in list(self._items):
            item.ladder.unwind()


def ioeventfd(vm: Vm, arg: int) -> int:
    """KVM_IOEVENTFD; EINVAL: a size that is not natural, a range that wraps, unknown flags, datamatch without size."""
    args = vm.services.read_struct(arg, KvmIoeventfd)
    flags = args.flags
    if flags & c.KVM_IOEVENTFD_FLAG_PIO:
        bus = vm.pio_bus
    elif flags & c.KVM_IOEVENTFD_FLAG_VIRTIO_CCW_NOTIFY:
        bus = vm.ccw_bus
    else:
        bus = vm.mmio_bus
    matches = bool(flags & c.KVM_IOEVENTFD_FLAG_DATAMATCH)
    if not flags & c.KVM_IOEVENTFD_FLAG_DEASSIGN:
        if args.len not in _NATURAL_SIZES or args.addr + args.len >= _ADDRESS_SPACE:
            raise OSError(errno.EINVAL, f"an ioeventfd cannot be {args.len} bytes at {args.addr:#x}")
        if flags & ~c.KVM_IOEVENTFD_VALID_FLAG_MASK:
            raise OSError(errno.EINVAL, f"unknown ioeventfd flags {flags:#x}")
        if matches and not args.len:
            raise OSError(errno.EINVAL, "an ioeventfd of any length has no value to match")
    datamatch = args.datamatch if matches else None
    with vm.slots_lock:
        if flags & c.KVM_IOEVENTFD_FLAG_DEASSIGN:
            vm.ioeventfds.deassign(bus, args.addr, args.len, datamatch, args.fd)
        else:
            vm.ioeventfds.assign(bus, args.addr, args.len, datamatch, args.fd)
    return 0
