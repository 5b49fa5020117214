# SPDX-License-Identifier: GPL-2.0-only
"""Guests of a few instructions in real mode, by name. They are loaded at 0x1000, CS:IP is 0:0x1000, and all end soon.

The first 256 KiB are memory, what is above is a device's.
"""

from __future__ import annotations

ENTRY = 0x1000
VECTORS = "00050000" * 256
"""Real mode's interrupt table: all vectors go to the handler."""
HANDLER = 0x500
HANDLER_CODE = "e6eff4ebfd"  # out 0xef,al; hlt, for ever
MEMORY = 0x40000

GUESTS: dict[str, str] = {
    "halt": "f4",
    "out": "b041 e6e9 f4",  # mov al,'A'; out 0xe9,al; hlt
    "out word": "b83412 e780 f4",  # mov ax,0x1234; out 0x80,ax; hlt
    "out dword": "66b878563412 ba0010 66ef f4",  # mov eax,0x12345678; mov dx,0x1000; out dx,eax; hlt
    "in": "e460 e6e9 f4",  # in al,0x60; out 0xe9,al; hlt
    "in word": "ba0010 ed e780 f4",  # mov dx,0x1000; in ax,dx; out 0x80,ax; hlt
    "string out": "be0010 b90400 bae900 fc f36e f4",  # si=0x1000; cx=4; dx=0xe9; cld; rep outsb; hlt
    "string in": "bf0020 b90300 bae900 fc f36c f4",  # di=0x2000; cx=3; dx=0xe9; cld; rep insb; hlt
    "mmio write": "b80080 8ed8 b05a a21000 f4",  # ds=0x8000; al=0x5a; mov [0x10],al; hlt
    "mmio write word": "b80080 8ed8 a32000 f4",
    "mmio read": "b80080 8ed8 a01000 e6e9 f4",
    "mmio read word": "b80080 8ed8 a11200 e7e9 f4",
    "mmio add": "b80080 8ed8 80061000 05 f4",  # add byte [0x10],5: a read, then a write
    "write memory": "b80020 8ed8 c60600 0077 f4",  # ds=0x2000; mov byte [0],0x77; hlt
    "rdmsr": "66b990000040 0f32 e7e9 f4",  # an MSR that is none; rdmsr; out; hlt
    "wrmsr": "66b990000040 66b801000000 66ba00000000 0f30 f4",
    "rdmsr tsc": "66b910000000 0f32 31c0 66 31c0 6631d2 f4",
    "rdmsr efer": "66b9800000c0 0f32 e780 f4",
    "interrupts": "fb 90 f4",  # sti; nop; hlt
    "no interrupts": "fa f4",
    "software interrupt": "cd20 f4",  # int 0x20, which is at 0:0x80
    "ud2": "0f0b f4",
    "divide": "b000 b100 f6f1 f4",
    "cpuid": "66b800000040 0fa2 66 0fb6c3 e6e9 f4",
    "read cr0": "0f20c0 e780 f4",
    "call": "bc0080 e80200 f4 90 c3",
    "loop": "b90500 e2fe f4",  # mov cx,5; loop itself; hlt
    "for ever": "ebfe",
    "two": "b001 e6e9 b002 e6ea f4",
    "pushf": "bc0080 fb 9c 58 e780 f4",
}


def code(name: str) -> str:
    """The guest's bytes, as hex: after the last HLT comes another."""
    return GUESTS[name].replace(" ", "") + "ebfd"
