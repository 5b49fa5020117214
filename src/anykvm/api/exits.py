# SPDX-License-Identifier: GPL-2.0-only
"""What :meth:`Vcpu.run` returns: why the guest stopped, made for ``match``.

Source: Documentation/virt/kvm/api.rst, section 5. Numbers in guest data are little-endian.

    match vcpu.run():
        case MmioWrite(address, data): ...
        case MmioRead(address, size) as read: read.reply(0)
        case SystemEvent(SystemEventType.SHUTDOWN): ...
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

from anykvm.uapi import common

_UNION: Final = common.KvmRun.mmio.offset
_MMIO_DATA: Final = _UNION + common.RunMmio.data.offset
_HYPERCALL_RET: Final = _UNION + common.RunHypercall.ret.offset


class SystemEventType(IntEnum):
    """KVM_SYSTEM_EVENT_*: what the guest asked of the machine."""

    SHUTDOWN = common.KVM_SYSTEM_EVENT_SHUTDOWN
    RESET = common.KVM_SYSTEM_EVENT_RESET
    CRASH = common.KVM_SYSTEM_EVENT_CRASH
    WAKEUP = common.KVM_SYSTEM_EVENT_WAKEUP
    SUSPEND = common.KVM_SYSTEM_EVENT_SUSPEND
    SEV_TERM = common.KVM_SYSTEM_EVENT_SEV_TERM
    TDX_FATAL = common.KVM_SYSTEM_EVENT_TDX_FATAL


def _answer(data: bytes | int, size: int) -> bytes:
    if isinstance(data, int):
        return (data & (1 << 8 * size) - 1).to_bytes(size, "little")
    if len(data) != size:
        raise ValueError(f"the guest reads {size} bytes, not {len(data)}")
    return data


@dataclass(slots=True, repr=False)
class MmioRead:
    """KVM_EXIT_MMIO: the guest reads ``size`` bytes (1 to 8) at a guest-physical address where no memory is.

    Answer with :meth:`reply` before the next run; without an answer the guest reads what the run page holds.
    """

    address: int
    size: int
    _page: memoryview = field(compare=False)

    # Not the page. It is no keyword-only field because that makes an object take twice as long.
    __match_args__ = ("address", "size")

    def reply(self, data: bytes | int) -> None:
        """Give the guest its bytes: exactly ``size`` of them, or a number cut to that size.

        Errors: ValueError for another number of bytes, or when the vCPU has been closed.

        >>> page = memoryview(bytearray(4096))
        >>> MmioRead(0x9000000, 2, _page=page).reply(0x1234)
        >>> bytes(page[40:42])
        b'4\\x12'
        """
        self._page[_MMIO_DATA : _MMIO_DATA + self.size] = _answer(data, self.size)

    def __repr__(self) -> str:
        return f"MmioRead(address={self.address:#x}, size={self.size})"


@dataclass(slots=True, repr=False)
class MmioWrite:
    """KVM_EXIT_MMIO: the guest wrote ``data`` (1 to 8 bytes) at a guest-physical address where no memory is."""

    address: int
    data: bytes

    @property
    def value(self) -> int:
        """The data as a number.

        >>> MmioWrite(0x9000000, b"A").value
        65
        """
        return int.from_bytes(self.data, "little")

    def __repr__(self) -> str:
        return f"MmioWrite(address={self.address:#x}, data={self.data!r})"


@dataclass(slots=True, repr=False)
class PioIn:
    """KVM_EXIT_IO: the guest reads ``count`` items of ``size`` bytes (1, 2 or 4) from a port."""

    port: int
    size: int
    count: int
    _page: memoryview = field(compare=False)
    _offset: int = field(compare=False)

    # As in MmioRead.
    __match_args__ = ("port", "size", "count")

    def reply(self, data: bytes | int) -> None:
        """Give the guest its bytes: ``size`` times ``count``, or one number that is repeated for each item.

        Errors: ValueError for another number of bytes.

        >>> page = memoryview(bytearray(8192))
        >>> PioIn(0x3F8, 1, 2, _page=page, _offset=4096).reply(b"ab")
        >>> bytes(page[4096:4098])
        b'ab'
        """
        if isinstance(data, int) and self.size == self.count == 1:
            # The most usual answer, without a detour through bytes.
            self._page[self._offset] = data & 0xFF
            return
        answer = _answer(data, self.size) * self.count if isinstance(data, int) else data
        length = self.size * self.count
        self._page[self._offset : self._offset + length] = _answer(answer, length)

    def __repr__(self) -> str:
        return f"PioIn(port={self.port:#x}, size={self.size}, count={self.count})"


@dataclass(slots=True, repr=False)
class PioOut:
    """KVM_EXIT_IO: the guest wrote items of ``size`` bytes (1, 2 or 4) to a port; ``data`` holds all of them."""

    port: int
    size: int
    data: bytes

    def __repr__(self) -> str:
        return f"PioOut(port={self.port:#x}, size={self.size}, data={self.data!r})"


@dataclass(slots=True)
class Hypercall:
    """KVM_EXIT_HYPERCALL: a call KVM leaves to userspace; on arm64 the arguments are in the vCPU's registers."""

    nr: int
    args: tuple[int, ...]
    flags: int
    _page: memoryview = field(repr=False, compare=False, kw_only=True)

    def reply(self, value: int) -> None:
        """Set the call's 64-bit result, where the architecture takes it from the run page (x86).

        >>> page = memoryview(bytearray(4096))
        >>> Hypercall(12, (0,) * 6, 0, _page=page).reply(1)
        >>> page[88]
        1
        """
        self._page[_HYPERCALL_RET : _HYPERCALL_RET + 8] = _answer(value, 8)


