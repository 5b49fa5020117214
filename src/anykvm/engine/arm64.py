# SPDX-License-Identifier: GPL-2.0-only
"""The registers of an arm64 cpu.

Registers may be read whenever the cpu is not running. They may be written when the cpu is not parked in the middle of
an instruction (a device or system register access): :meth:`Arm64Cpu.abandon` gives such an instruction up first.
"""

import time
from typing import Final

from anykvm.engine import _engine
from anykvm.engine.events import COUNTER_HZ

# Register numbers of Unicorn's public arm64 API.
_Q0: Final = 104
_PSTATE: Final = 265
_FPCR: Final = 291
_FPSR: Final = 292

# Offsets into the target's state: of the pinned Unicorn only, as those of src/layout.h are.
_XREGS: Final = 64
_PC: Final = 320
_BANKED_SPSR: Final = 352
_ELR_EL: Final = 568
_SP_EL: Final = 600
_CNTVOFF: Final = 1384
_VMPIDR: Final = 2832

_NS_PER_TICK: Final = 1_000_000_000 // COUNTER_HZ
_M64: Final = (1 << 64) - 1
# SPSR_EL1, SPSR_abt, SPSR_und, SPSR_irq, SPSR_fiq in the target's banks.
_SPSRS: Final = 5


class Arm64Cpu(_engine.Cpu):
    """One arm64 cpu (Cortex-A57): run it, and see its registers.

    Example::

        machine = Machine("arm64")
        cpu = Cpu(machine)
        cpu.pc = 0x8000_0000
        kind, a, b, c = cpu.run()
    """

    __slots__ = ("_gpr", "_state")

    def _window(self, offset: int) -> memoryview:
        try:
            return self._state[offset // 8 : offset // 8 + 1]
        except AttributeError:
            self._state: memoryview = self.state(0, 4096).cast("Q")
            return self._window(offset)

    @property
    def gpr(self) -> memoryview:
        """x0 to x30, and at index 31 the current stack pointer: 64-bit words that write through."""
        try:
            return self._gpr
        except AttributeError:
            self._gpr: memoryview = self.state(_XREGS, 32 * 8).cast("Q")
            return self._gpr

    @property
    def pc(self) -> int:
        """The program counter."""
        if self.parked is not None:
            self.sync()
        return self._window(_PC)[0]

    @pc.setter
    def pc(self, value: int) -> None:
        self._window(_PC)[0] = value & _M64

    @property
    def pstate(self) -> int:
        """PSTATE in the format of SPSR: NZCV, DAIF, exception level, stack pointer selection."""
        return int.from_bytes(self.reg_read(_PSTATE, bytes(4)), "little")

    @pstate.setter
    def pstate(self, value: int) -> None:
        self._bank_sp()
        self.reg_write(_PSTATE, value.to_bytes(8, "little"))
        self.gpr[31] = self._window(_SP_EL + 8 * self._sp_bank())[0]
        self.refresh()

    def _sp_bank(self) -> int:
        pstate = self.pstate
        return pstate >> 2 & 3 if pstate & 1 else 0

    def _bank_sp(self) -> None:
        self._window(_SP_EL + 8 * self._sp_bank())[0] = self.gpr[31]

    def _get_sp(self, bank: int) -> int:
        return self.gpr[31] if self._sp_bank() == bank else self._window(_SP_EL + 8 * bank)[0]

    def _set_sp(self, bank: int, value: int) -> None:
        self._window(_SP_EL + 8 * bank)[0] = value & _M64
        if self._sp_bank() == bank:
            self.gpr[31] = value & _M64

    @property
    def sp_el0(self) -> int:
        """SP_EL0, whichever stack pointer is in use."""
        return self._get_sp(0)

    @sp_el0.setter
    def sp_el0(self, value: int) -> None:
        self._set_sp(0, value)

    @property
    def sp_el1(self) -> int:
        """SP_EL1, whichever stack pointer is in use."""
        return self._get_sp(1)

    @sp_el1.setter
    def sp_el1(self, value: int) -> None:
        self._set_sp(1, value)

    @property
    def elr_el1(self) -> int:
        """ELR_EL1."""
        return self._window(_ELR_EL + 8)[0]

    @elr_el1.setter
    def elr_el1(self, value: int) -> None:
        self._window(_ELR_EL + 8)[0] = value & _M64

    def get_spsr(self, index: int) -> int:
        """Give SPSR_EL1 (0), SPSR_abt (1), SPSR_und (2), SPSR_irq (3) or SPSR_fiq (4)."""
        if not 0 <= index < _SPSRS:
            raise IndexError(index)
        return self._window(_BANKED_SPSR + 8 * (1 + index))[0]

    def set_spsr(self, index: int, value: int) -> None:
        """Set what :meth:`get_spsr` gives."""
        if not 0 <= index < _SPSRS:
            raise IndexError(index)
        self._window(_BANKED_SPSR + 8 * (1 + index))[0] = value & _M64

    def get_vreg(self, n: int) -> bytes:
        """Give V``n`` as 16 bytes."""
        if not 0 <= n < 32:
            raise IndexError(n)
        return self.reg_read(_Q0 + n, bytes(16))

    def set_vreg(self, n: int, value: bytes) -> None:
        """Set V``n`` from 16 bytes."""
        if not 0 <= n < 32 or len(value) != 16:
            raise IndexError(n)
        self.reg_write(_Q0 + n, value)

    @property
    def fpsr(self) -> int:
        """The floating-point status register."""
        return int.from_bytes(self.reg_read(_FPSR, bytes(4)), "little")

    @fpsr.setter
    def fpsr(self, value: int) -> None:
        self.reg_write(_FPSR, value.to_bytes(4, "little"))

    @property
    def fpcr(self) -> int:
        """The floating-point control register."""
        return int.from_bytes(self.reg_read(_FPCR, bytes(4)), "little")

    @fpcr.setter
    def fpcr(self, value: int) -> None:
        self.reg_write(_FPCR, value.to_bytes(4, "little"))

    @property
    def cntvoff(self) -> int:
        """What is taken from the host's counter to give the virtual counter, in ticks."""
        return self._window(_CNTVOFF)[0]

    @cntvoff.setter
    def cntvoff(self, value: int) -> None:
        self._window(_CNTVOFF)[0] = value & _M64

    @staticmethod
    def counter() -> int:
        """Give the physical counter now, in ticks of :data:`COUNTER_HZ`; from any thread."""
        return time.monotonic_ns() // _NS_PER_TICK

    def set_mpidr(self, value: int) -> None:
        """Set what MPIDR_EL1 reads as."""
        self._window(_VMPIDR)[0] = value & _M64
