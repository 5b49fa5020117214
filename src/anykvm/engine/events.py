# SPDX-License-Identifier: GPL-2.0-only
"""Why a cpu came back from ``run()``."""

from enum import IntEnum
from typing import Final

COUNTER_HZ: Final = 62_500_000
"""The rate of the system counter, in Hz."""


class Event(IntEnum):
    """The first item of what ``run()`` returns; the other three are ``a, b, c``.

    The numbers are those of ``enum event_kind`` in ``src/engine.h``.
    """

    KICK = 1
    """Kicked."""
    MMIO_READ = 2
    """``a`` address, ``b`` size in bytes; the next ``run(value)`` answers."""
    MMIO_WRITE = 3
    """``a`` address, ``b`` size in bytes, ``c`` value."""
    SYSREG_READ = 4
    """``a`` encoding; the next ``run(value)`` answers."""
    SYSREG_WRITE = 5
    """``a`` encoding, ``c`` value."""
    HVC = 6
    """``a`` immediate; the program counter is after the instruction."""
    SMC = 7
    """``a`` immediate; the program counter is after the instruction."""
    WFI = 8
    """The guest idles and no interrupt line is high."""
    FETCH = 9
    """``a`` address: instruction fetch where no memory is."""
    BREAK = 10
    """A debug stop."""
    ERROR = 11
    """``a`` and ``b`` say what failed inside the engine."""
    PIO_READ = 12
    """``a`` port, ``b`` size in bytes, ``c`` the address size in bytes if it is one of a REP INS, else 0; the next
    ``run(value)`` answers."""
    PIO_WRITE = 13
    """``a`` port, ``b`` size in bytes, ``c`` value."""
    MSR_READ = 14
    """``a`` index; the next ``run(value)`` answers."""
    MSR_WRITE = 15
    """``a`` index, ``c`` value."""
    CR8_WRITE = 16
    """``a`` the new task priority."""
    IRQ_ACK = 17
    """Line 0 is high and the guest takes an interrupt now: the next ``run(vector)`` says which; 256 is none."""
    IRQ_WINDOW = 18
    """``want_window`` is set and the guest can take an interrupt now."""
    SHUTDOWN = 19
    """A triple fault."""
    SIGNAL = 20
    """On Python's main thread: a signal came, and its handler has run."""
    HYPERCALL = 21
    """VMCALL or VMMCALL; ``a`` is its third byte; the instruction pointer is after it."""
    RSM = 22
    """RSM while ``smm`` is set: the state is to be replaced."""
    HLT = 8
    """x86's name for :attr:`WFI`."""
