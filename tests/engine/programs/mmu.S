// SPDX-License-Identifier: GPL-2.0-only
// Turns the MMU on with a table at x0 (4 KB granule, 39-bit, TTBR0), then loops: loads [x1] into x5 until it equals x2,
// counting in x6; hypercalls. With x3 set instead: stores x4 at the descriptor address x3 and invalidates [x1] everywhere.
    cbnz x3, remap
    msr ttbr0_el1, x0
    ldr x9, =0x19           // T0SZ 25: 39 bits
    movk x9, #0x2, lsl #32  // IPS 40 bits
    msr tcr_el1, x9
    mov x9, #0xff
    msr mair_el1, x9
    isb
    mrs x9, sctlr_el1
    orr x9, x9, #1
    msr sctlr_el1, x9
    isb
    mov x6, #0
1:  ldr x5, [x1]
    add x6, x6, #1
    cmp x5, x2
    b.ne 1b
    hvc #1
remap:
    str x4, [x3]
    dsb ishst
    lsr x9, x1, #12
    tlbi vaae1is, x9
    dsb ish
    isb
    hvc #2
