# SPDX-License-Identifier: GPL-2.0-only
"""FPU, SSE and extended state: KVM_GET_FPU, KVM_GET_XSAVE, KVM_GET_XCRS and their SETs (api.rst 4.22, 4.42 to 4.45).

The engine's CPU has x87 and SSE: an XSAVE area is a FXSAVE image and its header, whatever XCR0 says.
"""

from __future__ import annotations

import errno
from ctypes import sizeof
from typing import TYPE_CHECKING, Final

from anykvm.uapi import x86 as uapi

if TYPE_CHECKING:
    from .engine import CpuLike

XFEATURE_FP: Final = 1 << 0
XFEATURE_SSE: Final = 1 << 1
XCR0_SUPPORTED: Final = XFEATURE_FP | XFEATURE_SSE
XSAVE_SIZE: Final = sizeof(uapi.KvmXsave)
"""KVM_CAP_XSAVE2, in bytes."""
FX_SIZE: Final = 512
HEADER_END: Final = FX_SIZE + 64
MXCSR_RESET: Final = 0x1F80
MXCSR_MASK: Final = 0xFFFF
FCW_RESET: Final = 0x37F

_MXCSR: Final = slice(24, 28)
_X87: Final = slice(0, 24)
_ST: Final = slice(32, 160)
_XMM: Final = slice(160, 416)


def get_fpu(cpu: CpuLike) -> uapi.KvmFpu:
    """``struct kvm_fpu``. MXCSR is 0, as the kernel leaves it: KVM_GET_XSAVE has it."""
    fx = cpu.get_fx()
    head = fx[0:2] + fx[2:4] + fx[4:5] + bytes(1) + fx[6:8] + fx[8:16] + fx[16:24]
    return uapi.KvmFpu.from_buffer_copy(fx[_ST] + head + fx[_XMM] + bytes(8))


def set_fpu(cpu: CpuLike, fpu: uapi.KvmFpu) -> None:
    """Write x87 and the XMM registers; MXCSR stays what it is, as in the kernel: KVM_SET_XSAVE sets it."""
    data = bytes(fpu)
    fx = bytearray(cpu.get_fx())
    fx[_ST] = data[:128]
    fx[_X87] = data[128:152]
    fx[5] = 0
    fx[_XMM] = data[152:408]
    cpu.set_fx(bytes(fx))


def get_xsave(cpu: CpuLike) -> bytes:
    """An XSAVE area in the standard format, 4096 bytes; a component in its initial state is not present (XINUSE)."""
    fx = cpu.get_fx()
    x87 = fx[_X87] != _INITIAL[_X87] or any(fx[_ST])
    sse = any(fx[_XMM]) or fx[_MXCSR] != _INITIAL[_MXCSR]
    present = x87 * XFEATURE_FP | sse * XFEATURE_SSE
    return fx + present.to_bytes(8, "little") + bytes(XSAVE_SIZE - FX_SIZE - 8)


def _initial() -> bytearray:
    fx = bytearray(FX_SIZE)
    fx[0:2] = FCW_RESET.to_bytes(2, "little")
    fx[_MXCSR] = MXCSR_RESET.to_bytes(4, "little")
    fx[28:32] = MXCSR_MASK.to_bytes(4, "little")
    return fx


_INITIAL: Final = bytes(_initial())


def set_xsave(cpu: CpuLike, area: bytes) -> None:
    """Load an XSAVE area; EINVAL for a component there is not, the compacted format, or reserved bits of MXCSR.

    A component whose bit in the header is clear gets its initial state.
    """
    present = int.from_bytes(area[FX_SIZE : FX_SIZE + 8], "little")
    if present & ~XCR0_SUPPORTED:
        raise OSError(errno.EINVAL, f"extended state {present & ~XCR0_SUPPORTED:#x} is not offered here")
    if any(area[FX_SIZE + 8 : HEADER_END]):
        raise OSError(errno.EINVAL, "the XSAVE header has a compaction mask or reserved bytes")
    if present & XFEATURE_SSE and int.from_bytes(area[_MXCSR], "little") & ~MXCSR_MASK:
        raise OSError(errno.EINVAL, "MXCSR has reserved bits")
    fx = _initial()
    if present & XFEATURE_FP:
        fx[_X87] = area[_X87]
        fx[_ST] = area[_ST]
    if present & XFEATURE_SSE:
        fx[_XMM] = area[_XMM]
        fx[_MXCSR] = area[_MXCSR]
    cpu.set_fx(bytes(fx))


def get_xcrs(cpu: CpuLike) -> uapi.KvmXcrs:
    """``struct kvm_xcrs``: XCR0."""
    xcrs = uapi.KvmXcrs(nr_xcrs=1)
    xcrs.xcrs[0].value = cpu.xcr0
    return xcrs


def set_xcrs(cpu: CpuLike, xcrs: uapi.KvmXcrs, offered: int = XCR0_SUPPORTED) -> None:
    """Set XCR0; EINVAL for flags, too many, or a value the CPU cannot have. Other registers are ignored.

    ``offered`` is what the guest's CPUID says (leaf 0xD); x87 always is.
    """
    if xcrs.nr_xcrs > uapi.KVM_MAX_XCRS or xcrs.flags:
        raise OSError(errno.EINVAL, f"there are at most {uapi.KVM_MAX_XCRS} extended control registers, without flags")
    for entry in xcrs.xcrs[: xcrs.nr_xcrs]:
        if entry.xcr == 0:
            if not entry.value & XFEATURE_FP or entry.value & ~(XCR0_SUPPORTED & offered | XFEATURE_FP):
                raise OSError(errno.EINVAL, f"XCR0 cannot be {entry.value:#x}")
            cpu.xcr0 = entry.value
            return
