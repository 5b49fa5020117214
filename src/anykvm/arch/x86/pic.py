# SPDX-License-Identifier: GPL-2.0-only
"""The two 8259A interrupt controllers of a PC, cascaded through the master's input 2.

The state is guarded by the APIC bus's lock. Source: Intel 8259A data sheet; ``arch/x86/kvm/i8259.c``, whose ways a
guest can see are kept: a poll gives the bare number and acknowledges and ends in one, single and level-triggered modes
(ICW1) do not exist, triggering is by ELCR.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .apic_bus import ApicBus

PIC_MASTER_PORT: Final = 0x20
PIC_SLAVE_PORT: Final = 0xA0
PIC_ELCR_PORT: Final = 0x4D0
PIC_NUM_PINS: Final = 16
PIC_STATE_SIZE: Final = 16
"""``struct kvm_pic_state`` in bytes."""

_ELCR_MASKS: Final = (0xF8, 0xDE)
"""Which inputs may be level-triggered: not the timer, the keyboard, the cascade, the clock, the coprocessor."""
_CASCADE: Final = 2
_NO_IRQ: Final = 8

_FIELDS: Final = (
    "last_irr",
    "irr",
    "imr",
    "isr",
    "priority_add",
    "irq_base",
    "read_reg_select",
    "poll",
    "special_mask",
    "init_state",
    "auto_eoi",
    "rotate_on_auto_eoi",
    "special_fully_nested_mode",
    "init4",
    "elcr",
    "elcr_mask",
)
_STATE: Final = struct.Struct("16B")


class Pic:
    """One 8259A. The registers are bytes; their names are those of ``struct kvm_pic_state``.

    ``priority_add`` is the input of the highest priority; ``init_state`` the ICW that is expected less 1, 0 if none is.
    """

    __slots__ = (*_FIELDS, "is_master")

    def __init__(self, is_master: bool) -> None:
        self.is_master = is_master
        self.last_irr = self.irr = self.imr = self.isr = 0
        self.priority_add = self.irq_base = self.read_reg_select = self.poll = 0
        self.special_mask = self.init_state = self.auto_eoi = self.rotate_on_auto_eoi = 0
        self.special_fully_nested_mode = self.init4 = self.elcr = 0
        self.elcr_mask = _ELCR_MASKS[not is_master]

    def set_irq(self, irq: int, level: int) -> int:
        """Drive an input; returns 1 if it is news, 0 if it was coalesced, -1 if the input is masked."""
        bit = 1 << irq
        result = 1
        if self.elcr & bit:
            if level:
                result = not self.irr & bit
                self.irr |= bit
                self.last_irr |= bit
            else:
                self.irr &= ~bit
                self.last_irr &= ~bit
        elif level:
            if not self.last_irr & bit:
                result = not self.irr & bit
                self.irr |= bit
            self.last_irr |= bit
        else:
            self.last_irr &= ~bit
        return -1 if self.imr & bit else int(result)

    def priority(self, mask: int) -> int:
        """The priority (0 is the highest) of the first input of ``mask``, 8 if it is empty."""
        if not mask:
            return _NO_IRQ
        turned = (mask | mask << 8) >> self.priority_add & 0xFF
        return (turned & -turned).bit_length() - 1

    def pending(self) -> int:
        """The input to signal, -1 if there is none above what is in service."""
        requests = self.irr & ~self.imr
        if not requests:
            return -1
        priority = self.priority(requests)
        serving = self.isr
        if self.special_mask:
            serving &= ~self.imr
        if self.special_fully_nested_mode and self.is_master:
            serving &= ~(1 << _CASCADE)
        if priority < self.priority(serving):
            return priority + self.priority_add & 7
        return -1

    def acknowledge(self, irq: int) -> bool:
        """Take an input into service; True if that also ended it (automatic end of interrupt)."""
        bit = 1 << irq
        if not self.elcr & bit:
            self.irr &= ~bit
        if not self.auto_eoi:
            self.isr |= bit
            return False
        if self.rotate_on_auto_eoi:
            self.priority_add = irq + 1 & 7
        return True

    def icw1(self, value: int) -> int:
        """Begin the initialisation; gives the edges that were pending and are forgotten by it."""
        forgotten = self.irr & ~self.elcr
        self.isr &= ~forgotten
        self.init4 = value & 1
        self.last_irr = 0
        self.irr &= self.elcr
        self.imr = 0
        self.priority_add = 0
        self.special_mask = 0
        self.read_reg_select = 0
        if not self.init4:
            self.special_fully_nested_mode = 0
            self.auto_eoi = 0
        self.init_state = 1
        return forgotten

    def ocw2(self, value: int) -> int:
        """End of interrupt and rotation; gives the bit of what was ended, 0 for nothing."""
        command = value >> 5
        irq = value & 7
        if command in (0, 4):
            self.rotate_on_auto_eoi = command >> 2
            return 0
        if command in (1, 5):
            priority = self.priority(self.isr)
            if priority == _NO_IRQ:
                return 0
            irq = priority + self.priority_add & 7
        if command >= 5:
            self.priority_add = irq + 1 & 7
        if command in (2, 6):
            return 0
        self.isr &= ~(1 << irq)
        return 1 << irq

    def ocw3(self, value: int) -> None:
        """Poll, register to read, special mask mode."""
        if value & 0x04:
            self.poll = 1
        if value & 0x02:
            self.read_reg_select = value & 1
        if value & 0x40:
            self.special_mask = value >> 5 & 1

    def write_data(self, value: int) -> None:
        """Write port 1: the mask, or the ICW that is expected."""
        state = self.init_state
        if state == 0:
            self.imr = value
        elif state == 1:
            self.irq_base = value & 0xF8
            self.init_state = 2
        elif state == 2:
            self.init_state = 3 if self.init4 else 0
        else:
            self.special_fully_nested_mode = value >> 4 & 1
            self.auto_eoi = value >> 1 & 1
            self.init_state = 0

    def get_state(self) -> bytes:
        """Give ``struct kvm_pic_state``, 16 bytes."""
        return _STATE.pack(*(getattr(self, name) for name in _FIELDS))

    def set_state(self, state: bytes) -> None:
        """Load ``struct kvm_pic_state``; what follows it is ignored."""
        for name, value in zip(_FIELDS, _STATE.unpack_from(state), strict=True):
            setattr(self, name, value)
        # A table that no guest can make: keep the numbers usable.
        self.priority_add &= 7


class PicPair:
    """Master and slave, with their ports. ``notify`` is told the pins (0 to 15) whose interrupt ended, without the
    lock, for it drives pins; ``unmasked`` those the guest unmasks, with the lock held.
    """

    __slots__ = ("bus", "master", "notify", "output", "slave", "unmasked")

    def __init__(
        self,
        bus: ApicBus,
        *,
        notify: Callable[[int], None] = lambda pin: None,
        unmasked: Callable[[int], None] = lambda pin: None,
    ) -> None:
        self.bus = bus
        self.notify = notify
        self.unmasked = unmasked
        self.master = Pic(True)
        self.slave = Pic(False)
        self.output = False
        bus.pic = self

    def update(self) -> None:
        """Drive the output; the lock is held."""
        master = self.master
        if self.slave.pending() >= 0:
            master.set_irq(_CASCADE, 1)
            master.set_irq(_CASCADE, 0)
        output = master.pending() >= 0
        if output != self.output:
            self.output = output
            self.bus.set_extint(output)

    def set_irq(self, pin: int, level: int) -> int:
        """Drive a pin, 0 to 15; returns as :meth:`Pic.set_irq`."""
        with self.bus.lock:
            pic = self.slave if pin & 8 else self.master
            irq = pin & 7
            taken = pic.set_irq(irq, level)
            # A masked or coalesced request and a falling edge change nothing that is signalled.
            if taken > 0 and (level or pic.elcr >> irq & 1):
                self.update()
            return taken

    def acknowledge(self) -> tuple[int, int]:
        """Acknowledge the interrupt signalled: its vector and the pins it ended by itself; the lock is held."""
        master, slave = self.master, self.slave
        irq = master.pending()
        ended = 0
        if irq < 0:
            # The request went away after it was signalled: a spurious interrupt.
            vector = master.irq_base + 7
        else:
            if master.acknowledge(irq):
                ended = 1 << irq
            vector = master.irq_base + irq
            if irq == _CASCADE:
                irq = slave.pending()
                if irq < 0:
                    irq = 7
                elif slave.acknowledge(irq):
                    ended |= 0x100 << irq
                vector = slave.irq_base + irq
        self.update()
        return vector, ended

    def ended(self, pins: int) -> None:
        """Interrupts have been ended (a bitmap): their owners lower the lines or leave them, then the output follows.

        Called without the lock.
        """
        while pins:
            low = pins & -pins
            pins ^= low
            self.notify(low.bit_length() - 1)
        with self.bus.lock:
            self.update()

    # Ports.

    def read(self, vcpu: Any, addr: int, size: int) -> int:
        """A guest's read; anything but a byte reads as 0."""
        if size != 1:
            return 0
        if addr >= PIC_ELCR_PORT:
            return (self.slave if addr & 1 else self.master).elcr
        pic = self.slave if addr & 0x80 else self.master
        with self.bus.lock:
            if not pic.poll:
                return pic.imr if addr & 1 else pic.isr if pic.read_reg_select else pic.irr
            pic.poll = 0
            value, ended = self._poll(pic)
        self.ended(ended)
        return value

    def _poll(self, pic: Pic) -> tuple[int, int]:
        irq = pic.pending()
        if irq < 0:
            return 7, 0
        if pic is self.slave:
            self.master.isr &= ~(1 << _CASCADE)
            self.master.irr &= ~(1 << _CASCADE)
        pic.irr &= ~(1 << irq)
        pic.isr &= ~(1 << irq)
        return irq, 0x100 << irq if pic is self.slave else 1 << irq

    def write(self, vcpu: Any, addr: int, size: int, value: int) -> bool:
        """A guest's write; anything but a byte is ignored."""
        if size != 1:
            return True
        ended = 0
        with self.bus.lock:
            if addr >= PIC_ELCR_PORT:
                pic = self.slave if addr & 1 else self.master
                pic.elcr = value & pic.elcr_mask
                return True
            pic = self.slave if addr & 0x80 else self.master
            if addr & 1:
                self._write_data(pic, value)
            elif value & 0x10:
                ended = pic.icw1(value)
                if not self.bus.pic_takers:
                    ended = 0
            elif value & 0x08:
                pic.ocw3(value)
            else:
                ended = pic.ocw2(value)
            if not ended:
                self.update()
        if ended:
            self.ended(ended << 8 if pic is self.slave else ended)
        return True

    def _write_data(self, pic: Pic, value: int) -> None:
        opened = pic.imr & ~value if not pic.init_state else 0
        pic.write_data(value)
        first = 8 if pic is self.slave else 0
        while opened:
            low = opened & -opened
            opened ^= low
            self.unmasked(first + low.bit_length() - 1)

    # KVM_GET_IRQCHIP and KVM_SET_IRQCHIP.

    def get_state(self, index: int) -> bytes:
        """Give ``struct kvm_pic_state`` of the master (0) or the slave (1)."""
        with self.bus.lock:
            return (self.slave if index else self.master).get_state()

    def set_state(self, index: int, state: bytes) -> None:
        """Load ``struct kvm_pic_state`` of the master (0) or the slave (1)."""
        with self.bus.lock:
            (self.slave if index else self.master).set_state(state)
            self.update()
