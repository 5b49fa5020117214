# SPDX-License-Identifier: GPL-2.0-only
"""Page faults with their error codes and segment limits, as small guests of both backends meet them."""

from __future__ import annotations

import pytest
from x86_guest_board import CODE, Board
from x86_ring_board import ANY_RING, NX, PRESENT, RESERVED, SMALL, USER, WRITE, kernel, page, trap, user

from anykvm.api import Halt
from anykvm.uapi import x86 as X

PAGE = 0xC0000
READ, STORE, FETCH = "mov 0xc0010, %al; hlt", "movb $1, 0xc0010; hlt", "mov $0xc0010, %ecx; jmp *%rcx"
ALL = PRESENT | WRITE | ANY_RING


@pytest.mark.parametrize(
    ("ring", "code", "flags", "error"),
    [
        (0, READ, 0, 0),
        (0, STORE, 0, 2),
        (0, STORE, PRESENT, 3),
        (0, READ, ALL | RESERVED, 9),
        (0, STORE, ALL | RESERVED, 0xB),
        (0, FETCH, 0, 0x10),
        (0, FETCH, ALL | NX, 0x11),
        (3, READ, 0, 4),
        (3, READ, PRESENT | WRITE, 5),
        (3, STORE, 0, 6),
        (3, STORE, PRESENT | ANY_RING, 7),
        (3, "lock incb 0xc0010", PRESENT | ANY_RING, 7),
        (3, FETCH, 0, 0x14),
        (3, FETCH, ALL | NX, 0x15),
    ],
)
def test_page_faults(board: Board, ring: int, code: str, flags: int, error: int) -> None:
    vcpu = kernel(board, code) if ring == 0 else user(board, code)
    page(board, PAGE, flags)
    frame = trap(board, vcpu)
    assert (frame.vector, frame.error, frame.cs & 3) == (X.PF_VECTOR, error, ring)
    assert vcpu.get_sregs().cr2 == 0xC0010
    assert frame.rip == (0xC0010 if code == FETCH else USER if ring else CODE)


def test_without_write_protection_ring_0_may(board: Board) -> None:
    vcpu = kernel(board, STORE)
    page(board, PAGE, PRESENT)
    sregs = vcpu.get_sregs()
    sregs.cr0 &= ~X.X86_CR0_WP
    vcpu.set_sregs(sregs)
    board.until(vcpu, Halt)
    assert board.memory.read(PAGE + 0x10, 1) == b"\1"


def test_after_its_page_came_the_access_is_made_again(board: Board) -> None:
    vcpu = user(board, "movb $7, 0xc0010; mov 0xc0010, %bl; ud2")
    page(board, PAGE, 0)
    assert trap(board, vcpu).vector == X.PF_VECTOR
    page(board, PAGE, ALL)
    assert trap(board, vcpu).vector == X.UD_VECTOR
    assert vcpu.get_regs().rbx & 0xFF == 7


@pytest.mark.parametrize(
    ("register", "offset", "vector"),
    [
        ("ds", 0xFFF, None),
        ("ds", 0x1000, X.GP_VECTOR),
        ("ss", 0xFFF, None),
        ("ss", 0x1000, X.SS_VECTOR),
        ("es", 0xFFFFFFFF, X.GP_VECTOR),
    ],
)
def test_segment_limits_in_compatibility_mode(board: Board, register: str, offset: int, vector: int | None) -> None:
    code = f"mov ${SMALL}, %eax; mov %eax, %{register}; 1: movb $1, %{register}:{offset}; ud2"
    vcpu = user(board, code, bits=32)
    frame = trap(board, vcpu)
    if vector is None:
        assert (frame.vector, board.memory.read(PAGE + offset, 1)) == (X.UD_VECTOR, b"\1")
    else:
        assert (frame.vector, frame.error) == (vector, 0)
