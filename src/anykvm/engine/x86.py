# SPDX-License-Identifier: GPL-2.0-only
"""The registers of an x86 cpu.

As with arm64's: read whenever the cpu is not running, written when it is not parked in the middle of an instruction.
"""

import struct
from typing import Final

from anykvm.engine import _engine

# Offsets into the target's state: of the pinned Unicorn only, as those of src/layout.h are.
_REGS: Final = 0
_RIP: Final = 128
_HFLAGS: Final = 176
_HFLAGS2: Final = 180
_SEGS: Final = 184
_TABLES: Final = 376
_CR: Final = 424
_EFER: Final = 592
_FPSTT: Final = 604
_FPUS: Final = 608
_FPUC: Final = 610
_FPTAGS: Final = 612
_FPREGS: Final = 624
_FPOP: Final = 752
_MXCSR: Final = 816
_SSE_FLAGS: Final = 810  # of its exceptions since MXCSR was written
_SSE_FLAGS_MASK: Final = 0x3D
_XMM: Final = 824
_XCR0: Final = 4904
_V_TPR: Final = 5556
_DR: Final = 5400
_STATE: Final = 7008

_SEGMENT: Final = struct.Struct("<IxxxxQII")
_SEGMENTS: Final = 8
_TR: Final = 7
_BUSY: Final = 2
_INHIBIT_IRQ: Final = 1 << 3
_NMI_MASKED: Final = 1 << 2
_IF: Final = 1 << 9
_LMA: Final = 1 << 10
_M64: Final = (1 << 64) - 1
_XMM_STRIDE: Final = 64
_MSRS: Final = (0x174, 0x175, 0x176, 0x277, *range(0xC0000080, 0xC0000085), *range(0xC0000100, 0xC0000104))

Segment = tuple[int, int, int, int]


