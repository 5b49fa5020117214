// SPDX-License-Identifier: GPL-2.0-only
// Adds 1 to [x0] x1 times: x2 = 0 by load/store exclusive, 1 by a plain load, add and store of two words in one block.
    cbnz x2, plain
atomic:
    ldxr x3, [x0]
    add x3, x3, #1
    stxr w4, x3, [x0]
    cbnz w4, atomic
    subs x1, x1, #1
    b.ne atomic
    hvc #1
plain:
    ldr x3, [x0]
    add x3, x3, #1
    str x3, [x0]
    ldr x5, [x0, #8]
    add x5, x5, #3
    str x5, [x0, #8]
    subs x1, x1, #1
    b.ne plain
    hvc #2
    .balign 4096
    .global device              // +0x1000: an exclusive pair on a device
device:
    ldxr x3, [x0]
    add x3, x3, #1
    stxr w4, x3, [x0]
    hvc #3
