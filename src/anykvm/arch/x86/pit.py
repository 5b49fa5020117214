# SPDX-License-Identifier: GPL-2.0-only
"""The 8254 interval timer: three counters, port 0x61, and counter 0's ticks on GSI 0.

Counter 0 has a deadline of the services; the others are computed when they are looked at. As in KVM counting is binary
only, modes 1 and 5 count from when they are loaded, and a low gate stops nothing in modes 0 and 4. A tick that the
guest has not ended when the next one comes is delivered later, unless KVM_REINJECT_CONTROL turned that off.

Source: Intel 8254 data sheet; ``arch/x86/kvm/i8254.c``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from anykvm.uapi.x86_irqchip import KVM_PIT_FLAGS_HPET_LEGACY, KVM_PIT_FLAGS_SPEAKER_DATA_ON

from .lapic_timer import MIN_PERIOD_NS, Deadline

if TYPE_CHECKING:
    from anykvm.virt.services import Mutex

PIT_PORT: Final = 0x40
PIT_PORTS: Final = 4
SPEAKER_PORT: Final = 0x61
SPEAKER_PORTS: Final = 4
PIT_HZ: Final = 1_193_182
_NS: Final = 1_000_000_000

_LSB: Final = 1
_MSB: Final = 2
_WORD0: Final = 3
_WORD1: Final = 4

_CHANNEL: Final = struct.Struct("<IHBBBBBBBBBBq")
_FLAGS: Final = struct.Struct("<I36x")
PIT_STATE_SIZE: Final = _CHANNEL.size * 3
"""``struct kvm_pit_state`` in bytes."""
PIT_STATE2_SIZE: Final = PIT_STATE_SIZE + _FLAGS.size
"""``struct kvm_pit_state2`` in bytes."""


class Channel:
    """One counter, under the names of ``struct kvm_pit_channel_state``. ``started`` is when its count was loaded (ns on
    the services' clock), None while it does not count.
    """

    __slots__ = (
        "bcd",
        "count",
        "count_latched",
        "count_load_time",
        "gate",
        "latched_count",
        "mode",
        "read_state",
        "rw_mode",
        "started",
        "status",
        "status_latched",
        "write_latch",
        "write_state",
    )

    def __init__(self, gate: int) -> None:
        self.count = 0x10000
        self.gate = gate
        self.mode = 0xFF
        self.latched_count = self.count_latched = self.status_latched = self.status = 0
        self.read_state = self.write_state = self.write_latch = self.rw_mode = self.bcd = 0
        self.count_load_time = 0
        self.started: int | None = None

    def ticks(self, now: int) -> int:
        """How many ticks of the clock have passed since the count was loaded."""
        return 0 if self.started is None else (now - self.started) * PIT_HZ // _NS

    def current(self, now: int) -> int:
        """The counter, 16 bits."""
        ticks = self.ticks(now)
        count = self.count
        if self.mode in (0, 1, 4, 5):
            return count - ticks & 0xFFFF
        # A square wave counts down by two.
        return count - (ticks * 2 if self.mode == 3 else ticks) % count & 0xFFFF

    def out(self, now: int) -> int:
        """The output, 0 or 1."""
        ticks = self.ticks(now)
        count = self.count
        mode = self.mode
        if mode == 1:
            return int(ticks < count)
        if mode == 2:
            # Low for the last tick of each period.
            return int(ticks % count != count - 1)
        if mode == 3:
            return int(ticks % count < count + 1 >> 1)
        if mode in (4, 5):
            return int(ticks != count)
        return int(ticks >= count)

    def latch_count(self, now: int) -> None:
        """Keep the counter for the next reads, unless one is kept already."""
        if not self.count_latched:
            self.latched_count = self.current(now)
            self.count_latched = self.rw_mode

    def latch_status(self, now: int) -> None:
        """Keep the status byte for the next read."""
        if not self.status_latched:
            self.status = (self.out(now) << 7 | self.rw_mode << 4 | self.mode << 1 & 0xE | self.bcd) & 0xFF
            self.status_latched = 1

    def control(self, value: int) -> None:
        """Write a control word that is not a latch command."""
        access = value >> 4 & 3
        self.rw_mode = self.read_state = self.write_state = access
        mode = value >> 1 & 7
        self.mode = mode - 4 if mode > 5 else mode
        self.bcd = value & 1

    def write(self, value: int) -> int | None:
        """Take a byte of a count; gives the count once it is whole."""
        state = self.write_state
        if state == _WORD0:
            self.write_latch = value
            self.write_state = _WORD1
            return None
        if state == _WORD1:
            self.write_state = _WORD0
            return self.write_latch | value << 8
        return value << 8 if state == _MSB else value

    def read(self, now: int) -> int:
        """Give the next byte: latched status, latched count, or the counter as it runs."""
        if self.status_latched:
            self.status_latched = 0
            return self.status
        latched = self.count_latched
        if latched:
            self.count_latched = _MSB if latched == _WORD0 else 0
            return self.latched_count >> 8 if latched == _MSB else self.latched_count & 0xFF
        state = self.read_state
        count = self.current(now)
        if state == _WORD0:
            self.read_state = _WORD1
        elif state == _WORD1:
            self.read_state = _WORD0
        return count >> 8 if state in (_MSB, _WORD1) else count & 0xFF

    def pack(self) -> bytes:
        """Give ``struct kvm_pit_channel_state``."""
        return _CHANNEL.pack(
            self.count,
            self.latched_count,
            self.count_latched,
            self.status_latched,
            self.status,
            self.read_state,
            self.write_state,
            self.write_latch,
            self.rw_mode,
            self.mode,
            self.bcd,
            self.gate,
            self.count_load_time,
        )

    def unpack(self, state: bytes, offset: int) -> None:
        """Load ``struct kvm_pit_channel_state``."""
        (
            self.count,
            self.latched_count,
            self.count_latched,
            self.status_latched,
            self.status,
            self.read_state,
            self.write_state,
            self.write_latch,
            self.rw_mode,
            self.mode,
            self.bcd,
            self.gate,
            self.count_load_time,
        ) = _CHANNEL.unpack_from(state, offset)


class Pit:
    """The VM's PIT. ``set_irq(level)`` drives GSI 0 and tells who took it (-1: all its pins are masked); ``tick`` is
    told every tick, for NMI watchdogs. Both are called without a lock; ``lock`` nests outside the APIC bus's.

    Invariant: ``target`` is when counter 0's output rises next, None if it will not; the deadline is armed for it.
    ``pending`` are the ticks that have not been ended by the guest, while reinjecting.
    """

    def __init__(
        self,
        lock: Mutex,
        *,
        now: Callable[[], int],
        make_deadline: Callable[[Callable[[], None]], Deadline],
        set_irq: Callable[[int], int],
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.now = now
        self.set_irq = set_irq
        self.tick = tick
        self.lock = lock
        self.deadline = make_deadline(self._expired)
        self.channels = tuple(Channel(gate) for gate in (1, 1, 0))
        self.flags = 0
        self.period = 0
        self.periodic = False
        self.target: int | None = None
        self.reinject = True
        self.pending = 0
        self.acked = True
        for index in range(3):
            self._load(index, 0)

    def stop(self) -> None:
        """No tick after this; the VM goes away."""
        with self.lock:
            self._cancel()

    # Counter 0.

    def _cancel(self) -> None:
        self.target = None
        self.deadline.cancel()

    def _load(self, index: int, count: int) -> None:
        channel = self.channels[index]
        channel.count = count = count or 0x10000
        now = self.now()
        channel.started = now
        if index:
            channel.count_load_time = now
            return
        self._cancel()
        mode = channel.mode
        if mode > 4 or self.flags & KVM_PIT_FLAGS_HPET_LEGACY:
            channel.started = None
            return
        interval = count * _NS // PIT_HZ
        self.periodic = mode in (2, 3)
        self.period = max(interval, MIN_PERIOD_NS) if self.periodic else interval
        self.reset_reinject()
        self.target = now + interval
        self.deadline.arm(self.target)

    def _expired(self) -> None:
        """The deadline has come (services' timer thread)."""
        with self.lock:
            target = self.target
            if target is None:
                return
            now = self.now()
            if now < target:
                # It was loaded anew while the callback was on its way.
                self.deadline.arm(target)
                return
            ticks = 1
            if self.periodic:
                ticks += (now - target) // self.period
                self.target = target = target + ticks * self.period
                self.deadline.arm(target)
            else:
                self.target = None
            if self.reinject:
                self.pending += ticks
                if not self.acked:
                    return
                self.acked = False
        self._inject()

    def _inject(self) -> None:
        taken = self.set_irq(1)
        self.set_irq(0)
        if taken < 0:
            # Masked everywhere: there will be no end of interrupt to wait for.
            self.reset_reinject()
        self.tick()

    def irq_acked(self) -> None:
        """The guest ended a tick: deliver one that it missed; called without a lock."""
        with self.lock:
            self.acked = True
            if self.pending:
                self.pending -= 1
            if not self.pending:
                return
            self.acked = False
        self._inject()

    def reset_reinject(self) -> None:
        """Forget missed ticks: the count was loaded, or the guest unmasked the interrupt. Needs no lock."""
        self.pending = 0
        self.acked = True

    def set_reinject(self, reinject: bool) -> None:
        """KVM_REINJECT_CONTROL."""
        with self.lock:
            if reinject and not self.reinject:
                self.reset_reinject()
            self.reinject = reinject

    # Ports.

    def read(self, vcpu: Any, addr: int, size: int) -> int:
        """A guest's read of ports 0x40 to 0x43; the control port reads as 0."""
        index = addr & 3
        if index == 3:
            return 0
        with self.lock:
            return self.channels[index].read(self.now())

    def write(self, vcpu: Any, addr: int, size: int, value: int) -> bool:
        """A guest's write to ports 0x40 to 0x43; the low byte counts."""
        value &= 0xFF
        index = addr & 3
        with self.lock:
            if index < 3:
                count = self.channels[index].write(value)
                if count is not None:
                    self._load(index, count)
                return True
            index = value >> 6
            now = self.now()
            if index == 3:
                for number, channel in enumerate(self.channels):
                    if value & 2 << number:
                        if not value & 0x20:
                            channel.latch_count(now)
                        if not value & 0x10:
                            channel.latch_status(now)
            elif value & 0x30:
                self.channels[index].control(value)
            else:
                self.channels[index].latch_count(now)
        return True

    # KVM_GET_PIT, KVM_GET_PIT2 and their opposites.

    def get_state(self) -> bytes:
        """Give ``struct kvm_pit_state2``, which begins with ``struct kvm_pit_state``."""
        with self.lock:
            return b"".join(channel.pack() for channel in self.channels) + _FLAGS.pack(self.flags)

    def set_state(self, state: bytes) -> None:
        """Load ``struct kvm_pit_state2``, or ``struct kvm_pit_state``, which keeps the flags; counts start anew."""
        with self.lock:
            if len(state) >= PIT_STATE2_SIZE:
                (self.flags,) = _FLAGS.unpack_from(state, PIT_STATE_SIZE)
            for index, channel in enumerate(self.channels):
                channel.unpack(state, index * _CHANNEL.size)
                self._load(index, channel.count)


class Speaker:
    """Port 0x61: counter 2's gate (bit 0), the speaker's data (1), the refresh clock (4), counter 2's output (5)."""

    __slots__ = ("pit",)

    def __init__(self, pit: Pit) -> None:
        self.pit = pit

    def read(self, vcpu: Any, addr: int, size: int) -> int | None:
        """A guest's read."""
        if addr != SPEAKER_PORT:
            return None
        pit = self.pit
        with pit.lock:
            now = pit.now()
            channel = pit.channels[2]
            data = pit.flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON
            # The data bit is bit 1 of the flags too; the refresh clock toggles about every 15 us.
            return data | channel.gate | now >> 10 & 0x10 | channel.out(now) << 5

    def write(self, vcpu: Any, addr: int, size: int, value: int) -> bool:
        """A guest's write."""
        if addr != SPEAKER_PORT:
            return False
        pit = self.pit
        with pit.lock:
            if value & 2:
                pit.flags |= KVM_PIT_FLAGS_SPEAKER_DATA_ON
            else:
                pit.flags &= ~KVM_PIT_FLAGS_SPEAKER_DATA_ON
            channel = pit.channels[2]
            gate = value & 1
            if gate > channel.gate and channel.mode in (1, 2, 3, 5):
                channel.started = channel.count_load_time = pit.now()
            channel.gate = gate
        return True