class X86Cpu(_engine.X86Base):
    """One x86-64 cpu: run it, and see its registers.

    Segments are numbered ES, CS, SS, DS, FS, GS, LDT, TR; tables GDT, IDT. A segment is (selector, base, limit in
    bytes, attributes): the attributes are bits 8 to 23 of the descriptor's high word, shifted down by 8.
    """

    __slots__ = ("_gpr", "_state")

    NATIVE_MSRS: Final = frozenset(_MSRS)
    """The MSRs the engine keeps; the others come as events."""

    @property
    def _env(self) -> memoryview:
        try:
            return self._state
        except AttributeError:
            self._state: memoryview = self.state(0, _STATE)
            return self._state

    def _get(self, offset: int, size: int) -> int:
        return int.from_bytes(self._env[offset : offset + size], "little")

    def _set(self, offset: int, size: int, value: int) -> None:
        self._env[offset : offset + size] = (value & ((1 << (8 * size)) - 1)).to_bytes(size, "little")

    @property
    def gpr(self) -> memoryview:
        """RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15: 64-bit words that write through."""
        try:
            return self._gpr
        except AttributeError:
            self._gpr: memoryview = self.state(_REGS, 16 * 8).cast("Q")
            return self._gpr

    @property
    def rip(self) -> int:
        """The instruction pointer."""
        if self.parked is not None:
            self.sync()
        return self._get(_RIP, 8)

    @rip.setter
    def rip(self, value: int) -> None:
        self._set(_RIP, 8, value)

    def get_segment(self, n: int) -> Segment:
        """Give segment ``n``."""
        if not 0 <= n < _SEGMENTS:
            raise IndexError(n)
        selector, base, limit, flags = _SEGMENT.unpack_from(self._env, _SEGS + n * _SEGMENT.size)
        # The engine keeps a task register as not busy; a loaded one always is.
        return selector, base, limit, flags >> 8 & 0xFFFF | (_BUSY if n == _TR else 0)

    def set_segment(self, n: int, segment: Segment) -> None:
        """Set segment ``n``; the mode follows CS and SS."""
        if not 0 <= n < _SEGMENTS:
            raise IndexError(n)
        selector, base, limit, attributes = segment
        if n == _TR:
            attributes &= ~_BUSY
        _SEGMENT.pack_into(
            self._env,
            _SEGS + n * _SEGMENT.size,
            selector & 0xFFFF,
            base & _M64,
            limit & 0xFFFFFFFF,
            (attributes & 0xF0FF) << 8,
        )
        self.refresh()

    def get_table(self, n: int) -> tuple[int, int]:
        """Give the GDT's (0) or IDT's (1) base and limit in bytes."""
        _selector, base, limit, _flags = _SEGMENT.unpack_from(self._env, _TABLES + n * _SEGMENT.size)
        return base, limit

    def set_table(self, n: int, base: int, limit: int) -> None:
        """Set what :meth:`get_table` gives."""
        _SEGMENT.pack_into(self._env, _TABLES + n * _SEGMENT.size, 0, base & _M64, limit & 0xFFFF, 0)

    @property
    def cr0(self) -> int:
        """CR0; setting it switches the mode."""
        return self._get(_CR, 8)

    @cr0.setter
    def cr0(self, value: int) -> None:
        # Unicorn derives EFER.LMA from the change of CR0.PG; here EFER is what was set.
        efer = self.efer
        self.set_cr(0, value)
        self.efer = efer

    @property
    def cr2(self) -> int:
        """CR2, the address of the last page fault."""
        return self._get(_CR + 16, 8)

    @cr2.setter
    def cr2(self, value: int) -> None:
        self.set_cr(2, value)

    @property
    def cr3(self) -> int:
        """CR3, the page tables' root."""
        return self._get(_CR + 24, 8)

    @cr3.setter
    def cr3(self, value: int) -> None:
        self.set_cr(3, value)

    @property
    def cr4(self) -> int:
        """CR4."""
        return self._get(_CR + 32, 8)

    @cr4.setter
    def cr4(self, value: int) -> None:
        self.set_cr(4, value)

    @property
    def cr8(self) -> int:
        """CR8, the task priority (4 bits)."""
        return self._get(_V_TPR, 1)

    @cr8.setter
    def cr8(self, value: int) -> None:
        self.set_cr(8, value)

    @property
    def efer(self) -> int:
        """EFER, with LMA as it is."""
        return self._get(_EFER, 8)

    @efer.setter
    def efer(self, value: int) -> None:
        self._set(_EFER, 8, value)
        self.refresh()

    def get_dr(self, n: int) -> int:
        """Give debug register ``n``, 0 to 7."""
        if not 0 <= n < 8:
            raise IndexError(n)
        return self._get(_DR + 8 * n, 8)

    @property
    def xcr0(self) -> int:
        """XCR0."""
        return self._get(_XCR0, 8)

    @xcr0.setter
    def xcr0(self, value: int) -> None:
        self._set(_XCR0, 8, value)

    @property
    def shadow(self) -> bool:
        """STI or MOV SS holds interrupts off for one instruction."""
        return bool(self._get(_HFLAGS, 4) & _INHIBIT_IRQ)

    @shadow.setter
    def shadow(self, value: bool) -> None:
        flags = self._get(_HFLAGS, 4)
        self._set(_HFLAGS, 4, flags | _INHIBIT_IRQ if value else flags & ~_INHIBIT_IRQ)

    @property
    def nmi_masked(self) -> bool:
        """An NMI is being handled: the next waits for IRET."""
        return bool(self._get(_HFLAGS2, 4) & _NMI_MASKED)

    @nmi_masked.setter
    def nmi_masked(self, value: bool) -> None:
        flags = self._get(_HFLAGS2, 4)
        self._set(_HFLAGS2, 4, flags | _NMI_MASKED if value else flags & ~_NMI_MASKED)

    @property
    def interruptible(self) -> bool:
        """The guest would take an external interrupt now."""
        return bool(self.rflags & _IF) and not self.shadow and self.injected < 0

    def get_msr(self, index: int) -> int:
        """Give an MSR of :attr:`NATIVE_MSRS`; :class:`KeyError` for another."""
        if index not in self.NATIVE_MSRS:
            raise KeyError(index)
        return self.get_sysreg(index)

    def set_msr(self, index: int, value: int) -> None:
        """Set an MSR of :attr:`NATIVE_MSRS`; :class:`KeyError` for another."""
        if index not in self.NATIVE_MSRS:
            raise KeyError(index)
        if index == 0xC0000080:
            self.efer = value
        else:
            self.set_sysreg(index, value)

    def get_fx(self) -> bytes:
        """Give the x87 and SSE state as the 512 bytes of FXSAVE64."""
        env = self._env
        top = self._get(_FPSTT, 4) & 7
        tags = 0
        out = bytearray(512)
        for n in range(8):
            if not env[_FPTAGS + n]:
                tags |= 1 << n
            at = _FPREGS + 16 * (top + n & 7)
            out[32 + 16 * n : 42 + 16 * n] = env[at : at + 10]
        status = self._get(_FPUS, 2) & ~0x3800 | top << 11
        struct.pack_into("<HHBxH", out, 0, self._get(_FPUC, 2), status, tags, self._get(_FPOP, 2))
        mxcsr = self._get(_MXCSR, 4) | self._get(_SSE_FLAGS, 1) & _SSE_FLAGS_MASK
        struct.pack_into("<QQII", out, 8, self._get(_FPOP + 8, 8), self._get(_FPOP + 16, 8), mxcsr, 0xFFFF)
        for n in range(16):
            at = _XMM + _XMM_STRIDE * n
            out[160 + 16 * n : 176 + 16 * n] = env[at : at + 16]
        return bytes(out)

    def set_fx(self, image: bytes) -> None:
        """Set what :meth:`get_fx` gives."""
        if len(image) != 512:
            raise ValueError("an FXSAVE image is 512 bytes")
        control, status, tags, opcode = struct.unpack_from("<HHBxH", image, 0)
        ip, dp, mxcsr = struct.unpack_from("<QQI", image, 8)
        env = self._env
        top = status >> 11 & 7
        self._set(_FPSTT, 4, top)
        self._set(_FPUS, 2, status & ~0x3800)
        self._set(_FPOP, 2, opcode)
        self._set(_FPOP + 8, 8, ip)
        self._set(_FPOP + 16, 8, dp)
        for n in range(8):
            env[_FPTAGS + n] = not tags >> n & 1
            at = _FPREGS + 16 * (top + n & 7)
            env[at : at + 16] = image[32 + 16 * n : 42 + 16 * n] + bytes(6)
        for n in range(16):
            at = _XMM + _XMM_STRIDE * n
            env[at : at + 16] = image[160 + 16 * n : 176 + 16 * n]
        self.set_fp_control(control, mxcsr)