@dataclass(slots=True)
class SystemEvent:
    """KVM_EXIT_SYSTEM_EVENT: the guest asks to power off, reset, suspend..., or has crashed.

    ``type`` is a :class:`SystemEventType` where that has a name for it, ``data`` the event's 64-bit words.
    """

    type: int
    data: tuple[int, ...] = ()


@dataclass(slots=True)
class Shutdown:
    """KVM_EXIT_SHUTDOWN: the CPU gave up (x86: triple fault)."""


@dataclass(slots=True)
class Halt:
    """KVM_EXIT_HLT: the CPU waits for an interrupt, and there is no in-kernel interrupt controller to bring one."""


@dataclass(slots=True)
class Interrupted:
    """EINTR: a signal, :meth:`Vcpu.kick` or ``immediate_exit``; nothing happened in the guest that needs an answer."""


@dataclass(slots=True)
class IrqWindowOpen:
    """KVM_EXIT_IRQ_WINDOW_OPEN: an interrupt can be injected now."""


@dataclass(slots=True)
class DirtyRingFull:
    """KVM_EXIT_DIRTY_RING_FULL: harvest the vCPU's dirty ring before going on."""


@dataclass(slots=True)
class InternalError:
    """KVM_EXIT_INTERNAL_ERROR: KVM cannot go on; ``suberror`` is one of KVM_INTERNAL_ERROR_*."""

    suberror: int
    data: tuple[int, ...]

    @property
    def instruction(self) -> bytes:
        """The bytes of the instruction that cannot be emulated, as far as KVM says them; they may be more than it.

        >>> InternalError(1, (1, 0x9090909090E4D902, 0x9090909090909090, 0, 0, 0, 0, 0)).instruction.hex()
        'd9e4'
        """
        known = common.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
        if self.suberror != common.KVM_INTERNAL_ERROR_EMULATION or len(self.data) < 3 or not self.data[0] & known:
            return b""
        size, *rest = struct.pack("<2Q", self.data[1], self.data[2])
        return bytes(rest[:size])


@dataclass(slots=True)
class FailEntry:
    """KVM_EXIT_FAIL_ENTRY: the CPU refused to enter the guest; the reason is the hardware's."""

    reason: int
    cpu: int


@dataclass(slots=True)
class GuestException:
    """KVM_EXIT_EXCEPTION."""

    exception: int
    error_code: int


@dataclass(slots=True)
class Debug:
    """KVM_EXIT_DEBUG: a breakpoint, watchpoint or step; ``arch`` is the architecture's kvm_debug_exit_arch.

    ``anykvm.api.arm64.debug_exit`` reads it.
    """

    arch: bytes


@dataclass(slots=True, repr=False)
class ArmNisv:
    """KVM_EXIT_ARM_NISV: a data abort outside memory whose syndrome does not describe the access."""

    esr_iss: int
    fault_ipa: int

    def __repr__(self) -> str:
        return f"ArmNisv(esr_iss={self.esr_iss:#x}, fault_ipa={self.fault_ipa:#x})"


@dataclass(slots=True, repr=False)
class MemoryFault:
    """KVM_EXIT_MEMORY_FAULT: KVM could not resolve an access to this guest-physical range (bytes)."""

    flags: int
    gpa: int
    size: int

    def __repr__(self) -> str:
        return f"MemoryFault(flags={self.flags:#x}, gpa={self.gpa:#x}, size={self.size:#x})"


@dataclass(slots=True)
class ArchExit:
    """An exit only one architecture has; ``name`` is the reason's, ``payload`` the run page's 256-byte union."""

    reason: int
    name: str
    payload: bytes


@dataclass(slots=True)
class Unknown:
    """KVM_EXIT_UNKNOWN, or a reason newer than this program; ``hardware_exit_reason`` is the union's first word."""

    reason: int
    hardware_exit_reason: int


Exit = (
    MmioRead
    | MmioWrite
    | PioIn
    | PioOut
    | Hypercall
    | SystemEvent
    | Shutdown
    | Halt
    | Interrupted
    | IrqWindowOpen
    | DirtyRingFull
    | InternalError
    | FailEntry
    | GuestException
    | Debug
    | ArmNisv
    | MemoryFault
    | ArchExit
    | Unknown
)
