# SPDX-License-Identifier: GPL-2.0-only
"""The virtio-mmio transport (version 2), and what a device behind it is.

Source: Virtual I/O Device (VIRTIO) Version 1.2, sections 2.1 (status), 3.1 (initialization), 4.2 (virtio over MMIO).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import RLock
from typing import ClassVar, Final, Protocol

from .virtqueue import Chain, Memory, RingError, Virtqueue

MAGIC: Final = 0x74726976
VERSION: Final = 2
VENDOR: Final = 0x4B4E41  # "ANK"
VIRTIO_F_VERSION_1: Final = 1 << 32

STATUS_ACKNOWLEDGE: Final = 1
STATUS_DRIVER: Final = 2
STATUS_DRIVER_OK: Final = 4
STATUS_FEATURES_OK: Final = 8
STATUS_NEEDS_RESET: Final = 64
STATUS_FAILED: Final = 128

INTERRUPT_USED: Final = 1
INTERRUPT_CONFIG: Final = 2

QUEUE_NOTIFY: Final = 0x50
CONFIG: Final = 0x100
_NO_SHM: Final = 0xFFFFFFFF


class VirtioDevice(Protocol):
    """What is behind a transport."""

    device_id: ClassVar[int]
    """The number of section 5."""
    name: ClassVar[str]
    features: int
    """Feature bits offered, without VIRTIO_F_VERSION_1."""
    queue_sizes: Sequence[int]
    """The most entries each queue may have."""
    config: bytes
    """The configuration space."""

    def serve(self, index: int, chain: Chain) -> int:
        """Do one request of queue `index`; returns how many bytes were written to it; ``RingError`` if it is none."""

    def close(self) -> None:
        """Let go of files."""


class Transport:
    """The registers, for the bus. `set_irq` gets the level of the interrupt line."""

    def __init__(self, device: VirtioDevice, memory: Memory, set_irq: Callable[[bool], None]) -> None:
        self.device = device
        self._set_irq = set_irq
        self._lock = RLock()
        self._offered = device.features | VIRTIO_F_VERSION_1
        self._queues = [Virtqueue(memory, size) for size in device.queue_sizes]
        self._status = 0
        self._interrupt = 0
        self._accepted = 0
        self._offered_select = 0
        self._accepted_select = 0
        self._queue_select = 0

    def read(self, offset: int, size: int) -> int:
        """A register (4 bytes), or 1 to 8 bytes of the configuration space."""
        if offset >= CONFIG:
            start = offset - CONFIG
            return int.from_bytes(self.device.config[start : start + size], "little")
        if size != 4 or offset % 4:
            return 0
        with self._lock:
            return self._read_register(offset)

    def _read_register(self, offset: int) -> int:
        match offset:
            case 0x00:
                return MAGIC
            case 0x04:
                return VERSION
            case 0x08:
                return self.device.device_id
            case 0x0C:
                return VENDOR
            case 0x10:
                return self._offered >> 32 * self._offered_select & 0xFFFFFFFF if self._offered_select < 2 else 0
            case 0x34:
                queue = self._queue()
                return queue.max_size if queue else 0
            case 0x44:
                queue = self._queue()
                return int(queue.ready) if queue else 0
            case 0x60:
                return self._interrupt
            case 0x70:
                return self._status
            case 0xB0 | 0xB4 | 0xB8 | 0xBC:
                return _NO_SHM
            case _:
                return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """A register (4 bytes); the configuration space of the devices here cannot be written."""
        if size != 4 or offset % 4 or offset >= CONFIG:
            return
        with self._lock:
            if offset == QUEUE_NOTIFY:
                self.notify(value)
            else:
                self._write_register(offset, value)

    def _write_register(self, offset: int, value: int) -> None:
        match offset:
            case 0x14:
                self._offered_select = value
            case 0x20:
                self._accept(value)
            case 0x24:
                self._accepted_select = value
            case 0x30:
                self._queue_select = value
            case 0x64:
                self._interrupt &= ~value
                self._set_irq(self._interrupt != 0)
            case 0x70:
                self._set_status(value)
            case 0x38 | 0x44 | 0x80 | 0x84 | 0x90 | 0x94 | 0xA0 | 0xA4:
                queue = self._queue()
                if queue is not None:
                    self._write_queue(queue, offset, value)

    def _queue(self) -> Virtqueue | None:
        return self._queues[self._queue_select] if self._queue_select < len(self._queues) else None

    def _accept(self, value: int) -> None:
        if self._status & STATUS_FEATURES_OK or self._accepted_select > 1:
            return
        shift = 32 * self._accepted_select
        self._accepted = self._accepted & ~(0xFFFFFFFF << shift) | value << shift

    def _write_queue(self, queue: Virtqueue, offset: int, value: int) -> None:
        if offset == 0x44:
            if not value:
                queue.disable()
            elif not queue.ready and self._status & STATUS_FEATURES_OK:
                try:
                    queue.enable()
                except RingError:
                    self._break()
            return
        if queue.ready:
            return
        low, high = value, value << 32
        match offset:
            case 0x38:
                queue.size = value
            case 0x80:
                queue.desc = queue.desc & ~0xFFFFFFFF | low
            case 0x84:
                queue.desc = queue.desc & 0xFFFFFFFF | high
            case 0x90:
                queue.avail = queue.avail & ~0xFFFFFFFF | low
            case 0x94:
                queue.avail = queue.avail & 0xFFFFFFFF | high
            case 0xA0:
                queue.used = queue.used & ~0xFFFFFFFF | low
            case 0xA4:
                queue.used = queue.used & 0xFFFFFFFF | high

    def _set_status(self, value: int) -> None:
        if value == 0:
            self._reset()
            return
        value &= 0xFF & ~STATUS_NEEDS_RESET
        wrong = self._accepted & ~self._offered or not self._accepted & VIRTIO_F_VERSION_1
        if value & STATUS_FEATURES_OK and not self._status & STATUS_FEATURES_OK and wrong:
            value &= ~STATUS_FEATURES_OK
        self._status = value | self._status & STATUS_NEEDS_RESET

    def _reset(self) -> None:
        for queue in self._queues:
            queue.reset()
        self._status = self._interrupt = self._accepted = 0
        self._offered_select = self._accepted_select = self._queue_select = 0
        self._set_irq(False)

    def _break(self) -> None:
        """The driver did what it must not: the device stops until it is reset (section 2.1.2)."""
        self._status |= STATUS_NEEDS_RESET
        for queue in self._queues:
            queue.disable()
        if self._status & STATUS_DRIVER_OK:
            self._raise_irq(INTERRUPT_CONFIG)

    def _raise_irq(self, why: int) -> None:
        self._interrupt |= why
        self._set_irq(True)

    def notify(self, index: int) -> None:
        """Serve what is in queue `index`. Called by a vCPU, or by the thread that waits for its ioeventfd."""
        with self._lock:
            if index >= len(self._queues) or not self._status & STATUS_DRIVER_OK or self._status & STATUS_NEEDS_RESET:
                return
            queue = self._queues[index]
            served = 0
            try:
                # A guest that adds requests while they are served does not keep this thread for ever.
                while served < 2 * queue.max_size and (chain := queue.pop()) is not None:
                    written = self.device.serve(index, chain)
                    queue.push(chain, written)
                    served += 1
            except RingError:
                self._break()
                return
            if served and queue.wants_interrupt:
                self._raise_irq(INTERRUPT_USED)

    def close(self) -> None:
        """Let go of guest memory and of the device's files."""
        with self._lock:
            for queue in self._queues:
                queue.disable()
            self.device.close()
