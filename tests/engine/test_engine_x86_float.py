# SPDX-License-Identifier: GPL-2.0-only
"""x87 and SSE: known answers, rounding, saved images."""

from __future__ import annotations

import struct

import pytest
from x86_board import (
    DATA,
    RAX,
    RCX,
    RDX,
)


def test_fxsave_round_trip_through_guest_and_host(x86):
    b = x86(f"fxrstor64 {DATA}; fxsave64 {DATA + 0x400}; hlt")
    image = bytearray(512)
    struct.pack_into("<HHBxHQQII", image, 0, 0x27F, 0x1800, 0xF8, 0, 0, 0, 0x1FA0, 0xFFFF)
    for n in range(8):
        image[32 + 16 * n : 42 + 16 * n] = bytes(range(n, n + 8)) + struct.pack("<H", 0x3FFF + n)
    for n in range(16):
        image[160 + 16 * n : 176 + 16 * n] = bytes([n * 16 + k for k in range(16)])
    b.ram[DATA : DATA + 512] = bytes(image)
    c = b.long()
    b.end(c)
    saved = bytes(b.ram[DATA + 0x400 : DATA + 0x600])
    assert saved[160:416] == image[160:416]
    assert saved[32:160] == image[32:160]
    assert saved[:5] == image[:5]
    assert saved[24:28] == image[24:28]
    got = c.get_fx()
    assert (got[:5], got[32:416], got[24:28]) == (saved[:5], saved[32:416], saved[24:28])
    other = b.long()
    other.set_fx(bytes(image))
    assert other.get_fx()[:5] == image[:5]
    assert other.get_fx()[32:416] == image[32:416]
    with pytest.raises(ValueError, match="512"):
        other.set_fx(b"short")


def test_the_fx_image_of_the_host_is_what_the_guest_has(x86):
    b = x86(f"fldl {DATA}; fxsave64 {DATA + 0x400}; fstpl {DATA + 8}; hlt")
    b.ram[DATA : DATA + 8] = struct.pack("<d", 1.5)
    c = b.long()
    c.set_fx(struct.pack("<HHB", 0x37F, 0, 0).ljust(24, b"\0") + struct.pack("<I", 0x1F80) + bytes(484))
    b.end(c)
    saved = b.ram[DATA + 0x400 : DATA + 0x600]
    assert struct.unpack_from("<HHB", saved) == (0x37F, 0x3800, 0x80)  # one register in use, at 7
    assert saved[32:42] == bytes(7) + b"\xc0\xff\x3f"
    assert struct.unpack("<d", b.ram[DATA + 8 : DATA + 16]) == (1.5,)


X87 = {
    "fldpi": 3.141592653589793,
    "fldl2e": 1.4426950408889634,
    "fld1; fadd %st(0); fsqrt": 1.4142135623730951,
    "fld1; fldz; fsubrp": -1.0,
    "fldpi; fsin": 1.2246467991473515e-16,
    "fld1; fld1; fpatan": 0.7853981633974483,
    "fldpi; frndint": 3.0,
    "fld1; fchs; fabs": 1.0,
    "fldl2t; fld1; fyl2x": 0.0,
    "fldpi; fldl2e; fdivrp": 2.177586090303602,
}


@pytest.mark.parametrize("code", X87)
def test_x87_known_answers(x86, code):
    b = x86(f"fninit; {code}; fstpl {DATA}; hlt")
    b.end(b.long())
    (value,) = struct.unpack("<d", b.ram[DATA : DATA + 8])
    want = X87[code]
    if code == "fldpi; fsin":
        assert abs(value) < 1e-15
    elif code.endswith("fdivrp"):
        assert value in (want, pytest.approx(1 / want))  # assemblers disagree on its name
    elif code.endswith("fsubrp"):
        assert abs(value) == 1.0
    else:
        assert value == want


SSE = {
    # code: xmm0 doubles/ints after, from xmm0=(2.0, 9.0), xmm1=(0.5, 3.0)
    "addpd %xmm1,%xmm0": (2.5, 12.0),
    "subpd %xmm1,%xmm0": (1.5, 6.0),
    "mulsd %xmm1,%xmm0": (1.0, 9.0),
    "divpd %xmm1,%xmm0": (4.0, 3.0),
    "sqrtpd %xmm0,%xmm0": (1.4142135623730951, 3.0),
    "maxpd %xmm1,%xmm0": (2.0, 9.0),
    "minpd %xmm1,%xmm0": (0.5, 3.0),
    "unpcklpd %xmm1,%xmm0": (2.0, 0.5),
    "shufpd $1,%xmm1,%xmm0": (9.0, 0.5),
    "haddpd %xmm1,%xmm0": (11.0, 3.5),
    "roundpd $1,%xmm1,%xmm0": (0.0, 3.0),
}


@pytest.mark.parametrize("code", SSE)
def test_sse_known_answers(x86, code):
    b = x86(f"movupd {DATA},%xmm0; movupd {DATA + 16},%xmm1; {code}; movupd %xmm0,{DATA + 32}; hlt")
    b.ram[DATA : DATA + 32] = struct.pack("<4d", 2.0, 9.0, 0.5, 3.0)
    b.end(b.long())
    assert struct.unpack("<2d", b.ram[DATA + 32 : DATA + 48]) == SSE[code]


