# SPDX-License-Identifier: GPL-2.0-only
"""What a vCPU has of Xen's interface: its pages, how long it was in which state, a timer, the upcall.

It is made by the first of its attributes. Source: api.rst 4.128; Xen's public ``vcpu.h``; ``arch/x86/kvm/xen.c``.
"""

from __future__ import annotations

import errno
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from anykvm.uapi import common
from anykvm.uapi import x86 as uapi

from . import xen_evtchn
from .xen import check_vector

if TYPE_CHECKING:
    from collections.abc import Callable

    from .lapic_timer import Deadline
    from .vcpu import X86Vcpu

_MAX_VCPUS: Final = 1024
_INFO: Final = 64
"""Bytes of vcpu_info; a clock is in its second half."""
_CLOCK: Final = 32
_STATES: Final = 4
_U64: Final = 0xFFFFFFFFFFFFFFFF
_ANY: Final = -1
_NO_STATE: Final = _U64


class XenVcpu:
    """``vcpu.xen``. Addresses are None while there is none; times are in ns of the VM's clock."""

    __slots__ = (
        "_due",
        "_expired",
        "_poll",
        "_poll_timer",
        "_timer",
        "_vcpu",
        "expires",
        "info",
        "last_delay",
        "missed",
        "runstate",
        "since",
        "state",
        "time_info",
        "timer_port",
        "times",
        "untold",
        "upcall_vector",
        "vcpu_id",
    )

    def __init__(self, vcpu: X86Vcpu) -> None:
        self._vcpu = vcpu
        self.vcpu_id = vcpu.vcpu.vcpu_idx
        self.info: int | None = None
        self.time_info: int | None = None
        self.runstate: int | None = None
        self.upcall_vector = 0
        self.missed = False
        """Whether an upcall may have come while the local APIC was disabled."""
        self.untold = 0
        """Bits for the selector in vcpu_info, which was not there."""
        self.state = uapi.XEN_RUNSTATE_RUNNING
        self.since = 0
        self.times = [0] * _STATES
        self.last_delay = 0
        self.timer_port = 0
        self.expires = 0
        self._timer: Deadline | None = None
        self._poll_timer: Deadline | None = None
        self._due = 0
        self._expired = False
        self._poll: int | None = None
        """The event channel that the guest waits for in SCHEDOP_poll; any of several is -1."""

    # On the way into the guest, on the vCPU's own thread.

    def entered(self) -> None:
        """KVM_RUN begins: the vCPU runs, and its page may say that there is something for it."""
        if self._vcpu.vm.xen.msr >= 0:
            self.change_state(uapi.XEN_RUNSTATE_RUNNING)
            self._write_state()
        self._vcpu.attention = True

    def attend(self) -> None:
        """Before the guest goes on: the timer, and what could not be told."""
        vcpu = self._vcpu
        if vcpu.mp_state != common.KVM_MP_STATE_HALTED:
            self._poll = None
        if self._expired:
            self._expired = False
            self.expires = 0
            # A guest without its pages, or who has it masked, misses it.
            with suppress(OSError):
                xen_evtchn.raise_port(vcpu.vm, vcpu.vcpu_id, self.timer_port)
        if self.untold:
            self._tell()
        if self.missed:
            self.missed = False
            if self.upcall_vector and self._pending():
                self.upcall()
        vcpu.set_xen_line(self.has_upcall())

    def _tell(self) -> None:
        vcpu = self._vcpu
        if self.info is None or vcpu.vm.read_guest(self.info, _INFO) is None:
            return
        words, self.untold = self.untold, 0
        with vcpu.vm.machine.stopped():
            news = xen_evtchn.select(vcpu, words)
        if news:
            self.upcall()

    # The upcall: as an interrupt that no local APIC knows, or with a vector of the vCPU's own through it.

    def has_upcall(self) -> bool:
        """Whether the vCPU's page asks for the VM's upcall vector: a level, which the guest lowers."""
        xen = self._vcpu.vm.xen
        return bool(xen.upcall_vector) and xen.msr >= 0 and self._pending()

    def _pending(self) -> bool:
        pending = self._vcpu.vm.read_guest(self.info, 1) if self.info is not None else None
        return pending is not None and pending[0] != 0

    def upcall(self) -> None:
        """There is something new in the vCPU's page; from any thread."""
        vcpu = self._vcpu
        if self.upcall_vector and vcpu.lapic is not None:
            vcpu.lapic.interrupt(self.upcall_vector)
        else:
            vcpu.kick()

    # Polling.

    def poll(self, ports: list[int], timeout_ns: int, pending: Callable[[], bool]) -> None:
        """SCHEDOP_poll: sleep, unless a port is pending; ENOMEM. The timeout is relative, as the kernel takes it."""
        vcpu = self._vcpu
        if timeout_ns and self._poll_timer is None:
            self._poll_timer = self._make_timer("xen poll timer", self._poll_timeout)
        vcpu.pv_unhalted = False
        # In this order an event that comes meanwhile is not lost.
        self._poll = ports[0] if len(ports) == 1 else _ANY
        if pending():
            self._poll = None
            return
        if timeout_ns and self._poll_timer is not None:
            self._poll_timer.arm(vcpu.vcpu.services.now() + min(timeout_ns, 1 << 62))
        vcpu.mp_state = common.KVM_MP_STATE_HALTED
        vcpu.attention = True

    def _wake(self) -> None:
        self._poll = None
        self._vcpu.pv_unhalted = True
        self._vcpu.kick()

    def _poll_timeout(self) -> None:
        with self._vcpu.vm.config_lock:
            if self._poll is not None:
                self._wake()

    def woken_by(self, port: int) -> None:
        """A masked event channel was raised: the vCPU may be waiting for that."""
        if self._poll in (port, _ANY):
            self._wake()

    # The timer.

    def _make_timer(self, name: str, callback: Callable[[], None]) -> Deadline:
        services = self._vcpu.vcpu.services
        ladder = self._vcpu.vcpu.arch_ladder
        timer: Deadline = ladder.acquire(name, services.timer, services.free_timer, name, callback)
        ladder.push(f"{name} stop", self._quiet)
        return timer

    def _quiet(self) -> None:
        """The vCPU goes away: no callback touches it any more."""
        with self._vcpu.vm.config_lock:
            self.expires = 0
            self._poll = None

    def _deadline(self) -> None:
        with self._vcpu.vm.config_lock:
            # A callback of before, which had begun when the timer was set anew, comes too early.
            if self.expires and self._vcpu.vcpu.services.now() >= self._due:
                self._expired = True
                self._vcpu.kick()

    def start_timer(self, expires: int) -> None:
        """Raise the timer's event channel when the VM's clock reads that: at once if it does already."""
        assert self._timer is not None
        vcpu = self._vcpu
        self._expired = False
        self.expires = expires
        left = expires - vcpu.vm.clock.now()
        if left > 0:
            self._due = vcpu.vcpu.services.now() + left
            self._timer.arm(self._due)
        else:
            self._expired = vcpu.attention = True

    def stop_timer(self) -> None:
        """Forget it."""
        if self._timer is not None:
            self._timer.cancel()
        self.expires = 0
        self._expired = False

    def set_timer(self, port: int, priority: int, expires: int) -> None:
        """KVM_XEN_VCPU_ATTR_TYPE_TIMER: EINVAL, ENOMEM."""
        if port:
            xen_evtchn.check_priority(priority)
        if self._timer is None:
            self._timer = self._make_timer("xen timer", self._deadline)
        self.stop_timer()
        self.timer_port = port
        if port and expires:
            self.start_timer(expires)

    # Times by state.

    def change_state(self, state: int) -> None:
        """Count the time until now as that of the old state, what the thread waited for a CPU as runnable."""
        vcpu = self._vcpu
        now = vcpu.vm.clock.now()
        delay = vcpu.vcpu.services.run_delay()
        passed = now - self.since
        if not self.since:
            self.state = uapi.XEN_RUNSTATE_OFFLINE
        if self.state == uapi.XEN_RUNSTATE_RUNNING:
            # Another thread may run the vCPU now, whose count is lower.
            stolen = min(max(delay - self.last_delay, 0), passed)
            passed -= stolen
            self._count(uapi.XEN_RUNSTATE_RUNNABLE, stolen)
        self.last_delay = delay
        self._count(self.state, passed)
        self.state, self.since = state, now

    def _count(self, state: int, passed: int) -> None:
        self.times[state] = self.times[state] + passed & _U64

    def _write_state(self) -> None:
        if self.runstate is None:
            return
        vm = self._vcpu.vm
        at = self.runstate + vm.xen.layout.runstate_times
        # The bit says that the rest is being written.
        if vm.write_guest(at, struct.pack("<Q", self.since | uapi.XEN_RUNSTATE_UPDATE)):
            vm.write_guest(self.runstate, struct.pack("<I", self.state))
            vm.write_guest(at + 8, struct.pack("<4Q", *self.times))
            vm.write_guest(at, struct.pack("<Q", self.since))

    def set_times(self, value: Any, *, adjust: bool) -> None:
        """KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA, or what is to be added; EINVAL for times that do not add up."""
        times = [value.time_running, value.time_runnable, value.time_blocked, value.time_offline]
        state, since = value.state, value.state_entry_time
        keeps = adjust and state == _NO_STATE
        if (state > uapi.XEN_RUNSTATE_OFFLINE and not keeps) or since != sum(times) & _U64:
            raise OSError(errno.EINVAL, f"a vCPU cannot have been in state {state} since {since} ns, with {times}")
        old = self.since if adjust else 0
        if self._vcpu.vm.clock.now() < old + since & _U64:
            raise OSError(errno.EINVAL, "a state cannot begin in the future")
        if not adjust:
            self.state, self.since, self.times = state, since, times
            self.last_delay = self._vcpu.vcpu.services.run_delay()
            return
        self.since = self.since + since & _U64
        self.times = [one + more & _U64 for one, more in zip(self.times, times, strict=True)]
        if not keeps:
            self.change_state(state)