SSE_INT = {
    "paddd %xmm1,%xmm0": (5, 0, 0xFFFFFFFF, 0x80000001),
    "pmuludq %xmm1,%xmm0": (4, 0, 0x7FFFFFFF, 0),
    "pshufd $0x1b,%xmm0,%xmm0": (0x80000000, 0x7FFFFFFF, 0xFFFFFFFF, 1),
    "psrldq $4,%xmm0": (0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0),
    "pxor %xmm0,%xmm0": (0, 0, 0, 0),
}


@pytest.mark.parametrize("code", SSE_INT)
def test_sse_integer_known_answers(x86, code):
    b = x86(f"movdqu {DATA},%xmm0; movdqu {DATA + 16},%xmm1; {code}; movdqu %xmm0,{DATA + 32}; hlt")
    b.ram[DATA : DATA + 32] = struct.pack("<8I", 1, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 4, 1, 0x80000000, 1)
    if code.startswith("pmuludq"):
        b.set_word(DATA + 24, 1, 4)
    b.end(b.long())
    got = struct.unpack("<4I", b.ram[DATA + 32 : DATA + 48])
    assert got == SSE_INT[code]


def test_rounding_follows_mxcsr_and_the_control_word(x86):
    b = x86(
        f"""
        movsd {DATA},%xmm0; ldmxcsr {DATA + 16}; cvtsd2si %xmm0,%eax
        fldcw {DATA + 20}; fldl {DATA}; fistpl {DATA + 24}; hlt
        """
    )
    for mode, want in ((0, 2), (1, 2), (2, 3), (3, 2)):
        b.ram[DATA : DATA + 8] = struct.pack("<d", 2.5)
        b.set_word(DATA + 16, 0x1F80 | mode << 13, 4)
        b.set_word(DATA + 20, 0x37F | mode << 10, 2)
        c = b.long()
        b.end(c)
        assert (c.gpr[RAX], b.word(DATA + 24, 4)) == (want, want)
    # And when the host sets the control words.
    c = b.long(rip=0x1000)
    b.load("cvtsd2si %xmm0,%eax; fistpl 0x100018; hlt", at=0x7000)
    image = bytearray(c.get_fx())
    struct.pack_into("<HHB", image, 0, 0x37F | 2 << 10, 0x3800, 0x80)
    struct.pack_into("<I", image, 24, 0x1F80 | 2 << 13)
    image[32:42] = (0xA000000000000000).to_bytes(8, "little") + (0x4000).to_bytes(2, "little")
    image[160:168] = struct.pack("<d", 2.5)
    c.set_fx(bytes(image))
    c.rip = 0x7000
    b.end(c)
    assert (c.gpr[RAX], b.word(DATA + 24, 4)) == (3, 3)


def test_sse_sets_sticky_flags(x86):
    b = x86(f"xorps %xmm0,%xmm0; mov $1,%eax; cvtsi2ss %eax,%xmm1; divss %xmm0,%xmm1; stmxcsr {DATA}; hlt")
    c = b.long()
    b.end(c)
    assert b.word(DATA, 4) & 0x3F == 4
    assert struct.unpack_from("<I", c.get_fx(), 24)[0] & 0x3F == 4


def test_sticky_flags_are_saved_restored_and_cleared(x86):
    b = x86(
        f"""
        mov $1,%eax; cvtsi2ss %eax,%xmm0; mov $3,%eax; cvtsi2ss %eax,%xmm1; divss %xmm1,%xmm0; fxsave {DATA}
        movl $0x1f80,{DATA + 512}; ldmxcsr {DATA + 512}; stmxcsr {DATA + 516}
        addss %xmm1,%xmm1; stmxcsr {DATA + 520}
        divss %xmm0,%xmm1; divss %xmm1,%xmm0; fxrstor {DATA}; stmxcsr {DATA + 524}
        hlt
        """
    )
    b.end(b.long())
    assert [b.word(DATA + at, 4) for at in (24, 516, 520, 524)] == [0x1FA0, 0x1F80, 0x1F80, 0x1FA0]


def test_flush_to_zero(x86):
    b = x86(
        f"""
        mov $0x00800000,%eax; movd %eax,%xmm0; movd %eax,%xmm2; mov $2,%eax; cvtsi2ss %eax,%xmm1; divss %xmm1,%xmm0
        movl $0x9f80,{DATA}; ldmxcsr {DATA}; divss %xmm1,%xmm2; movd %xmm0,%ecx; movd %xmm2,%edx; hlt
        """
    )
    c = b.long()
    b.end(c)
    assert (c.gpr[RCX], c.gpr[RDX]) == (0x00400000, 0)


def test_bit_manipulation_and_crc(x86):
    b = x86("popcnt %rbx,%rax; tzcnt %rbx,%rcx; lzcnt %rbx,%rdx; xor %esi,%esi; crc32q %rbx,%rsi; hlt")
    c = b.long(rbx=0x00F0_0000_0000_0100)
    b.end(c)
    assert (c.gpr[RAX], c.gpr[RCX], c.gpr[6]) == (5, 8, c.gpr[6])
    assert c.gpr[RDX] in (8, 55)  # LZCNT, or BSR on a CPU without it
    assert c.gpr[6] >> 32 == 0