def clocks(vcpu: X86Vcpu) -> tuple[int, ...]:
    """The addresses of the clocks that Xen's guest has besides kvmclock's."""
    own = vcpu.xen
    if own is None:
        return ()
    found = (own.info + _CLOCK if own.info is not None else None, own.time_info)
    return tuple(address for address in found if address is not None)


# Attributes.


def _address(vcpu: X86Vcpu, gpa: int, size: int) -> int | None:
    """EFAULT where no memory is."""
    if gpa == uapi.XEN_INVALID:
        return None
    if vcpu.vm.read_guest(gpa, size) is None:
        raise OSError(errno.EFAULT, f"there is no memory at {gpa:#x}")
    return gpa


def set_attr(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_XEN_VCPU_SET_ATTR: ENOENT for a type there is not, EINVAL, EFAULT, ENOMEM."""
    request = vcpu.vcpu.services.read_struct(arg, uapi.KvmXenVcpuAttr)
    kind, value = request.type, request.u
    if kind > uapi.KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR:
        raise OSError(errno.ENOENT, f"a vCPU has no attribute {kind} of Xen's")
    own = vcpu.own_xen()
    if kind == uapi.KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO:
        own.info = _address(vcpu, value.gpa, _INFO)
        vcpu.clock_stale = vcpu.attention = True
    elif kind == uapi.KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO:
        own.time_info = _address(vcpu, value.gpa, 32)
        vcpu.clock_stale = vcpu.attention = True
    elif kind == uapi.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR:
        own.runstate = _address(vcpu, value.gpa, vcpu.vm.xen.layout.runstate_times + 40)
    elif kind == uapi.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT:
        if value.runstate.state > uapi.XEN_RUNSTATE_OFFLINE:
            raise OSError(errno.EINVAL, f"there is no state {value.runstate.state}")
        own.change_state(value.runstate.state)
    elif kind == uapi.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA:
        own.set_times(value.runstate, adjust=False)
    elif kind == uapi.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST:
        own.set_times(value.runstate, adjust=True)
    elif kind == uapi.KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID:
        if value.vcpu_id >= _MAX_VCPUS:
            raise OSError(errno.EINVAL, f"a vCPU's number of Xen's is below {_MAX_VCPUS}")
        own.vcpu_id = value.vcpu_id
    elif kind == uapi.KVM_XEN_VCPU_ATTR_TYPE_TIMER:
        own.set_timer(value.timer.port, value.timer.priority, value.timer.expires_ns)
    else:
        own.upcall_vector = check_vector(value.vector)
    return 0


def get_attr(vcpu: X86Vcpu, arg: int) -> int:
    """KVM_XEN_VCPU_GET_ATTR: ENOENT for a type there is not, EINVAL for one that can only be written."""
    services = vcpu.vcpu.services
    request = services.read_struct(arg, uapi.KvmXenVcpuAttr)
    kind, value = request.type, request.u
    if kind > uapi.KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR:
        raise OSError(errno.ENOENT, f"a vCPU has no attribute {kind} of Xen's")
    own = vcpu.own_xen()
    addresses = {
        uapi.KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO: own.info,
        uapi.KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO: own.time_info,
        uapi.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR: own.runstate,
    }
    if kind in addresses:
        address = addresses[kind]
        if address is None and kind == uapi.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR:
            raise OSError(errno.ENOENT, "the vCPU has no page for its states")
        value.gpa = uapi.XEN_INVALID if address is None else address
    elif kind == uapi.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT:
        value.runstate.state = own.state
    elif kind == uapi.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA:
        runstate = value.runstate
        runstate.state, runstate.state_entry_time = own.state, own.since
        runstate.time_running, runstate.time_runnable, runstate.time_blocked, runstate.time_offline = own.times
    elif kind == uapi.KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST:
        raise OSError(errno.EINVAL, "what is added to the times can only be written")
    elif kind == uapi.KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID:
        value.vcpu_id = own.vcpu_id
    elif kind == uapi.KVM_XEN_VCPU_ATTR_TYPE_TIMER:
        value.timer.port, value.timer.expires_ns = own.timer_port, own.expires
        value.timer.priority = uapi.KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL
    else:
        value.vector = own.upcall_vector
    services.write_struct(arg, request)
    return 0
